//! Gradients of causal attention, without ever storing the attention matrix (Dao 2023, FlashAttention-2).

#[cfg(feature = "cuda")]
use super::cuda;
use super::flash::KEYS;
use super::key_span::KeySpan;
use super::{Heads, check_heads, check_offsets};
#[cfg(feature = "cuda")]
use crate::device::{Backend, cuda::abi::attention_backward_params};
use crate::device::{Cost, DType, Device, Op, Tensor};
use crate::error::Result;
use crate::ops::check;
#[cfg(feature = "cuda")]
use crate::ops::largest::Largest;
use crate::ops::parallel::{self, Shared};
use crate::ops::scratch::Scratch;

/// FLOPs and fewest bytes of a backward pass. The convention is five products over the causal pairs (the scores again,
/// `dP`, `dV`, `dQ`, `dK`): 2.5 times the forward pass.
fn cost(cu_seqlens: &[u32], heads: Heads) -> Cost {
    let tokens = cu_seqlens.last().copied().unwrap_or(0) as u64;
    let (q, kv) = ((heads.n_heads * heads.head_dim) as u64, (heads.n_kv_heads * heads.head_dim) as u64);
    Cost {
        flops: super::cost(cu_seqlens, heads).flops / 2 * 5,
        bytes: 4 * tokens * (4 * q + 4 * kv + heads.n_heads as u64),
    }
}

/// Gradients of [`attention`](super::attention): `dq`, `dk`, `dv` from `dy`, all replaced.
///
/// `q`, `y`, `dy`, `dq`: F32 `[tokens, n_heads * head_dim]`; `k`, `v`, `dk`, `dv`: F32 `[tokens, n_kv_heads * head_dim]`;
/// `lse`: F32 `[tokens, n_heads]` of the forward pass; `cu_seqlens` as there. `dk` and `dv` are summed over the query heads
/// of a group. A sequence's gradients have the same bits whatever is packed beside it and however many threads run.
/// With [`Compute::Bf16`](crate::device::Compute::Bf16) all inputs of the five products are rounded to bf16: queries and keys as in the forward pass, so that
/// the weights are those of `lse`, values, `dy`, and then weights and their gradients, which are off by up to `2^-8` of themselves.
/// Scratch: at most three times the size of `dq` (sequences up to 512 tokens: none), and 0.7 MB a thread and 512 keys.
#[allow(clippy::too_many_arguments)]
pub fn attention_backward(
    dev: &Device,
    dq: &mut Tensor,
    dk: &mut Tensor,
    dv: &mut Tensor,
    dy: &Tensor,
    y: &Tensor,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    lse: &Tensor,
    cu_seqlens: &Tensor,
    heads: Heads,
) -> Result<()> {
    let Heads { n_heads, n_kv_heads, head_dim } = heads;
    let tokens = q.rows();
    let name = "attention_backward";
    check_heads(name, heads)?;
    for (argument, t) in [("q", q), ("y", y), ("dy", dy), ("dq", &*dq)] {
        check(name, argument, t, dev.activation(), &[tokens, n_heads * head_dim])?;
    }
    for (argument, t) in [("k", k), ("v", v), ("dk", &*dk), ("dv", &*dv)] {
        check(name, argument, t, dev.activation(), &[tokens, n_kv_heads * head_dim])?;
    }
    check(name, "lse", lse, DType::F32, &[tokens, n_heads])?;
    let offsets = check_offsets(name, cu_seqlens, tokens)?;
    let cost = cost(offsets, heads);
    let bytes = cost.bytes / 4 * q.dtype().size() as u64;
    let _span = dev.span(Op::AttentionBackward, Cost { bytes, ..cost });
    let longest = offsets.windows(2).map(|w| (w[1] - w[0]) as usize).max().unwrap_or(0);
    #[cfg(feature = "cuda")]
    if let Backend::Cuda(cuda) = dev.backend() {
        let mut delta = Tensor::zeros_in(dev, &[tokens, n_heads], q.room(), DType::F32)?;
        let largest_dy = Largest::of_sequences(cuda, dy, cu_seqlens, longest)?;
        let params = attention_backward_params {
            dq: dq.kernel_mut(cuda)?,
            dk: dk.kernel_mut(cuda)?,
            dv: dv.kernel_mut(cuda)?,
            delta: delta.kernel_mut(cuda)?,
            dy: dy.kernel_ptr(cuda)?,
            y: y.kernel_ptr(cuda)?,
            q: q.kernel_ptr(cuda)?,
            k: k.kernel_ptr(cuda)?,
            v: v.kernel_ptr(cuda)?,
            lse: lse.kernel_ptr(cuda)?,
            cu_seqlens: cu_seqlens.kernel_ptr(cuda)?,
            largest_dy: largest_dy.ptr(),
            tokens: tokens as u32,
            n_heads: n_heads as u32,
            n_kv_heads: n_kv_heads as u32,
            head_dim: head_dim as u32,
            scale: 1.0 / (head_dim as f32).sqrt(),
        };
        return cuda::launch_backward(cuda, &params, heads, longest, offsets.len() - 1);
    }
    let n = tokens * n_heads * head_dim;
    let mut partials = Scratch::new((longest.div_ceil(keys_per_span(longest)).max(1) - 1) * n);
    let (dq, partials) = (Shared::new(dq.f32_mut()), Shared::new(partials.floats()));
    let (dk, dv) = (Shared::new(dk.f32_mut()), Shared::new(dv.f32_mut()));
    let (q, k, v, y, dy, lse) = (q.f32(), k.f32(), v.f32(), y.f32(), dy.f32(), lse.f32());
    let spans = offsets.windows(2).flat_map(|w| {
        let (start, end) = (w[0] as usize, w[1] as usize);
        let span = keys_per_span(end - start);
        (0..(end - start).div_ceil(span))
            .flat_map(move |i| (0..n_kv_heads).map(move |kv_head| (start, end, i, kv_head)))
    });
    parallel::for_each(spans, |(start, end, i, kv_head)| {
        let span = keys_per_span(end - start);
        let keys = start + i * span..end.min(start + (i + 1) * span);
        // The first span sees every query and writes `dq` itself; the others each have a partial sum of their own.
        let (dq, base) = if i == 0 { (dq, 0) } else { (partials, (i - 1) * n) };
        let span = KeySpan { heads, kv_head, keys, end, q, k, v, y, dy, lse, dq, base, dk, dv };
        span.add_gradients(dev.compute());
    });
    let rows = offsets.windows(2).flat_map(|w| {
        let (start, end) = (w[0] as usize, w[1] as usize);
        (start + keys_per_span(end - start)..end).step_by(64).map(move |row| (start, end, row))
    });
    parallel::for_each(rows, |(start, end, row)| {
        let span = keys_per_span(end - start);
        let width = n_heads * head_dim;
        for row in row..end.min(row + 64) {
            // SAFETY: every row belongs to one task.
            let sum = unsafe { dq.range(row * width, width) };
            for i in 1..=(row - start) / span {
                // SAFETY: as above; written by the tasks before.
                let part = unsafe { partials.range((i - 1) * n + row * width, width) };
                sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += *part);
            }
        }
    });
    Ok(())
}

/// Keys whose share of `dq` is summed before it joins the others: a quarter of the sequence, 512 at least. It depends on
/// the sequence alone, so the result does not depend on threads; at most three partial sums are kept.
fn keys_per_span(sequence: usize) -> usize {
    sequence.div_ceil(4).next_multiple_of(KEYS).max(512)
}
