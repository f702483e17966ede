//! What a verb is given and cannot use ends the program with the documented exit code and one line that names file, place,
//! expected and found; no output appears. One table for each kind of input, through the program itself.

mod support;

use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::Command;

/// A tiny model with small data of every kind beside it, each sound until a test breaks one.
struct Desk {
    dir: tempfile::TempDir,
}

const ROWS: &str = "{\"question\":\"1 + 1?\",\"answer\":\"#### 2\"}\n{\"question\":\"2 + 2?\",\"answer\":\"#### 4\"}\n";

impl Desk {
    fn new() -> Desk {
        let desk = Desk { dir: tempfile::tempdir().unwrap() };
        support::tiny_model_with_tokenizer(&desk.path("model"));
        desk.write("rows.jsonl", ROWS);
        desk.write("prompts.jsonl", "{\"prompt\":\"a\"}\n");
        desk.write("chat.jsonl", "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}\n");
        desk.write("text.txt", "A text to measure on. ".repeat(4));
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        std::fs::write(self.path(name), content).unwrap();
    }

    fn edit(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut json: Value = serde_json::from_slice(&std::fs::read(self.path(name)).unwrap()).unwrap();
        change(&mut json);
        self.write(name, json.to_string());
    }

    /// `verb`, whose output is `out`, must end with `code` and one line that has all `parts`.
    fn refused(&self, verb: &str, code: i32, parts: &[&str]) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ratoon"));
        command.current_dir(self.dir.path()).arg("--quiet").args(verb.split_whitespace());
        let run = command.output().unwrap();
        let message = String::from_utf8(run.stderr).unwrap();
        assert_eq!(run.status.code(), Some(code), "{verb}: {message}");
        assert!(message.starts_with("error: ") && message.lines().count() == 1, "{verb}: {message}");
        for part in parts {
            assert!(message.contains(part), "{verb}: {part:?} is not in: {message}");
        }
        for result in ["out", "out/config.json", "out/adapter_config.json"] {
            assert!(!self.path(result).is_file(), "{verb}: {result}");
        }
    }

    /// The verbs that read rows, each with `data`.
    fn readers(data: &str) -> [String; 3] {
        [
            format!("finetune model --data {data} -o out --max-steps 1"),
            format!("distill model --data {data} --template general --max-tokens 2 -o out"),
            format!("generate model --input {data} --max-tokens 2 -o out"),
        ]
    }
}

#[test]
fn pickled_weights_are_refused_wherever_they_are_given_with_the_way_to_convert_them() {
    let desk = Desk::new();
    desk.write(
        "adapter/adapter_config.json",
        json!({ "peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"] }).to_string(),
    );
    desk.write("adapter/adapter_model.bin", "PK\x03\x04");
    desk.write("model.pt", "PK\x03\x04");
    let adapter = ["adapter/adapter_model.bin: pickle is not supported", "python3 -c", "weights_only=True"];
    desk.refused("merge model --adapter adapter -o out", 3, &adapter);
    desk.refused("finetune model --adapter adapter --data rows.jsonl --max-steps 1 -o out", 3, &adapter);
    let model = ["pickle is not supported", "python3 -c", "safe_serialization=True"];
    desk.refused("prune model.pt --drop 1 -o out", 3, &[&["model.pt: "], &model[..]].concat());
    for entry in std::fs::read_dir(desk.path("model")).unwrap() {
        let path = entry.unwrap().path();
        if path.to_string_lossy().contains(".safetensors") {
            std::fs::remove_file(path).unwrap();
        }
    }
    desk.write("model/pytorch_model-00001-of-00002.bin", "PK\x03\x04");
    let sharded = [&["model/pytorch_model-00001-of-00002.bin: "], &model[..]].concat();
    for verb in ["prune model --drop 1 -o out", "generate model --prompt x", "score model --data text.txt -o out"] {
        desk.refused(verb, 3, &sharded);
    }
}

