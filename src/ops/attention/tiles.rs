//! Keys and values in tiles of 16 tokens, in the order in which the products of attention read them.
//!
//! A tile holds 16 consecutive tokens of a sequence, or slots of a cache; in it one head follows the other. With words of `E`
//! numbers (one f32, or two bf16) the keys of a head are `[head_dim / E][16]` words, each of some features of one token, and its
//! values `[16 / E][head_dim]` words, each of one feature of some tokens.

use super::Heads;
use crate::device::{Compute, DType, Tensor};
use crate::ops::parallel::{self, Shared};
use crate::ops::scratch::Scratch;
use crate::ops::simd::{Kernel, LANES, Simd, dispatch, dispatch_dot, padded};

/// Tokens of a tile.
pub(super) const TILE: usize = LANES;

/// Tiles that one task fills.
const TILES_PER_TASK: usize = 4;

/// Numbers in a word.
pub(super) const fn numbers(bf16: bool) -> usize {
    if bf16 { 2 } else { 1 }
}

/// Where number `i` of the key of token `lane` lies among the keys of a head.
#[inline(always)]
fn key_at<const E: usize>(lane: usize, i: usize) -> usize {
    i / E * TILE * E + lane * E + i % E
}

/// Where number `i` of its value lies among the values of a head.
#[inline(always)]
fn value_at<const E: usize>(lane: usize, i: usize, head_dim: usize) -> usize {
    lane / E * head_dim * E + i * E + lane % E
}

/// Writes rows of keys and values, F32 `[tokens, n_kv_heads * head_dim]`, to slots of a cache.
pub(super) fn put(cache: (&mut Tensor, &mut Tensor), k: &[f32], v: &[f32], slots: &[u32], heads: Heads) {
    let bf16 = cache.0.dtype() == DType::BF16;
    let (to_k, to_v) = (Shared::new(words_mut(cache.0)), Shared::new(words_mut(cache.1)));
    let tasks = (0..heads.n_kv_heads).flat_map(|head| [(head, to_k, k, true), (head, to_v, v, false)]);
    parallel::for_each(tasks, |(head, cache, rows, keys)| {
        if bf16 {
            dispatch_dot(Put::<true> { cache, rows, slots, head, heads, keys });
        } else {
            dispatch(Put::<false> { cache, rows, slots, head, heads, keys });
        }
    });
}

fn words_mut(t: &mut Tensor) -> &mut [f32] {
    if t.dtype() == DType::BF16 { bytemuck::cast_slice_mut(t.bf16_mut()) } else { t.f32_mut() }
}

/// Writes one head's keys, or values.
struct Put<'a, const BF16: bool> {
    cache: Shared<'a>,
    rows: &'a [f32],
    slots: &'a [u32],
    head: usize,
    heads: Heads,
    keys: bool,
}

impl<const BF16: bool> Kernel for Put<'_, BF16> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Heads { n_kv_heads, head_dim, .. } = self.heads;
        let pairs = numbers(BF16);
        let words = TILE * head_dim / pairs;
        for (row, &slot) in self.rows.chunks_exact(n_kv_heads * head_dim).zip(self.slots) {
            let (tile, lane) = (slot as usize / TILE, slot as usize % TILE);
            // SAFETY: every head belongs to one task.
            let to = unsafe { self.cache.range((tile * n_kv_heads + self.head) * words, words) };
            for (c, x) in row[self.head * head_dim..][..head_dim].chunks(LANES).enumerate() {
                // SAFETY: inside `dispatch`; two arrays of one vector.
                let new: [f32; LANES] = unsafe {
                    let mut new = [0.0; LANES];
                    if BF16 && self.keys {
                        S::store_bf16(new.as_mut_ptr().cast(), S::read(x));
                    } else if BF16 {
                        S::store(new.as_mut_ptr(), S::pair(S::read(x), S::splat(0.0)));
                    } else {
                        S::store(new.as_mut_ptr(), S::read(x));
                    }
                    new
                };
                if self.keys {
                    let column = to[c * LANES / pairs * TILE + lane..].iter_mut().step_by(TILE);
                    column.zip(&new[..x.len() / pairs]).for_each(|(to, new)| *to = *new);
                } else {
                    let row = &mut to[lane / pairs * head_dim + c * LANES..][..x.len()];
                    for (to, new) in row.iter_mut().zip(new) {
                        *to = match (BF16, lane % 2) {
                            (false, _) => new,
                            (true, 0) => f32::from_bits(to.to_bits() & 0xffff_0000 | new.to_bits()),
                            (true, _) => f32::from_bits(to.to_bits() & 0xffff | new.to_bits() << 16),
                        };
                    }
                }
            }
        }
    }
}

