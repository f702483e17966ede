//! The program: choosing a device, and what it says when there is none that works.

use crate::{simt_library, tiny};
use assert_cmd::Command;
use predicates::prelude::PredicateBooleanExt;
use predicates::str::contains;

/// The program with a folder of libraries that the loader looks into first.
fn ratoon(libraries: &std::path::Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ratoon"));
    command.env("LD_LIBRARY_PATH", libraries).env_remove("RATOON_DEVICE");
    command
}

/// A folder in which the loader finds the stand-in as NVIDIA's driver.
fn driver() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(simt_library(), dir.path().join("libcuda.so")).unwrap();
    dir
}

fn check(device: &str) -> Vec<String> {
    let model = tiny("gqa").display().to_string();
    ["--device", device, "--profile", "flops", &model, "--seq-len", "32", "--check"].map(str::to_string).to_vec()
}

#[test]
fn a_forward_pass_on_a_card_counts_the_flops_of_the_formula_and_shows_times() {
    let driver = driver();
    let ran = ratoon(driver.path()).args(check("cuda:0")).assert().success();
    ran.stderr(contains("on the card")).stderr(contains("matmul")).stderr(contains("attention"));
    ratoon(driver.path()).env("RATOON_DEVICE", "cuda").args(&check("cpu")[2..]).assert().success();
}

#[test]
fn a_device_that_is_not_there_is_named() {
    let (nothing, driver) = (tempfile::tempdir().unwrap(), driver());
    let found = std::path::Path::new("/usr/lib/x86_64-linux-gnu/libcuda.so").exists();
    if !found {
        let said = contains("cuda: no NVIDIA driver on this machine").and(contains("use --device cpu"));
        ratoon(nothing.path()).args(check("cuda")).assert().code(4).stderr(said);
    }
    ratoon(nothing.path()).args(check("cpu")).assert().success();
    let said = contains("--device: expected cuda:0 to cuda:0");
    ratoon(driver.path()).args(check("cuda:3")).assert().code(2).stderr(said);
    ratoon(driver.path()).args(check("gpu")).assert().code(2).stderr(contains("cpu, cuda or cuda:N"));
}

#[test]
fn a_card_without_room_is_said_with_what_to_change() {
    let driver = driver();
    let ran = ratoon(driver.path()).env("RATOON_SIMT_MEMORY", "0").args(check("cuda")).assert();
    ran.code(5).stderr(contains("a model of 4 blocks needs")).stderr(contains("0 are available"));
}

#[test]
fn what_a_card_does_not_do_is_refused_and_not_replaced() {
    let (driver, model) = (driver(), tiny("gqa"));
    for (option, value, expected) in [("--compute", "f32", "bf16"), ("--weights", "int8", "stored")] {
        let mut bench = ratoon(driver.path());
        bench.args(["--device", "cuda", "bench"]).arg(&model).args(["-p", "8", "-n", "0", option, value]);
        bench.assert().code(2).stderr(contains(format!("{option}: expected {expected} on a card, found {value}")));
    }
}
