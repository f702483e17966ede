//! A row of 100 MB costs what is kept of it, in time and in memory, whatever is done with rows that are too long.

mod support;

use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

const MB: usize = 1_000_000;
/// Reading, copying and hashing 100 MB takes a second or two; encoding them took 107.
const MOST_TIME: Duration = Duration::from_secs(20);
/// KiB of address space: some copies of the row; encoding it took 13.8 GB.
const MOST_MEMORY: usize = 2 << 20;

/// A directory with the tiny model (a token is a byte, its context is 512) and `rows.jsonl`, of which the second row is long.
fn setup(row: impl Fn(usize, &str) -> Value) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    support::tiny_model_with_tokenizer(&dir.path().join("model"));
    let long = "All work and no play. ".repeat(100 * MB / 22);
    let rows = [row(0, "short"), row(1, &long), row(2, "also short")];
    std::fs::write(dir.path().join("rows.jsonl"), rows.map(|row| format!("{row}\n")).concat()).unwrap();
    dir
}

fn run(dir: &Path, args: &str) -> Output {
    let limited = format!("ulimit -v {MOST_MEMORY}; exec {} {args}", env!("CARGO_BIN_EXE_ratoon"));
    let start = Instant::now();
    let out = Command::new("sh").args(["-c", &limited]).env("RATOON_THREADS", "2").current_dir(dir).output().unwrap();
    assert!(start.elapsed() < MOST_TIME, "{args}: {:?}", start.elapsed());
    out
}

fn done(dir: &Path, args: &str) -> Value {
    let out = run(dir, &format!("{args} --json"));
    assert!(out.status.success(), "{args}: {}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

fn refused(dir: &Path, args: &str) -> String {
    let out = run(dir, &format!("{args} --quiet"));
    assert_eq!(out.status.code(), Some(3), "{args}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stderr).unwrap()
}

fn lines(path: &Path) -> Vec<Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_long_completion_is_refused_dropped_or_cut_without_being_encoded() {
    let dir = setup(|i, text| json!({"id": format!("row-{i}"), "prompt": "Go on:", "completion": text}));
    let finetune = "finetune model --data rows.jsonl --max-length 100 --max-steps 1 --lora-r 1";
    let said = refused(dir.path(), &format!("{finetune} -o refused"));
    assert!(said.contains("rows.jsonl: row row-1 (line 2): expected at most 100 tokens"), "{said}");
    assert!(said.contains("or more") && !dir.path().join("refused").exists(), "{said}");
    let dropped = done(dir.path(), &format!("{finetune} -o dropped --on-overflow drop"));
    assert_eq!((&dropped["rows"]["used"], &dropped["rows"]["dropped_too_long"]), (&json!(2), &json!(1)), "{dropped}");
    let cut = done(dir.path(), &format!("{finetune} -o cut --on-overflow truncate"));
    assert_eq!((&cut["rows"]["used"], &cut["rows"]["truncated"]), (&json!(3), &json!(1)), "{cut}");
    // 100 tokens are left, of which 6 are the prompt; a token of the completion is predicted by the one before it.
    let short = |text: &str| text.len() as u64 + 1;
    assert_eq!(cut["rows"]["target_tokens"], 94 + short("short") + short("also short"));
}

#[test]
fn a_long_prompt_of_training_leaves_nothing_to_learn() {
    let dir = setup(
        |i, text| json!({"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": format!("{i}")}]}),
    );
    let finetune = "finetune model --data rows.jsonl --max-length 100 --max-steps 1 --lora-r 1";
    assert!(refused(dir.path(), &format!("{finetune} -o refused")).contains("row 1 (line 2)"));
    let cut = done(dir.path(), &format!("{finetune} -o cut --on-overflow truncate"));
    assert_eq!((&cut["rows"]["used"], &cut["rows"]["dropped_without_target"]), (&json!(2), &json!(1)), "{cut}");
}

#[test]
fn a_long_prompt_is_refused_dropped_or_cut_at_its_start_without_being_encoded() {
    let dir = setup(|i, text| json!({"id": format!("row-{i}"), "prompt": text}));
    let generate = "generate model --input rows.jsonl --max-tokens 4 --logprobs";
    let said = refused(dir.path(), &format!("{generate} -o refused.jsonl"));
    assert!(said.contains("rows.jsonl: line 2: expected a prompt of fewer than 512 tokens"), "{said}");
    done(dir.path(), &format!("{generate} -o dropped.jsonl --on-overflow drop"));
    let dropped = lines(&dir.path().join("dropped.jsonl"));
    assert_eq!((&dropped[1]["finish_reason"], &dropped[1]["usage"]["prompt_tokens"]), (&json!("dropped"), &json!(0)));
    assert_eq!(dropped[0]["finish_reason"], "length");
    done(dir.path(), &format!("{generate} -o cut.jsonl --on-overflow truncate"));
    let cut = &lines(&dir.path().join("cut.jsonl"))[1];
    assert_eq!(cut["usage"]["prompt_tokens"], 508, "{cut}");
    let bytes = |key: &str| cut[key].as_u64().unwrap();
    assert_eq!(bytes("truncated_bytes") + bytes("truncated_tokens") + 508, (100 * MB / 22 * 22) as u64);
    // The same as for the last 508 bytes alone.
    let text = "All work and no play. ".repeat(100);
    let end = json!({"id": "row-1", "prompt": text[text.len() - 508..]});
    std::fs::write(dir.path().join("end.jsonl"), format!("{end}\n")).unwrap();
    done(dir.path(), "generate model --input end.jsonl --max-tokens 4 --logprobs -o end-out.jsonl");
    let alone = &lines(&dir.path().join("end-out.jsonl"))[0];
    assert_eq!((&cut["completion"], &cut["logprobs"]), (&alone["completion"], &alone["logprobs"]));
}

#[test]
fn a_long_answer_is_left_as_it_is_by_distillation() {
    let dir = setup(|i, text| json!({"id": format!("row-{i}"), "question": "Why?", "answer": text}));
    std::fs::write(dir.path().join("short.toml"), "user = 'Q: {{ instruction }} A: {{ reference }}'\n").unwrap();
    let report =
        done(dir.path(), "distill model --data rows.jsonl --template short.toml --max-tokens 4 -o distilled.jsonl");
    assert_eq!((&report["rows"], &report["reasons"]["error"]), (&json!(3), &json!(1)), "{report}");
    let line = &lines(&dir.path().join("distilled.jsonl"))[1];
    assert_eq!((&line["source"], &line["reason"]), (&json!("original"), &json!("error")));
    assert_eq!(line["messages"][1]["content"].as_str().unwrap().len(), 100 * MB / 22 * 22);
}

#[test]
fn a_long_row_gives_its_beginning_to_calibration() {
    let dir = setup(|_, text| json!({"text": text}));
    let scores = done(dir.path(), "score model --data rows.jsonl --block-size 1 --sample-tokens 64 -o scores.csv");
    assert_eq!(
        (&scores["calibration"]["truncated"], &scores["calibration"]["samples"]),
        (&json!(1), &json!(3)),
        "{scores}"
    );
}