#[test]
fn files_that_git_did_not_fetch_are_named_whatever_they_were_to_hold() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 269060552\n";
    for (file, verb) in [
        ("model/model-00003-of-00005.safetensors", "prune model --drop 1 -o out"),
        ("model/model.safetensors.index.json", "prune model --drop 1 -o out"),
        ("model/config.json", "prune model --drop 1 -o out"),
        ("model/tokenizer.json", "generate model --prompt x"),
        ("model/tokenizer_config.json", "generate model --message x"),
        ("model/chat_template.jinja", "generate model --message x"),
        ("model/generation_config.json", "generate model --prompt x"),
        ("rows.jsonl", "finetune model --data rows.jsonl -o out"),
        ("rows.parquet", "finetune model --data rows.parquet -o out"),
        ("rows.jsonl", "distill model --data rows.jsonl --template general -o out"),
        ("prompts.jsonl", "generate model --input prompts.jsonl -o out"),
        ("text.txt", "score model --data text.txt -o out"),
        ("text.txt", "eval model --perplexity text.txt -o out"),
        ("task.jsonl", "eval model --tasks task.jsonl -o out"),
        ("scores.csv", "prune model --scores scores.csv --block-size 1 -o out"),
    ] {
        let desk = Desk::new();
        desk.write(file, pointer);
        desk.refused(verb, 3, &[file, "expected the file's content", "found a Git LFS pointer", "git lfs pull"]);
    }
}

#[test]
fn texts_that_are_no_utf_8_are_named_by_file_and_byte() {
    for (file, verb) in [
        ("model/chat_template.jinja", "generate model --message x"),
        ("text.txt", "score model --data text.txt -o out"),
        ("text.txt", "eval model --perplexity text.txt -o out"),
        ("template.toml", "distill model --data rows.jsonl --template template.toml -o out"),
        ("scores.csv", "prune model --scores scores.csv --block-size 1 -o out"),
        ("merge.yml", "prune model --config merge.yml -o out"),
        ("task.toml", "eval model --tasks task.toml -o out"),
        ("recipe.toml", "run recipe.toml -o out"),
    ] {
        let desk = Desk::new();
        desk.write(file, b"ab\xe9");
        desk.refused(verb, 3, &[file, "byte 2: expected UTF-8 text, found byte 0xe9"]);
    }
}

#[test]
fn weights_that_are_not_finite_end_every_verb_that_computes() {
    let desk = Desk::new();
    // The last shard's last number.
    let shard = desk.path("model/model-00005-of-00005.safetensors");
    let mut bytes = std::fs::read(&shard).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let (tensor, entry) =
        header.as_object().unwrap().iter().max_by_key(|(_, e)| e["data_offsets"][1].as_u64()).unwrap();
    let nan = match entry["dtype"].as_str().unwrap() {
        "F32" => f32::NAN.to_le_bytes().to_vec(),
        "BF16" => half::bf16::NAN.to_le_bytes().to_vec(),
        _ => half::f16::NAN.to_le_bytes().to_vec(),
    };
    let end = bytes.len();
    bytes[end - nan.len()..].copy_from_slice(&nan);
    std::fs::write(&shard, bytes).unwrap();
    desk.refused("inspect model --check-values", 7, &["model-00005-of-00005.safetensors: tensor ", tensor, "NaN"]);
    for verb in [
        "score model --data text.txt --sample-tokens 32 --block-size 1 --metric perplexity -o out",
        "eval model --perplexity text.txt --window 32 -o out",
        "generate model --prompt x --max-tokens 2",
        "generate model --input prompts.jsonl --max-tokens 2 -o out",
        "distill model --data rows.jsonl --template general --max-tokens 2 -o out",
        "finetune model --data rows.jsonl --max-steps 2 -o out",
        "finetune model --data rows.jsonl --max-steps 2 --full -o out",
    ] {
        desk.refused(verb, 7, &["not finite (NaN)"]);
    }
}

#[test]
fn broken_datasets_are_named_by_file_and_line_in_every_verb_that_reads_rows() {
    let twice = "{\"id\":1,\"prompt\":\"a\",\"completion\":\"b\"}\n".repeat(2);
    let tables: &[(&str, &[&str])] = &[
        ("", &["file: expected at least one JSON object, found no row"]),
        (" \r\n\n", &["found no row"]),
        ("{\"prompt\":\"a\",\"completion\":\"b\"}\n{\"prompt\":\"a", &["line 2: expected a whole line", "cut short"]),
        (&twice, &["line 2: expected an id that no other row has, found \"1\", as in line 1"]),
        ("{\"promt\":\"a\"}\n", &["line 1: expected a row", "the keys promt"]),
        ("{\"prompt\":7,\"completion\":\"b\"}\n", &["line 1"]),
        ("{\"prompt\":\"a\0\",\"completion\":\"b\"}\n", &["line 1: expected a JSON object", "control character"]),
        ("{\"prompt\":\"\\ud800\",\"completion\":\"b\"}\n", &["line 1: expected a JSON object"]),
    ];
    for (content, parts) in tables {
        let desk = Desk::new();
        desk.write("bad.jsonl", content);
        for verb in Desk::readers("bad.jsonl") {
            // To generate, a row needs a prompt only; the message lists what a row may be.
            let parts: Vec<&str> =
                parts.iter().map(|p| p.strip_suffix(" row").filter(|_| verb.starts_with("gen")).unwrap_or(p)).collect();
            desk.refused(&verb, 3, &[&["bad.jsonl: "], &parts[..]].concat());
        }
    }
}

