//! FLOPs, parameters and KV bytes of a model from its shape alone, in three named conventions, and a check of them against what
//! the ledger counted for a real pass.
//!
//! - `params_2n`: 2 x all parameters per token, tied ones once; counts the input embedding as if it were multiplied.
//! - `matmul`: the matrix products that are really computed, the output head included.
//! - `total(seq)`: `matmul` plus causal attention, averaged over the tokens of a sequence of that length.
//!
//! A fused multiply-add is two FLOPs. Norms, rotary positions, softmax and activations are in none of the three.

use crate::device::{DType, Device, Entry, Op, Tensor};
use crate::error::{Error, Result};
use crate::model::{Batch, Config, Llama, Workspace};
use crate::ops::gather::gather_rows;
use crate::ops::matmul::{Store, matmul_nt};
use serde::Serialize;

/// Tokens whose logits are computed at once in [`check_forward`].
const LOGIT_ROWS: usize = 256;

/// What one model needs for a sequence of a given length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Flops {
    /// Decoder blocks.
    pub num_hidden_layers: usize,
    /// Tokens of the sequence.
    pub seq_len: u64,
    /// Parameters, tied ones once.
    pub parameters: u64,
    /// FLOPs per token: 2 x parameters.
    pub params_2n: u64,
    /// FLOPs per token of the matrix products in the blocks.
    pub blocks: u64,
    /// FLOPs per token of all matrix products, the output head included.
    pub matmul: u64,
    /// FLOPs per sequence of causal attention: both products over the pairs a token can see.
    pub attention_per_sequence: u64,
    /// FLOPs per sequence of all matrix products and attention.
    pub total_per_sequence: u64,
    /// Bytes of keys and values per token, in 16 bits.
    pub kv_bytes: u64,
}

impl Flops {
    /// Counts for `config` and sequences of `seq_len` tokens.
    pub fn new(config: &Config, seq_len: u64) -> Flops {
        let heads = config.heads;
        let layers = config.num_hidden_layers as u64;
        let q = (heads.n_heads * heads.head_dim) as u64;
        let matmul = config.flops_matmul();
        let head = 2 * (config.vocab_size * config.hidden_size) as u64;
        let attention_per_sequence = layers * 4 * (seq_len * (seq_len + 1) / 2) * q;
        Flops {
            num_hidden_layers: config.num_hidden_layers,
            seq_len,
            parameters: config.parameters(),
            params_2n: config.flops_params_2n(),
            blocks: matmul - head,
            matmul,
            attention_per_sequence,
            total_per_sequence: seq_len * matmul + attention_per_sequence,
            kv_bytes: config.kv_bytes_per_token(DType::BF16),
        }
    }

    /// FLOPs per token with attention, the mean over the sequence.
    pub fn total(&self) -> f64 {
        self.total_per_sequence as f64 / self.seq_len as f64
    }

    /// What a model that lost blocks saves against this one, in percent.
    pub fn cut(&self, smaller: &Flops) -> FlopsCut {
        let percent = |whole: u64, rest: u64| 100.0 * (1.0 - rest as f64 / whole as f64);
        FlopsCut {
            params_2n: percent(self.params_2n, smaller.params_2n),
            matmul: percent(self.matmul, smaller.matmul),
            total: 100.0 * (1.0 - smaller.total() / self.total()),
            blocks: percent(self.blocks, smaller.blocks),
            kv_bytes: percent(self.kv_bytes, smaller.kv_bytes),
        }
    }
}

/// Savings in percent, by convention.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct FlopsCut {
    /// 2 x all parameters.
    pub params_2n: f64,
    /// Matrix products with the output head.
    pub matmul: f64,
    /// Matrix products and attention.
    pub total: f64,
    /// Matrix products of the blocks alone.
    pub blocks: f64,
    /// Keys and values per token.
    pub kv_bytes: f64,
}

/// FLOPs of one operation in a pass: what the ledger counted and what the formula says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Count {
    /// Name of the operation.
    pub operation: &'static str,
    /// Counted.
    pub counted: u64,
    /// By the formula.
    pub expected: u64,
}

/// What the ledger counted for a real pass against what the formula says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LedgerCheck {
    /// The pass, for people.
    pub pass: String,
    /// Matrix products and attention.
    pub counts: Vec<Count>,
}

impl LedgerCheck {
    /// Runs the pass and takes from the ledger what it did of each operation.
    pub fn count(
        dev: &Device,
        pass: String,
        expected: &[(Op, u64)],
        run: impl FnOnce() -> Result<()>,
    ) -> Result<LedgerCheck> {
        let before: Vec<Entry> = expected.iter().map(|&(op, _)| dev.ledger().entry(op)).collect();
        crate::progress::line(&format!("{pass}: counting what is computed"));
        run()?;
        let counts = expected.iter().zip(before).map(|(&(op, expected), before)| Count {
            operation: op.name(),
            counted: (dev.ledger().entry(op) - before).flops,
            expected,
        });
        Ok(LedgerCheck { pass, counts: counts.collect() })
    }

    /// Every count equals its formula exactly.
    pub fn exact(&self) -> bool {
        self.counts.iter().all(|count| count.counted == count.expected)
    }
}

