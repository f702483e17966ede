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
