//! Causal attention against keys and values kept in pages, for generation: prefill and decode alike.

use super::attention::Heads;
use super::check;
use crate::device::{Cost, DType, Device, Op, Tensor};
use crate::error::{Error, Result};

/// Which tokens of the step belong to which sequence, and where each sequence's keys and values lie.
pub struct PagedBatch<'a> {
    /// U32 `[sequences + 1]`: offsets of each sequence's new tokens among the step's tokens.
    pub cu_seqlens: &'a Tensor,
    /// U32 `[sequences]`: tokens in the cache of each sequence, this step's included.
    pub context_lens: &'a Tensor,
    /// U32 `[sequences, max_pages]`: page numbers in order of position; entries past the context are not read.
    pub page_table: &'a Tensor,
    /// Tokens in one page.
    pub page_size: usize,
}

/// Writes this step's keys and values into their pages: row `t` goes to slot `slots[t]` = page * page_size + offset.
///
/// `k_pages`, `v_pages`: F32 `[pages * page_size, n_kv_heads * head_dim]`; `k`, `v`: F32 `[tokens, n_kv_heads * head_dim]`.
pub fn kv_store(
    dev: &Device,
    k_pages: &mut Tensor,
    v_pages: &mut Tensor,
    k: &Tensor,
    v: &Tensor,
    slots: &Tensor,
) -> Result<()> {
    let (tokens, width) = (k.rows(), k.row_len());
    check("kv_store", "v", v, DType::F32, &[tokens, width])?;
    check("kv_store", "slots", slots, DType::U32, &[tokens])?;
    check("kv_store", "k_pages", k_pages, DType::F32, &[v_pages.rows(), width])?;
    let _span = dev.span(Op::KvStore, Cost { flops: 0, bytes: (16 * tokens * width) as u64 });
    for (t, &slot) in slots.u32().iter().enumerate() {
        if slot as usize >= k_pages.rows() {
            return Err(Error::shape("kv_store", "slots", format!("slots below {}", k_pages.rows()), slot.to_string()));
        }
        let (from, to) = (t * width..(t + 1) * width, slot as usize * width..(slot as usize + 1) * width);
        k_pages.f32_mut()[to.clone()].copy_from_slice(&k.f32()[from.clone()]);
        v_pages.f32_mut()[to].copy_from_slice(&v.f32()[from]);
    }
    Ok(())
}

/// `y = softmax(q kᵀ / sqrt(head_dim)) v` of each new token against its sequence's cached context up to itself.
///
/// `q`, `y`: F32 `[tokens, n_heads * head_dim]`; pages as in [`kv_store`]. A token's result does not depend on the other
/// tokens of the step, on the page numbers or on how its prompt was cut into steps.
pub fn paged_attention(
    dev: &Device,
    y: &mut Tensor,
    q: &Tensor,
    k_pages: &Tensor,
    v_pages: &Tensor,
    batch: &PagedBatch,
    heads: Heads,
) -> Result<()> {
    let Heads { n_heads, n_kv_heads, head_dim } = heads;
    let (tokens, sequences) = (q.rows(), batch.context_lens.rows());
    if tokens == 0 {
        return Err(Error::shape("paged_attention", "q", "at least one token", "none"));
    }
    check("paged_attention", "q", q, DType::F32, &[tokens, n_heads * head_dim])?;
    check("paged_attention", "y", y, DType::F32, q.shape())?;
    check("paged_attention", "k_pages", k_pages, DType::F32, &[v_pages.rows(), n_kv_heads * head_dim])?;
    check("paged_attention", "cu_seqlens", batch.cu_seqlens, DType::U32, &[sequences + 1])?;
    let (offsets, lens) = (batch.cu_seqlens.u32(), batch.context_lens.u32());
    let pairs: u64 = (0..sequences)
        .flat_map(|s| {
            let new = offsets[s + 1] - offsets[s];
            (lens[s] - new + 1..=lens[s]).map(u64::from)
        })
        .sum();
    let context: u64 = lens.iter().map(|&n| u64::from(n)).sum();
    let cost = Cost {
        flops: 4 * pairs * (n_heads * head_dim) as u64,
        bytes: 8 * (tokens * n_heads * head_dim) as u64 + 8 * context * (n_kv_heads * head_dim) as u64,
    };
    let _span = dev.span(Op::PagedAttention, cost);
    let (scale, max_pages) = (1.0 / (head_dim as f32).sqrt(), batch.page_table.row_len());
    for s in 0..sequences {
        let pages = &batch.page_table.u32()[s * max_pages..(s + 1) * max_pages];
        let row = |position: usize, kv_head: usize| {
            let slot = pages[position / batch.page_size] as usize * batch.page_size + position % batch.page_size;
            (slot * n_kv_heads + kv_head) * head_dim..(slot * n_kv_heads + kv_head + 1) * head_dim
        };
        for t in offsets[s] as usize..offsets[s + 1] as usize {
            let visible = lens[s] as usize - (offsets[s + 1] as usize - t) + 1;
            for head in 0..n_heads {
                let kv_head = head / (n_heads / n_kv_heads);
                let at = (t * n_heads + head) * head_dim..(t * n_heads + head + 1) * head_dim;
                let query = &q.f32()[at.clone()];
                let scores: Vec<f32> = (0..visible)
                    .map(|p| scale * query.iter().zip(&k_pages.f32()[row(p, kv_head)]).map(|(a, b)| a * b).sum::<f32>())
                    .collect();
                let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let sum: f32 = scores.iter().map(|s| (s - max).exp()).sum();
                let out = &mut y.f32_mut()[at];
                out.fill(0.0);
                for (p, score) in scores.iter().enumerate() {
                    let weight = (score - max).exp() / sum;
                    let value = &v_pages.f32()[row(p, kv_head)];
                    out.iter_mut().zip(value).for_each(|(o, v)| *o += weight * v);
                }
            }
        }
    }
    Ok(())
}
