//! Writes GGUF files, right and wrong ones.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::path::{Path, PathBuf};

/// A GGUF file under construction; every field can be made wrong.
#[derive(Clone)]
pub struct Gguf {
    pub magic: [u8; 4],
    pub version: u32,
    /// Key, type id, encoded value.
    pub metadata: Vec<(String, u32, Vec<u8>)>,
    pub tensors: Vec<Tensor>,
    /// Overrides of the counts in the header.
    pub n_tensors: Option<u64>,
    pub n_metadata: Option<u64>,
}

#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    /// Fastest dimension first, as the file has them.
    pub sizes: Vec<u64>,
    pub kind: u32,
    pub data: Vec<u8>,
    /// Override of the offset in the data section.
    pub offset: Option<u64>,
}

pub fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

impl Gguf {
    pub fn new() -> Gguf {
        Gguf {
            magic: *b"GGUF",
            version: 3,
            metadata: Vec::new(),
            tensors: Vec::new(),
            n_tensors: None,
            n_metadata: None,
        }
    }

    pub fn set(&mut self, key: &str, kind: u32, value: Vec<u8>) {
        self.metadata.retain(|(k, _, _)| k != key);
        self.metadata.push((key.to_string(), kind, value));
    }

    pub fn u32(&mut self, key: &str, value: u32) {
        self.set(key, 4, value.to_le_bytes().to_vec());
    }

    pub fn f32(&mut self, key: &str, value: f32) {
        self.set(key, 6, value.to_le_bytes().to_vec());
    }

    pub fn bool(&mut self, key: &str, value: bool) {
        self.set(key, 7, vec![value.into()]);
    }

    pub fn string(&mut self, key: &str, value: &str) {
        self.set(key, 8, string(value));
    }

    fn array(&mut self, key: &str, kind: u32, items: Vec<Vec<u8>>) {
        let head = [&kind.to_le_bytes()[..], &(items.len() as u64).to_le_bytes()].concat();
        self.set(key, 9, [head, items.concat()].concat());
    }

    pub fn strings(&mut self, key: &str, items: &[String]) {
        self.array(key, 8, items.iter().map(|s| string(s)).collect());
    }

    pub fn i32s(&mut self, key: &str, items: &[i32]) {
        self.array(key, 5, items.iter().map(|v| v.to_le_bytes().to_vec()).collect());
    }

    pub fn f32s(&mut self, key: &str, items: &[f32]) {
        self.array(key, 6, items.iter().map(|v| v.to_le_bytes().to_vec()).collect());
    }

    /// A float32 tensor; `shape` slowest first.
    pub fn tensor(&mut self, name: &str, shape: &[usize], values: &[f32]) {
        let data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let sizes = shape.iter().rev().map(|&n| n as u64).collect();
        self.tensors.push(Tensor { name: name.to_string(), sizes, kind: 0, data, offset: None });
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.n_tensors.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.n_metadata.unwrap_or(self.metadata.len() as u64).to_le_bytes());
        for (key, kind, value) in &self.metadata {
            out.extend(string(key));
            out.extend(kind.to_le_bytes());
            out.extend(value);
        }
        let mut next = 0u64;
        for tensor in &self.tensors {
            out.extend(string(&tensor.name));
            out.extend((tensor.sizes.len() as u32).to_le_bytes());
            tensor.sizes.iter().for_each(|n| out.extend(n.to_le_bytes()));
            out.extend(tensor.kind.to_le_bytes());
            out.extend(tensor.offset.unwrap_or(next).to_le_bytes());
            next += (tensor.data.len() as u64).next_multiple_of(32);
        }
        for tensor in &self.tensors {
            out.resize(out.len().next_multiple_of(32), 0);
            out.extend(&tensor.data);
        }
        out
    }

    pub fn write(&self, dir: &Path) -> PathBuf {
        let path = dir.join("model.gguf");
        std::fs::write(&path, self.bytes()).unwrap();
        path
    }
}

/// A Llama of one block, 8 features, 2 heads of 4 and 1 key/value head, and a byte-level vocabulary of 3 tokens.
pub fn tiny() -> Gguf {
    let mut g = Gguf::new();
    g.string("general.architecture", "llama");
    for (key, value) in [
        ("block_count", 1),
        ("context_length", 64),
        ("embedding_length", 8),
        ("feed_forward_length", 6),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 1),
    ] {
        g.u32(&format!("llama.{key}"), value);
    }
    g.f32("llama.attention.layer_norm_rms_epsilon", 1e-5);
    g.string("tokenizer.ggml.model", "gpt2");
    g.string("tokenizer.ggml.pre", "gpt-2");
    g.strings("tokenizer.ggml.tokens", &["a", "b", "ab"].map(String::from));
    g.i32s("tokenizer.ggml.token_type", &[1, 1, 1]);
    g.strings("tokenizer.ggml.merges", &["a b".to_string()]);
    let ramp = |n: usize| (0..n).map(|i| i as f32 / 16.0).collect::<Vec<f32>>();
    for (name, shape) in [
        ("token_embd", &[3, 8][..]),
        ("output_norm", &[8]),
        ("blk.0.attn_norm", &[8]),
        ("blk.0.ffn_norm", &[8]),
        ("blk.0.attn_q", &[8, 8]),
        ("blk.0.attn_k", &[4, 8]),
        ("blk.0.attn_v", &[4, 8]),
        ("blk.0.attn_output", &[8, 8]),
        ("blk.0.ffn_gate", &[6, 8]),
        ("blk.0.ffn_up", &[6, 8]),
        ("blk.0.ffn_down", &[8, 6]),
    ] {
        g.tensor(&format!("{name}.weight"), shape, &ramp(shape.iter().product()));
    }
    g
}
