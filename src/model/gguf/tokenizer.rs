//! Vocabulary, merges and special tokens of a GGUF as `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json`.

use super::config::special_id;
use super::metadata::Metadata;
use super::sentencepiece;
use crate::error::{Error, Result};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Token types of `tokenizer.ggml.token_type`.
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// Llama 3's splitting rule: contractions, letters with one leading sign, up to three digits, punctuation, line ends, spaces.
const LLAMA3_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The three tokenizer files.
pub(super) struct TokenizerFiles {
    /// `tokenizer.json`.
    pub tokenizer: Value,
    /// `tokenizer_config.json`, the chat template inside.
    pub config: Value,
    /// `special_tokens_map.json`.
    pub special_tokens_map: Value,
}

/// Tokens by id, checked.
struct Vocabulary<'a> {
    tokens: &'a [String],
    ids: BTreeMap<&'a str, usize>,
    types: Vec<i64>,
}

impl<'a> Vocabulary<'a> {
    fn read(metadata: &'a Metadata, vocab_size: usize) -> Result<Vocabulary<'a>> {
        let path = metadata.path();
        let key = "tokenizer.ggml.tokens";
        let tokens = metadata.require(key, "an array of strings", metadata.strings(key)?)?;
        if tokens.is_empty() || tokens.len() > vocab_size {
            let expected = format!("1 to {vocab_size} tokens, the rows of token_embd.weight");
            return Err(Error::format(path, format!("metadata {key}"), expected, tokens.len().to_string()));
        }
        let mut ids = BTreeMap::new();
        for (id, token) in tokens.iter().enumerate() {
            if let Some(earlier) = ids.insert(token.as_str(), id) {
                let found = format!("{token:?} as {earlier} and as {id}");
                return Err(Error::format(path, format!("metadata {key}"), "each token once", found));
            }
        }
        let key = "tokenizer.ggml.token_type";
        let types = metadata.integers(key)?.unwrap_or_else(|| vec![1; tokens.len()]);
        if types.len() != tokens.len() {
            let expected = format!("{} types, one a token", tokens.len());
            return Err(Error::format(path, format!("metadata {key}"), expected, types.len().to_string()));
        }
        Ok(Vocabulary { tokens, ids, types })
    }

    /// `added_tokens`: matched in the text before anything else. Control tokens are special (dropped by `skip_special_tokens`).
    fn added(&self, special_types: &[i64]) -> Vec<Value> {
        let typed = self.tokens.iter().zip(&self.types).enumerate();
        typed
            .filter(|(_, (_, kind))| special_types.contains(kind) || **kind == USER_DEFINED)
            .map(|(id, (token, &kind))| {
                json!({
                    "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": kind != USER_DEFINED,
                })
            })
            .collect()
    }

    fn vocab_json(&self) -> Map<String, Value> {
        self.tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect()
    }
}

/// Builds the three files. `vocab_size`: rows of the embedding table; `context`: longest sequence in tokens.
pub(super) fn tokenizer_files(metadata: &Metadata, vocab_size: usize, context: &Value) -> Result<TokenizerFiles> {
    let vocabulary = Vocabulary::read(metadata, vocab_size)?;
    let model = metadata.string("tokenizer.ggml.model")?;
    let (mut tokenizer, add_bos_default) =
        match metadata.require("tokenizer.ggml.model", "\"gpt2\" or \"llama\"", model)? {
            "gpt2" => byte_level(metadata, &vocabulary)?,
            "llama" => (sentence_piece(metadata, &vocabulary)?, true),
            other => {
                let what = format!("metadata tokenizer.ggml.model {other:?}");
                return Err(Error::unsupported(metadata.path(), what, "\"gpt2\" and \"llama\" are"));
            }
        };
    let special = |key: &str| -> Result<Option<(u64, &str)>> {
        let id = special_id(metadata, key, vocabulary.tokens.len())?;
        Ok(id.map(|id| (id, vocabulary.tokens[id as usize].as_str())))
    };
    let (bos, eos, unk, pad) = (special("bos")?, special("eos")?, special("unknown")?, special("padding")?);
    let add_bos = metadata.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(add_bos_default);
    let add_eos = metadata.flag("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
    tokenizer["post_processor"] = post_processor(bos.filter(|_| add_bos), eos.filter(|_| add_eos));

    let mut map = Map::new();
    for (name, token) in [("bos_token", bos), ("eos_token", eos), ("pad_token", pad), ("unk_token", unk)] {
        if let Some((_, token)) = token {
            map.insert(name.to_string(), json!(token));
        }
    }
    let decoder: Map<String, Value> = (tokenizer["added_tokens"].as_array().into_iter().flatten())
        .filter_map(|token| {
            let mut fields = token.as_object()?.clone();
            let id = fields.shift_remove("id")?;
            Some((id.to_string(), Value::Object(fields)))
        })
        .collect();
    let mut config = map.clone();
    config.insert("add_bos_token".into(), json!(add_bos));
    config.insert("add_eos_token".into(), json!(add_eos));
    config.insert("added_tokens_decoder".into(), Value::Object(decoder));
    if let Some(template) = metadata.string("tokenizer.chat_template")? {
        config.insert("chat_template".into(), json!(template));
    }
    config.insert("clean_up_tokenization_spaces".into(), json!(false));
    config.insert("model_max_length".into(), context.clone());
    config.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
    Ok(TokenizerFiles { tokenizer, config: Value::Object(config), special_tokens_map: Value::Object(map) })
}

fn post_processor(bos: Option<(u64, &str)>, eos: Option<(u64, &str)>) -> Value {
    if bos.is_none() && eos.is_none() {
        return Value::Null;
    }
    let piece = |token: Option<(u64, &str)>, sequence: u32| {
        token.map(|(_, token)| json!({"SpecialToken": {"id": token, "type_id": sequence}}))
    };
    let around = |name: &str, sequence: u32| -> Vec<Value> {
        let text = json!({"Sequence": {"id": name, "type_id": sequence}});
        [piece(bos, sequence), Some(text), piece(eos, sequence)].into_iter().flatten().collect()
    };
    let tokens: Map<String, Value> = [bos, eos]
        .into_iter()
        .flatten()
        .map(|(id, token)| (token.to_string(), json!({"id": token, "ids": [id], "tokens": [token]})))
        .collect();
    let pair = [around("A", 0), around("B", 1)].concat();
    json!({
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": pair,
        "special_tokens": tokens,
    })
}

fn bpe(extra: Value, vocab: Map<String, Value>, merges: Value) -> Value {
    let mut model = json!({
        "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
        "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
    });
    for (key, value) in extra.as_object().into_iter().flatten() {
        model[key] = value.clone();
    }
    model["vocab"] = Value::Object(vocab);
    model["merges"] = merges;
    model
}

/// Byte-level BPE (GPT-2's), split as `tokenizer.ggml.pre` says; and whether BOS is prepended when the file does not say.
fn byte_level(metadata: &Metadata, vocabulary: &Vocabulary) -> Result<(Value, bool)> {
    let path = metadata.path();
    let key = "tokenizer.ggml.merges";
    let merges = metadata.require(key, "an array of strings", metadata.strings(key)?)?;
    for (rank, merge) in merges.iter().enumerate() {
        let known = merge.split_once(' ').is_some_and(|(left, right)| {
            let ids = &vocabulary.ids;
            ids.contains_key(left) && ids.contains_key(right) && ids.contains_key(format!("{left}{right}").as_str())
        });
        if !known {
            let expected = "two tokens of the vocabulary that join to a third";
            return Err(Error::format(path, format!("metadata {key}[{rank}]"), expected, format!("{merge:?}")));
        }
    }
    let byte_level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    let sequence =
        |first: Value, use_regex| json!({"type": "Sequence", "pretokenizers": [first, byte_level(use_regex)]});
    let (pre_tokenizer, ignore_merges, add_bos) = match metadata.string("tokenizer.ggml.pre")? {
        Some("smollm") => (sequence(json!({"type": "Digits", "individual_digits": true}), true), false, false),
        Some("llama-bpe" | "llama3" | "llama-v3") => {
            let split = json!({
                "type": "Split", "pattern": {"Regex": LLAMA3_SPLIT}, "behavior": "Isolated", "invert": false,
            });
            (sequence(split, false), true, true)
        }
        // Files older than the key hold no other rule either.
        Some("gpt-2" | "default") | None => (byte_level(true), false, false),
        Some(other) => {
            let what = format!("metadata tokenizer.ggml.pre {other:?}");
            return Err(Error::unsupported(path, what, "\"smollm\", \"llama-bpe\", \"gpt-2\" and \"default\" are"));
        }
    };
    let model = bpe(json!({"ignore_merges": ignore_merges}), vocabulary.vocab_json(), json!(merges));
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": vocabulary.added(&[CONTROL]),
        "normalizer": null, "pre_tokenizer": pre_tokenizer, "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": model,
    });
    Ok((tokenizer, add_bos))
}

