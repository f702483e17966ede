//! The memory that `finetune --plan` announces is the memory that the run takes.

mod support;

use serde_json::Value;
use std::path::Path;
use std::process::Command;

fn finetune(dir: &Path, more: &[&str]) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ratoon"));
    command.arg("--json").arg("finetune").arg(support::smollm2()).arg("--data").arg(dir.join("rows.jsonl"));
    command.arg("-o").arg(dir.join(more.join("")));
    command.args(["--max-length", "512", "--on-overflow", "truncate", "--per-device-train-batch-size", "4"]);
    let out = command.args(["--max-steps", "1"]).args(more).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

fn sum(plan: &Value) -> u64 {
    ["weights", "gradients", "optimizer", "activations"].iter().map(|key| plan[key].as_u64().unwrap()).sum()
}

/// 4 x 512 tokens of the real model.
#[test]
fn a_step_takes_the_memory_of_its_plan() {
    let dir = tempfile::tempdir().unwrap();
    let rows = (0..4).map(|i| format!("{}\n", serde_json::json!({ "text": format!("{i} field").repeat(400) })));
    std::fs::write(dir.path().join("rows.jsonl"), rows.collect::<String>()).unwrap();
    let mut peaks = Vec::new();
    for options in [&["--full"][..], &["--full", "--optim", "adamw_8bit"], &["--lora-r", "8"]] {
        let plan = sum(&finetune(dir.path(), &[options, &["--plan"]].concat())["memory"]);
        let report = finetune(dir.path(), options);
        assert_eq!(sum(&report["plan"]), plan);
        let peak = report["peak_memory"].as_u64().unwrap();
        // Beside the plan stand the program, the tokenizer and packed blocks of operands: 25 to 90 MB. Frozen weights are
        // mapped, so that the system may count less of them.
        assert!(peak < plan + 100_000_000 && peak > plan / 10 * 9, "{options:?}: planned {plan}, took {peak}");
        peaks.push(peak);
    }
    assert!(peaks[1] < 2_200_000_000, "{peaks:?}");
}
