//! Values that cannot be meant are refused before any work, and defaults fit the model.

mod support;

use serde_json::Value;
use std::process::{Command, Output};

fn run(args: &str) -> Output {
    let dir = tempfile::tempdir().unwrap();
    support::tiny_model_with_tokenizer(&dir.path().join("model"));
    std::fs::write(dir.path().join("text.txt"), "Some words. ".repeat(100)).unwrap();
    std::fs::write(dir.path().join("rows.jsonl"), "{\"question\":\"q\",\"answer\":\"a\"}\n").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ratoon"));
    command.current_dir(dir.path()).arg("--quiet").args(args.split(' ')).output().unwrap()
}

#[test]
fn values_that_cannot_be_meant_are_refused() {
    for (args, part) in [
        ("inspect model --threads 0", "1..=1024"),
        ("inspect model --threads 100000", "1..=1024"),
        ("generate model --prompt a --max-batch-size 1000000000", "1..=65536"),
        ("generate model --prompt a --chunk-tokens 0", "1..=1048576"),
        ("generate model --prompt a --page-size 18446744073709551615", "1..=65536"),
        ("bench model --operations --plan", "cannot be used with"),
        ("init --preset tiny -o out --layers 0", "--layers: expected one block or more"),
        (
            "distill model --data rows.jsonl --template nope -o out",
            "--template: expected math, general or a template file",
        ),
        ("eval model --perplexity text.txt --window 513", "--window: expected 2 to 512"),
        (
            "bench model -p 0 -n 0",
            "bench: expected a number above 0 for -p or -n, or --train, found nothing to measure",
        ),
        ("generate model --prompt a --temperature -1", "--temperature: expected a number from 0 up, found -1"),
        ("merge model --slerp model --t -0.5 -o out", "--t: expected a share from 0 to 1, found -0.5"),
        // In llama.cpp that is the number of tokens.
        ("generate model --prompt a -n 64", "unexpected argument '-n'"),
    ] {
        let out = run(args);
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.code() == Some(2) && said.contains(part), "{args}: {said}");
    }
}

#[test]
fn the_window_of_perplexity_is_no_longer_than_the_models_context() {
    let out = run("eval model --perplexity text.txt --json");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let report: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(report["perplexity"]["window"], 512);
}

#[test]
fn a_measurement_that_is_asked_for_without_tokens_is_left_out() {
    let out = run("eval model --base model --perplexity text.txt --window 64 --own-text-tokens 0 --json");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let report: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert!(report["own_text"].is_null() && report["divergence"]["kl"].is_number(), "{report}");
}

#[test]
fn every_plan_has_a_total_and_what_is_available() {
    for (verb, stages) in [
        ("finetune model --data rows.jsonl -o out", &[""][..]),
        ("generate model --prompt a", &[""]),
        ("eval model --perplexity text.txt", &[""]),
        ("bench model --train", &["/inference", "/training"]),
    ] {
        let out = run(&format!("{verb} --plan --json"));
        assert!(out.status.success(), "{verb}: {}", String::from_utf8_lossy(&out.stderr));
        let plan: Value = serde_json::from_slice(&out.stdout).unwrap();
        for stage in stages {
            let memory = plan.pointer(&format!("/memory{stage}")).and_then(Value::as_object).unwrap();
            let parts = memory.iter().filter(|(name, _)| *name != "total").filter_map(|(_, bytes)| bytes.as_u64());
            assert_eq!(memory["total"].as_u64(), Some(parts.sum()), "{verb}: {plan}");
        }
        assert!(plan["available"].is_number(), "{verb}: {plan}");
    }
}

#[test]
fn lists_may_be_written_as_trl_has_them() {
    for list in ["q_proj,v_proj", "q_proj v_proj"] {
        let out = run(&format!("finetune model --data rows.jsonl -o out --max-steps 1 --lora-target-modules {list}"));
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
}

#[test]
fn a_device_that_is_not_there_concerns_only_the_verbs_that_compute() {
    let code = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ratoon"));
        let tiny = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/tiny/gqa");
        let args = args.iter().map(|&arg| if arg == "MODEL" { tiny } else { arg });
        command.env("RATOON_DEVICE", "cuda:77").arg("-q").args(args).output().unwrap().status.code()
    };
    assert_eq!(code(&["doctor"]), Some(0));
    assert_eq!(code(&["inspect", "MODEL"]), Some(0));
    assert_ne!(code(&["bench", "MODEL"]), Some(0));
}
