//! `hf:ORG/NAME` against a stand-in for the hub: what is fetched, what is kept, and what each failure says.
#![cfg(feature = "hf-hub")]

mod server;
#[path = "../support/mod.rs"]
mod support;

use assert_cmd::Command;
use server::{COMMIT, Hub, Trouble};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const SHARD: &str = "model-00003-of-00005.safetensors";

/// A hub with a small model in five shards, and a cache of its own for the program.
struct Setup {
    dir: tempfile::TempDir,
    hub: Hub,
}

impl Setup {
    fn new() -> Setup {
        let dir = tempfile::tempdir().unwrap();
        support::tiny_model_with_tokenizer(&dir.path().join("model"));
        let hub = Hub::serve(&dir.path().join("model"));
        // Files of a repository that no model directory needs.
        hub.add("README.md", b"# Tiny");
        hub.add("pytorch_model.bin", b"pickle");
        hub.add("consolidated.safetensors", b"the weights once more");
        Setup { dir, hub }
    }

    fn inspect(&self, spec: &str) -> Command {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("ratoon"));
        for name in
            ["HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy"]
        {
            command.env_remove(name);
        }
        command.env("HF_ENDPOINT", &self.hub.url).env("HF_HOME", self.dir.path().join("hf"));
        command.args(["inspect", "--json", spec]);
        command
    }

    fn snapshot(&self) -> PathBuf {
        self.dir.path().join("hf/hub/models--org--tiny/snapshots").join(COMMIT)
    }

    /// Runs `inspect`, which must succeed; what it printed.
    fn finds(&self, spec: &str) -> String {
        let out = self.inspect(spec).assert().success();
        String::from_utf8(out.get_output().stdout.clone()).unwrap()
    }

    /// Runs `inspect`, which must fail with one line after what it says on its way; the line.
    fn fails(&self, command: &mut Command, code: i32) -> String {
        let out = command.arg("--quiet").assert().code(code);
        let said = String::from_utf8(out.get_output().stderr.clone()).unwrap();
        assert_eq!((said.lines().count(), said.starts_with("error: ")), (1, true), "{said}");
        said
    }

    /// What is not whole is not taken for whole: not without the hub, and the hub is asked for just the rest.
    fn heals(&self) {
        let offline = self.fails(self.inspect("hf:org/tiny").env("HF_HUB_OFFLINE", "1"), 4);
        assert!(offline.contains("hf:org/tiny@main") && offline.contains("cache"), "{offline}");
        let pinned = format!("hf:org/tiny@{COMMIT}");
        self.fails(self.inspect(&pinned).env("HF_HUB_OFFLINE", "1"), 4);
        self.hub.trouble(Trouble::None);
        self.hub.requests();
        self.finds("hf:org/tiny");
        assert!(self.hub.contents().contains(&SHARD.to_string()));
        assert_whole(&self.snapshot(), &self.dir.path().join("model"));
    }
}

fn assert_whole(snapshot: &Path, model: &Path) {
    for entry in std::fs::read_dir(model).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap();
        assert!(std::fs::read(snapshot.join(name)).unwrap() == std::fs::read(&path).unwrap(), "{name:?}");
    }
}

#[test]
fn a_sharded_model_is_fetched_once_and_used_without_the_hub() {
    let setup = Setup::new();
    let first = setup.finds("hf:org/tiny");
    let json: serde_json::Value = serde_json::from_str(&first).unwrap();
    assert!(json.is_object());
    assert_whole(&setup.snapshot(), &setup.dir.path().join("model"));
    let fetched = setup.hub.contents();
    assert_eq!(fetched.iter().filter(|name| name.starts_with("model-")).count(), 5, "{fetched:?}");
    for other in ["README.md", "pytorch_model.bin", "consolidated.safetensors"] {
        assert!(!fetched.contains(&other.to_string()), "{other}");
    }
    assert_eq!(setup.finds("hf:org/tiny"), first);
    assert_eq!(setup.hub.contents(), [""; 0], "the second use fetches nothing");
    for spec in ["hf:org/tiny", &format!("hf:org/tiny@{COMMIT}")] {
        setup.inspect(spec).env("HF_HUB_OFFLINE", "1").assert().success().stdout(first.clone());
    }
    assert_eq!(setup.hub.requests(), [], "offline means no request");
    // A hub that is down is no reason not to use what is there.
    setup.hub.trouble(Trouble::Refuses(503));
    let out = setup.inspect("hf:org/tiny").assert().success();
    let said = String::from_utf8_lossy(&out.get_output().stderr).into_owned();
    assert!(said.contains("from the cache") && said.contains("503"), "{said}");
}

#[test]
fn progress_says_what_comes() {
    let setup = Setup::new();
    let out = setup.inspect("hf:org/tiny").assert().success();
    let said = String::from_utf8_lossy(&out.get_output().stderr).into_owned();
    assert!(said.starts_with("hf:org/tiny@main: asking the hub\n"), "{said}");
    let bytes: u64 = std::fs::read_dir(setup.snapshot())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
        .map(|path| path.metadata().unwrap().len())
        .sum();
    assert!(said.contains(&format!("hf:org/tiny@main: {bytes} bytes\n")), "{said}");
    assert!(said.contains(&format!("hf:org/tiny@main: {bytes} bytes in ")), "{said}");
}

