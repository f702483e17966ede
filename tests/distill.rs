//! Distillation through the program: a killed run goes on to the same bytes, other settings are refused, two writers are kept
//! apart, and every row is there with its reason.

mod support;

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

const ROWS: usize = 150;

fn setup(dir: &Path) {
    support::tiny_model_with_tokenizer(&dir.join("model"));
    let rows = (0..ROWS).map(|i| match i % 3 {
        0 => format!("{{\"id\":\"row-{i}\",\"question\":\"What is {i} + 1?\",\"answer\":\"It is\\n#### {}\"}}\n", i + 1),
        1 => format!("{{\"prompt\":\"Name {i} rivers\",\"completion\":\" Ouse.\"}}\n"),
        _ => format!("{{\"messages\":[{{\"role\":\"system\",\"content\":\"s\"}},{{\"role\":\"user\",\"content\":\"say {i}\"}},{{\"role\":\"assistant\",\"content\":\"said\"}}]}}\n"),
    });
    std::fs::write(dir.join("train.jsonl"), rows.collect::<String>()).unwrap();
    let template = "system = '{{ system }}'\nuser = 'Q: {{ instruction }} A: {{ reference }}'\n";
    std::fs::write(dir.join("short.toml"), template).unwrap();
}

fn command(dir: &Path, output: &str, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ratoon"));
    command.current_dir(dir).args([
        "distill",
        "model",
        "--data",
        "train.jsonl",
        "--template",
        "short.toml",
        "-o",
        output,
    ]);
    command.args(["--max-tokens", "40", "--max-batch-size", "4", "--seed", "3"]).args(more);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(dir: &Path, output: &str, more: &[&str]) -> Output {
    command(dir, output, more).output().unwrap()
}

fn lines(path: &Path) -> usize {
    std::fs::read(path).map_or(0, |bytes| bytes.iter().filter(|&&b| b == b'\n').count())
}

#[test]
fn a_run_killed_again_and_again_gives_the_bytes_of_an_unbroken_one() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    setup(dir);
    let whole = run(dir, "whole.jsonl", &[]);
    assert!(whole.status.success(), "{}", String::from_utf8_lossy(&whole.stderr));

    let partial = dir.join(".killed.jsonl.unfinished");
    let mut kills = 0;
    for target in [1, ROWS / 3, ROWS / 2] {
        let mut child = command(dir, "killed.jsonl", &[]).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(300);
        while lines(&partial) < target && child.try_wait().unwrap().is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        if child.try_wait().unwrap().is_none() {
            child.kill().unwrap(); // SIGKILL
            kills += 1;
        }
        child.wait().unwrap();
        // As if the kill had come in the middle of a write.
        if partial.exists() {
            let mut bytes = std::fs::read(&partial).unwrap();
            bytes.extend_from_slice(b"{\"id\":\"row-");
            std::fs::write(&partial, bytes).unwrap();
        }
    }
    assert!(kills > 0, "the run was slow enough to be killed");
    assert!(!dir.join("killed.jsonl").exists(), "an unfinished output does not have its name yet");
    // The last run takes another batch size: no part of the result depends on it.
    let last = run(dir, "killed.jsonl", &["--max-batch-size", "7"]);
    assert!(!last.status.success(), "an option given twice is refused");
    let last = run(dir, "killed.jsonl", &["--chunk-tokens", "16", "--page-size", "3"]);
    assert!(last.status.success(), "{}", String::from_utf8_lossy(&last.stderr));
    assert_eq!(std::fs::read(dir.join("killed.jsonl")).unwrap(), std::fs::read(dir.join("whole.jsonl")).unwrap());

    let manifest = |name: &str| -> Value {
        serde_json::from_slice(&std::fs::read(dir.join(format!("{name}.jsonl.manifest.json"))).unwrap()).unwrap()
    };
    let (whole, killed) = (manifest("whole"), manifest("killed"));
    assert_eq!(whole["reasons"], killed["reasons"]);
    assert_eq!(whole["settings"], killed["settings"]);
    assert!(killed["resumed_rows"].as_u64() > Some(0));
    let counted: u64 = whole["reasons"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
    assert_eq!(counted, ROWS as u64, "every row has one reason");
    every_row_is_there_in_its_own_form(dir);
}

fn every_row_is_there_in_its_own_form(dir: &Path) {
    let read = |name: &str| -> Vec<Value> {
        let text = std::fs::read_to_string(dir.join(name)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    for (i, (row, out)) in read("train.jsonl").iter().zip(&read("whole.jsonl")).enumerate() {
        let id = row["id"].as_str().map_or(i.to_string(), String::from);
        assert_eq!(out["id"], id.as_str());
        let original = out["source"] == "original";
        assert_eq!(original, !["answer_same", "no_checkable_answer"].contains(&out["reason"].as_str().unwrap()));
        match i % 3 {
            0 => {
                assert_eq!(out["messages"][0]["content"], row["question"]);
                assert_eq!(out["answer"], format!("{}", i + 1));
                assert!(!original || out["messages"][1]["content"] == row["answer"]);
            }
            1 => {
                assert_eq!(out["prompt"], row["prompt"]);
                assert!(!original || out["completion"] == row["completion"]);
            }
            _ => {
                assert_eq!(out["messages"][0], row["messages"][0]);
                assert_eq!(out["messages"][1], row["messages"][1], "the user's message, not the rewriting prompt");
                assert!(!original || out["messages"] == row["messages"]);
            }
        }
    }
    assert!(ratoon::data::read(&dir.join("whole.jsonl"), &Default::default()).is_ok(), "finetune can read it");
}

#[test]
fn other_settings_are_refused_by_name_and_a_finished_output_is_left_alone() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    setup(dir);
    let first = run(dir, "out.jsonl", &["--limit", "4"]);
    assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
    let bytes = std::fs::read(dir.join("out.jsonl")).unwrap();
    let again = run(dir, "out.jsonl", &["--limit", "4", "--json"]);
    assert!(again.status.success());
    let report: Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!((report["rows"].as_u64(), report["run_tokens"].as_u64()), (Some(4), Some(0)), "nothing is done twice");
    for (more, setting) in [
        (["--limit", "5", "--temperature", "0.9"], "setting limit"),
        (["--limit", "4", "--temperature", "0.5"], "setting temperature"),
        (["--limit", "4", "--top-p", "0.5"], "setting top_p"),
        (["--limit", "4", "--min-p", "0.5"], "setting min_p"),
        (["--limit", "4", "--repetition-penalty", "1.5"], "setting repetition_penalty"),
    ] {
        let refused = run(dir, "out.jsonl", &more);
        let error = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(2));
        assert!(error.contains(setting) && error.contains("out.jsonl"), "{error}");
    }
    assert_eq!(std::fs::read(dir.join("out.jsonl")).unwrap(), bytes);
}

#[test]
fn a_second_writer_is_told_that_another_one_is_at_work() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    setup(dir);
    let _lock = ratoon::output::OutputLock::acquire(&dir.join("out.jsonl")).unwrap();
    let second = run(dir, "out.jsonl", &[]);
    assert_eq!(second.status.code(), Some(6));
    assert!(String::from_utf8_lossy(&second.stderr).contains("another process"));
}

