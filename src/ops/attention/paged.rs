//! Causal attention against keys and values kept in pages, for generation: prefill and decode alike.

#[cfg(feature = "cuda")]
use super::cuda;
use super::flash::{self, QueryBlock, Rows};
use super::{Heads, check_heads, check_offsets};
#[cfg(feature = "cuda")]
use crate::device::{
    Backend,
    cuda::{Grid, abi::kv_store_params},
};
use crate::device::{Cost, DType, Device, Op, Tensor};
use crate::error::{Error, Result};
use crate::ops::parallel::{self, Shared};
use crate::ops::rounding::round;
use crate::ops::{check, check_activations};

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
/// `k_pages`, `v_pages`: F32, or BF16 and then rounded, `[pages * page_size, n_kv_heads * head_dim]`; `k`, `v`: F32
/// `[tokens, n_kv_heads * head_dim]`.
pub fn kv_store(
    dev: &Device,
    k_pages: &mut Tensor,
    v_pages: &mut Tensor,
    k: &Tensor,
    v: &Tensor,
    slots: &Tensor,
) -> Result<()> {
    let (tokens, width) = (k.rows(), k.row_len());
    let dtype = dev.activation();
    check("kv_store", "k", k, dtype, &[tokens, width])?;
    check("kv_store", "v", v, dtype, &[tokens, width])?;
    check("kv_store", "slots", slots, DType::U32, &[tokens])?;
    check_activations("kv_store", "v_pages", v_pages, &[v_pages.rows(), width])?;
    check("kv_store", "k_pages", k_pages, v_pages.dtype(), v_pages.shape())?;
    if let Some(slot) = slots.u32().iter().find(|&&slot| slot as usize >= k_pages.rows()) {
        return Err(Error::shape("kv_store", "slots", format!("slots below {}", k_pages.rows()), slot.to_string()));
    }
    let _span = dev.span(
        Op::KvStore,
        Cost { flops: 0, bytes: (2 * (k.dtype().size() + v_pages.dtype().size()) * tokens * width) as u64 },
    );
    #[cfg(feature = "cuda")]
    if let Backend::Cuda(cuda) = dev.backend() {
        let params = kv_store_params {
            k_pages: k_pages.kernel_mut(cuda)?,
            v_pages: v_pages.kernel_mut(cuda)?,
            k: k.kernel_ptr(cuda)?,
            v: v.kernel_ptr(cuda)?,
            slots: slots.kernel_ptr(cuda)?,
            width: width as u32,
        };
        return cuda.launch("kv_store", Grid::rows(tokens, width), &params);
    }
    parallel::for_each([(k_pages, k), (v_pages, v)].into_iter(), |(pages, new)| {
        for (new, &slot) in new.f32().chunks_exact(width).zip(slots.u32()) {
            let to = slot as usize * width..(slot as usize + 1) * width;
            if pages.dtype() == DType::BF16 {
                round(&mut pages.bf16_mut()[to], new);
            } else {
                pages.f32_mut()[to].copy_from_slice(new);
            }
        }
    });
    Ok(())
}

