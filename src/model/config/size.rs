//! The tensors that a [`Config`] implies, and what follows from them: parameters, FLOPs per token, cache bytes.

use super::Config;
use crate::device::DType;

impl Config {
    /// Every tensor of the model with its shape, in the order of the forward pass. The output head is listed only when it is
    /// not the embedding table.
    pub fn expected_tensors(&self) -> Vec<(String, Vec<usize>)> {
        let embed = vec![self.vocab_size, self.hidden_size];
        let mut tensors = vec![("model.embed_tokens.weight".to_string(), embed.clone())];
        tensors.extend((0..self.num_hidden_layers).flat_map(|layer| self.block_tensors(layer)));
        tensors.push(("model.norm.weight".to_string(), vec![self.hidden_size]));
        if !self.tie_word_embeddings {
            tensors.push(("lm_head.weight".to_string(), embed));
        }
        tensors
    }

    /// The tensors of block `layer` (0-based) with their shapes.
    pub fn block_tensors(&self, layer: usize) -> Vec<(String, Vec<usize>)> {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let q = self.heads.n_heads * self.heads.head_dim;
        let kv = self.heads.n_kv_heads * self.heads.head_dim;
        let linears = [
            ("self_attn.q_proj", q, hidden, self.attention_bias),
            ("self_attn.k_proj", kv, hidden, self.attention_bias),
            ("self_attn.v_proj", kv, hidden, self.attention_bias),
            ("self_attn.o_proj", hidden, q, self.attention_bias),
            ("mlp.gate_proj", inner, hidden, self.mlp_bias),
            ("mlp.up_proj", inner, hidden, self.mlp_bias),
            ("mlp.down_proj", hidden, inner, self.mlp_bias),
        ];
        let norm = |name: &str| (format!("model.layers.{layer}.{name}.weight"), vec![hidden]);
        let mut tensors = vec![norm("input_layernorm"), norm("post_attention_layernorm")];
        for (name, out, inputs, bias) in linears {
            tensors.push((format!("model.layers.{layer}.{name}.weight"), vec![out, inputs]));
            if bias {
                tensors.push((format!("model.layers.{layer}.{name}.bias"), vec![out]));
            }
        }
        tensors
    }

    /// Parameters of the model; a tied output head counts once.
    pub fn parameters(&self) -> u64 {
        let tables = if self.tie_word_embeddings { 1 } else { 2 };
        tables * self.table_parameters()
            + self.num_hidden_layers as u64 * self.block_parameters()
            + self.hidden_size as u64
    }

    /// Parameters of one block.
    pub fn block_parameters(&self) -> u64 {
        self.block_tensors(0).iter().map(|(_, shape)| shape.iter().product::<usize>() as u64).sum()
    }

    fn table_parameters(&self) -> u64 {
        (self.vocab_size * self.hidden_size) as u64
    }

    /// FLOPs of a forward pass per token by the convention `params_2N`: twice all parameters.
    pub fn flops_params_2n(&self) -> u64 {
        2 * self.parameters()
    }

    /// FLOPs of a forward pass per token by the convention `matmul`: the products with weights that are really done, the
    /// output head included, attention excluded.
    pub fn flops_matmul(&self) -> u64 {
        let matrices = self.block_tensors(0).into_iter().filter(|(_, shape)| shape.len() == 2);
        let block: u64 = matrices.map(|(_, shape)| shape.iter().product::<usize>() as u64).sum();
        2 * (self.num_hidden_layers as u64 * block + self.table_parameters())
    }

    /// Bytes of one token's keys and values over all blocks, stored as `dtype`.
    pub fn kv_bytes_per_token(&self, dtype: DType) -> u64 {
        (2 * self.num_hidden_layers * self.heads.n_kv_heads * self.heads.head_dim * dtype.size()) as u64
    }
}
