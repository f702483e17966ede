//! The inner loop of attention: a block of query rows against the keys before it, with an online softmax (Milakov &
//! Gimelshein 2018; Dao 2023, FlashAttention-2). Shared by attention over packed sequences and over pages, so that both
//! give the same bits.
//!
//! The query heads that share a key/value head are rows of one block, token-major: row `r` is token `r / group`, head
//! `r % group`. Keys come in blocks of 64 counted from the start of the sequence. What a row goes through depends on its
//! own position alone: a masked score becomes a weight of exactly 0, and adding 0 changes nothing.
//!
//! With `BF16`, the inputs of both products (scaled queries and keys, weights and values) are rounded to bf16 and multiplied
//! in pairs; scores, maxima, sums and outputs are f32 as ever.

use super::Heads;
use crate::device::{Compute, DType, Tensor};
use crate::ops::parallel::Shared;
use crate::ops::rounding::bf16_bits;
use crate::ops::scratch::Scratch;
use crate::ops::simd::matrix::{Size, View, product};
use crate::ops::simd::{Kernel, LANES, Simd, dispatch, dispatch_dot, padded};
use half::bf16;

/// Keys of one step of the online softmax. Part of the result's definition: another value gives another rounding.
pub(super) const KEYS: usize = 64;

/// Rows that one call of the matrix product takes where the causal mask cuts through.
pub(super) const STRIP: usize = 8;

/// Tokens of one block of queries: enough rows to make up for copying and transposing the keys.
pub(super) fn tokens_per_block(group: usize) -> usize {
    if group == 1 { 64 } else { 32 }
}

/// Rows of keys or values.
#[derive(Clone, Copy)]
pub(super) enum Rows<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
}

impl<'a> Rows<'a> {
    /// The rows of an F32 or BF16 tensor.
    pub(super) fn of(t: &'a Tensor) -> Rows<'a> {
        if t.dtype() == DType::BF16 { Rows::Bf16(t.bf16()) } else { Rows::F32(t.f32()) }
    }

    /// Elements `at ..`, as many as `to` has room for, as f32; the rest of `to` is filled with zeros.
    #[inline(always)]
    fn widen(self, to: &mut [f32], at: usize, n: usize) {
        match self {
            Rows::F32(x) => copy_scaled(to, &x[at..at + n], 1.0),
            Rows::Bf16(x) => {
                let (body, tail) = to.split_at_mut(n);
                for (to, from) in body.iter_mut().zip(&x[at..at + n]) {
                    *to = f32::from_bits(u32::from(from.to_bits()) << 16);
                }
                tail.fill(0.0);
            }
        }
    }

    /// Elements `at .. at + n` as bf16, padded with zeros.
    #[inline(always)]
    fn round(self, to: &mut [f32], at: usize, n: usize) {
        match self {
            Rows::F32(x) => round_scaled(to, &x[at..at + n], 1.0),
            Rows::Bf16(x) => {
                let (body, tail) = bytemuck::cast_slice_mut::<f32, bf16>(to).split_at_mut(n);
                body.copy_from_slice(&x[at..at + n]);
                tail.fill(bf16::ZERO);
            }
        }
    }

    /// Elements `even ..` and `odd ..` as pairs, padded with zeros.
    #[inline(always)]
    fn pair(self, to: &mut [f32], even: usize, odd: Option<usize>, n: usize) {
        let (body, tail) = bytemuck::cast_slice_mut::<f32, u32>(to).split_at_mut(n);
        tail.fill(0);
        match (self, odd) {
            (Rows::F32(x), Some(odd)) => {
                for ((to, even), odd) in body.iter_mut().zip(&x[even..even + n]).zip(&x[odd..odd + n]) {
                    *to = u32::from(bf16_bits(*even)) | u32::from(bf16_bits(*odd)) << 16;
                }
            }
            (Rows::Bf16(x), Some(odd)) => {
                for ((to, even), odd) in body.iter_mut().zip(&x[even..even + n]).zip(&x[odd..odd + n]) {
                    *to = u32::from(even.to_bits()) | u32::from(odd.to_bits()) << 16;
                }
            }
            (Rows::F32(x), None) => {
                body.iter_mut().zip(&x[even..even + n]).for_each(|(to, x)| *to = u32::from(bf16_bits(*x)));
            }
            (Rows::Bf16(x), None) => {
                body.iter_mut().zip(&x[even..even + n]).for_each(|(to, x)| *to = u32::from(x.to_bits()));
            }
        }
    }
}

/// Rounds `head_dim` floats times `scale` to bf16 and pads with zeros.
#[inline(always)]
fn round_scaled(to: &mut [f32], from: &[f32], scale: f32) {
    let (body, tail) = bytemuck::cast_slice_mut::<f32, u16>(to).split_at_mut(from.len());
    for (to, from) in body.iter_mut().zip(from) {
        *to = bf16_bits(from * scale);
    }
    tail.fill(0);
}

/// Some consecutive tokens of one sequence, and one key/value head with its query heads.
pub(super) struct QueryBlock<'a, Row> {
    /// Layer shape.
    pub heads: Heads,
    /// Which key/value head.
    pub kv_head: usize,
    /// Row of `q` and `y` of the first token.
    pub first_row: usize,
    /// Position of the first token in its sequence.
    pub position: usize,
    /// Number of tokens.
    pub tokens: usize,
    /// Queries, `[rows, n_heads * head_dim]`.
    pub q: &'a [f32],
    /// Keys, `[_, n_kv_heads * head_dim]`.
    pub k: Rows<'a>,
    /// Values, as the keys.
    pub v: Rows<'a>,
    /// Where the key and value of a position lie: a row of `k` and `v`.
    pub row_of: Row,
    /// Output, as `q`. Only this block's tokens and heads are touched.
    pub y: Shared<'a>,
    /// Log of the sum of exponentials, `[rows, n_heads]`.
    pub lse: Option<Shared<'a>>,
}

