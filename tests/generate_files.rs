//! Prompt files through the program: shards, samples, parameters of batch lines, interruption.

mod support;

use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

fn ratoon(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ratoon"));
    command.current_dir(dir).args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(dir: &Path, args: &[&str]) -> Output {
    let out = ratoon(dir, args).output().unwrap();
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    out
}

fn setup(rows: usize) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    support::tiny_model_with_tokenizer(&dir.path().join("model"));
    let row = |i: usize| match i % 3 {
        0 => json!({"id": format!("row-{i}"), "prompt": format!("A system prompt for all. Question {i}?")}),
        1 => json!({"prompt": "x".repeat(1 + i % 50)}),
        _ => json!({"custom_id": format!("b{i}"), "method": "POST", "url": "/v1/completions",
            "body": {"model": "m", "prompt": format!("{i} and"), "max_tokens": 5 + i % 9, "temperature": 0.7, "seed": i}}),
    };
    let lines: String = (0..rows).map(|i| format!("{}\n", row(i))).collect();
    std::fs::write(dir.path().join("prompts.jsonl"), lines).unwrap();
    dir
}

const GENERATE: [&str; 9] =
    ["generate", "model", "--input", "prompts.jsonl", "--max-tokens", "12", "--temperature", "1", "-o"];

fn read(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn the_union_of_the_shards_is_the_single_run_byte_for_byte() {
    let temporary = setup(100);
    let dir = temporary.path();
    run(dir, &[&GENERATE[..], &["whole.jsonl"]].concat());
    for (i, more) in [["--max-batch-size", "3"], ["--page-size", "1"], ["--chunk-tokens", "5"]].iter().enumerate() {
        let (name, shard) = (format!("part-{i}.jsonl"), format!("{i}/3"));
        run(dir, &[&GENERATE[..], &[&name, "--shard", &shard], more].concat());
        assert!(read(&dir.join(&name)).len() > 15, "about a third of the rows");
    }
    let join =
        ["join", "part-2.jsonl", "part-0.jsonl", "part-1.jsonl", "--input", "prompts.jsonl", "-o", "joined.jsonl"];
    run(dir, &join);
    let bytes = |name: &str| std::fs::read(dir.join(name)).unwrap();
    assert!(bytes("whole.jsonl") == bytes("joined.jsonl"));
    // The joined result has the manifest of the single run: the same command finds it finished.
    let again = run(dir, &[&GENERATE[..], &["joined.jsonl", "--json"]].concat());
    assert_eq!(serde_json::from_slice::<Value>(&again.stdout).unwrap()["resumed"], 100);

    let refused = |args: &[&str], code: i32, part: &str| {
        let out = ratoon(dir, args).output().unwrap();
        let error = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.code() == Some(code) && error.contains(part), "{args:?}: {error}");
    };
    refused(&["join", "part-0.jsonl", "part-1.jsonl", "--input", "prompts.jsonl", "-o", "x"], 3, "one of 2 shards");
    refused(
        &["join", "part-0.jsonl", "part-1.jsonl", "part-1.jsonl", "--input", "prompts.jsonl", "-o", "x"],
        3,
        "every shard once",
    );
    refused(&[&join[..4], &["--input", "whole.jsonl", "-o", "x"]].concat(), 2, "made from");
    refused(&join, 2, "does not exist yet");
    refused(&[&GENERATE[..], &["y.jsonl", "--shard", "3/3"]].concat(), 2, "--shard");
    assert!(!dir.join("x").exists());
}

#[test]
fn an_interrupted_run_keeps_what_is_finished_and_goes_on_to_the_same_bytes() {
    let temporary = setup(300);
    let dir = temporary.path();
    let longest = ["--longest-first", "--max-batch-size", "4"];
    run(dir, &[&GENERATE[..], &["whole.jsonl"]].concat());
    let (partial, ahead) = (dir.join(".out.jsonl.unfinished"), dir.join(".out.jsonl.unfinished.ahead"));
    let size = |path: &Path| std::fs::metadata(path).map_or(0, |m| m.len());
    let mut interrupted = 0;
    for wanted in [2_000, 9_000] {
        let mut child = ratoon(dir, &[&GENERATE[..], &["out.jsonl"], &longest].concat()).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(120);
        while size(&partial) + size(&ahead) < wanted && child.try_wait().unwrap().is_none() && Instant::now() < deadline
        {
            std::thread::sleep(Duration::from_millis(1));
        }
        let before = size(&partial) + size(&ahead);
        Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
        let out = child.wait_with_output().unwrap();
        if out.status.code() == Some(130) {
            interrupted += 1;
            assert!(size(&partial) + size(&ahead) >= before && !dir.join("out.jsonl").exists());
            assert!(String::from_utf8_lossy(&out.stderr).contains("run the same command again"));
        }
    }
    assert!(interrupted > 0, "the run was slow enough to be interrupted");
    let last = run(dir, &[&GENERATE[..], &["out.jsonl", "--json"]].concat());
    let report: Value = serde_json::from_slice(&last.stdout).unwrap();
    assert!(report["resumed"].as_u64() > Some(0));
    assert!(std::fs::read(dir.join("out.jsonl")).unwrap() == std::fs::read(dir.join("whole.jsonl")).unwrap());
    assert!(!partial.exists() && !ahead.exists());
}

