//! `ratoon run`: the chain ends in a report, does nothing twice, redoes what a changed setting concerns, and a killed run goes on
//! to the bytes of an unbroken one.

mod support;

use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const STAGES: [&str; 10] = [
    "score",
    "prune",
    "distil",
    "finetune-sft",
    "finetune-self-distilled",
    "eval-base",
    "eval-cut",
    "eval-sft",
    "eval-self-distilled",
    "bench",
];

const RECIPE: &str = r#"title = "Tiny, 2 of 4 blocks cut"
model = "model"
output = "out"
seed = 5

[score]
data = "calibration.txt"
block-size = [1, 2]
samples = 4
sample-tokens = 64

[prune]
block-size = 2

[distill]
data = "train.jsonl"
template = "short.toml"
max-tokens = 24
max-batch-size = 4

[finetune]
lora-r = 2
learning-rate = 1e-3
max-steps = 24
per-device-train-batch-size = 2
max-length = 256
save-steps = 3

[eval]
perplexity = "heldout.txt"
window = 64
limit-tokens = 512
seq-len = 64
tasks = ["task.toml"]
"#;

/// A model of 4 blocks with everything that [`RECIPE`] reads, in `dir`.
fn setup(dir: &Path) {
    support::tiny_model_with_tokenizer(&dir.join("model"));
    let write = |name: &str, text: &str| std::fs::write(dir.join(name), text).unwrap();
    let prose = |from: usize| {
        (from..from + 60).map(|i| format!("Line {i} of the book, page {}. ", i * i % 97)).collect::<String>()
    };
    write("calibration.txt", &prose(0));
    write("heldout.txt", &prose(1000));
    let rows = (0..8).map(|i| format!("{{\"question\":\"What is {i} + 2?\",\"answer\":\"It is\\n#### {}\"}}\n", i + 2));
    write("train.jsonl", &rows.collect::<String>());
    write("short.toml", "system = '{{ system }}'\nuser = 'Q: {{ instruction }} A: {{ reference }}'\n");
    let items =
        (0..6).map(|i| format!("{{\"question\":\"{i}:\",\"choices\":[\"a\",\"b\",\"c\"],\"answer\":{}}}\n", i % 3));
    write("task.jsonl", &items.collect::<String>());
    write(
        "task.toml",
        "name = \"letters\"\nkind = \"multiple_choice\"\nprompt = \"{{ question }}\"\nchoices = \"choices\"\ngold = \"answer\"\n",
    );
    write("recipe.toml", RECIPE);
}

fn command(dir: &Path, output: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ratoon"));
    command.current_dir(dir).args(["run", "recipe.toml", "-o", output]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(dir: &Path, output: &str) -> Output {
    let done = command(dir, output).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    done
}

/// The recipe with one line changed.
fn change(dir: &Path, from: &str, to: &str) {
    assert!(RECIPE.contains(from));
    std::fs::write(dir.join("recipe.toml"), RECIPE.replace(from, to)).unwrap();
}

/// Bytes of every stage's stamp; each holds its stage's seconds, so that a stage done again has other bytes.
fn stamps(output: &Path) -> BTreeMap<&'static str, Vec<u8>> {
    STAGES.iter().map(|&name| (name, std::fs::read(output.join(format!("stage-{name}.json"))).unwrap())).collect()
}

/// Stages whose stamp differs.
fn redone(before: &BTreeMap<&'static str, Vec<u8>>, after: &BTreeMap<&'static str, Vec<u8>>) -> Vec<&'static str> {
    STAGES.into_iter().filter(|name| before[name] != after[name]).collect()
}

/// Bytes of everything that the run makes besides times.
fn results(output: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for name in ["scores.csv", "scores.svg", "distilled.jsonl"] {
        files.insert(name.to_string(), std::fs::read(output.join(name)).unwrap());
    }
    for dir in ["cut", "sft", "self-distilled"] {
        for entry in std::fs::read_dir(output.join(dir)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "safetensors") {
                let name = format!("{dir}/{}", path.file_name().unwrap().to_string_lossy());
                files.insert(name, std::fs::read(path).unwrap());
            }
        }
    }
    assert!(files.len() >= 6, "{:?}", files.keys());
    files
}

