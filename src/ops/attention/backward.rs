//! Gradients of causal attention, without ever storing the attention matrix (Dao 2023, FlashAttention-2).

#[cfg(feature = "cuda")]
use super::cuda;
use super::flash::{KEYS, tokens_per_block};
use super::{Heads, check_heads, check_offsets};
#[cfg(feature = "cuda")]
use crate::device::{Backend, cuda::abi::attention_backward_params};
use crate::device::{Compute, Cost, DType, Device, Op, Tensor};
use crate::error::Result;
use crate::ops::check;
#[cfg(feature = "cuda")]
use crate::ops::largest::Largest;
use crate::ops::parallel::{self, Shared};
use crate::ops::rounding::bf16_value;
use crate::ops::scratch::Scratch;
use crate::ops::simd::matrix::{Old, Right, Size, View, product};
use crate::ops::simd::{Kernel, LANES, Simd, dispatch, padded};
use std::ops::Range;

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
/// With [`Compute::Bf16`] the scores are computed again from queries and keys rounded as in the forward pass, so that the
/// weights are those of `lse`; the products are f32.
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
        let mut delta = dev.zeros(&[tokens, n_heads], DType::F32)?;
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
        let round = dev.compute() == Compute::Bf16;
        dispatch(KeySpan { round, heads, kv_head, keys, end, q, k, v, y, dy, lse, dq, base, dk, dv });
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

/// Rows, or keys, that one call of the matrix product takes where the causal mask cuts through.
const STRIP: usize = 8;

/// Keys whose share of `dq` is summed before it joins the others: a quarter of the sequence, 512 at least. It depends on
/// the sequence alone, so the result does not depend on threads; at most three partial sums are kept.
fn keys_per_span(sequence: usize) -> usize {
    sequence.div_ceil(4).next_multiple_of(KEYS).max(512)
}

/// Some keys of one sequence and one key/value head, against all queries from the first of them on.
struct KeySpan<'a> {
    /// Rounds queries and keys to bf16.
    round: bool,
    heads: Heads,
    kv_head: usize,
    /// Rows of the keys.
    keys: Range<usize>,
    /// Where the sequence ends.
    end: usize,
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    y: &'a [f32],
    dy: &'a [f32],
    lse: &'a [f32],
    /// Takes this span's share of `dq`, from element `base` on.
    dq: Shared<'a>,
    base: usize,
    dk: Shared<'a>,
    dv: Shared<'a>,
}