/// Runs one forward pass of a model on the host with the logits of every token over `seq_len` tokens and compares the ledger with [`Flops`].
pub fn check_forward(dev: &Device, model: &Llama, seq_len: usize) -> Result<LedgerCheck> {
    let longest = model.config.max_position_embeddings;
    if seq_len == 0 || seq_len > longest {
        return Err(Error::usage("--seq-len", format!("1 to {longest} tokens"), seq_len.to_string()));
    }
    let flops = Flops::new(&model.config, seq_len as u64);
    let vocab = model.config.vocab_size;
    let ids: Vec<u32> = (0..seq_len).map(|i| (i % vocab) as u32).collect();
    let expected = [(Op::Matmul, flops.seq_len * flops.matmul), (Op::Attention, flops.attention_per_sequence)];
    LedgerCheck::count(dev, format!("forward {seq_len}"), &expected, || {
        let mut model = model.clone();
        model.place(dev)?;
        let mut ws = Workspace::new(dev, &model.config, seq_len)?;
        model.forward(dev, &Batch::pack(&[ids]), &mut ws, &mut |_, _| Ok(()))?;
        let rows: Vec<u32> = (0..seq_len as u32).collect();
        for rows in rows.chunks(LOGIT_ROWS) {
            let mut hidden = dev.zeros(&[rows.len(), model.config.hidden_size], ws.hidden.dtype())?;
            gather_rows(dev, &mut hidden, &ws.hidden, &Tensor::from_u32(rows))?;
            let mut logits = dev.zeros(&[rows.len(), vocab], DType::F32)?;
            matmul_nt(dev, &mut logits, &hidden, model.head(), None, Store::Replace)?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::path::Path;

    fn llama_3_1_8b(layers: usize) -> Config {
        let json = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 4096,
            "intermediate_size": 14336, "num_hidden_layers": layers, "num_attention_heads": 32, "num_key_value_heads": 8,
            "vocab_size": 128256, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
            "tie_word_embeddings": false, "torch_dtype": "bfloat16"
        });
        Config::from_json(json.as_object().unwrap().clone(), Path::new("config.json")).unwrap()
    }

    #[test]
    fn llama_3_1_8b_without_six_blocks_has_the_published_numbers() {
        let (whole, cut) = (Flops::new(&llama_3_1_8b(32), 2048), Flops::new(&llama_3_1_8b(26), 2048));
        assert_eq!(whole.parameters, 8_030_261_248);
        assert_eq!(cut.parameters, 6_721_589_248);
        assert_eq!((whole.kv_bytes, cut.kv_bytes), (131_072, 106_496));
        let share = |percent: f64| format!("{percent:.3}");
        let saved = whole.cut(&cut);
        assert_eq!(share(saved.params_2n), "16.297");
        assert_eq!(share(saved.matmul), "17.437");
        assert_eq!(share(saved.total), "17.483");
        assert_eq!(share(saved.blocks), "18.750");
        let long = Flops::new(&llama_3_1_8b(32), 8192).cut(&Flops::new(&llama_3_1_8b(26), 8192));
        assert_eq!(share(long.total), "17.602");
    }

    #[test]
    fn five_block_sizes_of_llama_3_1_8b_by_hand() {
        // One block: q and o 4096 x 4096, k and v 4096 x 1024, three of 4096 x 14336, two norms.
        let projections: u64 = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336;
        let block = projections + 2 * 4096;
        assert_eq!((projections, block), (218_103_808, 218_112_000));
        let head: u64 = 128_256 * 4096;
        for n in [2u64, 4, 6, 8, 10] {
            let whole = Flops::new(&llama_3_1_8b(32), 2048);
            let cut = Flops::new(&llama_3_1_8b(32 - n as usize), 2048);
            let saved = whole.cut(&cut);
            assert_eq!(cut.parameters, 8_030_261_248 - n * block);
            assert_eq!(cut.matmul, 2 * ((32 - n) * projections + head));
            // A token of a sequence of 2,048 sees 1,024.5 tokens on average: 2 products x 2 x 4096 x 1,024.5 a block.
            let attention = 4.0 * 4096.0 * 1024.5;
            let total = cut.matmul as f64 + (32 - n) as f64 * attention;
            assert!((cut.total() / total - 1.0).abs() < 1e-14);
            let near = |got: f64, want: f64| assert!((got - want).abs() < 1e-9, "n = {n}: {got} against {want}");
            near(saved.params_2n, 100.0 * (n * block) as f64 / 8_030_261_248.0);
            near(saved.matmul, 100.0 * (n * projections) as f64 / (32 * projections + head) as f64);
            let of_block = 2.0 * projections as f64 + attention;
            near(saved.total, 100.0 * n as f64 * of_block / (32.0 * of_block + 2.0 * head as f64));
            near(saved.blocks, 100.0 * n as f64 / 32.0);
        }
    }

    #[test]
    fn parameters_are_those_of_the_files_and_the_ledger_counts_the_formula() {
        for name in ["biases", "gqa", "linear_rope", "llama3_rope", "mha_tied", "mqa_head_dim", "odd_sizes"] {
            let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny").join(name);
            let files = crate::model::safetensors::WeightFiles::open(&dir).unwrap();
            let elements: usize = files.tensors.values().map(|t| t.shape.iter().product::<usize>()).sum();
            let model = Llama::load(&dir).unwrap();
            assert_eq!(Flops::new(&model.config, 1).parameters, elements as u64, "{name}");
            let dev = Device::cpu();
            for seq_len in [1, 7, 33] {
                let check = check_forward(&dev, &model, seq_len).unwrap();
                assert!(check.exact(), "{name}: {check:?}");
            }
        }
    }
}