/// What is in `dir` under a hidden name other than a lock's.
fn left_over(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            found.extend(left_over(&path));
        }
        if name.starts_with('.') && !name.ends_with(".lock") {
            found.push(path);
        }
    }
    found
}

/// Kills the child with SIGKILL once `ready`; false when it was finished before.
fn kill_when(mut child: Child, ready: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(300);
    while !ready() && child.try_wait().unwrap().is_none() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    let alive = child.try_wait().unwrap().is_none();
    child.kill().unwrap();
    child.wait().unwrap();
    alive
}

#[test]
fn the_report_has_all_four_models_with_numbers_that_can_be_counted_by_hand() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    setup(dir);
    run(dir, "out");
    let out = dir.join("out");
    let report: Value = serde_json::from_slice(&std::fs::read(out.join("report.json")).unwrap()).unwrap();
    let models = report["models"].as_array().unwrap();
    let names: Vec<&str> = models.iter().map(|m| m["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["base", "cut", "cut + SFT", "cut + self-distilled"]);
    for (i, model) in models.iter().enumerate() {
        // hidden 64, MLP 160, 4 query and 2 key/value heads of 16, 256 ids, untied head.
        let layers: u64 = if i == 0 { 4 } else { 2 };
        let block = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 160;
        let parameters = layers * (block + 2 * 64) + 2 * 256 * 64 + 64;
        let matmul = 2 * (layers * block + 256 * 64);
        // Scores and weighted values, 2 FLOPs each, over the 1 to 64 positions that a token sees.
        let attention = layers as f64 * 2.0 * 2.0 * 64.0 * 65.0 / 2.0;
        assert_eq!(model["layers"], layers);
        assert_eq!(model["parameters"], parameters);
        assert_eq!(model["flops_params_2n"], (2 * parameters) as f64);
        assert_eq!(model["flops_matmul"], matmul as f64);
        assert_eq!(model["flops_total"], matmul as f64 + attention);
        assert!(model["perplexity"].as_f64().unwrap() > 1.0);
        let speed = model["prefill_tokens_per_second"].as_f64();
        assert_eq!(
            speed.is_some_and(|speed| speed > 0.0),
            i < 2,
            "base and cut are timed, the students are as the cut"
        );
        assert_eq!(model["tasks"][0]["task"], "letters");
        assert_eq!(model["kl"].is_null(), i == 0, "the distance from the base");
    }
    assert_eq!(report["dropped_blocks"].as_array().unwrap().len(), 2);
    let stages: Vec<&str> = report["stages"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap()).collect();
    assert_eq!(stages, STAGES);
    for curve in report["losses"].as_array().unwrap() {
        let points = curve["points"].as_array().unwrap();
        assert_eq!((points.len(), points[0][0].as_u64(), points[23][0].as_u64()), (24, Some(1), Some(24)));
        assert!(points[23][1].as_f64().unwrap() < points[0][1].as_f64().unwrap(), "training lowers the loss");
    }
    let rows: u64 = report["distilled"].as_array().unwrap().iter().map(|r| r[1].as_u64().unwrap()).sum();
    assert_eq!(rows, 8, "every training row has one reason");
    assert_eq!(left_over(&out), [] as [PathBuf; 0]);

    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    let outside = page.replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
    for reference in ["http://", "https://", "<script src", "<link", "@import", "url(", "<iframe", "<img src=\"/"] {
        assert!(!outside.contains(reference), "the page needs nothing but itself: {reference}");
    }
    for shown in ["Tiny, 2 of 4 blocks cut", "cut + self-distilled", "<svg", "learning-rate = 0.001", "letters"] {
        assert!(page.contains(shown), "{shown}");
    }

    let before = stamps(&out);
    let start = Instant::now();
    run(dir, "out");
    assert!(start.elapsed() < Duration::from_secs(20), "only the machine's peak is measured again");
    assert_eq!(redone(&before, &stamps(&out)), [] as [&str; 0]);
}

#[test]
fn a_changed_setting_redoes_its_stage_and_what_depends_on_it_only() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    setup(dir);
    run(dir, "out");
    let out = dir.join("out");
    let (first, first_results) = (stamps(&out), results(&out));

    change(dir, "learning-rate = 1e-3", "learning-rate = 2e-3");
    run(dir, "out");
    let (second, second_results) = (stamps(&out), results(&out));
    assert_eq!(redone(&first, &second), ["finetune-sft", "finetune-self-distilled", "eval-sft", "eval-self-distilled"]);
    assert_ne!(first_results["sft/model.safetensors"], second_results["sft/model.safetensors"]);

    change(dir, "lora-r = 2", "full = true");
    run(dir, "out");
    assert!(!out.join("sft-adapter").exists(), "what the former setting left is gone");

    change(dir, "block-size = 2", "block-size = 1");
    run(dir, "out");
    let cut: Value = serde_json::from_slice(&std::fs::read(out.join("cut/config.json")).unwrap()).unwrap();
    assert_eq!(cut["num_hidden_layers"], 3);
    let third = stamps(&out);
    assert!(["score", "distil", "eval-base"].iter().all(|name| first[name] == third[name]));
    assert!(["prune", "finetune-sft", "eval-cut"].iter().all(|name| first[name] != third[name]));

    change(dir, "limit-tokens = 512", "limit-tokens = 256");
    run(dir, "out");
    assert_eq!(first["distil"], stamps(&out)["distil"]);
    std::fs::write(dir.join("recipe.toml"), RECIPE).unwrap();
    run(dir, "out");
    assert!(results(&out) == first_results, "the first settings give the first bytes again");

    // The header beside a task's data counts, whichever of the two the recipe names.
    change(dir, "task.toml", "task.jsonl");
    run(dir, "out");
    let fourth = stamps(&out);
    let header = std::fs::read_to_string(dir.join("task.toml")).unwrap();
    std::fs::write(dir.join("task.toml"), header.replace("letters", "signs")).unwrap();
    run(dir, "out");
    assert_eq!(redone(&fourth, &stamps(&out)), ["eval-base", "eval-cut", "eval-sft", "eval-self-distilled"]);
}