impl Kernel for KeySpan<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Heads { n_heads, n_kv_heads, head_dim } = self.heads;
        let group = n_heads / n_kv_heads;
        let width = padded(head_dim);
        let n_keys = self.keys.len();
        let blocks = n_keys.div_ceil(KEYS);
        let step = tokens_per_block(group);
        let block = KEYS * width;
        let most = step * group;
        let mut scratch = Scratch::new(5 * blocks * block + block + most * (3 * width + 2 * KEYS) + 2 * most);
        let (k, rest) = scratch.floats().split_at_mut(blocks * block);
        let (k_t, rest) = rest.split_at_mut(blocks * block);
        let (v_t, rest) = rest.split_at_mut(blocks * block);
        let (dk, rest) = rest.split_at_mut(blocks * block);
        let (dv, rest) = rest.split_at_mut(blocks * block);
        let (v, rest) = rest.split_at_mut(block);
        let (q, rest) = rest.split_at_mut(most * width);
        let (dy, rest) = rest.split_at_mut(most * width);
        let (dq, rest) = rest.split_at_mut(most * width);
        let (p, rest) = rest.split_at_mut(most * KEYS);
        let (ds, rest) = rest.split_at_mut(most * KEYS);
        let (lse, delta) = rest.split_at_mut(most);
        let scale = 1.0 / (head_dim as f32).sqrt();

        k.fill(0.0);
        dk.fill(0.0);
        dv.fill(0.0);
        for b in 0..blocks {
            let k = &mut k[b * block..(b + 1) * block];
            v.fill(0.0);
            for (j, row) in
                (self.keys.start + b * KEYS..self.keys.end.min(self.keys.start + (b + 1) * KEYS)).enumerate()
            {
                let at = (row * n_kv_heads + self.kv_head) * head_dim;
                copy_scaled(&mut k[j * width..(j + 1) * width], &self.k[at..at + head_dim], 1.0);
                copy_scaled(&mut v[j * width..(j + 1) * width], &self.v[at..at + head_dim], 1.0);
            }
            if self.round {
                k.iter_mut().for_each(|k| *k = bf16_value(*k));
            }
            // SAFETY: blocks of KEYS x width floats each; inside `dispatch`.
            unsafe {
                transpose_keys::<S>(k_t[b * block..].as_mut_ptr(), k.as_ptr(), KEYS, width);
                transpose_keys::<S>(v_t[b * block..].as_mut_ptr(), v.as_ptr(), KEYS, width);
            }
        }

        for first in (self.keys.start..self.end).step_by(step) {
            let tokens = step.min(self.end - first);
            let rows = tokens * group;
            let head_row = |r: usize| (first + r / group) * n_heads + self.kv_head * group + r % group;
            for r in 0..rows {
                let at = head_row(r) * head_dim;
                let (y, dy_row) = (&self.y[at..at + head_dim], &self.dy[at..at + head_dim]);
                copy_scaled(&mut q[r * width..(r + 1) * width], &self.q[at..at + head_dim], scale);
                copy_scaled(&mut dy[r * width..(r + 1) * width], dy_row, 1.0);
                if self.round {
                    q[r * width..(r + 1) * width].iter_mut().for_each(|q| *q = bf16_value(*q));
                }
                lse[r] = self.lse[head_row(r)];
                // SAFETY: inside `dispatch`.
                delta[r] = unsafe { dot::<S>(dy_row, y) };
            }
            dq[..rows * width].fill(0.0);
            for b in 0..blocks {
                let start = self.keys.start + b * KEYS;
                if start >= first + tokens {
                    break;
                }
                let n = KEYS.min(self.keys.end - start);
                // Rows of tokens before the block see none of it.
                let skip = start.saturating_sub(first) * group;
                let full = first + 1 >= start + n;
                let strip = if full { rows } else { STRIP };
                let at = b * block;
                // SAFETY: all pointers are into the parts of `scratch` sized above; inside `dispatch`.
                unsafe {
                    for r0 in (skip..rows).step_by(strip) {
                        let m = strip.min(rows - r0);
                        let seen = n.min(first + (r0 + m - 1) / group + 1 - start);
                        let size = Size { m, n: padded(seen), k: width };
                        let view = |x: &[f32]| View { data: x[r0 * width..].as_ptr(), row: width, column: 1 };
                        let (p, ds) = (p[r0 * KEYS..].as_mut_ptr(), ds[r0 * KEYS..].as_mut_ptr());
                        let right = |x: &[f32]| Right::rows(x[at..].as_ptr(), KEYS, width);
                        product::<S, false>(p, KEYS, view(q), right(k_t), size, Old::Replace);
                        product::<S, false>(ds, KEYS, view(dy), right(v_t), size, Old::Replace);
                        for i in 0..m {
                            let r = r0 + i;
                            let visible = n.min(first + r / group + 1 - start);
                            let (p, ds) = (p.add(i * KEYS), ds.add(i * KEYS));
                            score_gradients::<S>(p, ds, padded(seen), lse[r], delta[r]);
                            for j in visible..KEYS {
                                *p.add(j) = 0.0;
                                *ds.add(j) = 0.0;
                            }
                        }
                        let a = View { data: ds, row: KEYS, column: 1 };
                        let size = Size { m, n: width, k: seen };
                        let b = Right::rows(k[at..].as_ptr(), width, seen);
                        product::<S, false>(dq[r0 * width..].as_mut_ptr(), width, a, b, size, Old::Add);
                    }
                    let strip = if full { n } else { STRIP };
                    for j in (0..n).step_by(strip) {
                        // Rows of tokens before key `j` do not see it.
                        let r0 = skip.max((start + j).saturating_sub(first) * group);
                        if r0 >= rows {
                            break;
                        }
                        let size = Size { m: strip.min(n - j), n: width, k: rows - r0 };
                        let view = |x: &[f32]| View { data: x[r0 * KEYS + j..].as_ptr(), row: 1, column: KEYS };
                        let (dv, dk) = (dv[at + j * width..].as_mut_ptr(), dk[at + j * width..].as_mut_ptr());
                        let right = |x: &[f32]| Right::rows(x[r0 * width..].as_ptr(), width, rows - r0);
                        product::<S, false>(dv, width, view(p), right(dy), size, Old::Add);
                        product::<S, false>(dk, width, view(ds), right(q), size, Old::Add);
                    }
                }
            }
            for r in 0..rows {
                // SAFETY: this span's own partial sum, this task's own heads.
                let to = unsafe { self.dq.range(self.base + head_row(r) * head_dim, head_dim) };
                to.iter_mut().zip(&dq[r * width..]).for_each(|(to, from)| *to = scale * from);
            }
        }
        for (j, row) in self.keys.clone().enumerate() {
            let at = (row * n_kv_heads + self.kv_head) * head_dim;
            // SAFETY: this task's own keys and head.
            let (to_k, to_v) = unsafe { (self.dk.range(at, head_dim), self.dv.range(at, head_dim)) };
            to_k.copy_from_slice(&dk[j * width..j * width + head_dim]);
            to_v.copy_from_slice(&dv[j * width..j * width + head_dim]);
        }
    }
}