#[test]
fn samples_of_a_row_differ_and_the_first_is_what_one_sample_gives() {
    let temporary = setup(9);
    let dir = temporary.path();
    run(dir, &[&GENERATE[..], &["one.jsonl"]].concat());
    run(dir, &[&GENERATE[..], &["three.jsonl", "--n", "3", "--max-batch-size", "2"]].concat());
    for (one, three) in read(&dir.join("one.jsonl")).iter().zip(read(&dir.join("three.jsonl"))) {
        let texts: Vec<&Value> = match three["completions"].as_array() {
            Some(samples) => samples.iter().map(|sample| &sample["completion"]).collect(),
            None => {
                let choices = three["response"]["body"]["choices"].as_array().unwrap();
                choices.iter().map(|choice| &choice["text"]).collect()
            }
        };
        let first = one.get("completion").unwrap_or(&one["response"]["body"]["choices"][0]["text"]);
        assert_eq!((texts.len(), texts[0]), (3, first), "{three}");
        assert!(texts[0] != texts[1] && texts[1] != texts[2]);
        let tokens = |line: &Value| line.pointer("/usage/completion_tokens").map(|n| n.as_u64().unwrap());
        assert!(tokens(&three) >= tokens(one));
    }
}

#[test]
fn batch_lines_take_the_parameters_of_the_interface_and_refuse_the_others_by_name() {
    let temporary = setup(0);
    let dir = temporary.path();
    let bodies = [
        json!({"prompt": "Hi", "max_tokens": 3, "logprobs": 2, "echo": true}),
        json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3, "logprobs": true, "top_logprobs": 2}),
        json!({"prompt": "Hi", "max_tokens": 4, "logit_bias": {"120": 100}}),
        json!({"prompt": "Hi", "max_tokens": 2, "n": 2, "temperature": 1, "min_p": 0.1, "repetition_penalty": 1.2}),
        json!({"prompt": "Hi", "presence_penalty": 1}),
        json!({"prompt": "Hi", "top_logprobs": 3}),
        json!({"messages": [{"role": "user", "content": "Hi"}], "top_logprobs": 3}),
        json!({"prompt": "Hi", "n": 0}),
    ];
    let lines =
        bodies.iter().enumerate().map(|(i, body)| format!("{}\n", json!({"custom_id": format!("r{i}"), "body": body})));
    std::fs::write(dir.join("prompts.jsonl"), lines.collect::<String>()).unwrap();
    run(dir, &["generate", "model", "--input", "prompts.jsonl", "-o", "out.jsonl"]);
    let out = read(&dir.join("out.jsonl"));
    let choice = |i: usize| &out[i]["response"]["body"]["choices"][0];

    let echoed = choice(0);
    assert!(echoed["text"].as_str().unwrap().starts_with("Hi"));
    let (tokens, logprobs) = (&echoed["logprobs"]["tokens"], echoed["logprobs"]["token_logprobs"].as_array().unwrap());
    assert_eq!((tokens.as_array().unwrap().len(), logprobs.len(), &tokens[0]), (5, 5, &json!("H")));
    assert!(logprobs[0].is_null() && logprobs[1..].iter().all(|p| p.as_f64().unwrap() < 0.0));
    assert_eq!(echoed["logprobs"]["top_logprobs"].as_array().unwrap().len(), 5);

    let content = choice(1)["logprobs"]["content"].as_array().unwrap();
    assert_eq!((content.len(), content[0]["top_logprobs"].as_array().unwrap().len()), (3, 2));
    assert_eq!(content[0]["logprob"], content[0]["top_logprobs"][0]["logprob"], "greedy takes the likeliest");
    assert_eq!(choice(2)["text"], "xxxx", "id 120 is x");
    assert_eq!(out[3]["response"]["body"]["choices"].as_array().unwrap().len(), 2);
    for (i, named) in [(4, "presence_penalty"), (5, "top_logprobs"), (6, "top_logprobs"), (7, "n:")] {
        assert!(out[i]["error"]["message"].as_str().unwrap().contains(named), "{}", out[i]);
    }
}