/// SentencePiece BPE with byte fallback (Llama 1 and 2, TinyLlama): spaces become U+2581, one is put before the text.
fn sentence_piece(metadata: &Metadata, vocabulary: &Vocabulary) -> Result<Value> {
    let key = "tokenizer.ggml.scores";
    let scores = metadata.require(key, "an array of float32", metadata.floats(key)?)?;
    if scores.len() != vocabulary.tokens.len() || scores.iter().any(|s| s.is_nan()) {
        let expected = format!("{} numbers, one a token", vocabulary.tokens.len());
        let found = format!("{}, {} of them NaN", scores.len(), scores.iter().filter(|s| s.is_nan()).count());
        return Err(Error::format(metadata.path(), format!("metadata {key}"), expected, found));
    }
    let merges = sentencepiece::merges(vocabulary.tokens, &vocabulary.ids, &scores);
    let unknown = special_id(metadata, "unknown", vocabulary.tokens.len())?;
    let unknown = unknown.map(|id| id as usize).or(vocabulary.types.iter().position(|&kind| kind == UNKNOWN));
    let prefix = metadata.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
    let mut normalizers = vec![replace];
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": "\u{2581}"}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let extra = json!({
        "unk_token": unknown.map(|id| &vocabulary.tokens[id]), "fuse_unk": true, "byte_fallback": true,
    });
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": vocabulary.added(&[UNKNOWN, CONTROL]),
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": bpe(extra, vocabulary.vocab_json(), json!(merges)),
    }))
}