/// Copies `head_dim` floats times `scale` and pads with zeros to whole vectors.
#[inline(always)]
pub(super) fn copy_scaled(to: &mut [f32], from: &[f32], scale: f32) {
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
pub(super) unsafe fn transpose_keys<S: Simd>(to: *mut f32, from: *const f32, rows: usize, columns: usize) {
    for row in (0..rows).step_by(LANES) {
        for column in (0..columns).step_by(LANES) {
            // SAFETY: both blocks are inside.
            unsafe { S::transpose(to.add(column * KEYS + row), KEYS, from.add(row * columns + column), columns) };
        }
    }
}

impl<Row: Fn(usize) -> usize> QueryBlock<'_, Row> {
    /// Computes the block's outputs.
    pub(super) fn attend(self, compute: Compute) {
        match compute {
            Compute::F32 => dispatch(Attend::<_, false>(self)),
            Compute::Bf16 => dispatch_dot(Attend::<_, true>(self)),
        }
    }
}

struct Attend<Block, const BF16: bool>(Block);

impl<Row: Fn(usize) -> usize, const BF16: bool> Kernel for Attend<QueryBlock<'_, Row>, BF16> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let block = self.0;
        let Heads { n_heads, n_kv_heads, head_dim } = block.heads;
        let group = n_heads / n_kv_heads;
        let rows = block.tokens * group;
        let width = if BF16 { head_dim.next_multiple_of(2 * LANES) } else { padded(head_dim) };
        // Floats of a row of queries or keys, and steps of the reduction over them.
        let features = if BF16 { width / 2 } else { width };
        let mut scratch = Scratch::new(rows * (2 * width + KEYS) + 3 * KEYS * width + 2 * rows);
        let (q, rest) = scratch.floats().split_at_mut(rows * width);
        let (o, rest) = rest.split_at_mut(rows * width);
        let (scores, rest) = rest.split_at_mut(rows * KEYS);
        let (keys, rest) = rest.split_at_mut(KEYS * width);
        let (keys_t, rest) = rest.split_at_mut(KEYS * width);
        let (values, rest) = rest.split_at_mut(KEYS * width);
        let (largest, sums) = rest.split_at_mut(rows);
        let scale = 1.0 / (head_dim as f32).sqrt();
        let head_row =
            |r: usize| ((block.first_row + r / group) * n_heads + block.kv_head * group + r % group) * head_dim;
        for (r, q) in q.chunks_exact_mut(width).enumerate() {
            let from = &block.q[head_row(r)..][..head_dim];
            if BF16 { round_scaled(&mut q[..features], from, scale) } else { copy_scaled(q, from, scale) }
        }
        o.fill(0.0);
        largest.fill(f32::NEG_INFINITY);
        sums.fill(0.0);

        let end = block.position + block.tokens;
        for start in (0..end).step_by(KEYS) {
            let n = KEYS.min(end - start);
            let at = |j: usize| ((block.row_of)(start + j) * n_kv_heads + block.kv_head) * head_dim;
            for j in 0..n {
                let key = &mut keys[j * features..(j + 1) * features];
                if BF16 {
                    block.k.round(key, at(j), head_dim);
                } else {
                    block.k.widen(key, at(j), head_dim);
                    block.v.widen(&mut values[j * width..(j + 1) * width], at(j), head_dim);
                }
            }
            if BF16 {
                for j in (0..n).step_by(2) {
                    let odd = (j + 1 < n).then(|| at(j + 1));
                    block.v.pair(&mut values[j / 2 * width..(j / 2 + 1) * width], at(j), odd, head_dim);
                }
            }
            keys[n * features..padded(n) * features].fill(0.0);
            // SAFETY: all pointers are into the parts of `scratch` sized above: `padded(n) <= KEYS` rows of keys, strips of
            // rows below `rows`. This function runs inside `dispatch`.
            unsafe {
                transpose_keys::<S>(keys_t.as_mut_ptr(), keys.as_ptr(), padded(n), features);
                // Where every row sees every key, all rows go through the product at once.
                let step = if block.position + 1 >= start + KEYS { rows } else { STRIP.min(rows) };
                for first in (0..rows).step_by(step) {
                    let m = step.min(rows - first);
                    // Keys that the last row of the strip sees.
                    let seen = (block.position + (first + m - 1) / group + 1).saturating_sub(start).min(n);
                    if seen == 0 {
                        continue;
                    }
                    let (scores, o) = (&mut scores[first * KEYS..], o[first * width..].as_mut_ptr());
                    let a = View { data: q[first * width..].as_ptr(), row: width, column: 1 };
                    let size = Size { m, n: padded(seen), k: features };
                    product::<S, BF16>(scores.as_mut_ptr(), KEYS, a, keys_t.as_ptr(), KEYS, size, false);
                    for i in 0..m {
                        let r = first + i;
                        let visible = (block.position + r / group + 1).saturating_sub(start).min(n);
                        let row = &mut scores[i * KEYS..i * KEYS + padded(seen)];
                        row[visible..].fill(f32::NEG_INFINITY);
                        let (new, sum) = softmax_step::<S>(row, largest[r]);
                        if new != largest[r] {
                            let shrink = S::exp(S::splat(largest[r] - new));
                            for c in (0..width).step_by(LANES) {
                                let at = o.add(i * width + c);
                                S::store(at, S::mul(S::load(at), shrink));
                            }
                            sums[r] *= S::largest(shrink);
                            largest[r] = new;
                        }
                        sums[r] += sum;
                        if BF16 {
                            for c in (0..row.len()).step_by(LANES) {
                                // The first half of the floats makes room for all of the bf16, in order.
                                let weights = S::load(row.as_ptr().add(c));
                                S::store_bf16(row.as_mut_ptr().cast::<u16>().add(c), weights);
                            }
                        }
                    }
                    let a = View { data: scores.as_ptr(), row: KEYS, column: 1 };
                    let k = if BF16 { seen.div_ceil(2) } else { seen };
                    product::<S, BF16>(o, width, a, values.as_ptr(), width, Size { m, n: width, k }, true);
                }
            }
        }

        for r in 0..rows {
            let inverse = 1.0 / sums[r];
            // SAFETY: rows and heads of this block, which no other block has.
            let y = unsafe { block.y.range(head_row(r), head_dim) };
            for (y, o) in y.iter_mut().zip(&o[r * width..]) {
                // Adding 0 makes -0 a 0: how many zero weights were added must not show, not even in the sign of a zero.
                *y = o * inverse + 0.0;
            }
            if let Some(lse) = block.lse {
                // SAFETY: as above.
                unsafe { lse.range(head_row(r) / head_dim, 1)[0] = largest[r] + sums[r].ln() };
            }
        }
    }
}

/// Turns a row of scores into `exp(score - max)`, where `max` is the largest of them and of `before`; gives `max` and the sum.
#[inline(always)]
unsafe fn softmax_step<S: Simd>(row: &mut [f32], before: f32) -> (f32, f32) {
    // SAFETY: `row` is whole vectors; inside `dispatch`.
    unsafe {
        let mut max = S::splat(before);
        for x in row.chunks_exact(LANES) {
            max = S::max(max, S::load(x.as_ptr()));
        }
        let new = S::largest(max);
        let (max, mut sum) = (S::splat(new), S::splat(0.0));
        for x in row.chunks_exact_mut(LANES) {
            let p = S::exp(S::sub(S::load(x.as_ptr()), max));
            S::store(x.as_mut_ptr(), p);
            sum = S::add(sum, p);
        }
        (new, S::sum(sum))
    }
}
