//! The inner loop of attention's backward pass: some keys against all queries that see them.
//!
//! With `BF16` the inputs of all five products are rounded to bf16 and multiplied in pairs. A product reads its left side along the
//! reduction and its right side down the reduction, and each matrix takes part in both ways, so that each is kept in both orders of words.

use super::Heads;
use super::flash::{KEYS, scaled_row, tokens_per_block};
use super::tiles::numbers;
use crate::device::Compute;
use crate::ops::parallel::Shared;
use crate::ops::rounding::bf16_value;
use crate::ops::scratch::Scratch;
use crate::ops::simd::matrix::{Old, Right, Size, View, product};
use crate::ops::simd::{Kernel, LANES, Simd, dispatch, dispatch_dot, padded};
use std::ops::Range;

/// Rows, or keys, that one call of the matrix product takes where the causal mask cuts through.
const STRIP: usize = 8;

/// Some keys of one sequence and one key/value head, against all queries from the first of them on.
pub(super) struct KeySpan<'a> {
    /// Layer shape.
    pub heads: Heads,
    /// Which key/value head.
    pub kv_head: usize,
    /// Rows of the keys.
    pub keys: Range<usize>,
    /// Where the sequence ends.
    pub end: usize,
    /// Inputs of the forward pass.
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
    /// Its outputs, and the gradient of `y`.
    pub y: &'a [f32],
    pub dy: &'a [f32],
    pub lse: &'a [f32],
    /// Takes this span's share of `dq`, from element `base` on.
    pub dq: Shared<'a>,
    pub base: usize,
    /// Take the gradients of the span's keys and values.
    pub dk: Shared<'a>,
    pub dv: Shared<'a>,
}

impl KeySpan<'_> {
    /// Writes the span's gradients.
    pub(super) fn add_gradients(self, compute: Compute) {
        match compute {
            Compute::F32 => dispatch(Backward::<false>(self)),
            Compute::Bf16 => dispatch_dot(Backward::<true>(self)),
        }
    }
}

struct Backward<'a, const BF16: bool>(KeySpan<'a>);