#[test]
fn rows_without_anything_to_learn_and_rows_that_are_too_long_are_counted_or_named() {
    let desk = Desk::new();
    desk.write("masked.jsonl", "{\"prompt\":\"a\",\"completion\":\"\"}\n");
    let finetune = |data: &str| format!("finetune model --max-steps 1 -o out --data {data}");
    let masked = ["masked.jsonl: row 0 (line 1): expected a completion to learn from", "none of them with a loss"];
    desk.refused(&finetune("masked.jsonl"), 3, &masked);
    let long = "x".repeat(3000);
    desk.write("long.jsonl", format!("{{\"prompt\":\"a\",\"completion\":\"{long}\"}}\n"));
    let too_long = [
        "long.jsonl: row 0 (line 1): expected at most 512 tokens",
        "the model's context",
        "--on-overflow drop|truncate",
        "found 300",
    ];
    desk.refused(&finetune("long.jsonl"), 3, &too_long);
    let none = ["long.jsonl: rows: expected at least one row to train on, found none of 1 (1 too long"];
    desk.refused(&finetune("long.jsonl --on-overflow drop"), 3, &none);
    desk.write("cut.jsonl", format!("{{\"prompt\":\"{long}\",\"completion\":\"b\"}}\n"));
    let none = ["cut.jsonl: rows: ", "found none of 1 (0 too long, 1 cut before a target)"];
    desk.refused(&finetune("cut.jsonl --on-overflow truncate"), 3, &none);
    desk.write("prompt.jsonl", format!("{{\"prompt\":\"{long}\"}}\n"));
    let prompt = ["prompt.jsonl: line 1: expected a prompt of fewer than 512 tokens", "found 3000 tokens"];
    desk.refused("generate model --input prompt.jsonl -o out", 3, &prompt);
}

