//! `--adapter DIR`: every verb that runs a model runs it with a PEFT adapter beside its weights, as peft does.

mod support;

use assert_cmd::Command;
use ratoon::device::{DType, Device, Tensor};
use ratoon::eval::perplexity;
use ratoon::generate::Runtime;
use ratoon::model::{Batch, Llama, Workspace};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(path)
}

fn ratoon(arguments: &[&str]) -> Command {
    let mut run = Command::new(assert_cmd::cargo::cargo_bin!("ratoon"));
    run.args(arguments).arg("-q");
    run
}

fn json_of(arguments: &[&str]) -> Value {
    let done = ratoon(arguments).arg("--json").assert().success();
    serde_json::from_slice(&done.get_output().stdout).unwrap()
}

/// The base of the reference adapter with a tokenizer of bytes, and a text of 600 bytes.
struct Setup {
    dir: TempDir,
    model: String,
    adapter: String,
    text: String,
}

fn setup() -> Setup {
    let dir = tempfile::tempdir().unwrap();
    support::tiny_model_with_tokenizer(&dir.path().join("model"));
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let (model, text) = (at("model"), at("text.txt"));
    std::fs::write(&text, "A ratoon is the new crop that grows from the stubble. ".repeat(12)).unwrap();
    Setup { model, adapter: data("lora").to_str().unwrap().to_string(), text, dir }
}

/// `last_logits` of peft, and the ids before them.
fn reference() -> Vec<(Vec<u32>, Vec<f64>)> {
    let expected: Value = serde_json::from_slice(&std::fs::read(data("lora/expected.json")).unwrap()).unwrap();
    let ids: Vec<Vec<u32>> = serde_json::from_value(expected["ids"].clone()).unwrap();
    let logits: Vec<Vec<f64>> = serde_json::from_value(expected["last_logits"].clone()).unwrap();
    ids.into_iter().zip(logits).collect()
}

#[test]
fn logits_are_those_of_peft() {
    let (dev, model) = (Device::cpu(), Llama::load_adapted(&data("tiny/gqa"), Some(&data("lora"))).unwrap());
    for (ids, want) in reference() {
        let mut ws = Workspace::new(&dev, &model.config, ids.len()).unwrap();
        let (width, last) = (model.config.hidden_size, ids.len() - 1);
        model.forward(&dev, &Batch::pack(&[ids]), &mut ws, &mut |_, _| Ok(())).unwrap();
        let hidden = Tensor::from_f32(&ws.hidden.f32()[last * width..], &[1, width]);
        let mut logits = Tensor::zeros(&[1, want.len()], DType::F32);
        model.logits(&dev, &mut logits, &hidden).unwrap();
        for (got, want) in logits.f32().iter().zip(want) {
            assert!((f64::from(*got) - want).abs() < 2e-4, "{got} against {want}");
        }
    }
}

#[test]
fn generate_draws_the_tokens_that_peft_finds_likeliest() {
    let setup = setup();
    let (input, output) = (setup.dir.path().join("in.jsonl"), setup.dir.path().join("out.jsonl"));
    let reference = reference();
    let rows = reference.iter().map(|(ids, _)| json!({"prompt": ids}).to_string() + "\n");
    std::fs::write(&input, rows.collect::<String>()).unwrap();
    let files = ["--input", input.to_str().unwrap(), "-o", output.to_str().unwrap()];
    let arguments =
        [&["generate", &setup.model, "--max-tokens", "1", "--logprobs", "--compute", "f32"], &files[..]].concat();
    ratoon(&[&arguments[..], &["--adapter", &setup.adapter]].concat()).assert().success();
    let lines = std::fs::read_to_string(&output).unwrap();
    for (line, (_, logits)) in lines.lines().zip(&reference) {
        let line: Value = serde_json::from_str(line).unwrap();
        let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
        let sum = logits.iter().map(|l| (l - logits[best]).exp()).sum::<f64>();
        assert_eq!(line["token_ids"][0].as_u64().unwrap() as usize, best, "{line}");
        assert!((line["logprobs"][0].as_f64().unwrap() + sum.ln()).abs() < 2e-4, "{line}, expected {}", -sum.ln());
    }
    assert_eq!(lines.lines().count(), reference.len());
    // The output belongs to this adapter: the same command without it is told what differs.
    let without = ratoon(&arguments).assert().code(2);
    assert!(String::from_utf8_lossy(&without.get_output().stderr).contains("setting adapter"));
}