impl<const BF16: bool> Kernel for Backward<'_, BF16> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let span = self.0;
        let Heads { n_heads, n_kv_heads, head_dim } = span.heads;
        let group = n_heads / n_kv_heads;
        let (pairs, width) = (numbers(BF16), padded(head_dim));
        let words = padded(width / pairs);
        let n_keys = span.keys.len();
        let blocks = n_keys.div_ceil(KEYS);
        let (turned, down, sums) = (words * KEYS, KEYS / pairs * width, KEYS * width);
        let step = tokens_per_block(group);
        let most = step * group;
        let of_keys = blocks * (2 * turned + down + 2 * sums) + KEYS * words;
        let of_queries = 2 * most * words + 2 * most / pairs * width + most * width + width;
        let mut scratch = Scratch::new(of_keys + of_queries + 2 * most * KEYS + 2 * most / pairs * KEYS + 2 * most);
        let mut rest = scratch.floats();
        let mut take = |n: usize| {
            let (part, tail) = std::mem::take(&mut rest).split_at_mut(n);
            rest = tail;
            part
        };
        let [k_t, v_t] = [(); 2].map(|()| take(blocks * turned));
        let k_down = take(blocks * down);
        let [dk, dv] = [(); 2].map(|()| take(blocks * sums));
        let along = take(KEYS * words);
        let [q, dy] = [(); 2].map(|()| take(most * words));
        let [q_down, dy_down] = [(); 2].map(|()| take(most / pairs * width));
        let (dq, rounded) = (take(most * width), take(width));
        let [p, ds] = [(); 2].map(|()| take(most * KEYS));
        let [p_down, ds_down] = [(); 2].map(|()| take(most / pairs * KEYS));
        let [lse, delta] = [(); 2].map(|()| take(most));
        let scale = 1.0 / (head_dim as f32).sqrt();

        for x in [&mut *along, &mut *q, &mut *dy, &mut *dk, &mut *dv] {
            x.fill(0.0);
        }
        for b in 0..blocks {
            let first = span.keys.start + b * KEYS;
            let n = KEYS.min(span.keys.end - first);
            let head = |j: usize| {
                let at = ((first + j) * n_kv_heads + span.kv_head) * head_dim;
                at..at + head_dim
            };
            // SAFETY: `along` holds KEYS rows of `words` words, a block of `down` KEYS / pairs rows of `width`, one of `turned` `words`
            // rows of KEYS; inside `dispatch`.
            unsafe {
                along[n * words..].fill(0.0);
                for (x, to) in [(span.k, &mut k_t[b * turned..]), (span.v, &mut v_t[b * turned..])] {
                    for (j, along) in along.chunks_exact_mut(words).take(n).enumerate() {
                        scaled_row::<S, BF16>(along.as_mut_ptr(), &x[head(j)], 1.0);
                    }
                    transpose_keys::<S>(to.as_mut_ptr(), along.as_ptr(), words);
                }
                let k_down = &mut k_down[b * down..(b + 1) * down];
                k_down[n.div_ceil(pairs) * width..].fill(0.0);
                put_down::<S, BF16>(k_down, width, n, 1.0, |j| &span.k[head(j)]);
            }
        }

        for first in (span.keys.start..span.end).step_by(step) {
            let tokens = step.min(span.end - first);
            let rows = tokens * group;
            let head_row = |r: usize| (first + r / group) * n_heads + span.kv_head * group + r % group;
            let head = |r: usize| head_row(r) * head_dim..(head_row(r) + 1) * head_dim;
            // SAFETY: `q` and `dy` hold `most` rows of `words` words, their orders down the rows as many numbers; inside `dispatch`.
            unsafe {
                put_down::<S, BF16>(q_down, width, rows, scale, |r| &span.q[head(r)]);
                put_down::<S, BF16>(dy_down, width, rows, 1.0, |r| &span.dy[head(r)]);
                for r in 0..rows {
                    scaled_row::<S, BF16>(q[r * words..].as_mut_ptr(), &span.q[head(r)], scale);
                    scaled_row::<S, BF16>(dy[r * words..].as_mut_ptr(), &span.dy[head(r)], 1.0);
                    lse[r] = span.lse[head_row(r)];
                    let (dy, y) = (&span.dy[head(r)], &span.y[head(r)]);
                    // That of the rounded `dy`, whose products it is subtracted from.
                    rounded.iter_mut().zip(dy).for_each(|(to, dy)| *to = if BF16 { bf16_value(*dy) } else { *dy });
                    delta[r] = dot::<S>(&rounded[..head_dim], y);
                }
            }
            dq[..rows * width].fill(0.0);
            for b in 0..blocks {
                let start = span.keys.start + b * KEYS;
                if start >= first + tokens {
                    break;
                }
                let n = KEYS.min(span.keys.end - start);
                // Rows of tokens before the block see none of it.
                let skip = start.saturating_sub(first) * group / pairs * pairs;
                let full = first + 1 >= start + n;
                let strip = if full { rows } else { STRIP };
                // SAFETY: all pointers are into the parts of `scratch` sized above; inside `dispatch`.
                unsafe {
                    for r0 in (skip..rows).step_by(strip) {
                        let m = strip.min(rows - r0);
                        let visible = |r: usize| (first + r / group + 1).saturating_sub(start).min(n);
                        let seen = visible(r0 + m - 1);
                        let size = Size { m, n: padded(seen), k: width / pairs };
                        let view = |x: &[f32]| View { data: x[r0 * words..].as_ptr(), row: words, column: 1 };
                        let right = |x: &[f32]| Right::rows(x[b * turned..].as_ptr(), KEYS, width / pairs);
                        let (p, ds) = (p[r0 * KEYS..].as_mut_ptr(), ds[r0 * KEYS..].as_mut_ptr());
                        product::<S, BF16>(p, KEYS, view(q), right(k_t), size, Old::Replace);
                        product::<S, BF16>(ds, KEYS, view(dy), right(v_t), size, Old::Replace);
                        for i in 0..m {
                            let r = r0 + i;
                            let (p, ds) = (p.add(i * KEYS), ds.add(i * KEYS));
                            score_gradients::<S>(p, ds, padded(seen), lse[r], delta[r]);
                            for j in visible(r)..KEYS {
                                *p.add(j) = 0.0;
                                *ds.add(j) = 0.0;
                            }
                        }
                        if BF16 {
                            let at = r0 / pairs * KEYS;
                            pair_rows::<S>(p_down[at..].as_mut_ptr(), p, m);
                            pair_rows::<S>(ds_down[at..].as_mut_ptr(), ds, m);
                            round_rows::<S>(ds, m);
                        }
                        let a = View { data: ds, row: KEYS, column: 1 };
                        let size = Size { m, n: width, k: seen.div_ceil(pairs) };
                        let b = Right::rows(k_down[b * down..].as_ptr(), width, size.k);
                        product::<S, BF16>(dq[r0 * width..].as_mut_ptr(), width, a, b, size, Old::Add);
                    }
                    let (p, ds) = if BF16 { (&*p_down, &*ds_down) } else { (&*p, &*ds) };
                    let strip = if full { n } else { STRIP };
                    for j in (0..n).step_by(strip) {
                        // Rows of tokens before key `j` do not see it.
                        let r0 = skip.max((start + j).saturating_sub(first) * group / pairs * pairs);
                        if r0 >= rows {
                            break;
                        }
                        let size = Size { m: strip.min(n - j), n: width, k: (rows - r0).div_ceil(pairs) };
                        let view = |x: &[f32]| View { data: x[r0 / pairs * KEYS + j..].as_ptr(), row: 1, column: KEYS };
                        let right = |x: &[f32]| Right::rows(x[r0 / pairs * width..].as_ptr(), width, size.k);
                        let at = b * sums + j * width;
                        let (dv, dk) = (dv[at..].as_mut_ptr(), dk[at..].as_mut_ptr());
                        product::<S, BF16>(dv, width, view(p), right(dy_down), size, Old::Add);
                        product::<S, BF16>(dk, width, view(ds), right(q_down), size, Old::Add);
                    }
                }
            }
            for r in 0..rows {
                // SAFETY: this span's own partial sum, this task's own heads.
                let to = unsafe { span.dq.range(span.base + head_row(r) * head_dim, head_dim) };
                to.iter_mut().zip(&dq[r * width..]).for_each(|(to, from)| *to = scale * from);
            }
        }
        for (j, row) in span.keys.clone().enumerate() {
            let at = (row * n_kv_heads + span.kv_head) * head_dim;
            // SAFETY: this task's own keys and head.
            let (to_k, to_v) = unsafe { (span.dk.range(at, head_dim), span.dv.range(at, head_dim)) };
            to_k.copy_from_slice(&dk[j * width..j * width + head_dim]);
            to_v.copy_from_slice(&dv[j * width..j * width + head_dim]);
        }
    }
}