#[test]
fn rows_that_cannot_be_rewritten_and_broken_templates_are_named() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    setup(dir);
    let fails = |parts: &[&str]| {
        let refused = run(dir, "out.jsonl", &[]);
        let error = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(3), "{error}");
        parts.iter().for_each(|part| assert!(error.contains(part), "{part:?} in {error:?}"));
        assert!(!dir.join("out.jsonl").exists());
    };
    std::fs::write(dir.join("train.jsonl"), "{\"prompt\":\"p\",\"completion\":\"c\"}\n{\"text\":\"plain\"}\n").unwrap();
    fails(&["train.jsonl: line 2", "an answer to rewrite", "plain text"]);
    std::fs::write(dir.join("train.jsonl"), "").unwrap();
    fails(&["train.jsonl", "no row"]);
    std::fs::write(dir.join("short.toml"), "user = '{{ instruction '\n").unwrap();
    fails(&["short.toml: user"]);
}

#[test]
fn a_prompt_that_does_not_fit_falls_back_to_the_original_and_is_counted() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    setup(dir);
    // The context is 512 tokens, a token a byte.
    let row = format!("{{\"question\":\"{}\",\"answer\":\"#### 1\"}}\n", "x".repeat(600));
    std::fs::write(dir.join("train.jsonl"), row).unwrap();
    let out = run(dir, "out.jsonl", &["--json"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let report: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((report["reasons"]["error"].as_u64(), report["distilled"].as_u64()), (Some(1), Some(0)));
}
