//! A model whose logits are not numbers ends a run with the row that showed it.

mod support;

use std::process::Command;

#[test]
fn a_row_whose_logits_are_not_numbers_is_named_by_id_and_line() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    support::tiny_model_with_tokenizer(&model);
    // A NaN in the embedding of the letter Z alone: rows without one are fine.
    let index = std::fs::read_to_string(model.join("model.safetensors.index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_str(&index).unwrap();
    let shard = model.join(index["weight_map"]["model.embed_tokens.weight"].as_str().unwrap());
    let mut bytes = std::fs::read(&shard).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let tensors: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let embedding = &tensors["model.embed_tokens.weight"];
    let number = |value: &serde_json::Value| value.as_u64().unwrap() as usize;
    let (start, end) = (number(&embedding["data_offsets"][0]), number(&embedding["data_offsets"][1]));
    let row_bytes = (end - start) / number(&embedding["shape"][0]);
    let row = 8 + header + start + usize::from(b'Z') * row_bytes;
    bytes[row..row + row_bytes].fill(0xff);
    std::fs::write(&shard, bytes).unwrap();
    let rows = |shape: fn(&str) -> serde_json::Value| {
        let mut rows: Vec<serde_json::Value> = ["one", "two", "Zwei", "three"].map(shape).to_vec();
        rows[2]["id"] = "the-bad-one".into();
        // A blank line counts as a line.
        format!("\n{}", rows.iter().map(|row| format!("{row}\n")).collect::<String>())
    };
    std::fs::write(dir.path().join("prompts.jsonl"), rows(|text| serde_json::json!({"prompt": text}))).unwrap();
    let question = |text: &str| serde_json::json!({"question": text, "answer": "1"});
    std::fs::write(dir.path().join("rows.jsonl"), rows(question)).unwrap();
    std::fs::write(dir.path().join("short.toml"), "user = 'Q: {{ instruction }}'\n").unwrap();
    for verb in [
        "generate model --input prompts.jsonl --max-tokens 4 -o out.jsonl",
        "distill model --data rows.jsonl --template short.toml --max-tokens 4 -o distilled.jsonl",
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ratoon"));
        let out = command.current_dir(dir.path()).arg("--quiet").args(verb.split(' ')).output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(7), "{said}");
        assert!(said.starts_with("error: logits of row the-bad-one (line 4) at position "), "{said}");
        assert!(said.contains("inspect --check-values"), "{said}");
    }
}

#[test]
fn a_stage_that_stops_early_says_how_much_it_did() {
    let dir = tempfile::tempdir().unwrap();
    support::tiny_model_with_tokenizer(&dir.path().join("model"));
    std::fs::write(dir.path().join("rows.jsonl"), "{\"text\":\"Some words.\"}\n").unwrap();
    let verb = "finetune model --data rows.jsonl -o out --max-steps 50 --learning-rate 1e30";
    let mut command = Command::new(env!("CARGO_BIN_EXE_ratoon"));
    let out = command.current_dir(dir.path()).args(verb.split(' ')).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(7), "{said}");
    assert!(said.contains("finetune: 50 steps\n") && said.contains("finetune: 1 steps in "), "{said}");
}
