//! Causal attention with grouped queries (Ainslie et al. 2023): over packed sequences, its gradients, and over pages.
//!
//! A token's result has the same bits whatever is packed or batched beside it, and the same from packed sequences as from
//! pages of any size filled in steps of any size.
//!
//! | file | subject |
//! |-|-|
//! | `forward.rs` | packed sequences |
//! | `backward.rs` | their gradients |
//! | `key_span.rs` | some keys against all queries that see them |
//! | `paged.rs` | keys and values in pages, for generation |
//! | `tiles.rs` | keys and values in the order in which products read them |
//! | `flash.rs` | a block of query rows against the keys before it, of both kinds |
//! | `cuda.rs`, `cuda_sm90.rs` | launches on a card |

mod backward;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "cuda")]
mod cuda_sm90;
mod flash;
mod forward;
mod key_span;
mod paged;
#[cfg(test)]
mod paged_tests;
#[cfg(test)]
mod tests;
mod tiles;

pub use backward::attention_backward;
pub use forward::{attention, cost, scratch_bytes};
pub use paged::{PagedBatch, cache_slots, kv_store, paged_attention, split_bytes};

use crate::device::{DType, Tensor};
use crate::error::{Error, Result};

/// Head counts and size of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Features of one head; even.
    pub head_dim: usize,
}

/// Errors unless the key/value heads divide the query heads, no size is 0 and a head is whole pairs of features.
fn check_heads(op: &'static str, heads: Heads) -> Result<()> {
    let Heads { n_heads, n_kv_heads, head_dim } = heads;
    let some = n_heads > 0 && n_kv_heads > 0 && head_dim > 0;
    if some && n_heads.is_multiple_of(n_kv_heads) && head_dim.is_multiple_of(2) {
        return Ok(());
    }
    let expected = "n_heads a multiple of n_kv_heads, an even head_dim, no size 0";
    Err(Error::shape(op, "heads", expected, format!("{heads:?}")))
}

/// The offsets of packed sequences, when they start at 0, never fall and end at `tokens`.
fn check_offsets<'a>(op: &'static str, cu_seqlens: &'a Tensor, tokens: usize) -> Result<&'a [u32]> {
    let fits = cu_seqlens.dtype() == DType::U32 && {
        let offsets = cu_seqlens.u32();
        offsets.first() == Some(&0) && offsets.is_sorted() && offsets.last().copied() == u32::try_from(tokens).ok()
    };
    if fits {
        return Ok(cu_seqlens.u32());
    }
    let expected = format!("U32 offsets rising from 0 to {tokens}");
    let found = if cu_seqlens.dtype() == DType::U32 {
        let offsets = cu_seqlens.u32();
        format!("{:?} to {:?} over {} entries", offsets.first(), offsets.last(), offsets.len())
    } else {
        format!("{cu_seqlens:?}")
    };
    Err(Error::shape(op, "cu_seqlens", expected, found))
}
