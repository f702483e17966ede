//! Launches of `kernels/attention.cu`, which serves packed and paged attention, and of `attention_backward.cu`; the choice of their
//! `_sm90` for packed sequences where card and heads allow it.

use super::cuda_sm90;
use super::{Heads, PagedBatch};
use crate::device::Tensor;
use crate::device::cuda::{Cuda, Grid, abi};
use crate::error::{Error, Result};
use std::ptr::null;
use std::sync::Arc;

/// Rows of a block's tile: tokens times the query heads of one key/value head.
const ROWS: usize = 64;
/// Rows of the tile of the split kernels, for few new tokens.
pub(super) const SPLIT_ROWS: usize = 16;
/// Rows of keys or of values in a tile.
const KEYS: usize = 64;

/// Rows of queries or keys that the backward kernels go through at a time.
const BACKWARD_ROWS: usize = 32;

/// Kernels of one head size.
struct Kernels {
    /// Most features of a head.
    features: usize,
    whole: &'static str,
    split: &'static str,
    deep_split: &'static str,
    backward_keys: &'static str,
    backward_queries: &'static str,
}

macro_rules! kernels {
    ($($features:literal),*) => {
        [$(Kernels {
            features: $features,
            whole: concat!("attention_", $features),
            split: concat!("attention_split_", $features),
            deep_split: concat!("attention_deep_split_", $features),
            backward_keys: concat!("attention_backward_keys_", $features),
            backward_queries: concat!("attention_backward_queries_", $features),
        }),*]
    };
}

const KERNELS: [Kernels; 4] = kernels!(64, 80, 96, 128);

/// The kernels for heads of that size and query heads a key/value head.
fn kernels(heads: Heads, most_group: usize) -> Result<&'static Kernels> {
    let group = heads.n_heads / heads.n_kv_heads;
    if group > most_group {
        let expected = format!("at most {most_group} query heads a key/value head on a card");
        return Err(Error::shape("attention", "heads", expected, group.to_string()));
    }
    let found = KERNELS.iter().find(|kernels| kernels.features >= heads.head_dim);
    found.ok_or_else(|| Error::shape("attention", "head_dim", "at most 128 on a card", heads.head_dim.to_string()))
}

