//! The verbs that write, each with everything that it reads, small enough to be run hundreds of times.

use super::gguf;
use super::support;
use super::trace::{self, Ended, Fault};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

// Command lines, run in a directory beside the inputs. The output is `out` or `out.jsonl` in it.

macro_rules! distill {
    () => {
        "distill ../model --data ../rows.jsonl --template ../short.toml --max-tokens 4 --max-batch-size 2 -o out.jsonl"
    };
}

macro_rules! finetune {
    () => {
        "finetune ../model --data ../rows.jsonl -o out --learning-rate 1e-2 --per-device-train-batch-size 2 \
         --save-steps 1 --save-total-limit 1"
    };
}

/// Refused when its output is there.
pub const PRUNE: &str = "prune ../model --drop 1 -o out";
pub const REPLACE: &str = "prune ../model --drop 2 -o out --overwrite";
pub const DISTILL: &str = concat!(distill!(), " --seed 3");
/// What an unfinished distillation has: its rows, those that wait for one before them, its settings.
pub const UNFINISHED: [&str; 3] =
    [".out.jsonl.unfinished", ".out.jsonl.unfinished.ahead", ".out.jsonl.unfinished.json"];
/// The same inside a recipe's output.
pub const RUN_UNFINISHED: [&str; 3] =
    [".distilled.jsonl.unfinished", ".distilled.jsonl.unfinished.ahead", ".distilled.jsonl.unfinished.json"];
pub const DISTILL_AGAIN: &str = concat!(distill!(), " --seed 3 --overwrite");
pub const DISTILL_OTHER: &str = concat!(distill!(), " --seed 4");
/// An adapter with its random masks: 2 checkpoints, of which the newest stays.
pub const FINETUNE: &str = concat!(finetune!(), " --lora-r 1 --lora-dropout 0.1 --max-steps 3");
pub const FINETUNE_AGAIN: &str = concat!(finetune!(), " --lora-r 1 --lora-dropout 0.1 --max-steps 3 --overwrite");
pub const FINETUNE_FULL: &str = concat!(finetune!(), " --full --max-steps 3");
pub const GENERATE: &str = "generate ../model --input ../prompts.jsonl --max-tokens 3 --max-batch-size 2 -o out.jsonl";
pub const RUN: &str = "run ../recipe.toml -o out";
/// Trains at another rate.
pub const RUN_OTHER: &str = "run ../other.toml -o out";

const RECIPE: &str = r#"title = "Tiny"
model = "../model"
output = "out"

[score]
data = "text.txt"
block-size = [1]
sample-tokens = 16

[prune]
block-size = 1

[distill]
data = "rows.jsonl"
template = "short.toml"
max-tokens = 4

[finetune]
lora-r = 1
max-steps = 2
save-steps = 1

[eval]
perplexity = "text.txt"
window = 16
limit-tokens = 64
seq-len = 16
"#;

/// A directory with the inputs, and one attempt after another in it.
pub struct Workshop {
    dir: tempfile::TempDir,
}

impl Workshop {
    pub fn new() -> Workshop {
        // In memory, where a sync costs nothing: on a disk the hundreds of runs would spend nine tenths of their time in it.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        support::tiny_model_with_tokenizer(&dir.path().join("model"));
        let rows = (0..6).map(|i| {
            format!("{{\"id\":\"row-{i}\",\"question\":\"What is {i} + 1?\",\"answer\":\"It is\\n#### {}\"}}\n", i + 1)
        });
        std::fs::write(dir.path().join("rows.jsonl"), rows.collect::<String>()).unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("short.toml", "user = 'Q: {{ instruction }} A: {{ reference }}'\n");
        write("prompts.jsonl", "{\"prompt\":\"a\"}\n{\"prompt\":\"b\"}\n{\"prompt\":\"c\"}\n{\"prompt\":\"d\"}\n");
        write("text.txt", &"A text to measure on. ".repeat(20));
        write("recipe.toml", RECIPE);
        write("other.toml", &RECIPE.replace("max-steps", "learning-rate = 1e-2\nmax-steps"));
        gguf::tiny().write(dir.path());
        std::os::unix::fs::symlink(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/lora"), dir.path().join("adapter"))
            .unwrap();
        Workshop { dir }
    }

    /// An empty directory for the outputs of `name`.
    pub fn attempt(&self, name: &str) -> Attempt {
        let dir = self.dir.path().join(name);
        std::fs::create_dir(&dir).unwrap();
        Attempt { dir }
    }
}

/// Outputs of one attempt; removed when it is dropped.
pub struct Attempt {
    pub dir: PathBuf,
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Attempt {
    pub fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ratoon"));
        command.current_dir(&self.dir).arg("--quiet").args(verb.split_whitespace());
        command
    }

    pub fn run(&self, verb: &str, fault: Fault, at: usize) -> Ended {
        trace::run(&mut self.command(verb), fault, at)
    }

    /// Runs `verb` unbroken, unless it would refuse to replace what is there; gives the results.
    pub fn finish(&self, verb: &str) -> BTreeMap<PathBuf, Vec<u8>> {
        if !(verb == PRUNE && self.dir.join("out").exists()) {
            let done = self.command(verb).output().unwrap();
            assert!(done.status.success(), "{verb}: {}", String::from_utf8_lossy(&done.stderr));
        }
        self.results()
    }

    /// Every file that the verb left but locks, checkpoints, event files, stamps and reports; JSON without what an interruption
    /// or the clock changes.
    pub fn results(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let varying = |name: &str| {
            let prefixes = ["checkpoint-", "events.out.tfevents.", "stage-", "report."];
            name.ends_with(".lock") || prefixes.iter().any(|prefix| name.starts_with(prefix))
        };
        let read = |path: PathBuf| {
            // An empty directory is something that was left, too.
            let mut bytes = std::fs::read(self.dir.join(&path)).unwrap_or_default();
            if let Ok(Value::Object(mut json)) = serde_json::from_slice(&bytes) {
                TIMES.iter().for_each(|key| drop(json.remove(*key)));
                bytes = Value::Object(json).to_string().into_bytes();
            }
            (path, bytes)
        };
        files(&self.dir, &varying).into_iter().map(read).collect()
    }

    /// What stands in the attempt's directory under a hidden name, except locks.
    pub fn hidden(&self) -> Vec<PathBuf> {
        let is_hidden = |path: &PathBuf| path.iter().any(|part| part.to_string_lossy().starts_with('.'));
        files(&self.dir, &|name| name.ends_with(".lock")).into_iter().filter(is_hidden).collect()
    }
}

/// Keys of manifests that hold times or what this run did of the work.
const TIMES: [&str; 7] = ["seconds", "peak_memory", "run_seconds", "run_flops", "run_tokens", "resumed_rows", "stats"];

/// Files and empty directories under `dir`, relative to it, without those whose name is to be skipped.
fn files(dir: &Path, skip: &dyn Fn(&str) -> bool) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = PathBuf::from(path.file_name().unwrap());
        if skip(&name.to_string_lossy()) {
            continue;
        }
        if path.is_dir() {
            let inner = files(&path, skip);
            found.extend(if inner.is_empty() {
                vec![name]
            } else {
                inner.iter().map(|file| name.join(file)).collect()
            });
        } else {
            found.push(name);
        }
    }
    found
}
