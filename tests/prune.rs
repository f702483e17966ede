//! A pruned directory is the model without those blocks: same logits, same bytes every time, nothing left when it fails.

mod support;

use assert_cmd::Command;
use ratoon::device::{DType, Device, Tensor};
use ratoon::model::{Batch, Llama, Tokenizer, Workspace};
use ratoon::ops::matmul::{Store, matmul_nt};
use ratoon::output::OutputLock;
use ratoon::prune::{Plan, prune};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn ratoon() -> Command {
    Command::cargo_bin("ratoon").unwrap()
}

fn logits(model: &Llama) -> Vec<u32> {
    let ids: Vec<u32> = (0..23).map(|i| (i * 41 % model.config.vocab_size) as u32).collect();
    let (dev, batch) = (Device::cpu(), Batch::pack(&[ids]));
    let mut ws = Workspace::new(&dev, &model.config, batch.tokens()).unwrap();
    model.forward(&dev, &batch, &mut ws, &mut |_, _| Ok(())).unwrap();
    let mut logits = Tensor::zeros(&[batch.tokens(), model.config.vocab_size], DType::F32);
    matmul_nt(&dev, &mut logits, &ws.hidden, model.head(), None, Store::Replace).unwrap();
    logits.f32().iter().map(|l| l.to_bits()).collect()
}

/// Every file of a directory with its bytes.
fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entry = |e: std::io::Result<std::fs::DirEntry>| {
        let e = e.unwrap();
        (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap())
    };
    std::fs::read_dir(dir).unwrap().map(entry).collect()
}

/// What a directory shows besides the hidden lock file.
fn entries(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    names.filter(|name| !name.ends_with(".lock")).collect()
}

#[test]
fn a_pruned_directory_has_the_logits_of_the_model_without_those_blocks() {
    let out = tempfile::tempdir().unwrap();
    for name in ["biases", "gqa", "linear_rope", "llama3_rope", "mha_tied", "mqa_head_dim", "odd_sizes"] {
        let dir = data("tiny").join(name);
        let model = Llama::load(&dir).unwrap();
        let layers = model.blocks.len();
        for drop in [vec![0], vec![layers - 1], vec![1], (0..layers).step_by(2).collect(), (1..layers).collect()] {
            let target = out.path().join(name);
            let plan = Plan::new(&drop, layers, "--drop").unwrap();
            let report = prune(&dir, &plan, &target, true).unwrap();
            let cut = Llama::load(&target).unwrap();
            assert_eq!(logits(&cut), logits(&model.without_blocks(&drop)), "{name} without {drop:?}");
            assert_eq!(report.parameters[1], cut.config.parameters());
            assert_eq!(json(&target.join("config.json"))["num_hidden_layers"], layers - drop.len());
            let provenance = json(&target.join("ratoon_prune.json"));
            assert_eq!(provenance["blocks_cut"], serde_json::json!(drop));
            let again = out.path().join("again");
            let yaml = Plan::from_mergekit(&target.join("mergekit.yml"), &model.config).unwrap();
            assert_eq!(yaml.dropped(), plan.dropped());
            prune(&dir, &yaml, &again, true).unwrap();
            assert_eq!(contents(&target), contents(&again), "the written configuration makes the same cut");
        }
    }
}

#[test]
fn the_cut_real_model_has_pytorch_s_perplexity() {
    let source = support::smollm2();
    let out = tempfile::tempdir().unwrap();
    let target = out.path().join("cut");
    let reference = json(&data("prune.json"));
    let result = reference["result"].as_array().unwrap().iter().find(|r| r["n"] == 6).unwrap();
    let start = result["start_last"].as_u64().unwrap();
    let report = ratoon()
        .args(["prune", "--json", "--quiet", "--drop", &format!("{start}-{}", start + 5), "-o"])
        .args([&target, &source])
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&report.stdout).unwrap();
    assert!(peak_memory_of_children() < 100 << 20, "269 MB were cut, the kept ones never in memory");
    assert_eq!(report["parameters"], serde_json::json!([134_515_008, 134_515_008 - 6 * 3_540_096]));

    let perplexity = json(&data("perplexity.json"));
    let texts = perplexity["text"].as_array().unwrap().iter();
    let texts: Vec<String> =
        texts.map(|name| std::fs::read_to_string(data("text").join(name.as_str().unwrap())).unwrap()).collect();
    let mut ids = Tokenizer::load(&target).unwrap().encode(&texts.join("\n\n"), true).unwrap();
    ids.truncate(20_480);
    let (dev, model) = (Device::cpu(), Llama::load(&target).unwrap());
    let mut ws = Workspace::new(&dev, &model.config, 1024).unwrap();
    let mut nll = 0.0f64;
    for window in ids.chunks(1024) {
        let log_probs = model.next_token_log_probs(&dev, &Batch::pack(&[window]), &mut ws).unwrap();
        nll -= log_probs.iter().map(|&p| f64::from(p)).sum::<f64>();
    }
    let (got, want) = ((nll / 20_460.0).exp(), result["ppl_last"].as_f64().unwrap());
    assert!((got / want - 1.0).abs() < 1e-3, "{got} against {want}");
}

