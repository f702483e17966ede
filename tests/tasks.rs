//! Tasks run from the published forms of their files, and bad files are named.

use assert_cmd::Command;
use ratoon::eval::tasks::{Items, Kind, Task};
use std::path::Path;

fn write(dir: &Path, name: &str, text: &str) -> std::path::PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// Contexts, choices and the right choices of a file's first row.
fn first(path: &Path) -> (Vec<String>, Vec<String>, Vec<bool>) {
    let task = Task::load(path).unwrap();
    let item = Items::load(&task, 0, None).unwrap().items.remove(0);
    (item.contexts, item.choices, item.gold)
}

#[test]
fn published_files_need_no_header() {
    let dir = tempfile::tempdir().unwrap();
    let arc =
        r#"{"id":"x","question":"Which is hot?","choices":{"text":["ice","fire"],"label":["A","B"]},"answerKey":"B"}"#;
    let (contexts, choices, gold) = first(&write(dir.path(), "arc.jsonl", arc));
    assert_eq!(contexts[1], "Question: Which is hot?\nAnswer:");
    assert_eq!((choices, gold), (vec!["ice".into(), "fire".into()], vec![false, true]));

    let ai2 = r#"{"question":{"stem":"Which is hot?","choices":[{"text":"ice","label":"1"},{"text":"fire","label":"2"}]},"answerKey":"1"}"#;
    let (contexts, _, gold) = first(&write(dir.path(), "ai2.jsonl", ai2));
    assert_eq!((contexts[0].as_str(), gold), ("Question: Which is hot?\nAnswer:", vec![true, false]));

    let hellaswag = r#"{"activity_label":"Baking","ctx_a":"[header] How [title] Mix  flour.","ctx_b":"a man","ctx":"","endings":["stirs [step] it","runs"],"label":"1"}"#;
    let (contexts, choices, gold) = first(&write(dir.path(), "hellaswag.jsonl", hellaswag));
    assert_eq!(contexts[0], "Baking: How. Mix flour. A man");
    assert_eq!((choices[0].as_str(), gold), ("stirs it", vec![false, true]));

    let winogrande =
        r#"{"sentence":"The cup fits the bag since the _ is small.","option1":"bag","option2":"cup","answer":"2"}"#;
    let (contexts, choices, gold) = first(&write(dir.path(), "winogrande.jsonl", winogrande));
    assert_eq!(contexts[1], "The cup fits the bag since the cup");
    assert_eq!((choices[0].as_str(), gold), ("is small.", vec![false, true]));

    let mc1 = r#"{"question":"Up?","mc1_targets":{"choices":["yes","no"],"labels":[1,0]},"mc2_targets":{"choices":["yes","no","up"],"labels":[1,0,1]}}"#;
    let path = write(dir.path(), "truthful.jsonl", mc1);
    assert_eq!(first(&path).2, [true, false]);
    write(dir.path(), "truthful.toml", "format = \"truthfulqa_mc2\"");
    assert_eq!(first(&path).2, [true, false, true], "the header beside the file counts");

    let mmlu = r#"{"question":"2+2?","subject":"simple_maths","choices":["1","2","3","4"],"answer":3}"#;
    let (contexts, choices, gold) = first(&write(dir.path(), "mmlu.jsonl", mmlu));
    assert_eq!(contexts[3], "2+2?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:");
    assert_eq!((choices[3].as_str(), gold[3]), ("D", true));

    let gsm8k = r#"{"question":"How many?","answer":"Two and two.\n#### 4"}"#;
    let task = Task::load(&write(dir.path(), "gsm8k.jsonl", gsm8k)).unwrap();
    assert_eq!(task.header.kind, Kind::Generate);
    assert_eq!(Items::load(&task, 0, None).unwrap().items[0].answer, "Two and two.\n#### 4");
}

