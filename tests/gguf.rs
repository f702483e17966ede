//! What a GGUF file holds arrives in the model directory: numbers, names, row order, tokenizer.

#[path = "support/gguf.rs"]
mod builder;

use builder::{Gguf, tiny};
use ratoon::device::DType;
use ratoon::model::gguf::{GgmlType, convert, dequantise};
use ratoon::model::safetensors::WeightFiles;
use ratoon::model::{Config, GenerationConfig, Tokenizer};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn json(path: PathBuf) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn unhex(value: &Value) -> Vec<u8> {
    let text = value.as_str().unwrap();
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

#[test]
fn every_block_format_gives_the_bits_of_the_gguf_package() {
    let expected = json(data("gguf/blocks.json"));
    let kinds =
        [(0, "F32"), (1, "F16"), (30, "BF16"), (2, "Q4_0"), (3, "Q4_1"), (8, "Q8_0"), (12, "Q4_K"), (14, "Q6_K")];
    assert_eq!(expected.as_object().unwrap().len(), kinds.len());
    for (id, name) in kinds {
        let kind = GgmlType::from_id(id).unwrap();
        assert_eq!(kind.to_string(), name);
        let blocks = unhex(&expected[name]["bytes"]);
        let want = unhex(&expected[name]["values"]);
        let mut got = vec![0f32; blocks.len() / kind.block_bytes() * kind.block_size()];
        dequantise(kind, &blocks, &mut got);
        let got: Vec<u8> = got.iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(got, want, "{name}");
    }
}

/// GGUF with the vocabulary `name` of tokenizers.json and an embedding row for each token.
fn with_vocabulary(name: &str) -> (Gguf, Value) {
    let vocabulary = json(data("gguf/tokenizers.json"))[name].take();
    let mut g = tiny();
    let tokens: Vec<String> = serde_json::from_value(vocabulary["tokens"].clone()).unwrap();
    let types: Vec<i32> = serde_json::from_value(vocabulary["token_type"].clone()).unwrap();
    g.tensors.remove(0);
    g.tensor("token_embd.weight", &[tokens.len(), 8], &vec![0.5; tokens.len() * 8]);
    g.strings("tokenizer.ggml.tokens", &tokens);
    g.i32s("tokenizer.ggml.token_type", &types);
    for (key, field) in [("bos", "bos"), ("eos", "eos"), ("unknown", "unk")] {
        if let Some(id) = vocabulary[field].as_u64() {
            g.u32(&format!("tokenizer.ggml.{key}_token_id"), id as u32);
        }
    }
    (g, vocabulary)
}

fn check_ids(name: &str, dir: &Path, vocabulary: &Value, bos: &[u32]) {
    let tokenizer = Tokenizer::load(dir).unwrap();
    for case in vocabulary["texts"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        let want = [bos, &ids].concat();
        assert_eq!(tokenizer.encode(text, true).unwrap(), want, "{name}: {text:?}");
        assert_eq!(tokenizer.decode(&want, true).unwrap(), text, "{name}");
    }
}

#[test]
fn byte_level_vocabularies_give_tiktokens_ids() {
    for (name, add_bos) in [("llama-bpe", true), ("gpt-2", false)] {
        let (mut g, vocabulary) = with_vocabulary(name);
        g.string("tokenizer.ggml.pre", name);
        g.strings(
            "tokenizer.ggml.merges",
            &serde_json::from_value::<Vec<String>>(vocabulary["merges"].clone()).unwrap(),
        );
        let temporary = tempfile::tempdir().unwrap();
        let out = temporary.path().join("out");
        convert(&g.write(temporary.path()), &out, None, false).unwrap();
        let bos = vocabulary["bos"].as_u64().unwrap() as u32;
        check_ids(name, &out, &vocabulary, if add_bos { std::slice::from_ref(&bos) } else { &[] });
        // The file's own word on BOS wins over the rule's default.
        g.bool("tokenizer.ggml.add_bos_token", !add_bos);
        convert(&g.write(temporary.path()), &out, None, true).unwrap();
        check_ids(name, &out, &vocabulary, if add_bos { &[] } else { std::slice::from_ref(&bos) });
    }
}

#[test]
fn sentencepiece_vocabularies_give_sentencepieces_ids() {
    let (mut g, vocabulary) = with_vocabulary("llama");
    g.string("tokenizer.ggml.model", "llama");
    g.f32s("tokenizer.ggml.scores", &serde_json::from_value::<Vec<f32>>(vocabulary["scores"].clone()).unwrap());
    let temporary = tempfile::tempdir().unwrap();
    let out = temporary.path().join("out");
    convert(&g.write(temporary.path()), &out, None, false).unwrap();
    check_ids("llama", &out, &vocabulary, &[]);
}

/// llama.cpp's row order for interleaved rotation: `[heads, 2, head_dim / 2, in]` to `[heads, head_dim / 2, 2, in]`.
fn interleave(bytes: &[u8], heads: usize, rows: usize) -> Vec<u8> {
    let (row_bytes, half) = (bytes.len() / rows, rows / heads / 2);
    let mut out = Vec::new();
    for head in 0..heads {
        for i in 0..half {
            for part in 0..2 {
                let row = head * 2 * half + part * half + i;
                out.extend(&bytes[row * row_bytes..(row + 1) * row_bytes]);
            }
        }
    }
    out
}

const NAMES: [(&str, &str); 12] = [
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
    ("lm_head", "output"),
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// A Hugging Face directory as llama.cpp's converter writes it.
fn to_gguf(dir: &Path) -> (Gguf, Config, WeightFiles) {
    let (config, weights) = (Config::load(dir).unwrap(), WeightFiles::open(dir).unwrap());
    let mut g = tiny();
    g.tensors.clear();
    let heads = &config.heads;
    for (key, value) in [
        ("block_count", config.num_hidden_layers),
        ("context_length", config.max_position_embeddings),
        ("embedding_length", config.hidden_size),
        ("feed_forward_length", config.intermediate_size),
        ("attention.head_count", heads.n_heads),
        ("attention.head_count_kv", heads.n_kv_heads),
        ("attention.key_length", heads.head_dim),
        ("attention.value_length", heads.head_dim),
        ("rope.dimension_count", heads.head_dim),
    ] {
        g.u32(&format!("llama.{key}"), value as u32);
    }
    g.f32("llama.attention.layer_norm_rms_epsilon", config.rms_norm_eps);
    g.f32("llama.rope.freq_base", config.rope_theta as f32);
    for name in weights.tensors.keys() {
        let tensor = weights.tensor(name).unwrap();
        let (base, suffix) = name.rsplit_once('.').unwrap();
        let (block, part) = match base.strip_prefix("model.layers.") {
            Some(rest) => rest.split_once('.').map(|(i, part)| (format!("blk.{i}."), part)).unwrap(),
            None => (String::new(), base),
        };
        let to = NAMES.iter().find(|(from, _)| *from == part).unwrap().1;
        let data = match part {
            "self_attn.q_proj" => interleave(tensor.bytes(), heads.n_heads, tensor.shape()[0]),
            "self_attn.k_proj" => interleave(tensor.bytes(), heads.n_kv_heads, tensor.shape()[0]),
            _ => tensor.bytes().to_vec(),
        };
        let kind = match tensor.dtype() {
            DType::F32 => 0,
            DType::F16 => 1,
            _ => 30,
        };
        let sizes = tensor.shape().iter().rev().map(|&n| n as u64).collect();
        g.tensors.push(builder::Tensor { name: format!("{block}{to}.{suffix}"), sizes, kind, data, offset: None });
    }
    (g, config, weights)
}

#[test]
fn every_llama_shape_survives_the_way_through_gguf() {
    for name in ["biases", "gqa", "linear_rope", "llama3_rope", "mha_tied", "mqa_head_dim", "odd_sizes"] {
        let (mut g, config, weights) = to_gguf(&data("tiny").join(name));
        match name {
            "linear_rope" => {
                g.string("llama.rope.scaling.type", "linear");
                let factor = config.json["rope_parameters"]["factor"].as_f64().unwrap();
                g.f32("llama.rope.scaling.factor", factor as f32);
            }
            // Its original length is not Llama 3's; the divisors' own test is in config.rs.
            "llama3_rope" => {
                g.tensor("rope_freqs.weight", &[config.heads.head_dim / 2], &vec![1.0; config.heads.head_dim / 2])
            }
            _ => {}
        }
        let temporary = tempfile::tempdir().unwrap();
        let out = temporary.path().join("out");
        convert(&g.write(temporary.path()), &out, None, false).unwrap();
        let back = Config::load(&out).unwrap();
        assert_eq!(back.heads.head_dim, config.heads.head_dim, "{name}");
        assert_eq!(back.rms_norm_eps, config.rms_norm_eps, "{name}");
        assert_eq!(back.rope_theta, config.rope_theta, "{name}");
        assert_eq!(back.tie_word_embeddings, config.tie_word_embeddings, "{name}");
        assert_eq!((back.attention_bias, back.mlp_bias), (config.attention_bias, config.mlp_bias), "{name}");
        if name != "llama3_rope" {
            assert_eq!(back.rope_scaling, config.rope_scaling, "{name}");
        }
        let written = WeightFiles::open(&out).unwrap();
        assert_eq!(written.tensors.len(), weights.tensors.len(), "{name}");
        for tensor in weights.tensors.keys() {
            let (got, want) = (written.tensor(tensor).unwrap(), weights.tensor(tensor).unwrap());
            assert_eq!(got.shape(), want.shape(), "{name}: {tensor}");
            assert_eq!(got.dtype(), want.dtype(), "{name}: {tensor}: an unquantised file keeps its type");
            assert_eq!(got.bytes(), want.bytes(), "{name}: {tensor}");
        }
        ratoon::model::Llama::load(&out).unwrap();
    }
}

#[test]
fn the_element_type_can_be_chosen_and_rounds_to_nearest_even() {
    let mut g = tiny();
    // 1 + 2^-8 lies half-way between two bfloat16 numbers, 1 + 3 * 2^-8 too: to even is down, then up.
    let norm = [1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, -2.5, 0.0, 1.0, 1.0, 1.0, 1.0];
    g.tensors.retain(|t| t.name != "output_norm.weight");
    g.tensor("output_norm.weight", &[8], &norm);
    let temporary = tempfile::tempdir().unwrap();
    let out = temporary.path().join("out");
    convert(&g.write(temporary.path()), &out, Some(DType::BF16), false).unwrap();
    let tensor = WeightFiles::open(&out).unwrap().tensor("model.norm.weight").unwrap();
    let bits: Vec<u16> = tensor.bytes().chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect();
    assert_eq!(bits[..4], [0x3f80, 0x3f82, 0xc020, 0]);
}

#[test]
fn every_id_that_ends_a_turn_ends_the_output() {
    let mut g = tiny();
    g.u32("tokenizer.ggml.eos_token_id", 2);
    g.u32("tokenizer.ggml.eot_token_id", 1);
    let temporary = tempfile::tempdir().unwrap();
    let out = temporary.path().join("out");
    convert(&g.write(temporary.path()), &out, None, false).unwrap();
    assert_eq!(GenerationConfig::load(&out).unwrap().eos_token_ids, [2, 1]);
}
