//! The tensors that a [`Config`] implies, and what follows from them: parameters, FLOPs per token, cache bytes.

use super::Config;
use crate::device::DType;
use crate::model::Projection;

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
        let hidden = self.hidden_size;
        let norm = |name: &str| (format!("model.layers.{layer}.{name}.weight"), vec![hidden]);
        let mut tensors = vec![norm("input_layernorm"), norm("post_attention_layernorm")];
        for projection in Projection::ALL {
            let (name, [out, inputs]) = (projection.path(), self.projection_shape(projection));
            tensors.push((format!("model.layers.{layer}.{name}.weight"), vec![out, inputs]));
            let bias = if projection.in_attention() { self.attention_bias } else { self.mlp_bias };
            if bias {
                tensors.push((format!("model.layers.{layer}.{name}.bias"), vec![out]));
            }
        }
        tensors
    }

    /// `[out_features, in_features]` of a projection's weight.
    pub fn projection_shape(&self, projection: Projection) -> [usize; 2] {
        let (hidden, inner, heads) = (self.hidden_size, self.intermediate_size, self.heads);
        let (queries, keys) = (heads.n_heads * heads.head_dim, heads.n_kv_heads * heads.head_dim);
        match projection {
            Projection::QProj => [queries, hidden],
            Projection::KProj | Projection::VProj => [keys, hidden],
            Projection::OProj => [hidden, queries],
            Projection::GateProj | Projection::UpProj => [inner, hidden],
            Projection::DownProj => [hidden, inner],
        }
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