#[test]
fn the_token_goes_to_the_hub_and_to_nobody_else() {
    let setup = Setup::new();
    let elsewhere = Hub::serve(&setup.dir.path().join("model"));
    setup.hub.content_at(&elsewhere);
    setup.inspect("hf:org/tiny").env("HF_TOKEN", "hf_secret").assert().success();
    let bearer = Some("Bearer hf_secret".to_string());
    assert!(setup.hub.requests().iter().all(|request| request.authorization == bearer));
    let contents = elsewhere.requests();
    assert!(contents.len() > 5 && contents.iter().all(|request| request.authorization.is_none()), "{contents:?}");
    assert_whole(&setup.snapshot(), &setup.dir.path().join("model"));
}

#[test]
fn a_refusal_names_the_repository_and_what_helps() {
    let setup = Setup::new();
    for (status, says) in [(401, "HF_TOKEN"), (403, "accept the model's terms"), (404, "not found")] {
        setup.hub.trouble(Trouble::Refuses(status));
        let said = setup.fails(&mut setup.inspect("hf:org/tiny"), 4);
        assert!(said.starts_with("error: hf:org/tiny@main failed: ") && said.contains(says), "{said}");
        setup.hub.trouble(Trouble::FileRefused(SHARD, status));
        let said = setup.fails(&mut setup.inspect("hf:org/tiny"), 4);
        assert!(
            said.starts_with(&format!("error: hf:org/tiny@main failed: {SHARD}: ")) && said.contains(says),
            "{said}"
        );
    }
    let said = setup.fails(&mut setup.inspect("hf:org/tiny@v2"), 4);
    assert!(said.contains("hf:org/tiny@v2") && said.contains("not found"), "{said}");
    setup.heals();
}

#[test]
fn a_download_that_breaks_off_is_never_taken_for_the_file() {
    for trouble in [Trouble::Cut(SHARD), Trouble::CutByProxy(SHARD), Trouble::Page(SHARD)] {
        let setup = Setup::new();
        setup.hub.trouble(trouble);
        let said = setup.fails(&mut setup.inspect("hf:org/tiny"), 4);
        assert!(said.starts_with(&format!("error: hf:org/tiny@main failed: {SHARD}: ")), "{trouble:?}: {said}");
        setup.heals();
    }
}

#[test]
fn a_signal_ends_a_download_that_stalls() {
    let setup = Setup::new();
    setup.hub.trouble(Trouble::Stalls(SHARD));
    let inspect = setup.inspect("hf:org/tiny");
    let mut command = std::process::Command::new(inspect.get_program());
    command.args(inspect.get_args()).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped());
    for (name, value) in inspect.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let child = command.spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while !setup.hub.contents().contains(&SHARD.to_string()) {
        assert!(Instant::now() < deadline, "the shard is asked for");
        std::thread::sleep(Duration::from_millis(20));
    }
    // SAFETY: no memory is passed; the child is not waited for yet, so the number is its own.
    unsafe { libc::kill(child.id() as i32, libc::SIGINT) };
    let start = Instant::now();
    let out = child.wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(130), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    setup.heals();
}

#[test]
fn a_hub_out_of_reach_and_a_cache_without_the_model_are_named() {
    let setup = Setup::new();
    let said = setup.fails(setup.inspect("hf:org/tiny").env("HF_HUB_OFFLINE", "1"), 4);
    assert!(said.contains("hf:org/tiny@main") && said.contains("HF_HUB_OFFLINE"), "{said}");
    let said = setup.fails(setup.inspect("hf:org/tiny").env("HF_ENDPOINT", "http://127.0.0.1:1"), 4);
    assert!(said.contains("hf:org/tiny@main") && said.contains("Connection refused"), "{said}");
    setup.fails(setup.inspect("hf:org/tiny").env("HF_ENDPOINT", "no url"), 4);
}

#[test]
fn a_repository_without_safetensors_is_refused_with_the_way_to_convert() {
    let setup = Setup::new();
    setup.hub.remove("model.safetensors.index.json");
    let said = setup.fails(&mut setup.inspect("hf:org/tiny"), 3);
    assert!(said.contains("hf:org/tiny@main/pytorch_model.bin") && said.contains("safe_serialization"), "{said}");
    setup.hub.remove("pytorch_model.bin");
    let said = setup.fails(&mut setup.inspect("hf:org/tiny"), 3);
    assert!(said.contains("model.safetensors") && said.contains("README.md"), "{said}");
}

#[test]
fn two_processes_fetch_a_model_once() {
    let setup = Setup::new();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..3).map(|_| scope.spawn(|| setup.finds("hf:org/tiny"))).collect();
        threads.into_iter().for_each(|thread| drop(thread.join().unwrap()));
    });
    assert_eq!(setup.hub.contents().iter().filter(|name| *name == SHARD).count(), 1);
}