/// Copies `n` rows times `scale` into words down the rows, in rows of `width`, with zeros behind shorter rows and, with `BF16`, beside the
/// last of an odd number.
#[inline(always)]
unsafe fn put_down<'a, S: Simd, const BF16: bool>(
    down: &mut [f32],
    width: usize,
    n: usize,
    scale: f32,
    row: impl Fn(usize) -> &'a [f32],
) {
    let pairs = numbers(BF16);
    for (i, down) in down.chunks_exact_mut(width).take(n.div_ceil(pairs)).enumerate() {
        let r = i * pairs;
        let rows = [row(r), if r + 1 < n { row(r + 1) } else { &[] }];
        for (c, down) in down.chunks_exact_mut(LANES).enumerate() {
            let part = |row: &'a [f32]| row.get(c * LANES..).unwrap_or(&[]);
            // SAFETY: inside `dispatch`.
            unsafe {
                let first = S::mul(S::read(part(rows[0])), S::splat(scale));
                let word = if BF16 { S::pair(first, S::mul(S::read(part(rows[1])), S::splat(scale))) } else { first };
                S::store(down.as_mut_ptr(), word);
            }
        }
    }
}

/// Writes the transpose of [`KEYS`] rows of `words` words (whole vectors) at `from`, as rows of [`KEYS`].
///
/// SAFETY: both hold `KEYS * words` words; in `dispatch`.
#[inline(always)]
unsafe fn transpose_keys<S: Simd>(to: *mut f32, from: *const f32, words: usize) {
    for row in (0..KEYS).step_by(LANES) {
        for word in (0..words).step_by(LANES) {
            // SAFETY: both blocks are inside.
            unsafe { S::transpose(to.add(word * KEYS + row), KEYS, from.add(row * words + word), words) };
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

/// Pairs of bf16 down `m` rows of [`KEYS`] floats; zeros beside the last of an odd number.
#[inline(always)]
unsafe fn pair_rows<S: Simd>(to: *mut f32, from: *const f32, m: usize) {
    // SAFETY: the caller gives `m` rows, and room for half as many; inside `dispatch`.
    unsafe {
        for r in (0..m).step_by(2) {
            for j in (0..KEYS).step_by(LANES) {
                let at = from.add(r * KEYS + j);
                let second = if r + 1 < m { S::load(at.add(KEYS)) } else { S::splat(0.0) };
                S::store(to.add(r / 2 * KEYS + j), S::pair(S::load(at), second));
            }
        }
    }
}

/// Rounds `m` rows of [`KEYS`] floats to bf16, which take the first half of each row.
#[inline(always)]
unsafe fn round_rows<S: Simd>(x: *mut f32, m: usize) {
    // SAFETY: the caller gives `m` rows; each vector is read before what is written takes its place; inside `dispatch`.
    unsafe {
        for r in 0..m {
            let row = x.add(r * KEYS);
            for j in (0..KEYS).step_by(LANES) {
                S::store_bf16(row.cast::<u16>().add(j), S::load(row.add(j)));
            }
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
