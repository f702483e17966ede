//! Keys and values of generated sequences, in pages. Who owns which page is the scheduler's business (`generate/`).

use super::Config;
use crate::device::{Device, Tensor};
use crate::error::Result;
use crate::ops::attention::cache_slots;

/// Pages of keys and values, one pair of pools per block.
pub struct KvCache {
    /// Per block: keys and values, `[slots, n_kv_heads * head_dim]` of the device's cache type, see [`cache_slots`].
    pub layers: Vec<(Tensor, Tensor)>,
    /// Tokens in one page.
    pub page_size: usize,
}

impl KvCache {
    /// Bytes of one token's keys and values over all blocks.
    pub fn bytes_per_token(dev: &Device, config: &Config) -> usize {
        2 * dev.kv_cache().size() * config.num_hidden_layers * config.heads.n_kv_heads * config.heads.head_dim
    }

    /// Room for `pages` pages of `page_size` tokens. The CPU takes memory as pages are first written.
    pub fn new(dev: &Device, config: &Config, pages: usize, page_size: usize) -> Result<KvCache> {
        let shape = [cache_slots(pages, page_size), config.heads.n_kv_heads * config.heads.head_dim];
        let pool = || dev.zeros(&shape, dev.kv_cache());
        let layers = (0..config.num_hidden_layers).map(|_| Ok((pool()?, pool()?)));
        Ok(KvCache { layers: layers.collect::<Result<_>>()?, page_size })
    }
}