/// Reads the key and the value of a slot of a cache as f32, `[n_kv_heads * head_dim]`.
pub(super) fn read_slot(
    k: &mut [f32],
    v: &mut [f32],
    (k_cache, v_cache): (&Tensor, &Tensor),
    slot: usize,
    heads: Heads,
) {
    if k_cache.dtype() == DType::BF16 {
        let (keys, values) = (k_cache.bf16(), v_cache.bf16());
        gather(k, slot, heads, |at| keys[at].to_f32(), key_at::<2>);
        gather(v, slot, heads, |at| values[at].to_f32(), |lane, i| value_at::<2>(lane, i, heads.head_dim));
    } else {
        let (keys, values) = (k_cache.f32(), v_cache.f32());
        gather(k, slot, heads, |at| keys[at], key_at::<1>);
        gather(v, slot, heads, |at| values[at], |lane, i| value_at::<1>(lane, i, heads.head_dim));
    }
}

fn gather(
    row: &mut [f32],
    slot: usize,
    heads: Heads,
    number: impl Fn(usize) -> f32,
    at: impl Fn(usize, usize) -> usize,
) {
    let Heads { n_kv_heads, head_dim, .. } = heads;
    let (tile, lane) = (slot / TILE, slot % TILE);
    for (head, row) in row.chunks_exact_mut(head_dim).enumerate() {
        let first = (tile * n_kv_heads + head) * TILE * head_dim;
        row.iter_mut().enumerate().for_each(|(i, x)| *x = number(first + at(lane, i)));
    }
}

/// Tiles of keys and values.
#[derive(Clone, Copy)]
pub(super) struct Tiles<'a> {
    k: &'a [f32],
    v: &'a [f32],
    n_kv_heads: usize,
    /// Words of the keys of a head in a tile.
    k_head: usize,
    /// Words of its values.
    v_head: usize,
}

impl<'a> Tiles<'a> {
    /// Those of a cache whose heads are whole vectors.
    pub(super) fn of_cache(k: &'a Tensor, v: &'a Tensor, heads: Heads) -> Tiles<'a> {
        let bf16 = k.dtype() == DType::BF16;
        let words = |t: &'a Tensor| -> &'a [f32] { if bf16 { bytemuck::cast_slice(t.bf16()) } else { t.f32() } };
        let head = TILE * heads.head_dim / numbers(bf16);
        Tiles { k: words(k), v: words(v), n_kv_heads: heads.n_kv_heads, k_head: head, v_head: head }
    }

    /// The keys of a head in a tile: rows of 16 words, `head_dim / E` of them at least.
    #[inline(always)]
    pub(super) fn keys(&self, tile: usize, head: usize) -> &'a [f32] {
        &self.k[(tile * self.n_kv_heads + head) * self.k_head..][..self.k_head]
    }

    /// Its values: `16 / E` rows, padded to whole vectors.
    #[inline(always)]
    pub(super) fn values(&self, tile: usize, head: usize) -> &'a [f32] {
        &self.v[(tile * self.n_kv_heads + head) * self.v_head..][..self.v_head]
    }
}

/// Tiles that live for one call.
pub(super) struct OwnTiles {
    k: Scratch,
    v: Scratch,
    n_kv_heads: usize,
    k_head: usize,
    v_head: usize,
}

