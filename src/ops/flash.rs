//! The inner loop of attention: a block of query rows against the keys before it, with an online softmax (Milakov &
//! Gimelshein 2018; Dao 2023, FlashAttention-2). Shared by attention over packed sequences and over pages, so that both
//! give the same bits.
//!
//! The query heads that share a key/value head are rows of one block, token-major: row `r` is token `r / group`, head
//! `r % group`. Keys come in blocks of 64 counted from the start of the sequence. What a row goes through depends on its
//! own position alone: a masked score becomes a weight of exactly 0, and adding 0 changes nothing.

use super::attention::Heads;
use super::parallel::Shared;
use super::scratch::Scratch;
use super::simd::matrix::{Size, View, product};
use super::simd::{Kernel, LANES, Simd, padded};

/// Keys of one step of the online softmax. Part of the result's definition: another value gives another rounding.
pub(super) const KEYS: usize = 64;

/// Rows that one call of the matrix product takes where the causal mask cuts through.
pub(super) const STRIP: usize = 8;

/// Tokens of one block of queries: enough rows to make up for copying and transposing the keys.
pub(super) fn tokens_per_block(group: usize) -> usize {
    if group == 1 { 64 } else { 32 }
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
    pub k: &'a [f32],
    /// Values, as the keys.
    pub v: &'a [f32],
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

impl<Row: Fn(usize) -> usize> Kernel for QueryBlock<'_, Row> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Heads { n_heads, n_kv_heads, head_dim } = self.heads;
        let group = n_heads / n_kv_heads;
        let (rows, width) = (self.tokens * group, padded(head_dim));
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
            |r: usize| ((self.first_row + r / group) * n_heads + self.kv_head * group + r % group) * head_dim;
        for (r, q) in q.chunks_exact_mut(width).enumerate() {
            copy_scaled(q, &self.q[head_row(r)..][..head_dim], scale);
        }
        o.fill(0.0);
        largest.fill(f32::NEG_INFINITY);
        sums.fill(0.0);

        let end = self.position + self.tokens;
        for start in (0..end).step_by(KEYS) {
            let n = KEYS.min(end - start);
            for j in 0..n {
                let at = ((self.row_of)(start + j) * n_kv_heads + self.kv_head) * head_dim;
                copy_scaled(&mut keys[j * width..(j + 1) * width], &self.k[at..at + head_dim], 1.0);
                copy_scaled(&mut values[j * width..(j + 1) * width], &self.v[at..at + head_dim], 1.0);
            }
            keys[n * width..padded(n) * width].fill(0.0);
            // SAFETY: all pointers are into the parts of `scratch` sized above: `padded(n) <= KEYS` rows of keys, strips of
            // rows below `rows`. This function runs inside `dispatch`.
            unsafe {
                transpose_keys::<S>(keys_t.as_mut_ptr(), keys.as_ptr(), padded(n), width);
                // Where every row sees every key, all rows go through the product at once.
                let step = if self.position + 1 >= start + KEYS { rows } else { STRIP.min(rows) };
                for first in (0..rows).step_by(step) {
                    let m = step.min(rows - first);
                    // Keys that the last row of the strip sees.
                    let seen = (self.position + (first + m - 1) / group + 1).saturating_sub(start).min(n);
                    if seen == 0 {
                        continue;
                    }
                    let (scores, o) = (&mut scores[first * KEYS..], o[first * width..].as_mut_ptr());
                    let a = View { data: q[first * width..].as_ptr(), row: width, column: 1 };
                    let size = Size { m, n: padded(seen), k: width };
                    product::<S>(scores.as_mut_ptr(), KEYS, a, keys_t.as_ptr(), KEYS, size, false);
                    for i in 0..m {
                        let r = first + i;
                        let visible = (self.position + r / group + 1).saturating_sub(start).min(n);
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
                    }
                    let a = View { data: scores.as_ptr(), row: KEYS, column: 1 };
                    product::<S>(o, width, a, values.as_ptr(), width, Size { m, n: width, k: seen }, true);
                }
            }
        }

        for r in 0..rows {
            let inverse = 1.0 / sums[r];
            // SAFETY: rows and heads of this block, which no other block has.
            let y = unsafe { self.y.range(head_row(r), head_dim) };
            for (y, o) in y.iter_mut().zip(&o[r * width..]) {
                // Adding 0 makes -0 a 0: how many zero weights were added must not show, not even in the sign of a zero.
                *y = o * inverse + 0.0;
            }
            if let Some(lse) = self.lse {
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