#[test]
fn examples_come_from_the_questions_own_subject_and_never_are_the_question() {
    let dir = tempfile::tempdir().unwrap();
    let row = |question: &str, subject: &str| {
        format!(r#"{{"question":"{question}","subject":"{subject}","choices":["1","2","3","4"],"answer":0}}"#)
    };
    let rows =
        [row("a1", "a"), row("b1", "b"), row("a2", "a"), row("b2", "b"), row("a3", "a"), row("b3", "b")].join("\n");
    let task = Task::load(&write(dir.path(), "mmlu.jsonl", &rows)).unwrap();
    let items = Items::load(&task, 2, None).unwrap();
    let about = "The following are multiple choice questions (with answers) about";
    let shot = |question: &str| format!("{question}\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer: A\n\n");
    let preamble = |index: usize| items.preamble(&task.header, &items.items[index]);
    assert_eq!(preamble(0), format!("{about} a.\n\n{}{}", shot("a2"), shot("a3")));
    assert_eq!(preamble(5), format!("{about} b.\n\n{}{}", shot("b1"), shot("b2")));
    let error = Items::load(&task, 3, None).err().unwrap().to_string();
    assert!(error.contains("examples for line 1") && error.contains("expected 3 other rows, found 2"), "{error}");
}

#[test]
fn bad_task_files_are_named_with_line_expected_and_found() {
    let dir = tempfile::tempdir().unwrap();
    let good = r#"{"question":"q","choices":["a","b"],"answer":0}"#;
    let cases = [
        (r#"{"question":"q","choices":["a","b"],"answer":2}"#, "line 2, gold: expected one of 0 to 1, found 2"),
        (r#"{"question":"q","choices":["a"],"answer":0}"#, "line 2, choices: expected two choices or more, found 1"),
        (r#"{"question":"q","choices":["a"," "],"answer":0}"#, "line 2, choices: expected choices with text"),
        (r#"{"question":"q","answer":0}"#, "line 2, choices: expected the fields that this task's header uses"),
        (r#"{"question":"q","choices":["a","b"],"answer":0"#, "line 2"),
    ];
    for (bad, message) in cases {
        let path = write(dir.path(), "t.jsonl", &format!("{good}\n{bad}\n"));
        let error = Items::load(&Task::load(&path).unwrap(), 0, None).err().unwrap().to_string();
        assert!(error.contains("t.jsonl") && error.contains(message), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    let unknown = write(dir.path(), "unknown.jsonl", r#"{"a":1,"b":2}"#);
    let error = Task::load(&unknown).unwrap_err().to_string();
    assert!(error.contains("unknown.jsonl") && error.contains("found the fields a, b"), "{error}");
    let empty = write(dir.path(), "empty.jsonl", "");
    assert!(Task::load(&empty).unwrap_err().to_string().contains("at least one JSON object"));
    let path = write(dir.path(), "h.jsonl", good);
    for (header, message) in [
        ("format = \"art\"", "format: expected one of arc, choices"),
        ("format = \"choices\"\nmetric = \"f1\"", "metric: expected one of acc, acc_norm"),
        ("format = \"choices\"\nshots = 3", "shots"),
        ("kind = \"multiple_choice\"\nprompt = \"x\"\ngold = \"y\"", "choices: expected this key"),
        ("prompt = ", "line 1: expected TOML"),
        ("format = \"choices\"\nprompt = \"{{ question\"", "prompt: expected a Jinja template"),
    ] {
        write(dir.path(), "h.toml", header);
        let error = Task::load(&path).and_then(|t| Items::load(&t, 0, None).map(|_| ())).unwrap_err().to_string();
        assert!(error.contains("h.toml") && error.contains(message), "{error}");
    }
}

#[test]
fn eval_without_anything_to_measure_is_a_usage_error() {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/tiny/gqa");
    let run = Command::cargo_bin("ratoon").unwrap().args(["eval", model]).assert().code(2);
    run.stderr(predicates::str::contains("--perplexity FILE, --tasks FILE or both"));
}

#[test]
fn bench_gives_llama_benchs_keys_and_the_ledgers_flops() {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/tiny/gqa");
    let args = ["bench", model, "-p", "32", "-n", "8", "-b", "1,3", "-r", "2", "-o", "json", "--quiet"];
    let output = Command::cargo_bin("ratoon").unwrap().args(args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let rows: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    let tests: Vec<&str> = rows.iter().map(|row| row["test"].as_str().unwrap()).collect();
    assert_eq!(tests, ["pp32", "tg8", "tg8 b3"]);
    for row in &rows {
        for key in [
            "model_filename",
            "model_type",
            "model_size",
            "model_n_params",
            "backend",
            "n_threads",
            "n_prompt",
            "n_gen",
            "avg_ns",
            "stddev_ns",
            "avg_ts",
            "stddev_ts",
            "build_commit",
            "cpu_info",
            "mfu",
        ] {
            assert!(!row[key].is_null(), "{key}");
        }
        assert_eq!(row["samples_ns"].as_array().unwrap().len(), 2);
    }
    // By hand: 2 x parameters of the projections a token, the head once per prompt or once per generated token.
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(format!("{model}/config.json")).unwrap()).unwrap();
    let size = |key: &str| config[key].as_u64().unwrap();
    let (hidden, inner, heads, kv) =
        (size("hidden_size"), size("intermediate_size"), size("num_attention_heads"), size("num_key_value_heads"));
    let head_dim = config["head_dim"].as_u64().unwrap_or(hidden / heads);
    let projections = size("num_hidden_layers") * hidden * (2 * head_dim * (heads + kv) + 3 * inner);
    let head = hidden * size("vocab_size");
    let prefill = rows[0]["flops_per_token"].as_f64().unwrap();
    let products = 2.0 * (projections as f64 + head as f64 / 32.0);
    // Beside the products: attention, 4 x heads x head_dim x (n + 1) / 2 a token and block, and norms and gates, under 5 %.
    let attention = (4 * size("num_hidden_layers") * heads * head_dim) as f64 * 16.5;
    assert!((1.0..1.05).contains(&(prefill / (products + attention))), "{prefill} against {}", products + attention);
    let decode = |row: usize| rows[row]["flops_per_token"].as_f64().unwrap();
    assert_eq!(decode(1), decode(2), "a token costs the same FLOPs in any batch");
    assert!(decode(1) > 2.0 * (projections + head) as f64);
}
