//! No verb writes over what it reads, or leaves an option of its output unheard.

#[path = "support/gguf.rs"]
mod gguf;
mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Every file under `dir` but locks.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_none_or(|e| e != "lock") {
            found.insert(path.clone(), std::fs::read(path).unwrap());
        }
    }
    found
}

/// Runs a command that must be refused as a wrong use, in one line, and change nothing.
fn refused(dir: &Path, args: &str) -> String {
    let before = files(dir);
    let mut command = Command::new(env!("CARGO_BIN_EXE_ratoon"));
    let out = command.current_dir(dir).arg("--quiet").args(args.split(' ')).output().unwrap();
    let said = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(2), "{args}: {said}");
    assert!(before == files(dir), "{args}: nothing changes");
    said
}

fn setup() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    support::tiny_model_with_tokenizer(&dir.path().join("model"));
    std::fs::create_dir(dir.path().join("adapter")).unwrap();
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/lora")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, dir.path().join("adapter").join(path.file_name().unwrap())).unwrap();
    }
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("prompts.jsonl", "{\"prompt\":\"a\"}\n");
    write("rows.jsonl", "{\"question\":\"q\",\"answer\":\"a\"}\n");
    write("text.txt", &"Some words. ".repeat(100));
    write("short.toml", "user = 'Q: {{ instruction }}'\n");
    gguf::tiny().write(dir.path());
    dir
}

#[test]
fn an_output_never_takes_the_place_of_an_input() {
    let setup = setup();
    let dir = setup.path();
    std::os::unix::fs::symlink("model", dir.join("link")).unwrap();
    let gguf = files(dir).into_keys().find(|path| path.extension().is_some_and(|e| e == "gguf")).unwrap();
    let gguf = gguf.file_name().unwrap().to_str().unwrap();
    for args in [
        "finetune model --data rows.jsonl -o model --max-steps 1 --overwrite",
        "finetune model --data rows.jsonl -o link --max-steps 1 --overwrite",
        "finetune model --data rows.jsonl -o . --max-steps 1 --overwrite",
        "finetune model --data rows.jsonl -o rows.jsonl --max-steps 1 --overwrite",
        "finetune model --data rows.jsonl --adapter adapter -o adapter --max-steps 1 --overwrite",
        "prune model --drop 1 -o model --overwrite",
        "prune link --drop 1 -o model --overwrite",
        "merge model --adapter adapter -o model --overwrite",
        "merge model --adapter adapter -o adapter --overwrite",
        "merge model --slerp link -o model --overwrite",
        "generate model --input prompts.jsonl -o prompts.jsonl --overwrite",
        "distill model --data rows.jsonl --template short.toml -o rows.jsonl --overwrite",
        "distill model --data rows.jsonl --template short.toml -o short.toml --overwrite",
        "score model --data text.txt --block-size 1 -o text.txt",
        "eval model --perplexity text.txt -o text.txt",
        &format!("convert {gguf} {gguf} --overwrite"),
    ] {
        let said = refused(dir, args);
        assert!(said.contains("another path than its inputs") && said.lines().count() == 1, "{args}: {said}");
    }
}

#[test]
fn a_directory_in_the_place_of_an_output_file_is_refused_before_any_work() {
    let setup = setup();
    std::fs::create_dir(setup.path().join("dir")).unwrap();
    for args in [
        "generate model --input prompts.jsonl -o dir --overwrite",
        "distill model --data rows.jsonl --template short.toml -o dir",
        "score model --data text.txt --block-size 1 -o dir",
        "eval model --perplexity text.txt -o dir",
    ] {
        assert!(refused(setup.path(), args).contains("output dir: expected a file to write"), "{args}");
    }
}

#[test]
fn options_of_a_file_are_refused_beside_a_single_prompt() {
    let setup = setup();
    for option in ["-o out.jsonl", "--limit 1", "--shard 0/2", "--overwrite"] {
        let said = refused(setup.path(), &format!("generate model --prompt a {option}"));
        assert!(said.contains("cannot be used with"), "{option}: {said}");
    }
}