impl OwnTiles {
    /// Tiles of rows of f32, `[n_kv_heads * head_dim]`, rounded where `compute` says so. `tiles` gives the first row of each tile and how
    /// many rows it has; what is beyond them is 0.
    pub(super) fn new(k: &[f32], v: &[f32], tiles: &[(usize, usize)], heads: Heads, compute: Compute) -> OwnTiles {
        let Heads { n_kv_heads, head_dim, .. } = heads;
        let bf16 = compute == Compute::Bf16;
        let k_head = TILE * padded(head_dim.div_ceil(numbers(bf16)));
        let v_head = TILE / numbers(bf16) * padded(head_dim);
        let room = |head: usize| Scratch::new(tiles.len() * n_kv_heads * head);
        let mut own = OwnTiles { k: room(k_head), v: room(v_head), n_kv_heads, k_head, v_head };
        let (to_k, to_v) = (Shared::new(own.k.floats()), Shared::new(own.v.floats()));
        parallel::for_each(tiles.chunks(TILES_PER_TASK).enumerate(), |(task, tiles)| {
            for (i, &(first, rows)) in tiles.iter().enumerate() {
                let at = (task * TILES_PER_TASK + i) * n_kv_heads;
                // SAFETY: every tile belongs to one task.
                let (to_k, to_v) = unsafe {
                    (to_k.range(at * k_head, n_kv_heads * k_head), to_v.range(at * v_head, n_kv_heads * v_head))
                };
                let rows = first * n_kv_heads * head_dim..(first + rows) * n_kv_heads * head_dim;
                let (k, v) = (&k[rows.clone()], &v[rows]);
                if bf16 {
                    dispatch_dot(Fill::<true> { to_k, to_v, k, v, heads });
                } else {
                    dispatch_dot(Fill::<false> { to_k, to_v, k, v, heads });
                }
            }
        });
        own
    }

    /// The tiles.
    pub(super) fn tiles(&mut self) -> Tiles<'_> {
        let OwnTiles { n_kv_heads, k_head, v_head, .. } = *self;
        Tiles { k: self.k.floats(), v: self.v.floats(), n_kv_heads, k_head, v_head }
    }
}

/// Fills one tile from up to 16 rows of keys and values.
struct Fill<'a, const BF16: bool> {
    to_k: &'a mut [f32],
    to_v: &'a mut [f32],
    k: &'a [f32],
    v: &'a [f32],
    heads: Heads,
}

impl<const BF16: bool> Kernel for Fill<'_, BF16> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Heads { n_kv_heads, head_dim, .. } = self.heads;
        let (k_head, v_head) = (self.to_k.len() / n_kv_heads, self.to_v.len() / n_kv_heads);
        let (words, width) = (k_head / TILE, padded(head_dim));
        let tokens = self.k.len() / (n_kv_heads * head_dim);
        let mut keys = Scratch::new(TILE * words);
        let keys = keys.floats();
        keys.fill(0.0);
        for head in 0..n_kv_heads {
            let at = |lane: usize| (lane * n_kv_heads + head) * head_dim;
            let (to_k, to_v) = (&mut self.to_k[head * k_head..], &mut self.to_v[head * v_head..]);
            // SAFETY: inside `dispatch_dot`. A row of keys has `words` words, as many as `width` numbers take at least; the blocks of the
            // transposition are inside `keys` and the head's keys, the vectors of values inside the head's values.
            unsafe {
                for lane in 0..tokens {
                    let key = &self.k[at(lane)..][..head_dim];
                    let to = keys[lane * words..].as_mut_ptr();
                    for (c, x) in key.chunks(LANES).enumerate() {
                        if BF16 {
                            S::store_bf16(to.cast::<u16>().add(c * LANES), S::read(x));
                        } else {
                            S::store(to.add(c * LANES), S::read(x));
                        }
                    }
                }
                for p in (0..words).step_by(LANES) {
                    S::transpose(to_k[p * TILE..].as_mut_ptr(), TILE, keys[p..].as_ptr(), words);
                }
                let value = |lane: usize| if lane < tokens { &self.v[at(lane)..][..head_dim] } else { &[] };
                for (j, to) in to_v[..v_head].chunks_exact_mut(width).enumerate() {
                    for (c, to) in to.chunks_exact_mut(LANES).enumerate() {
                        let part = |lane: usize| value(lane).get(c * LANES..).unwrap_or(&[]);
                        let x = if BF16 {
                            S::pair(S::read(part(2 * j)), S::read(part(2 * j + 1)))
                        } else {
                            S::read(part(j))
                        };
                        S::store(to.as_mut_ptr(), x);
                    }
                }
            }
        }
    }
}
