//! The inner loop of attention: a block of query rows against the keys before it, with an online softmax (Milakov &
//! Gimelshein 2018; Dao 2023, FlashAttention-2). Shared by attention over packed sequences and over pages, so that both
//! give the same bits.
//!
//! The query heads that share a key/value head are rows of one block, token-major: row `r` is token `r / group`, head
//! `r % group`. Keys come in blocks of 64 counted from the start of the sequence. What a row goes through depends on its
//! own position alone: a masked score becomes a weight of exactly 0, and adding 0 changes nothing.
//!
//! Weights are powers of 2: `exp(score - max) = 2^(score log2(e) - base)`, where `base = max log2(e)` as rounded, so that the
//! weights of a row, its sum and its logarithm are all of the same base.
//!
//! With `BF16`, the inputs of both products (scaled queries and keys, weights and values) are rounded to bf16 and multiplied
//! in pairs; scores, maxima, sums and outputs are f32 as ever.

use super::Heads;
use super::tiles::{TILE, Tiles, numbers};
use crate::device::Compute;
use crate::ops::parallel::Shared;
use crate::ops::scratch::Scratch;
use crate::ops::simd::matrix::{Old, Right, Size, View, product};
use crate::ops::simd::{Kernel, LANES, Simd, dispatch, dispatch_dot, padded};
use std::f32::consts::{LN_2, LOG2_E};

/// Keys of one step of the online softmax. Part of the result's definition: another value gives another rounding.
pub(super) const KEYS: usize = 64;
const TILES: usize = KEYS / TILE;

/// Rows that go through scores, weights and outputs together: one vector of maxima and sums.
const STRIP: usize = LANES;

/// Tokens of one block of queries: enough rows to read keys and values from memory seldom.
pub(super) fn tokens_per_block(group: usize) -> usize {
    if group == 1 { 64 } else { 32 }
}

/// Some consecutive tokens of one sequence, and one key/value head with its query heads.
pub(super) struct QueryBlock<'a, Tile> {
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
    /// Keys and values.
    pub tiles: Tiles<'a>,
    /// Which tile holds positions `16 i ..` of the sequence.
    pub tile_of: Tile,
    /// Output, as `q`. Only this block's tokens and heads are touched.
    pub y: Shared<'a>,
    /// Log of the sum of exponentials, `[rows, n_heads]`.
    pub lse: Option<Shared<'a>>,
}

impl<Tile: Fn(usize) -> usize> QueryBlock<'_, Tile> {
    /// Computes the block's outputs.
    pub(super) fn attend(self, compute: Compute) {
        match compute {
            Compute::F32 => dispatch(Attend::<_, false>(self)),
            Compute::Bf16 => dispatch_dot(Attend::<_, true>(self)),
        }
    }
}

struct Attend<Block, const BF16: bool>(Block);

