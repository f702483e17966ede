//! A damaged or foreign GGUF gives one line that names file, place, expected and found; nothing is written, nothing panics.

#[path = "support/gguf.rs"]
mod builder;

use builder::{Gguf, string, tiny};
use proptest::prelude::*;
use ratoon::Error;
use ratoon::model::gguf::{GgufFile, convert};
use std::path::Path;

/// Converts the bytes, checks what every failure has in common, and gives the error.
fn refused(bytes: &[u8]) -> Error {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    let out = temporary.path().join("out");
    let error = convert(&path, &out, None, false).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("model.gguf"), "names the file: {text}");
    assert!(!text.contains('\n'), "one line: {text}");
    assert!(!out.exists(), "nothing is written");
    error
}

fn check(g: &Gguf, exit_code: u8, words: &[&str]) {
    let error = refused(&g.bytes());
    let text = error.to_string();
    assert_eq!(error.exit_code(), exit_code, "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} in: {text}");
    }
}

/// `tiny()` after a change, the words that the message must hold. Exit code 3.
fn changed(change: impl FnOnce(&mut Gguf), words: &[&str]) {
    let mut g = tiny();
    change(&mut g);
    check(&g, 3, words);
}

#[test]
fn the_unchanged_file_converts() {
    let temporary = tempfile::tempdir().unwrap();
    let converted = convert(&tiny().write(temporary.path()), &temporary.path().join("out"), None, false).unwrap();
    assert_eq!((converted.tensors, converted.num_hidden_layers), (11, 1));
}

#[test]
fn headers_that_are_not_ggufs_are_named() {
    changed(|g| g.magic = *b"GGML", &["byte 0 (magic)", "\"GGUF\"", "GGML"]);
    changed(|g| g.version = 1, &["version 1", "not supported"]);
    changed(|g| g.version = 4, &["byte 4 (version)", "2 or 3", "found 4"]);
    changed(|g| g.version = 3u32.swap_bytes(), &["big-endian"]);
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n";
    assert!(refused(pointer).to_string().contains("LFS"));
    assert!(refused(&[]).to_string().contains("expected"));
    assert!(refused(b"GGUF").to_string().contains("version"));
}

#[test]
fn counts_and_lengths_beyond_the_file_are_refused_without_reserving_memory() {
    for huge in [1 << 63, u64::MAX, 1 << 40] {
        changed(|g| g.n_metadata = Some(huge), &["byte"]);
        changed(|g| g.n_tensors = Some(huge), &["byte"]);
        changed(|g| g.set("long", 8, huge.to_le_bytes().to_vec()), &["metadata long", "up to the end of the file"]);
        for kind in [0u32, 4, 8, 9, 12] {
            let array = [&kind.to_le_bytes()[..], &huge.to_le_bytes()].concat();
            changed(|g| g.set("array", 9, array), &["metadata array"]);
        }
        changed(|g| g.tensors[0].sizes = vec![huge, huge], &["token_embd.weight", "elements"]);
        changed(|g| g.tensors[0].offset = Some(huge & !31), &["token_embd.weight"]);
    }
    // Arrays in arrays, deep enough to end a stack.
    let level = [&9u32.to_le_bytes()[..], &1u64.to_le_bytes()].concat();
    changed(|g| g.set("deep", 9, level.repeat(100_000)), &["metadata deep", "nested"]);
}

#[test]
fn metadata_of_the_wrong_type_is_named() {
    changed(|g| g.set("odd", 13, vec![0; 8]), &["metadata odd", "value type of 0 to 12", "13"]);
    changed(|g| g.set("odd", 7, vec![2]), &["metadata odd", "boolean"]);
    changed(|g| g.set("odd", 8, [&1u64.to_le_bytes()[..], &[0xff]].concat()), &["metadata odd", "UTF-8"]);
    changed(|g| g.metadata.push(("llama.block_count".into(), 4, vec![1, 0, 0, 0])), &["llama.block_count", "twice"]);
    changed(|g| g.string("llama.block_count", "one"), &["llama.block_count", "integer", "\"one\""]);
    changed(|g| g.u32("llama.block_count", 0), &["llama.block_count", "found 0"]);
    changed(|g| g.u32("general.alignment", 3), &["general.alignment", "power of two", "3"]);
    changed(|g| g.f32("llama.attention.layer_norm_rms_epsilon", f32::NAN), &["epsilon", "finite"]);
    changed(|g| g.metadata.retain(|(k, _, _)| k != "llama.context_length"), &["llama.context_length", "no such key"]);
}

#[test]
fn tensor_directories_that_lie_are_refused() {
    changed(|g| g.tensors[0].kind = 99, &["token_embd.weight", "known tensor type", "99"]);
    changed(|g| g.tensors[0].kind = 13, &["token_embd.weight", "Q5_K", "not supported"]);
    changed(|g| g.tensors[0].kind = 3, &["token_embd.weight", "multiple of 32"]);
    changed(|g| g.tensors[0].sizes = vec![0, 3], &["token_embd.weight", "elements"]);
    changed(|g| g.tensors[0].sizes = vec![1; 5], &["token_embd.weight", "1 to 4 dimensions", "5"]);
    changed(|g| g.tensors[1].offset = Some(4), &["output_norm.weight", "aligned to 32"]);
    changed(|g| g.tensors[1].offset = Some(0), &["data of its own"]);
    changed(|g| g.tensors[1].offset = Some(1 << 20), &["output_norm.weight", "inside the file"]);
    changed(|g| g.tensors[1].name = "token_embd.weight".into(), &["token_embd.weight", "twice"]);
}