/// Causal attention of new tokens, whose `offsets` are those of `cu_seqlens`, to their own keys or to those in pages.
#[allow(clippy::too_many_arguments)]
pub(super) fn launch(
    cuda: &Arc<Cuda>,
    y: &mut Tensor,
    lse: Option<&mut Tensor>,
    (q, k, v): (&Tensor, &Tensor, &Tensor),
    offsets: &[u32],
    cu_seqlens: &Tensor,
    paged: Option<&PagedBatch>,
    heads: Heads,
) -> Result<()> {
    let Heads { n_heads, n_kv_heads, head_dim } = heads;
    let (tokens, sequences, group) = (q.rows(), offsets.len() - 1, n_heads / n_kv_heads);
    let &Kernels { features, whole, split, deep_split, .. } = kernels(heads, ROWS)?;
    let most_new = offsets.windows(2).map(|w| (w[1] - w[0]) as usize).max().unwrap_or(0);
    let longest = paged.map_or(most_new, |p| p.context_lens.u32().iter().copied().max().unwrap_or(0) as usize);
    let max_splits = longest.div_ceil(abi::ATTENTION_SPLIT as usize).max(1);
    let sm90 = paged.is_none() && cuda_sm90::takes(cuda, heads);
    let in_splits = !sm90 && most_new * group <= SPLIT_ROWS;
    // Not filled: every split that attention_combine reads was written.
    let floats = tokens * n_heads * max_splits * (head_dim + 2);
    let partial = if in_splits && max_splits > 1 { Some(cuda.allocate(floats * size_of::<f32>())?) } else { None };
    let params = abi::attention_params {
        y: y.kernel_mut(cuda)?,
        lse: lse.map_or(Ok(std::ptr::null_mut()), |lse| lse.kernel_mut(cuda))?,
        partial: partial.as_ref().map_or(std::ptr::null_mut(), |partial| partial.address() as *mut f32),
        q: q.kernel_ptr(cuda)?,
        k: k.kernel_ptr(cuda)?,
        v: v.kernel_ptr(cuda)?,
        cu_seqlens: cu_seqlens.kernel_ptr(cuda)?,
        context_lens: paged.map_or(Ok(null()), |p| p.context_lens.kernel_ptr(cuda))?,
        page_table: paged.map_or(Ok(null()), |p| p.page_table.kernel_ptr(cuda))?,
        max_pages: paged.map_or(0, |p| p.page_table.row_len() as u32),
        page_size: paged.map_or(1, |p| p.page_size as u32),
        n_heads: n_heads as u32,
        n_kv_heads: n_kv_heads as u32,
        head_dim: head_dim as u32,
        max_splits: max_splits as u32,
        scale: 1.0 / (head_dim as f32).sqrt(),
    };
    if sm90 {
        return cuda_sm90::launch(cuda, params, heads, tokens, most_new, sequences);
    }
    let ahead = [params.cu_seqlens, params.context_lens, params.page_table].map(|pointer| pointer as u64);
    let shared = |rows: usize, stages: u32| ((rows + stages as usize * KEYS) * (features + 8) * 2) as u32;
    if in_splits {
        let blocks = [max_splits, n_kv_heads, sequences];
        // One block a multiprocessor may fill its shared memory, 227 KiB on these.
        let few = blocks.iter().product::<usize>() <= cuda.card.multiprocessors as usize;
        let (kernel, stages) = if few && matches!(cuda.card.compute_capability.0, 9 | 10) {
            (deep_split, abi::ATTENTION_DEEP_SPLIT_STAGES)
        } else {
            (split, abi::ATTENTION_SPLIT_STAGES)
        };
        let grid = Grid { blocks, threads: 32, shared: shared(SPLIT_ROWS, stages) };
        cuda.launch_dependent(kernel, grid, &params, &ahead)?;
        if max_splits == 1 {
            return Ok(());
        }
        let blocks = [most_new, n_heads, sequences];
        let grid = Grid { blocks, threads: 128, shared: 0 };
        return cuda.launch_dependent("attention_combine", grid, &params, &ahead);
    }
    let blocks = [most_new.div_ceil(ROWS / group), n_kv_heads, sequences];
    let grid = Grid { blocks, threads: 128, shared: shared(ROWS, abi::ATTENTION_STAGES) };
    cuda.launch_dependent(whole, grid, &params, &ahead)
}

/// The three kernels of the backward pass, for `sequences` of at most `longest` tokens.
pub(super) fn launch_backward(
    cuda: &Arc<Cuda>,
    params: &abi::attention_backward_params,
    heads: Heads,
    longest: usize,
    sequences: usize,
) -> Result<()> {
    let Heads { n_heads, n_kv_heads, .. } = heads;
    let rows = params.tokens as usize * n_heads;
    cuda.launch("attention_delta", Grid { blocks: [rows.div_ceil(4), 1, 1], threads: 128, shared: 0 }, params)?;
    if cuda_sm90::takes(cuda, heads) {
        return cuda_sm90::launch_backward(cuda, *params, heads, longest, sequences);
    }
    let &Kernels { features, backward_keys, backward_queries, .. } = kernels(heads, BACKWARD_ROWS)?;
    let shared = ((ROWS + BACKWARD_ROWS) * 2 * (features + 8) * 2) as u32;
    let blocks = [longest.div_ceil(ROWS), n_kv_heads, sequences];
    cuda.launch(backward_keys, Grid { blocks, threads: 128, shared }, params)?;
    let blocks = [longest.div_ceil(ROWS / (n_heads / n_kv_heads)), n_kv_heads, sequences];
    cuda.launch(backward_queries, Grid { blocks, threads: 128, shared }, params)
}