#[test]
fn a_run_killed_again_and_again_gives_the_bytes_of_an_unbroken_one() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    setup(dir);
    run(dir, "whole");
    let whole = results(&dir.join("whole"));

    // At the moments where something is half done.
    let out = dir.join("killed");
    let mut kills = 0;
    for name in [
        "scores.svg",
        "stage-score.json",
        ".cut.partial",
        "cut",
        ".distilled.jsonl.unfinished",
        "distilled.jsonl",
        "sft-adapter",
        "sft-adapter/checkpoint-3",
        "sft-adapter/checkpoint-12",
        "sft-adapter/adapter_config.json",
        "sft",
        "self-distilled-adapter/checkpoint-6",
        "self-distilled",
        "stage-eval-cut.json",
    ] {
        let path = out.join(name);
        kills += usize::from(kill_when(command(dir, "killed").spawn().unwrap(), || path.exists()));
    }
    assert!(kills >= 8, "{kills}");
    run(dir, "killed");
    assert!(results(&out) == whole);
    assert_eq!(left_over(&out), [] as [PathBuf; 0]);

    // Between the end of a stage and its stamp.
    for name in STAGES {
        let path = out.join(format!("stage-{name}.json"));
        let stamp: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        std::fs::write(&path, serde_json::json!({"begun": stamp["key"]}).to_string()).unwrap();
    }
    run(dir, "killed");
    assert!(results(&out) == whole);
}

#[test]
fn what_a_killed_run_left_does_not_stand_in_the_way_of_other_settings() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    setup(dir);
    let other = |to: &str| change(dir, "learning-rate = 1e-3", to);
    other("learning-rate = 2e-3");
    run(dir, "whole");
    let whole = results(&dir.join("whole"));

    std::fs::write(dir.join("recipe.toml"), RECIPE).unwrap();
    let checkpoint = dir.join("out/sft-adapter/checkpoint-6");
    assert!(kill_when(command(dir, "out").spawn().unwrap(), || checkpoint.exists()));
    other("learning-rate = 3e-3");
    assert!(kill_when(command(dir, "out").spawn().unwrap(), || dir
        .join("out/self-distilled-adapter/checkpoint-3")
        .exists()));
    other("learning-rate = 2e-3");
    run(dir, "out");
    assert!(results(&dir.join("out")) == whole);

    // A distillation, too.
    change(dir, "max-tokens = 24", "max-tokens = 30");
    let begun = dir.join("out/.distilled.jsonl.unfinished");
    assert!(kill_when(command(dir, "out").spawn().unwrap(), || begun.exists()));
    other("learning-rate = 2e-3");
    run(dir, "out");
    assert!(results(&dir.join("out")) == whole);

    // A result that somebody removed is made again.
    std::fs::remove_dir_all(dir.join("out/sft")).unwrap();
    run(dir, "out");
    assert!(results(&dir.join("out")) == whole);
}