#[test]
fn a_template_that_does_not_end_is_stopped_in_every_verb_that_renders_it() {
    let desk = Desk::new();
    let loops = "{% for a in range(99999) %}{% for b in range(99999) %}{{ a }}{% endfor %}{% endfor %}";
    for (template, found) in [
        (loops, "found one that does not end"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion limit"),
        ("{{ 'x' * 100000000000 }}", "found"),
        ("{% if %}", "syntax error"),
        (&"{% if 1 %}".repeat(20_000), "recursion limit"),
    ] {
        desk.write("model/chat_template.jinja", template);
        desk.write("messages.json", "[{\"role\":\"user\",\"content\":\"a\"}]");
        let parts = ["model/chat_template.jinja: chat_template, line 1: expected a template that renders", found];
        desk.refused("inspect model --messages messages.json", 3, &parts);
        desk.refused("generate model --message a", 3, &parts);
        desk.refused("generate model --input chat.jsonl -o out", 3, &parts);
        desk.refused("finetune model --data rows.jsonl -o out", 3, &parts);
        desk.refused("distill model --data rows.jsonl --template general -o out", 3, &parts);
        desk.refused("score model --data rows.jsonl -o out", 3, &parts);
    }
}

#[test]
fn a_conversation_for_a_model_without_template_is_refused() {
    let desk = Desk::new();
    desk.edit("model/tokenizer_config.json", |json| drop(json.as_object_mut().unwrap().remove("chat_template")));
    desk.write("messages.json", "[{\"role\":\"user\",\"content\":\"a\"}]");
    for verb in [
        "inspect model --messages messages.json",
        "generate model --message a",
        "generate model --input chat.jsonl -o out",
        "finetune model --data rows.jsonl -o out",
        "score model --data rows.jsonl -o out",
    ] {
        desk.refused(verb, 3, &["chat template"]);
    }
}

#[test]
fn tokenizers_and_ids_that_do_not_belong_to_the_model_are_named() {
    let desk = Desk::new();
    desk.write("ids.jsonl", "{\"prompt\":[65,256]}\n");
    desk.refused("generate model --input ids.jsonl -o out", 2, &["ids below 256", "found id 256"]);
    desk.write("ids.jsonl", "{\"prompt\":[65,-1]}\n");
    desk.refused("generate model --input ids.jsonl -o out", 3, &["ids.jsonl: line 1, field \"prompt\""]);
    let sound = std::fs::read(desk.path("model/tokenizer.json")).unwrap();
    type Change = fn(&mut Value);
    let cases: [(Change, &str); 5] = [
        (|j| j["model"]["vocab"]["x"] = json!(9999), "found 9999"),
        (|j| j["model"]["merges"] = json!([["x", "nowhere"]]), "expected a tokenizer"),
        (|j| j["model"]["merges"] = json!([["x", "y"]]), "expected a tokenizer"),
        (|j| j["model"]["vocab"] = json!({}), "expected"),
        (|j| *j = json!(7), "expected a tokenizer"),
    ];
    for (change, found) in cases {
        desk.write("model/tokenizer.json", &sound);
        desk.edit("model/tokenizer.json", change);
        for verb in ["generate model --prompt x", "score model --data text.txt --sample-tokens 4 -o out"] {
            desk.refused(verb, 3, &["model/tokenizer.json: ", found]);
        }
    }
}

#[test]
fn cuts_that_cannot_be_are_refused_in_whichever_form_they_come() {
    let desk = Desk::new();
    for (rows, code, parts) in [
        ("", 3, ["scores.csv: line 2: ", "at least one row of scores"]),
        ("2,1,0.5\n", 3, ["scores.csv: line 2: ", "block_start before block_end"]),
        ("1,1,0.5\n", 3, ["scores.csv: line 2: ", "block_start before block_end"]),
        ("3,5,0.5\n", 3, ["scores.csv: line 2: ", "at most 4"]),
        ("-1,1,0.5\n", 3, ["scores.csv: line 2: ", "two block numbers and a distance"]),
        ("0,1,NaN\n", 3, ["scores.csv: line 2: ", "a finite distance"]),
        ("0,2,0.5\n", 2, ["--block-size: expected a size that scores.csv has: [2]", "found 1"]),
    ] {
        desk.write("scores.csv", format!("block_start,block_end,average_distance\n{rows}"));
        desk.refused("prune model --scores scores.csv --block-size 1 -o out", code, &parts);
    }
    desk.write("scores.csv", "block_start,block_end,average_distance\n0,4,0.5\n");
    desk.refused(
        "prune model --scores scores.csv --block-size 4 -o out",
        2,
        &["at least one block left", "all 4 blocks"],
    );
    for (ranges, code, found) in [
        (&[[0u64, 4]][..], 2, "at least one block, found none"),
        (&[], 2, "at least one block left"),
        (&[[2, 1]], 3, "a start before the end, found [2, 1]"),
        (&[[0, 9]], 3, "an end of at most 4, found [0, 9]"),
        (&[[0, 2], [1, 3]], 3, "slices in order that do not overlap, found [1, 3]"),
        (&[[0, 1 << 63]], 3, "an end of at most 4"),
    ] {
        let slices: Vec<Value> =
            ranges.iter().map(|range| json!({ "sources": [{ "model": "m", "layer_range": range }] })).collect();
        desk.write("merge.yml", json!({ "slices": slices, "merge_method": "passthrough" }).to_string());
        desk.refused("prune model --config merge.yml -o out", code, &[found]);
    }
    for (drop, found) in
        [("3-1", "not after its last"), ("4", "blocks 0 to 3"), ("1,1", "each block once"), ("0-3", "all 4 blocks")]
    {
        desk.refused(&format!("prune model --drop {drop} -o out"), 2, &["--drop: expected", found]);
    }
}

#[test]
fn what_an_output_would_replace_must_be_an_earlier_output() {
    let desk = Desk::new();
    desk.write("mine/letter.txt", "dear");
    desk.write("mine.txt", "dear");
    let foreign = "expected an earlier output to replace";
    for verb in ["prune model --drop 1", "finetune model --data rows.jsonl --max-steps 1", "init --preset tiny"] {
        desk.refused(&format!("{verb} -o mine"), 2, &["mine: expected a path that does not exist yet"]);
        desk.refused(&format!("{verb} -o mine --overwrite"), 2, &[foreign, "a directory that holds something else"]);
        desk.refused(&format!("{verb} -o mine.txt --overwrite"), 2, &[foreign, "a file"]);
    }
    assert_eq!(std::fs::read_to_string(desk.path("mine/letter.txt")).unwrap(), "dear");
    assert_eq!(std::fs::read_to_string(desk.path("mine.txt")).unwrap(), "dear");
    assert!(desk.path("model/config.json").exists());
}
