//! `benches/gpu.sh`, the one command for a card's machine, over the stand-in at tiny sizes.

use crate::program::driver;
use assert_cmd::Command;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The script with every size small, and its folder of results.
fn script(driver: &Path, scratch: &Path) -> (Command, PathBuf) {
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/gpu.sh"));
    let results = scratch.join("results");
    command.env("LD_LIBRARY_PATH", driver).env("RATOON", env!("CARGO_BIN_EXE_ratoon"));
    command.env("RESULTS", &results).env("MODELS", scratch.join("models"));
    let sizes =
        [("PROMPT", "64"), ("CONTEXT", "40"), ("BATCH", "2"), ("REPETITIONS", "2"), ("GENERATED", "4"), ("STEPS", "2")];
    command.envs(sizes).env("PRESETS", "tiny");
    (command, results)
}

fn json(results: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(results.join("gpu.json")).unwrap()).unwrap()
}

#[test]
fn one_command_measures_a_card_and_a_failing_stage_loses_nothing() {
    let (driver, scratch) = (driver(), tempfile::tempdir().unwrap());
    let (mut command, results) = script(driver.path(), scratch.path());
    // Stand-ins: the kernels' tests fail, the others pass.
    command.env("OPERATIONS", "false").env("PIPELINES", "true").env("HOPPER", "true");
    command
        .env("PYTHON", std::env::var_os("RATOON_TEST_PYTHON").unwrap_or("python3".into()))
        .env("TORCH_DEVICE", "cpu");
    command.assert().code(1);
    let written = json(&results);
    assert!(written["card"].as_str().unwrap().starts_with("cuda:0"), "{written:#}");
    let stages = written["stages"].as_array().unwrap();
    let status =
        |name: &str| stages.iter().find(|s| s["stage"] == name).unwrap_or_else(|| panic!("{name}: {written:#}"));
    assert_eq!(status("operations")["status"], "failed");
    for name in ["pipelines", "kernels-tiny", "bench-tiny", "verbs-tiny"] {
        assert_eq!(
            status(name)["status"],
            "ok",
            "{}",
            std::fs::read_to_string(results.join(format!("{name}.output"))).unwrap()
        );
    }
    let nine = "a card of compute capability 9.0";
    let (hopper, on_nine) = (status("hopper"), std::env::var("RATOON_SIMT_ARCH").is_ok_and(|arch| arch == "90"));
    assert_eq!((&hopper["status"], &hopper["missing"]), (&"ok".into(), &if on_nine { "" } else { nine }.into()));
    for (name, tool) in [
        ("memcheck", "compute-sanitizer"),
        ("racecheck", "compute-sanitizer"),
        ("memcheck-hopper", if on_nine { "compute-sanitizer" } else { nine }),
        ("racecheck-hopper", if on_nine { "compute-sanitizer" } else { nine }),
        ("counters-tiny", "ncu"),
    ] {
        let known = status(name);
        assert!(known["status"] != "ok" || known["missing"] == tool || known["results"][0].is_object(), "{known:#}");
    }
    // Every operation has a time and a share; so has every test of the model.
    let kernels = status("kernels-tiny")["results"].as_array().unwrap();
    assert!(kernels.len() > 25, "{kernels:#?}");
    for row in kernels {
        assert!(row["microseconds"].as_f64().unwrap() > 0.0 && row["floor_share"].as_f64().unwrap() > 0.0, "{row:#}");
    }
    let tests: Vec<&str> =
        status("bench-tiny")["results"].as_array().unwrap().iter().map(|row| row["test"].as_str().unwrap()).collect();
    assert_eq!(tests, ["pp64", "tg4", "tg4 b8", "tg4 b2", "train4x16 lora-r8", "train4x16 full"]);
    let verbs = status("verbs-tiny")["results"].as_array().unwrap();
    assert_eq!(
        verbs.iter().map(|v| v["verb"].as_str().unwrap()).collect::<Vec<_>>(),
        ["score", "generate", "finetune"]
    );
    assert!(verbs.iter().all(|v| v["summary"].as_str().unwrap().contains("FLOP/s")), "{verbs:#?}");
    let table = std::fs::read_to_string(results.join("gpu.md")).unwrap();
    for expected in ["| operations | failed |", "## kernels-tiny", "| paged_attention", "| tg4 b8", "| finetune |"] {
        assert!(table.contains(expected), "{expected} is not in\n{table}");
    }

    // What is done stays; the stage that failed runs again, and its success makes the whole succeed.
    let before = std::fs::metadata(results.join("bench-tiny.jsonl")).unwrap().modified().unwrap();
    let (mut again, _) = script(driver.path(), scratch.path());
    again.env("OPERATIONS", "true").env("PIPELINES", "false").env("HOPPER", "false").assert().success();
    assert_eq!(std::fs::metadata(results.join("bench-tiny.jsonl")).unwrap().modified().unwrap(), before);
    assert!(json(&results)["stages"].as_array().unwrap().iter().all(|s| s["status"] == "ok"));
    // A named stage runs whatever it was, and one that does not end is ended.
    let slow = scratch.path().join("slow");
    std::fs::write(&slow, "#!/bin/sh\nexec sleep 60\n").unwrap();
    std::fs::set_permissions(&slow, std::fs::Permissions::from_mode(0o755)).unwrap();
    let (mut named, _) = script(driver.path(), scratch.path());
    named.env("PIPELINES", &slow).env("STAGE_SECONDS", "1").arg("pipelines").assert().code(1);
    let written = json(&results);
    assert_eq!(written["stages"][2]["status"], "timeout", "{written:#}");
}
