//! Causal attention over packed sequences.

#[cfg(feature = "cuda")]
use super::cuda;
use super::flash::{self, QueryBlock};
use super::tiles::{OwnTiles, TILE};
use super::{Heads, check_heads, check_offsets};
#[cfg(feature = "cuda")]
use crate::device::Backend;
use crate::device::{Compute, Cost, DType, Device, Op, Tensor};
use crate::error::Result;
use crate::ops::check;
use crate::ops::parallel::{self, Shared};

/// FLOPs and fewest bytes of a forward pass: two products over the causal pairs of every sequence.
pub fn cost(cu_seqlens: &[u32], heads: Heads) -> Cost {
    let pairs: u64 = cu_seqlens.windows(2).map(|w| (w[1] - w[0]) as u64).map(|n| n * (n + 1) / 2).sum();
    let tokens = cu_seqlens.last().copied().unwrap_or(0) as u64;
    let rows = 2 * (heads.n_heads + heads.n_kv_heads) as u64;
    Cost {
        flops: 4 * pairs * (heads.n_heads * heads.head_dim) as u64,
        bytes: 4 * tokens * rows * heads.head_dim as u64,
    }
}

/// Bytes that [`attention`] over `tokens` tokens needs on a CPU for its own copy of keys and values; none on a card.
pub fn scratch_bytes(dev: &Device, tokens: usize, heads: Heads) -> usize {
    let size = if dev.compute() == Compute::Bf16 { DType::BF16 } else { DType::F32 }.size();
    if dev.is_cpu() { 2 * size * tokens * heads.n_kv_heads * heads.head_dim } else { 0 }
}

/// `y = softmax(q kᵀ / sqrt(head_dim)) v`, each token seeing itself and what precedes it in its own sequence.
///
/// `q`, `y`: F32 `[tokens, n_heads * head_dim]`; `k`, `v`: F32 `[tokens, n_kv_heads * head_dim]`; `lse`: F32
/// `[tokens, n_heads]`, the log of each row's sum of exponentials, which the backward pass reads; `cu_seqlens`: U32
/// `[sequences + 1]`, offsets of the sequences.
///
/// A sequence's result has the same bits whatever is packed beside it, and the same as [`paged_attention`] gives.
/// Absolute error below `2^-22 * (head_dim * max|q k| + 4) * max|v|`. Scratch on a CPU: [`scratch_bytes`] and
/// about 0.1 MB a thread.
///
/// With [`Compute::Bf16`](crate::device::Compute::Bf16) queries (after scaling), keys, weights and values are rounded to bf16: each score is off by up to
/// `2^-7 * sum |q k|`, the output by as much of `max|v|` and `2^-7 * max|v|` more.
///
/// [`paged_attention`]: super::paged_attention
#[allow(clippy::too_many_arguments)]
pub fn attention(
    dev: &Device,
    y: &mut Tensor,
    lse: &mut Tensor,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    cu_seqlens: &Tensor,
    heads: Heads,
) -> Result<()> {
    let Heads { n_heads, n_kv_heads, head_dim } = heads;
    let tokens = q.rows();
    check_heads("attention", heads)?;
    let dtype = dev.activation();
    check("attention", "q", q, dtype, &[tokens, n_heads * head_dim])?;
    check("attention", "k", k, dtype, &[tokens, n_kv_heads * head_dim])?;
    check("attention", "v", v, dtype, &[tokens, n_kv_heads * head_dim])?;
    check("attention", "y", y, dtype, q.shape())?;
    check("attention", "lse", lse, DType::F32, &[tokens, n_heads])?;
    let offsets = check_offsets("attention", cu_seqlens, tokens)?;
    let cost = cost(offsets, heads);
    let _span = dev.span(Op::Attention, Cost { bytes: cost.bytes / 4 * dtype.size() as u64, ..cost });
    #[cfg(feature = "cuda")]
    if let Backend::Cuda(cuda) = dev.backend() {
        return cuda::launch(cuda, y, Some(lse), (q, k, v), offsets, cu_seqlens, None, heads);
    }
    let of = |w: &[u32]| (w[0] as usize, w[1] as usize);
    let tiles: Vec<(usize, usize)> = offsets
        .windows(2)
        .map(of)
        .flat_map(|(start, end)| (start..end).step_by(TILE).map(move |first| (first, TILE.min(end - first))))
        .collect();
    let mut tiles = OwnTiles::new(k.f32(), v.f32(), &tiles, heads, dev.compute());
    let tiles = tiles.tiles();
    let (q, y, lse) = (q.f32(), Shared::new(y.f32_mut()), Shared::new(lse.f32_mut()));
    let step = flash::tokens_per_block(n_heads / n_kv_heads);
    let mut first_tile = 0;
    let blocks = offsets.windows(2).map(of).flat_map(|(start, end)| {
        let tile = first_tile;
        first_tile += (end - start).div_ceil(TILE);
        // The last tokens of a sequence have the most to do and start first.
        let firsts = (start..end).step_by(step).rev();
        firsts.flat_map(move |first| {
            (0..n_kv_heads).map(move |kv_head| (start, tile, first, step.min(end - first), kv_head))
        })
    });
    parallel::for_each(blocks, |(start, tile, first_row, tokens, kv_head)| {
        let block = QueryBlock {
            heads,
            kv_head,
            first_row,
            position: first_row - start,
            tokens,
            q,
            tiles,
            tile_of: |i| tile + i,
            y,
            lse: Some(lse),
        };
        block.attend(dev.compute());
    });
    Ok(())
}