impl<Tile: Fn(usize) -> usize, const BF16: bool> Kernel for Attend<QueryBlock<'_, Tile>, BF16> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let block = self.0;
        let Heads { n_heads, n_kv_heads, head_dim } = block.heads;
        let group = n_heads / n_kv_heads;
        let rows = block.tokens * group;
        let (pairs, width) = (numbers(BF16), padded(head_dim));
        let (steps, q_row) = (head_dim / pairs, width / pairs);
        let value_rows = TILE / pairs;
        let mut scratch =
            Scratch::new(rows * (q_row + width) + STRIP * KEYS + value_rows * width + 2 * padded(rows) + 2 * STRIP);
        let (q, rest) = scratch.floats().split_at_mut(rows * q_row);
        let (o, rest) = rest.split_at_mut(rows * width);
        let (scores, rest) = rest.split_at_mut(STRIP * KEYS);
        let (last_values, rest) = rest.split_at_mut(value_rows * width);
        let (bases, rest) = rest.split_at_mut(padded(rows));
        let (sums, rest) = rest.split_at_mut(padded(rows));
        let (largest, shrink) = rest.split_at_mut(STRIP);
        let head_row =
            |r: usize| ((block.first_row + r / group) * n_heads + block.kv_head * group + r % group) * head_dim;
        let scale = 1.0 / (head_dim as f32).sqrt();
        for (r, q) in q.chunks_exact_mut(q_row).enumerate() {
            // SAFETY: a row of `q` holds `width` numbers, whole vectors; inside `dispatch`.
            unsafe { scaled_row::<S, BF16>(q.as_mut_ptr(), &block.q[head_row(r)..][..head_dim], scale) };
        }
        bases.fill(f32::NEG_INFINITY);
        sums.fill(0.0);

        let end = block.position + block.tokens;
        for start in (0..end).step_by(KEYS) {
            let n = KEYS.min(end - start);
            let (mut keys, mut values) = ([std::ptr::null(); TILES], [std::ptr::null(); TILES]);
            for i in 0..n.div_ceil(TILE) {
                let tile = (block.tile_of)(start / TILE + i);
                keys[i] = block.tiles.keys(tile, block.kv_head).as_ptr();
                let tokens = TILE.min(n - i * TILE);
                let in_tile = block.tiles.values(tile, block.kv_head);
                values[i] = in_tile.as_ptr();
                if BF16 && tokens % 2 == 1 {
                    // Beside the last token lies what another sequence left there: its weight is 0, but it may be no number.
                    let used = tokens.div_ceil(2) * width;
                    last_values[..used].copy_from_slice(&in_tile[..used]);
                    last_values[used - width..used].iter_mut().for_each(|x| *x = f32::from_bits(x.to_bits() & 0xffff));
                    values[i] = last_values.as_ptr();
                }
            }
            for first in (0..rows).step_by(STRIP) {
                let m = STRIP.min(rows - first);
                let visible = |r: usize| (block.position + r / group + 1).saturating_sub(start).min(n);
                // Keys that the last row of the strip sees.
                let seen = visible(first + m - 1);
                if seen == 0 {
                    continue;
                }
                // SAFETY: all pointers are into tiles, which hold `steps` rows of keys and `value_rows` of values of `width` words, or into
                // the parts of `scratch` sized above: strips of rows below `rows`, `padded(seen) <= KEYS`. Inside `dispatch`.
                unsafe {
                    let a = View { data: q[first * q_row..].as_ptr(), row: q_row, column: 1 };
                    let b = Right { at: |_, j: usize| keys[j], steps, row: TILE };
                    let size = Size { m, n: padded(seen), k: steps };
                    product::<S, BF16>(scores.as_mut_ptr(), KEYS, a, b, size, Old::Replace);
                    for i in 0..m {
                        let row = &mut scores[i * KEYS..i * KEYS + padded(seen)];
                        row[visible(first + i)..].fill(f32::NEG_INFINITY);
                        largest[i] = largest_of::<S>(row);
                    }
                    let base = S::load(bases[first..].as_ptr());
                    let new = S::max(S::mul(S::load(largest.as_ptr()), S::splat(LOG2_E)), base);
                    S::store(bases[first..].as_mut_ptr(), new);
                    let by = S::exp2(S::sub(base, new));
                    S::store(shrink.as_mut_ptr(), by);
                    for i in 0..m {
                        let row = &mut scores[i * KEYS..i * KEYS + padded(seen)];
                        largest[i] = weights::<S, BF16>(row, bases[first + i]);
                    }
                    let sum = sums[first..].as_mut_ptr();
                    S::store(sum, S::add(S::mul(S::load(sum), by), S::load(largest.as_ptr())));
                    let a = View { data: scores.as_ptr(), row: KEYS, column: 1 };
                    let b = Right {
                        at: |i: usize, j: usize| values[i].wrapping_add(j * LANES),
                        steps: value_rows,
                        row: width,
                    };
                    let size = Size { m, n: width, k: seen.div_ceil(pairs) };
                    let old = if start == 0 { Old::Replace } else { Old::Scale(shrink.as_ptr()) };
                    product::<S, BF16>(o[first * width..].as_mut_ptr(), width, a, b, size, old);
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
                unsafe { lse.range(head_row(r) / head_dim, 1)[0] = bases[r] * LN_2 + sums[r].ln() };
            }
        }
    }
}

/// A row times `scale`, rounded where `BF16`, padded with zeros to whole vectors of numbers.
#[inline(always)]
pub(super) unsafe fn scaled_row<S: Simd, const BF16: bool>(to: *mut f32, row: &[f32], scale: f32) {
    for (c, x) in row.chunks(LANES).enumerate() {
        // SAFETY: the caller gives room for as many vectors; inside `dispatch`.
        unsafe {
            let x = S::mul(S::read(x), S::splat(scale));
            if BF16 {
                S::store_bf16(to.cast::<u16>().add(c * LANES), x);
            } else {
                S::store(to.add(c * LANES), x);
            }
        }
    }
}

/// The largest of a row of whole vectors.
#[inline(always)]
unsafe fn largest_of<S: Simd>(row: &[f32]) -> f32 {
    // SAFETY: `row` is whole vectors; inside `dispatch`.
    unsafe {
        let mut max = S::splat(f32::NEG_INFINITY);
        for x in row.chunks_exact(LANES) {
            max = S::max(max, S::load(x.as_ptr()));
        }
        S::largest(max)
    }
}

/// Turns a row of scores into `2^(score log2(e) - base)` and gives their sum. With `BF16` they are rounded after that, and the first half
/// of the floats holds all of them.
#[inline(always)]
unsafe fn weights<S: Simd, const BF16: bool>(row: &mut [f32], base: f32) -> f32 {
    let at = row.as_mut_ptr();
    // SAFETY: `row` is whole vectors, each read before what is written takes its place; inside `dispatch`.
    unsafe {
        let (base, mut sum) = (S::splat(-base), S::splat(0.0));
        for c in (0..row.len()).step_by(LANES) {
            let p = S::exp2(S::fma(S::load(at.add(c)), S::splat(LOG2_E), base));
            sum = S::add(sum, p);
            if BF16 {
                S::store_bf16(at.cast::<u16>().add(c), p);
            } else {
                S::store(at.add(c), p);
            }
        }
        S::sum(sum)
    }
}