#[test]
fn somebody_else_s_files_and_a_second_writer_are_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    setup(dir);
    std::fs::create_dir_all(dir.join("mine/cut")).unwrap();
    std::fs::write(dir.join("mine/cut/letter.txt"), "dear").unwrap();
    let refused = command(dir, "mine").output().unwrap();
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{message}");
    assert!(message.contains("mine/cut"), "{message}");
    assert_eq!(std::fs::read_to_string(dir.join("mine/cut/letter.txt")).unwrap(), "dear");

    let _writer = ratoon::output::OutputLock::acquire(&dir.join("out")).unwrap();
    let second = command(dir, "out").output().unwrap();
    let message = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(6), "{message}");
    assert!(message.contains("out: another process is writing"), "{message}");
    assert!(!dir.join("out").exists());
}

#[test]
fn a_bad_recipe_is_named_with_its_line_or_key_before_anything_is_done() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    setup(dir);
    let tasks = "tasks = [\"task.toml\"]";
    for (from, to, code, parts) in [
        ("samples = 4", "sample = 4", 3, &["recipe.toml: line 9", "unknown field `sample`", "expected one of"][..]),
        ("lora-r = 2", "lora-r = \"two\"", 3, &["recipe.toml: line 22", "string \"two\"", "expected usize"]),
        ("lora-r = 2", "lora-r = -2", 3, &["recipe.toml: line 22", "-2"]),
        ("title = ", "= ", 3, &["recipe.toml: line 1", "expected"]),
        ("[prune]\nblock-size = 2\n", "", 3, &["recipe.toml: line", "missing field `prune`"]),
        ("block-size = 2", "block-size = 3", 3, &["recipe.toml: [prune] block-size", "scored", "found 3", "[1, 2]"]),
        ("\"train.jsonl\"", "\"none.jsonl\"", 3, &["recipe.toml: [distill] data", "a file that exists", "none.jsonl"]),
        ("\"heldout.txt\"", "\"none.txt\"", 3, &["recipe.toml: [eval] perplexity", "none.txt"]),
        (tasks, "tasks = [\"no.toml\"]", 3, &["recipe.toml: [eval] tasks", "no.toml"]),
        (tasks, "tasks = [\"bad.toml\"]", 3, &["bad.toml", "expected", "found"]),
        ("max-steps = 24", "max-steps = 0", 2, &["--max-steps", "1 or more", "found 0"]),
        ("window = 64", "window = 513", 2, &["[eval] window: expected 2 to 512", "found 513"]),
        ("model = \"model\"", "model = \"nowhere\"", 2, &["nowhere"]),
    ] {
        std::fs::write(dir.join("bad.toml"), "name = \"x\"\nkind = \"essay\"\n").unwrap();
        change(dir, from, to);
        let failed = command(dir, "out").output().unwrap();
        let message = String::from_utf8_lossy(&failed.stderr).into_owned();
        assert_eq!(failed.status.code(), Some(code), "{to}: {message}");
        assert_eq!(message.trim_end().lines().count(), 1, "{message}");
        assert!(parts.iter().all(|part| message.contains(part)), "{to}: {message}");
        let made = std::fs::read_dir(dir.join("out")).map_or(0, |entries| entries.count());
        assert_eq!(made, 0, "nothing is written for {to}");
    }
    let missing = Command::new(env!("CARGO_BIN_EXE_ratoon")).args(["run", "/nowhere/r.toml"]).output().unwrap();
    assert_eq!(missing.status.code(), Some(4));
}