/// `y = softmax(q kᵀ / sqrt(head_dim)) v` of each new token against its sequence's cached context up to itself.
///
/// `q`, `y`: F32 `[tokens, n_heads * head_dim]`; pages as in [`kv_store`]. A token's result does not depend on the other
/// tokens of the step, on page numbers, page size or on how its prompt was cut into steps, and has the bits that
/// [`attention`](super::attention) gives. At least one token. Errors when a context is shorter than its new
/// tokens or a page does not exist.
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
    check_heads("paged_attention", heads)?;
    if tokens == 0 {
        return Err(Error::shape("paged_attention", "q", "at least one token", "none"));
    }
    let dtype = dev.activation();
    check("paged_attention", "q", q, dtype, &[tokens, n_heads * head_dim])?;
    check("paged_attention", "y", y, dtype, q.shape())?;
    check_activations("paged_attention", "v_pages", v_pages, &[v_pages.rows(), n_kv_heads * head_dim])?;
    check("paged_attention", "k_pages", k_pages, v_pages.dtype(), v_pages.shape())?;
    check("paged_attention", "cu_seqlens", batch.cu_seqlens, DType::U32, &[sequences + 1])?;
    check("paged_attention", "context_lens", batch.context_lens, DType::U32, &[sequences])?;
    let max_pages = batch.page_table.row_len();
    check("paged_attention", "page_table", batch.page_table, DType::U32, &[sequences, max_pages])?;
    let (offsets, lens) = (check_offsets("paged_attention", batch.cu_seqlens, tokens)?, batch.context_lens.u32());
    check_pages(batch, offsets, k_pages.rows())?;
    let pairs: u64 = (0..sequences)
        .map(|s| {
            let (new, all) = (u64::from(offsets[s + 1] - offsets[s]), u64::from(lens[s]));
            new * (all - new) + new * (new + 1) / 2
        })
        .sum();
    let context: u64 = lens.iter().map(|&n| u64::from(n)).sum();
    let cost = Cost {
        flops: 4 * pairs * (n_heads * head_dim) as u64,
        bytes: 2 * q.size_bytes() as u64 + 2 * context * (n_kv_heads * head_dim * v_pages.dtype().size()) as u64,
    };
    let _span = dev.span(Op::PagedAttention, cost);
    #[cfg(feature = "cuda")]
    if let Backend::Cuda(cuda) = dev.backend() {
        return cuda::launch(cuda, y, None, (q, k_pages, v_pages), offsets, batch.cu_seqlens, Some(batch), heads);
    }
    let (q, k, v, y) = (q.f32(), Rows::of(k_pages), Rows::of(v_pages), Shared::new(y.f32_mut()));
    let (page_size, page_table) = (batch.page_size, batch.page_table.u32());
    let step = flash::tokens_per_block(n_heads / n_kv_heads);
    let blocks = (0..sequences).flat_map(|s| {
        let (start, end) = (offsets[s] as usize, offsets[s + 1] as usize);
        let firsts = (start..end).step_by(step).rev();
        firsts.flat_map(move |first| (0..n_kv_heads).map(move |kv_head| (s, first, step.min(end - first), kv_head)))
    });
    parallel::for_each(blocks, |(s, first_row, tokens, kv_head)| {
        let pages = &page_table[s * max_pages..(s + 1) * max_pages];
        let block = QueryBlock {
            heads,
            kv_head,
            first_row,
            position: lens[s] as usize + first_row - offsets[s + 1] as usize,
            tokens,
            q,
            k,
            v,
            row_of: |position: usize| pages[position / page_size] as usize * page_size + position % page_size,
            y,
            lse: None,
        };
        block.attend(dev.compute());
    });
    Ok(())
}

/// Errors unless every sequence's context covers its new tokens and lies in pages that exist.
fn check_pages(batch: &PagedBatch, offsets: &[u32], slots: usize) -> Result<()> {
    let error =
        |argument, expected, found: u32| Err(Error::shape("paged_attention", argument, expected, found.to_string()));
    if batch.page_size == 0 {
        return error("page_size", "1 or more".to_string(), 0);
    }
    let max_pages = batch.page_table.row_len();
    for (s, &context) in batch.context_lens.u32().iter().enumerate() {
        let new = offsets[s + 1] - offsets[s];
        if context < new || context as usize > max_pages * batch.page_size {
            let most = max_pages * batch.page_size;
            return error("context_lens", format!("{new} to {most} tokens for sequence {s}"), context);
        }
        let used = (context as usize).div_ceil(batch.page_size);
        let pages = &batch.page_table.u32()[s * max_pages..s * max_pages + used];
        if let Some(&page) = pages.iter().find(|&&page| (page as usize + 1) * batch.page_size > slots) {
            return error("page_table", format!("pages below {}", slots / batch.page_size), page);
        }
    }
    Ok(())
}