#[test]
fn eval_and_score_run_the_adapted_model() {
    let Setup { model, adapter, text, dir } = setup();
    let runtime = Runtime::load_adapted(&Device::cpu(), Path::new(&model), Some(Path::new(&adapter))).unwrap();
    let ids = runtime.tokenizer.encode(&std::fs::read_to_string(&text).unwrap(), true).unwrap();
    let adapted = perplexity(&Device::cpu(), &runtime.model, &ids, 64).unwrap().perplexity;
    let eval = ["eval", &model, "--perplexity", &text, "--window", "64", "--base", &model, "--own-text-prompts", "0"];
    let report = json_of(&[&eval[..], &["--adapter", &adapter]].concat());
    assert_eq!(report["perplexity"]["perplexity"], json!(adapted));
    assert!((report["base_perplexity"]["perplexity"].as_f64().unwrap() / adapted - 1.0).abs() > 1e-3);
    assert!(
        report["divergence"]["kl"].as_f64().unwrap() > 1e-3,
        "the adapter is beside the model, not beside its base"
    );

    let csv = dir.path().join("scores.csv");
    let score = ["score", &model, "--data", &text, "--sample-tokens", "64", "--block-size", "1", "-o"];
    let score = [&score[..], &[csv.to_str().unwrap()]].concat();
    let (plain, with) = (json_of(&score), json_of(&[&score[..], &["--adapter", &adapter]].concat()));
    assert_ne!(plain["rows"], with["rows"]);
    for metric in ["magnitude", "taylor"] {
        let refused = ratoon(&[&score[..], &["--adapter", &adapter, "--metric", metric]].concat()).assert().code(2);
        let stderr = String::from_utf8_lossy(&refused.get_output().stderr).into_owned();
        assert!(stderr.contains("merge") && stderr.lines().count() == 1, "{stderr}");
    }
}

#[test]
fn bench_distill_and_inspect_take_it() {
    let Setup { model, adapter, dir, .. } = setup();
    let bench = ["bench", &model, "-p", "16", "-n", "0", "-r", "1"];
    let (plain, with) = (json_of(&bench), json_of(&[&bench[..], &["--adapter", &adapter]].concat()));
    // Rank 4 on all projections of 4 blocks: q 64 x 64, k and v 32 x 64, o 64 x 64, gate and up 160 x 64, down 64 x 160.
    let factors = 4 * 4 * (2 * (64 + 64) + 2 * (32 + 64) + 3 * (160 + 64));
    assert_eq!(with[0]["model_n_params"], json!(plain[0]["model_n_params"].as_u64().unwrap() + factors));
    assert!(with[0]["model_type"].as_str().unwrap().ends_with("+ LoRA r=4"));
    let flops = |rows: &Value| rows[0]["flops_per_token"].as_f64().unwrap();
    // Two FLOPs a parameter, and the scale of the 4 numbers between A and B in each of 28 places.
    assert!((flops(&with) - flops(&plain) - (2 * factors + 4 * 28) as f64).abs() < 1e-6);

    let report = json_of(&["inspect", &model, "--adapter", &adapter]);
    assert_eq!((&report["adapter"]["parameters"], &report["adapter"]["scale"]), (&json!(factors), &json!(2.0)));

    let data = dir.path().join("data.jsonl");
    std::fs::write(&data, "{\"prompt\": \"1 and 1\", \"completion\": \"2\"}\n").unwrap();
    let distil = ["distill", &model, "--data", data.to_str().unwrap(), "--template", "general", "--max-tokens", "4"];
    let out = dir.path().join("distilled.jsonl");
    json_of(&[&distil[..], &["--adapter", &adapter, "-o", out.to_str().unwrap()]].concat());
    let manifest = std::fs::read(dir.path().join("distilled.jsonl.manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    assert!(manifest["settings"]["adapter"]["adapter_model.safetensors"].is_object());
}

#[test]
fn what_does_not_fit_the_model_is_named() {
    let Setup { model, adapter, text, dir } = setup();
    let fails = |model: &str, adapter: &str, parts: &[&str]| {
        let run = ratoon(&["eval", model, "--perplexity", &text, "--window", "64", "--adapter", adapter]).assert();
        let stderr = String::from_utf8_lossy(&run.get_output().stderr).into_owned();
        assert!(parts.iter().all(|part| stderr.contains(part)) && stderr.lines().count() == 1, "{stderr}");
        assert!([3, 4].contains(&run.get_output().status.code().unwrap()), "{stderr}");
    };
    // A model that lost a block, one of another width, a directory without an adapter, blocks beyond the model's.
    let cut = dir.path().join("cut").to_str().unwrap().to_string();
    ratoon(&["prune", &model, "--drop", "1", "-o", &cut]).assert().success();
    fails(&cut, &adapter, &["adapter_model.safetensors", "model.layers.3.", "3 blocks"]);
    let wide = dir.path().join("wide").to_str().unwrap().to_string();
    ratoon(&["init", "--preset", "smollm2-135m", "--layers", "4", "-o", &wide]).assert().success();
    fails(&wide, &adapter, &["adapter_model.safetensors", "layers.0.self_attn.q_proj.lora_A", "[4, 576]", "[4, 64]"]);
    fails(&model, &model, &["adapter_config.json"]);
    let beyond = dir.path().join("beyond");
    std::fs::create_dir(&beyond).unwrap();
    let mut config: Value = serde_json::from_slice(&std::fs::read(data("lora/adapter_config.json")).unwrap()).unwrap();
    config["layers_to_transform"] = json!([0, 9]);
    std::fs::write(beyond.join("adapter_config.json"), config.to_string()).unwrap();
    std::fs::copy(data("lora/adapter_model.safetensors"), beyond.join("adapter_model.safetensors")).unwrap();
    fails(&model, beyond.to_str().unwrap(), &["adapter_config.json", "layers_to_transform", "below 4", "found 9"]);
}
