//! What ratoon writes, PyTorch `transformers` and `peft` load unchanged, with the same logits (tests/transformers_load.py says
//! within which bound). Runs where `$RATOON_TEST_PYTHON`, else `python3`, has torch, transformers and peft;
//! tests/pytorch/install.sh installs them.

mod support;

use assert_cmd::Command;
use std::path::{Path, PathBuf};
use std::process::Command as Program;

/// Runs the program, which must succeed.
fn ratoon(arguments: &[&str]) {
    Command::new(assert_cmd::cargo::cargo_bin!("ratoon")).args(arguments).arg("-q").assert().success();
}

/// The interpreter, or why it cannot be used.
fn python() -> Result<String, String> {
    let python = std::env::var("RATOON_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    let found = Program::new(&python).args(["-c", "import torch, transformers, peft"]).output();
    let found = found.map_err(|e| format!("{python}: {e}"))?;
    let message = String::from_utf8_lossy(&found.stderr);
    match found.status.success() {
        true => Ok(python),
        false => Err(format!("{python}: {}", message.trim_end().lines().last().unwrap_or("failed"))),
    }
}

/// The example that prints logits, built as this test is.
fn logits_program() -> PathBuf {
    let mut build = Program::new(env!("CARGO"));
    build.args(["build", "-q", "--example", "logits"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    if !cfg!(debug_assertions) {
        build.arg("--release");
    }
    assert!(build.status().unwrap().success());
    assert_cmd::cargo::cargo_bin!("ratoon").parent().unwrap().join("examples/logits")
}

#[test]
fn transformers_and_peft_load_what_ratoon_writes_with_equal_logits() {
    let python = match python() {
        Ok(python) => python,
        Err(why) => return println!("skipped: {why}"),
    };
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name).to_str().unwrap().to_string();
    let [tiny, tiny_cut, adapter, merged, full, cut] = ["tiny", "tiny-cut", "adapter", "merged", "full", "cut"].map(at);

    let data = at("data.jsonl");
    let row = |n: u32| format!("{{\"prompt\": \"{n} and one make\", \"completion\": \" {}\"}}\n", n + 1);
    std::fs::write(&data, (0..8).map(row).collect::<String>()).unwrap();
    // A rate high enough that two steps move the logits well beyond the tolerance.
    let train = ["--data", &data, "--max-steps", "2", "--learning-rate", "0.05", "--warmup-steps", "0"];

    ratoon(&["init", "--preset", "tiny", "--seed", "0", "-o", &tiny]);
    ratoon(&["prune", &tiny, "--drop", "1", "-o", &tiny_cut]);
    ratoon(&[&["finetune", &tiny_cut, "--lora-r", "4", "-o", &adapter][..], &train].concat());
    ratoon(&["merge", &tiny_cut, "--adapter", &adapter, "-o", &merged]);
    ratoon(&[&["finetune", &tiny_cut, "--full", "-o", &full][..], &train].concat());
    ratoon(&["prune", support::smollm2().to_str().unwrap(), "--drop", "13-18", "-o", &cut]);

    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transformers_load.py");
    let mut run = Command::new(python);
    run.arg(script).args([&tiny, &tiny_cut, &merged, &full, &cut]).args(["--adapter", &tiny_cut, &adapter]);
    let done = run.env("RATOON_LOGITS", logits_program()).assert().success();
    print!("{}", String::from_utf8_lossy(&done.get_output().stdout));
}