#[test]
fn an_error_is_one_line_whatever_a_file_puts_into_it() {
    let setup = setup();
    std::fs::write(setup.path().join("model/chat_template.jinja"), "{{ raise_exception('one\\ntwo') }}").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ratoon"));
    let out = command.current_dir(setup.path()).args(["-q", "generate", "model", "--message", "a"]).output().unwrap();
    let said = String::from_utf8(out.stderr).unwrap();
    assert_eq!((out.status.code(), said.lines().count()), (Some(3), 1), "{said}");
    assert!(said.contains("one two"), "{said}");
}

#[test]
fn a_stream_that_cannot_be_written_is_no_panic() {
    let setup = setup();
    let run = |args: &[&str], full: &str| {
        let script = format!("exec \"$0\" \"$@\" {full}/dev/full");
        let mut command = Command::new("sh");
        command.current_dir(setup.path()).args(["-c", &script, env!("CARGO_BIN_EXE_ratoon")]).args(args);
        let out = command.output().unwrap();
        (out.status.code(), String::from_utf8(out.stderr).unwrap())
    };
    for verb in [&["inspect", "model"][..], &["inspect", "model", "--json"], &["doctor"]] {
        let (code, said) = run(verb, ">");
        assert!(code == Some(4) && said.starts_with("error: stdout: cannot write: "), "{verb:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    // Progress and the closing line are for people; the work goes on without.
    assert_eq!(run(&["prune", "model", "--drop", "1", "-o", "cut"], "2>").0, Some(0));
    assert!(setup.path().join("cut/config.json").exists());
    assert_eq!(run(&["prune", "model", "--drop", "1", "-o", "cut"], "2>").0, Some(2), "the code of its error");
}

#[test]
fn devices_and_files_of_others_are_no_outputs() {
    let setup = setup();
    let dir = setup.path();
    // Through a link, so that no device is lost where this fails.
    std::os::unix::fs::symlink("/dev/null", dir.join("null")).unwrap();
    for verb in [
        "eval model --perplexity text.txt",
        "score model --data text.txt --block-size 1",
        "generate model --input prompts.jsonl --overwrite",
        "distill model --data rows.jsonl --template short.toml --overwrite",
    ] {
        let said = refused(dir, &format!("{verb} -o null"));
        assert!(said.contains("output null: expected a file to write, found a device or a pipe"), "{verb}: {said}");
    }
    std::fs::write(dir.join("results.json"), "{\"mine\": 1}").unwrap();
    std::fs::write(dir.join("plot.svg"), "<svg/>").unwrap();
    std::fs::write(dir.join("rows.json"), "{\"text\":\"Some words. Some more of them.\"}\n").unwrap();
    for (args, part) in [
        ("eval model --perplexity text.txt -o results.json", "results.json: expected an earlier output"),
        ("eval model --perplexity text.txt -o model/config.json", "config.json: expected an earlier output"),
        ("score model --data text.txt --block-size 1 -o results.csv", "results.json: expected an earlier output"),
        ("score model --data text.txt --block-size 1 -o plot.csv", "plot.svg: expected an earlier output"),
        ("score model --data rows.json --block-size 1 -o rows.csv", "rows.json: expected another path than its inputs"),
        ("score model --data text.txt --block-size 1 -o scores.json", "expected a name for the CSV"),
    ] {
        let said = refused(dir, args);
        assert!(said.contains(part) && said.lines().count() == 1, "{args}: {said}");
    }
    let plan = "eval model --perplexity text.txt --plan -o new/results.json";
    let mut command = Command::new(env!("CARGO_BIN_EXE_ratoon"));
    assert!(command.current_dir(dir).arg("-q").args(plan.split(' ')).output().unwrap().status.success());
    assert!(!dir.join("new").exists(), "a plan makes nothing");
    // Earlier outputs give way, and an empty file that was made beforehand.
    std::fs::write(dir.join("empty.json"), "").unwrap();
    for args in [
        "eval model --perplexity text.txt --window 64 -o empty.json",
        "score model --metric magnitude --block-size 1 -o scores.csv",
    ] {
        for _ in 0..2 {
            let mut command = Command::new(env!("CARGO_BIN_EXE_ratoon"));
            let out = command.current_dir(dir).arg("--quiet").args(args.split(' ')).output().unwrap();
            assert!(out.status.success(), "{args}: {}", String::from_utf8_lossy(&out.stderr));
        }
    }
}
