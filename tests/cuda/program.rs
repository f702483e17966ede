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
pub fn driver() -> tempfile::TempDir {
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
fn every_verb_that_runs_a_model_plans_its_memory_and_refuses_what_does_not_fit() {
    let (driver, scratch) = (driver(), tempfile::tempdir().unwrap());
    let at = |name: &str| scratch.path().join(name).display().to_string();
    let (model, text) = (at("model"), at("text.txt"));
    std::fs::create_dir(&model).unwrap();
    crate::support::tiny_model_with_tokenizer(model.as_ref());
    std::fs::write(&text, "a text of some words ".repeat(30)).unwrap();
    let rows = at("rows.jsonl");
    std::fs::write(&rows, "{\"question\": \"1 + 1?\", \"answer\": \"2\\n#### 2\"}\n").unwrap();
    let recipe = at("recipe.toml");
    let recipe_text = format!(
        "title = \"t\"\nmodel = {model:?}\noutput = \"out\"\n[score]\ndata = {text:?}\nblock-size = [1]\n[prune]\nblock-size = 1\n\
         [distill]\ndata = {rows:?}\n[finetune]\nmax-steps = 2\n[eval]\nperplexity = {text:?}\n"
    );
    std::fs::write(&recipe, recipe_text).unwrap();
    let out = at("out.jsonl");
    let verbs: [&[&str]; 7] = [
        &["generate", &model, "--prompt", "a"],
        &["distill", &model, "--data", &rows, "--template", "general", "-o", &out],
        &["eval", &model, "--base", &model, "--perplexity", &text],
        &["score", &model, "--data", &text, "--block-size", "1", "-o", &out],
        &["bench", &model, "-p", "8", "-n", "4"],
        &["finetune", &model, "--data", &rows, "-o", &out, "--max-steps", "1"],
        &["run", &recipe],
    ];
    for verb in verbs {
        for device in ["cpu", "cuda"] {
            let mut planned = ratoon(driver.path());
            planned.args(["--device", device, "-q"]).args(verb).arg("--plan");
            planned.assert().success().stdout(contains("weights").and(contains("activations")).and(contains("total")));
        }
        let mut json = ratoon(driver.path());
        let ran = json.args(["--device", "cuda", "-q", "--json"]).args(verb).arg("--plan").assert().success();
        let plan: serde_json::Value = serde_json::from_slice(&ran.get_output().stdout).unwrap();
        assert!(plan["memory"].is_object(), "{verb:?}: {plan:#}");
        // A card of 0 MiB has no room, and is said before a weight is read.
        let mut refused = ratoon(driver.path());
        refused.current_dir(scratch.path()).env("RATOON_SIMT_MEMORY", "0").args(["--device", "cuda", "-q"]).args(verb);
        refused.assert().code(5).stderr(contains("are available"));
    }
    assert!(!std::path::Path::new(&out).exists(), "plans write nothing");
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
