//! A tokenizer for models that have none: one token per byte, so that any text can be encoded and benchmarks run.

use serde_json::{Map, Value, json};

/// Id of the end-of-text token; byte `b` has id `1 + b`.
pub(super) const EOS: u32 = 0;
/// Ids that [`byte_tokenizer`] gives.
pub(super) const IDS: usize = 257;
const EOS_TEXT: &str = "<|endoftext|>";

/// `tokenizer.json`: byte-level BPE without merges.
pub(super) fn byte_tokenizer() -> Value {
    let bytes = (0..=255u8).map(|b| (letter(b).to_string(), json!(1 + u32::from(b))));
    let vocab: Map<String, Value> = [(EOS_TEXT.to_string(), json!(EOS))].into_iter().chain(bytes).collect();
    let byte_level =
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false });
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [{ "id": EOS, "content": EOS_TEXT, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true }],
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": null,
        "decoder": byte_level,
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": [] },
    })
}

/// `tokenizer_config.json`, with a plain chat template.
pub(super) fn tokenizer_config(context: usize) -> Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOS_TEXT,
        "model_max_length": context,
        "clean_up_tokenization_spaces": false,
        "chat_template": "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}\
            {% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}",
    })
}

/// The printable letter that stands for a byte in byte-level vocabularies (GPT-2): itself where it is printable and no space,
/// else the next of the letters from U+0100.
fn letter(byte: u8) -> char {
    let printable = |b: u8| matches!(b, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    if printable(byte) {
        return char::from(byte);
    }
    let rank = (0..byte).filter(|&b| !printable(b)).count() as u32;
    // U+0100 plus at most 67 is a letter.
    char::from_u32(0x100 + rank).unwrap_or(char::REPLACEMENT_CHARACTER)
}
