//! Causal attention against keys and values kept in pages, for generation: prefill and decode alike.

#[cfg(feature = "cuda")]
use super::cuda;
use super::flash::{self, QueryBlock};
use super::tiles::{self, OwnTiles, TILE, Tiles};
use super::{Heads, check_heads, check_offsets};
#[cfg(feature = "cuda")]
use crate::device::{
    Backend,
    cuda::{
        Grid,
        abi::{ATTENTION_SPLIT, kv_store_params},
    },
};
use crate::device::{Cost, DType, Device, Op, Tensor};
use crate::error::{Error, Result};
use crate::ops::check;
use crate::ops::parallel::{self, Shared};
use crate::ops::simd::LANES;

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

/// Slots of a cache of `pages` pages: those of the pages, and what makes up whole tiles of 16.
pub fn cache_slots(pages: usize, page_size: usize) -> usize {
    (pages * page_size).next_multiple_of(TILE)
}

/// Bytes that [`paged_attention`] needs on a card for what it finds in the splits of a context, over at most `tokens` new tokens of
/// `sequences` sequences with contexts of at most `longest`; none on a CPU.
pub fn split_bytes(dev: &Device, tokens: usize, sequences: usize, longest: usize, heads: Heads) -> usize {
    #[cfg(feature = "cuda")]
    if let Backend::Cuda(_) = dev.backend() {
        let Heads { n_heads, n_kv_heads, head_dim } = heads;
        let splits = longest.div_ceil(ATTENTION_SPLIT as usize);
        // Sequences with more new tokens are not split.
        let tokens = tokens.min(sequences * (cuda::SPLIT_ROWS * n_kv_heads / n_heads));
        return if splits > 1 { 4 * tokens * n_heads * splits * (head_dim + 2) } else { 0 };
    }
    let _ = (dev, tokens, sequences, longest, heads);
    0
}

/// Writes this step's keys and values into their pages: row `t` goes to slot `slots[t]` = page * page_size + offset.
///
/// `k_pages`, `v_pages`: of the device's [cache type](Device::kv_cache), BF16 being rounded, `[slots, n_kv_heads * head_dim]` with
/// [`cache_slots`] of them; `k`, `v`: F32 `[tokens, n_kv_heads * head_dim]`. On a CPU their numbers are in the order of
/// attention's products, which reads pages of a multiple of 16 tokens in place and copies others.
pub fn kv_store(
    dev: &Device,
    k_pages: &mut Tensor,
    v_pages: &mut Tensor,
    k: &Tensor,
    v: &Tensor,
    slots: &Tensor,
    heads: Heads,
) -> Result<()> {
    let (tokens, width) = (k.rows(), heads.n_kv_heads * heads.head_dim);
    check_heads("kv_store", heads)?;
    let dtype = dev.activation();
    check("kv_store", "k", k, dtype, &[tokens, width])?;
    check("kv_store", "v", v, dtype, &[tokens, width])?;
    check("kv_store", "slots", slots, DType::U32, &[tokens])?;
    check("kv_store", "v_pages", v_pages, dev.kv_cache(), &[v_pages.rows(), width])?;
    check("kv_store", "k_pages", k_pages, dev.kv_cache(), v_pages.shape())?;
    check_tiles("kv_store", dev, v_pages)?;
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
        let ahead = [params.slots as u64];
        return cuda.launch_dependent("kv_store", Grid::rows(tokens, width), &params, &ahead);
    }
    tiles::put((k_pages, v_pages), k.f32(), v.f32(), slots.u32(), heads);
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
    check("paged_attention", "v_pages", v_pages, dev.kv_cache(), &[v_pages.rows(), n_kv_heads * head_dim])?;
    check("paged_attention", "k_pages", k_pages, dev.kv_cache(), v_pages.shape())?;
    check_tiles("paged_attention", dev, v_pages)?;
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
    let (page_size, page_table) = (batch.page_size, batch.page_table.u32());
    let slot = |s: usize, position: usize| {
        let page = page_table[s * max_pages + position / page_size] as usize;
        page * page_size + position % page_size
    };
    let in_place = page_size.is_multiple_of(TILE) && head_dim.is_multiple_of(LANES);
    let mut own;
    let (tiles, first_tiles) = if in_place {
        (Tiles::of_cache(k_pages, v_pages, heads), Vec::new())
    } else {
        let first_tiles;
        (own, first_tiles) = copied_tiles(dev, (k_pages, v_pages), lens, slot, heads);
        (own.tiles(), first_tiles)
    };
    let (q, y) = (q.f32(), Shared::new(y.f32_mut()));
    let step = flash::tokens_per_block(n_heads / n_kv_heads);
    // Where sequences are enough for all threads, one task goes through all heads, which lie one after the other in a tile.
    let together = if sequences >= 4 * rayon::current_num_threads() { n_kv_heads } else { 1 };
    let blocks = (0..sequences).flat_map(|s| {
        let (start, end) = (offsets[s] as usize, offsets[s + 1] as usize);
        let firsts = (start..end).step_by(step).rev();
        let kv_heads = move || (0..n_kv_heads).step_by(together);
        firsts.flat_map(move |first| kv_heads().map(move |kv_head| (s, first, step.min(end - first), kv_head)))
    });
    parallel::for_each(blocks, |(s, first_row, tokens, first_head)| {
        for kv_head in first_head..first_head + together {
            let block = QueryBlock {
                heads,
                kv_head,
                first_row,
                position: lens[s] as usize + first_row - offsets[s + 1] as usize,
                tokens,
                q,
                tiles,
                tile_of: |i| first_tiles.get(s).map_or_else(|| slot(s, i * TILE) / TILE, |first| first + i),
                y,
                lse: None,
            };
            block.attend(dev.compute());
        }
    });
    Ok(())
}

/// Tiles of the contexts of all sequences, one after the other, for pages whose tokens are not where the tiles of a sequence
/// begin; and the first tile of each sequence.
fn copied_tiles(
    dev: &Device,
    cache: (&Tensor, &Tensor),
    lens: &[u32],
    slot: impl Fn(usize, usize) -> usize,
    heads: Heads,
) -> (OwnTiles, Vec<usize>) {
    let width = heads.n_kv_heads * heads.head_dim;
    let tokens: usize = lens.iter().map(|&len| len as usize).sum();
    let (mut k, mut v) = (vec![0.0; tokens * width], vec![0.0; tokens * width]);
    let mut rows = k.chunks_exact_mut(width).zip(v.chunks_exact_mut(width));
    let (mut tiles, mut first_tiles, mut first_row) = (Vec::new(), Vec::new(), 0);
    for (s, len) in lens.iter().map(|&len| len as usize).enumerate() {
        for (position, (k, v)) in (0..len).zip(&mut rows) {
            tiles::read_slot(k, v, cache, slot(s, position), heads);
        }
        first_tiles.push(tiles.len());
        tiles.extend((0..len).step_by(TILE).map(|first| (first_row + first, TILE.min(len - first))));
        first_row += len;
    }
    (OwnTiles::new(&k, &v, &tiles, heads, dev.compute()), first_tiles)
}

/// Errors unless the slots of a cache are whole tiles, where it has tiles.
fn check_tiles(op: &'static str, dev: &Device, pages: &Tensor) -> Result<()> {
    if !dev.is_cpu() || pages.rows().is_multiple_of(TILE) {
        return Ok(());
    }
    Err(Error::shape(op, "v_pages", format!("slots in multiples of {TILE}"), pages.rows().to_string()))
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
