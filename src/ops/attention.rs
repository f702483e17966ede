//! Causal attention over packed sequences, with grouped queries (Ainslie et al. 2023).

use super::check;
use crate::device::{Cost, DType, Device, Op, Tensor};
use crate::error::{Error, Result};
use rayon::prelude::*;

/// Head counts and size of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Features of one head.
    pub head_dim: usize,
}

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

/// `y = softmax(q kᵀ / sqrt(head_dim)) v`, each token seeing itself and what precedes it in its own sequence.
///
/// `q`, `y`: F32 `[tokens, n_heads * head_dim]`; `k`, `v`: F32 `[tokens, n_kv_heads * head_dim]`; `lse`: F32
/// `[tokens, n_heads]`, the log of each row's sum of exponentials, which the backward pass reads.
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
    check("attention", "q", q, DType::F32, &[tokens, n_heads * head_dim])?;
    check("attention", "k", k, DType::F32, &[tokens, n_kv_heads * head_dim])?;
    check("attention", "v", v, DType::F32, &[tokens, n_kv_heads * head_dim])?;
    check("attention", "y", y, DType::F32, q.shape())?;
    check("attention", "lse", lse, DType::F32, &[tokens, n_heads])?;
    let offsets = cu_seqlens.u32();
    if offsets.last().copied() != Some(tokens as u32) {
        return Err(Error::shape("attention", "cu_seqlens", format!("last offset {tokens}"), format!("{offsets:?}")));
    }
    let _span = dev.span(Op::Attention, cost(offsets, heads));
    let scale = 1.0 / (head_dim as f32).sqrt();
    let (q, k, v) = (q.f32(), k.f32(), v.f32());
    for window in offsets.windows(2) {
        let (start, end) = (window[0] as usize, window[1] as usize);
        let y_rows = &mut y.f32_mut()[start * n_heads * head_dim..end * n_heads * head_dim];
        let lse_rows = &mut lse.f32_mut()[start * n_heads..end * n_heads];
        let rows = y_rows.par_chunks_mut(head_dim).zip(lse_rows.par_iter_mut()).enumerate();
        rows.for_each(|(i, (out, lse))| {
            let (t, head) = (start + i / n_heads, i % n_heads);
            let kv_head = head / (n_heads / n_kv_heads);
            let query = &q[(t * n_heads + head) * head_dim..][..head_dim];
            let row = |x: &[f32], s: usize| -> std::ops::Range<usize> {
                let _ = x;
                (s * n_kv_heads + kv_head) * head_dim..(s * n_kv_heads + kv_head + 1) * head_dim
            };
            let scores: Vec<f32> =
                (start..=t).map(|s| scale * query.iter().zip(&k[row(k, s)]).map(|(a, b)| a * b).sum::<f32>()).collect();
            let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f32 = scores.iter().map(|s| (s - max).exp()).sum();
            out.fill(0.0);
            for (s, score) in (start..=t).zip(&scores) {
                let p = (score - max).exp() / sum;
                out.iter_mut().zip(&v[row(v, s)]).for_each(|(o, v)| *o += p * v);
            }
            *lse = max + sum.ln();
        });
    }
    Ok(())
}