#[test]
fn bad_cuts_end_with_2_and_one_line_and_leave_nothing() {
    let out = tempfile::tempdir().unwrap();
    for spec in ["", "3-1", "2-9", "1,1", "0-3", "x", "0-2,1", "-1"] {
        let run = ratoon()
            .args(["prune", "-q", &format!("--drop={spec}"), "-o"])
            .args([&out.path().join("cut"), &data("tiny/gqa")])
            .assert()
            .code(2);
        let stderr = String::from_utf8(run.get_output().stderr.clone()).unwrap();
        assert!(stderr.starts_with("error: --drop: expected") && stderr.lines().count() == 1, "{spec:?}: {stderr}");
        assert!(entries(out.path()).is_empty());
    }
}

#[test]
fn an_existing_output_and_the_source_itself_are_safe() {
    let out = tempfile::tempdir().unwrap();
    let source = out.path().join("model");
    prune(&data("tiny/gqa"), &Plan::new(&[1], 4, "--drop").unwrap(), &source, false).unwrap();
    let before = contents(&source);
    let plan = Plan::new(&[0], 3, "--drop").unwrap();
    for (target, overwrite) in [(source.clone(), false), (source.clone(), true), (out.path().to_path_buf(), true)] {
        assert_eq!(prune(&source, &plan, &target, overwrite).unwrap_err().exit_code(), 2);
        assert_eq!(contents(&source), before);
    }
    let wrong = Plan::new(&[0], 4, "--drop").unwrap();
    assert_eq!(prune(&source, &wrong, &out.path().join("x"), false).unwrap_err().exit_code(), 2);
    // The history of a model that is cut twice is kept.
    let twice = out.path().join("twice");
    prune(&source, &plan, &twice, false).unwrap();
    assert_eq!(json(&twice.join("ratoon_prune.json"))["source"]["ratoon_prune"]["blocks_cut"], serde_json::json!([1]));
}

#[test]
fn a_second_writer_is_told_so() {
    let out = tempfile::tempdir().unwrap();
    let target = out.path().join("cut");
    let lock = OutputLock::acquire(&target).unwrap();
    let mut command = ratoon();
    command.args(["prune", "-q", "--drop", "1", "-o"]).args([&target, &data("tiny/gqa")]);
    command.assert().code(6);
    assert!(!target.exists());
    drop(lock);
    command.assert().success();
}

/// Runs `prune` through a shell that first does `setup`. Returns exit code and stderr.
fn prune_after(setup: &str, source: &Path, target: &Path) -> (Option<i32>, String) {
    let program = assert_cmd::cargo::cargo_bin("ratoon");
    let script = format!("{setup}; exec \"$0\" prune -q --drop 1 -o \"$1\" \"$2\"");
    let run = std::process::Command::new("sh")
        .args(["-c", &script])
        .args([&program, target, source])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    (run.status.code(), String::from_utf8_lossy(&run.stderr).into_owned())
}

#[test]
fn a_limit_on_file_sizes_is_named_and_leaves_nothing() {
    let out = tempfile::tempdir().unwrap();
    let (code, stderr) = prune_after("ulimit -f 16", &data("tiny/mha_tied"), &out.path().join("cut"));
    assert_eq!(code, Some(4), "{stderr}");
    assert!(
        stderr.contains("model.safetensors: cannot write: File too large") && stderr.lines().count() == 1,
        "{stderr}"
    );
    assert!(entries(out.path()).is_empty());
}

#[test]
fn a_place_that_cannot_be_written_is_named() {
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("file");
    std::fs::write(&file, "").unwrap();
    let (code, stderr) = prune_after(":", &data("tiny/gqa"), &file.join("cut"));
    assert_eq!(code, Some(4), "{stderr}");
    assert!(stderr.contains("file") && stderr.lines().count() == 1, "{stderr}");
    assert_eq!(entries(out.path()), ["file"]);
}

/// Largest resident set of any finished child, in bytes.
fn peak_memory_of_children() -> u64 {
    // SAFETY: `rusage` is plain integers, for which zeros are valid, and the call fills it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &mut usage);
        usage
    };
    usage.ru_maxrss as u64 * 1024
}
