//! Launches of `kernels/attention_sm90.cu` and `attention_backward_sm90.cu`, on compute capability 9.0.

use super::Heads;
use crate::device::cuda::{Cuda, Grid, abi};
use crate::error::Result;

/// Rows of a block, and of each of its two warpgroups: tokens times the query heads of one key/value head, or keys.
const ROWS: usize = 128;
const WARPGROUP_ROWS: usize = 64;
/// Stages of the backward kernels.
const STAGES: usize = 3;
/// Features in a row of a box.
const BOX: usize = 64;

/// Whether the card and the heads are the kernels'. Does not depend on the batch, so neither do results.
pub(super) fn takes(cuda: &Cuda, heads: Heads) -> bool {
    cuda.card.compute_capability == (9, 0)
        && [64, 128].contains(&heads.head_dim)
        && heads.n_heads / heads.n_kv_heads <= WARPGROUP_ROWS
}

/// Queries, or what has their shape, in boxes of a warpgroup's rows.
fn queries(cuda: &Cuda, x: *const abi::bf16, heads: Heads, tokens: usize) -> Result<abi::tensor_map> {
    let group = heads.n_heads / heads.n_kv_heads;
    let size = [heads.head_dim, group, heads.n_kv_heads, tokens];
    cuda.tensor_map(x, size, [BOX, group, 1, WARPGROUP_ROWS / group])
}

/// Keys or values, in boxes of `rows` tokens.
fn rows_of_keys(cuda: &Cuda, x: *const abi::bf16, heads: Heads, tokens: usize, rows: usize) -> Result<abi::tensor_map> {
    cuda.tensor_map(x, [heads.head_dim, 1, heads.n_kv_heads, tokens], [BOX, 1, 1, rows])
}

/// Causal attention over packed sequences, the longest of `longest` tokens, for heads that [`takes`] accepts.
pub(super) fn launch(
    cuda: &Cuda,
    attention: abi::attention_params,
    heads: Heads,
    tokens: usize,
    longest: usize,
    sequences: usize,
) -> Result<()> {
    let Heads { n_heads, n_kv_heads, head_dim } = heads;
    let group = n_heads / n_kv_heads;
    if tokens == 0 {
        return Ok(());
    }
    let keys = abi::ATTENTION_SM90_KEYS as usize;
    let params = abi::attention_sm90_params {
        q: queries(cuda, attention.q, heads, tokens)?,
        k: rows_of_keys(cuda, attention.k, heads, tokens, keys)?,
        v: rows_of_keys(cuda, attention.v, heads, tokens, keys)?,
        attention,
    };
    let kernel = if head_dim == 64 { "attention_sm90_64" } else { "attention_sm90_128" };
    let shared = (ROWS + 4 * keys) * head_dim * 2 + 1024;
    let blocks = [longest.div_ceil(2 * (WARPGROUP_ROWS / group)), n_kv_heads, sequences];
    cuda.launch(kernel, Grid { blocks, threads: 384, shared: shared as u32 }, &params)
}

/// Gradients of queries, keys and values, for heads that [`takes`] accepts, when `attention_delta` has run.
pub(super) fn launch_backward(
    cuda: &Cuda,
    attention: abi::attention_backward_params,
    heads: Heads,
    longest: usize,
    sequences: usize,
) -> Result<()> {
    let Heads { n_heads, n_kv_heads, head_dim } = heads;
    let tokens = attention.tokens as usize;
    if tokens == 0 {
        return Ok(());
    }
    let params = abi::attention_backward_sm90_params {
        q: queries(cuda, attention.q, heads, tokens)?,
        dy: queries(cuda, attention.dy, heads, tokens)?,
        k: rows_of_keys(cuda, attention.k, heads, tokens, WARPGROUP_ROWS)?,
        v: rows_of_keys(cuda, attention.v, heads, tokens, WARPGROUP_ROWS)?,
        attention,
    };
    let (keys, queries) = if head_dim == 64 {
        ("attention_backward_sm90_keys_64", "attention_backward_sm90_queries_64")
    } else {
        ("attention_backward_sm90_keys_128", "attention_backward_sm90_queries_128")
    };
    let shared = ((ROWS + STAGES * WARPGROUP_ROWS) * 2 * head_dim * 2 + 1024) as u32;
    let step = 2 * (WARPGROUP_ROWS / (n_heads / n_kv_heads));
    for (kernel, rows) in [(keys, ROWS), (queries, step)] {
        let blocks = [longest.div_ceil(rows), n_kv_heads, sequences];
        cuda.launch(kernel, Grid { blocks, threads: 384, shared }, &params)?;
    }
    Ok(())
}
