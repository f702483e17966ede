//! What the ledger counts for passes of the real model is what its shape says, to the last FLOP.

mod support;

use assert_cmd::Command;
use serde_json::Value;

fn flops(arguments: &[&str]) -> Value {
    let model = support::smollm2();
    let mut run = Command::new(assert_cmd::cargo::cargo_bin!("ratoon"));
    let done = run.arg("flops").arg(model).args(arguments).args(["--json", "-q"]).assert().success();
    serde_json::from_slice(&done.get_output().stdout).unwrap()
}

#[test]
fn a_forward_pass_of_the_real_model() {
    let report = flops(&["--seq-len", "64", "--check"]);
    // A block's projections: q and o 576 x 576, k and v 192 x 576, three of 1,536 x 576; the tied head 49,152 x 576.
    let matmul = 2 * 64 * (30 * (2 * 576 * 576 + 2 * 192 * 576 + 3 * 1536 * 576) + 49_152 * 576u64);
    let attention = 30 * 4 * (64 * 65 / 2) * 576u64;
    for (i, expected) in [matmul, attention].into_iter().enumerate() {
        let count = &report["ledger"][0][0]["counts"][i];
        assert_eq!((&count["counted"], &count["expected"]), (&Value::from(expected), &Value::from(expected)));
    }
}

#[test]
fn training_steps_of_the_real_model_full_and_lora_with_and_without_recomputation() {
    for method in [["--full"].as_slice(), &["--lora-r", "8"]] {
        let report = flops(&[&["--train", "--train-tokens", "2x16", "--check"], method].concat());
        let checks = report["ledger"][0].as_array().unwrap();
        assert_eq!(checks.len(), 2, "with nothing and with blocks recomputed");
        for count in checks.iter().flat_map(|check| check["counts"].as_array().unwrap()) {
            assert!(count["counted"].as_u64().unwrap() > 0 && count["counted"] == count["expected"], "{count}");
        }
    }
}
