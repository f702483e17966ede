//! Keys and values of generated sequences, in pages. Who owns which page is the scheduler's business (`generate/`).

use super::Config;
use crate::device::{DType, Tensor};

/// Pages of keys and values, one pair of pools per block.
pub struct KvCache {
    /// Per block: keys and values, F32 `[pages * page_size, n_kv_heads * head_dim]`.
    pub layers: Vec<(Tensor, Tensor)>,
    /// Tokens in one page.
    pub page_size: usize,
}

impl KvCache {
    /// Bytes of one token's keys and values over all blocks.
    pub fn bytes_per_token(config: &Config) -> usize {
        2 * 4 * config.num_hidden_layers * config.heads.n_kv_heads * config.heads.head_dim
    }

    /// Room for `pages` pages of `page_size` tokens. Memory is taken as pages are first written.
    pub fn new(config: &Config, pages: usize, page_size: usize) -> KvCache {
        let shape = [pages * page_size, config.heads.n_kv_heads * config.heads.head_dim];
        let layers = (0..config.num_hidden_layers)
            .map(|_| (Tensor::zeros(&shape, DType::F32), Tensor::zeros(&shape, DType::F32)))
            .collect();
        KvCache { layers, page_size }
    }
}