/// Copies `head_dim` floats times `scale` and pads with zeros to whole vectors.
#[inline(always)]
fn copy_scaled(to: &mut [f32], from: &[f32], scale: f32) {
    let (body, tail) = to.split_at_mut(from.len());
    for (to, from) in body.iter_mut().zip(from) {
        *to = from * scale;
    }
    tail.fill(0.0);
}

/// Writes the transpose of `rows x columns` floats (both whole vectors) at `from`, as rows of [`KEYS`].
///
/// SAFETY: `from` holds `rows * columns` floats, `to` has room for `columns` rows of [`KEYS`]; `rows <= KEYS`; in `dispatch`.
#[inline(always)]
unsafe fn transpose_keys<S: Simd>(to: *mut f32, from: *const f32, rows: usize, columns: usize) {
    for row in (0..rows).step_by(LANES) {
        for column in (0..columns).step_by(LANES) {
            // SAFETY: both blocks are inside.
            unsafe { S::transpose(to.add(column * KEYS + row), KEYS, from.add(row * columns + column), columns) };
        }
    }
}

/// From scores `p` and `dP` in `ds`, the weights `p = exp(p - lse)` and `ds = p (ds - delta)`, over `n` floats.
#[inline(always)]
unsafe fn score_gradients<S: Simd>(p: *mut f32, ds: *mut f32, n: usize, lse: f32, delta: f32) {
    // SAFETY: the caller gives `n` floats, whole vectors, in both; inside `dispatch`.
    unsafe {
        let (lse, delta) = (S::splat(lse), S::splat(delta));
        for j in (0..n).step_by(LANES) {
            let weight = S::exp(S::sub(S::load(p.add(j)), lse));
            S::store(p.add(j), weight);
            S::store(ds.add(j), S::mul(weight, S::sub(S::load(ds.add(j)), delta)));
        }
    }
}

/// The dot product of two rows.
#[inline(always)]
unsafe fn dot<S: Simd>(a: &[f32], b: &[f32]) -> f32 {
    // SAFETY: inside `dispatch`.
    unsafe {
        let mut sum = S::splat(0.0);
        for (a, b) in a.chunks(LANES).zip(b.chunks(LANES)) {
            sum = S::fma(S::read(a), S::read(b), sum);
        }
        S::sum(sum)
    }
}