#[test]
fn other_models_and_missing_tensors_are_named() {
    changed(|g| g.string("general.architecture", "qwen2"), &["architecture \"qwen2\"", "not supported"]);
    changed(|g| g.u32("llama.expert_count", 8), &["8 experts"]);
    changed(|g| g.u32("llama.block_count", 2), &["blk.1.", "none of that name"]);
    changed(|g| g.tensor("blk.0.attn_q_norm.weight", &[4], &[1.0; 4]), &["blk.0.attn_q_norm.weight", "not supported"]);
    changed(|g| g.tensor("blk.0.attn_q.bias", &[8], &[1.0; 8]), &["1 of 4 projections"]);
    changed(|g| g.u32("llama.feed_forward_length", 7), &["ffn_gate.weight", "[7, 8]", "[6, 8]"]);
    changed(|g| g.u32("llama.attention.head_count_kv", 3), &["head_count_kv", "divisor"]);
    changed(|g| g.u32("llama.rope.dimension_count", 2), &["rope.dimension_count", "not supported"]);
    changed(|g| g.string("llama.rope.scaling.type", "yarn"), &["\"yarn\"", "not supported"]);
    changed(|g| g.tensor("rope_freqs.weight", &[2], &[1.0, 7.0]), &["rope_freqs.weight", "not supported"]);
}

#[test]
fn tokenizers_that_cannot_be_rebuilt_are_named() {
    let tokens = |list: &[&str]| -> Vec<String> { list.iter().map(|s| s.to_string()).collect() };
    changed(|g| g.string("tokenizer.ggml.pre", "qwen2"), &["tokenizer.ggml.pre \"qwen2\"", "not supported"]);
    changed(|g| g.string("tokenizer.ggml.model", "bert"), &["tokenizer.ggml.model \"bert\""]);
    changed(|g| g.strings("tokenizer.ggml.merges", &tokens(&["a c"])), &["merges[0]", "\"a c\""]);
    changed(|g| g.strings("tokenizer.ggml.merges", &tokens(&["ab"])), &["merges[0]"]);
    changed(|g| g.strings("tokenizer.ggml.tokens", &tokens(&["a", "a", "b"])), &["tokens", "once"]);
    changed(|g| g.strings("tokenizer.ggml.tokens", &tokens(&["a", "b", "ab", "x"])), &["1 to 3 tokens", "found 4"]);
    changed(|g| g.i32s("tokenizer.ggml.token_type", &[1]), &["token_type", "3 types"]);
    changed(|g| g.u32("tokenizer.ggml.bos_token_id", 3), &["bos_token_id", "below 3"]);
    changed(|g| g.string("tokenizer.ggml.model", "llama"), &["tokenizer.ggml.scores"]);
    changed(
        |g| {
            g.string("tokenizer.ggml.model", "llama");
            g.f32s("tokenizer.ggml.scores", &[0.0, f32::NAN, 0.0]);
        },
        &["tokenizer.ggml.scores", "1 of them NaN"],
    );
}

#[test]
fn weights_that_are_not_numbers_are_refused() {
    for value in [f32::NAN, f32::INFINITY, f32::MAX] {
        let mut g = tiny();
        g.tensors[3].data[..4].copy_from_slice(&value.to_le_bytes());
        g.tensors[0].kind = 30;
        g.tensors[0].data.truncate(48);
        // A mixed file is written as bfloat16, whose largest number is below float32's.
        check(&g, 7, &["blk.0.ffn_norm.weight", "not finite"]);
    }
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let whole = tiny().bytes();
    // Every length through the directory, then every eighth through the data.
    for len in (0..whole.len()).filter(|n| *n < 1200 || n % 8 == 0) {
        refused(&whole[..len]);
    }
}

fn opens_or_names(bytes: &[u8], dir: &Path) {
    let path = dir.join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    if let Err(error) = GgufFile::open(&path) {
        assert!(error.to_string().contains("model.gguf"), "{error}");
    }
    let _ = convert(&path, &dir.join("out"), None, true);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn flipped_bytes_never_panic(flips in prop::collection::vec((0usize..2200, any::<u8>()), 1..6)) {
        let mut bytes = tiny().bytes();
        for (at, value) in flips {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        opens_or_names(&bytes, tempfile::tempdir().unwrap().path());
    }

    #[test]
    fn random_bytes_after_the_magic_never_panic(tail in prop::collection::vec(any::<u8>(), 0..300)) {
        let bytes = [b"GGUF\x03\0\0\0".as_slice(), &tail].concat();
        opens_or_names(&bytes, tempfile::tempdir().unwrap().path());
    }

    #[test]
    fn random_values_never_panic(kind in 0u32..14, value in prop::collection::vec(any::<u8>(), 0..64)) {
        let mut g = tiny();
        g.set("llama.rope.scaling.factor", kind, value);
        g.set("general.name", 8, string("x"));
        opens_or_names(&g.bytes(), tempfile::tempdir().unwrap().path());
    }
}
