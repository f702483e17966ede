//! Weights of bf16 in 12 bits and a half of one, without loss: products have the bits of the weights as they are.
//!
//! The upper byte of a bf16 (sign and seven bits of the exponent) takes few values in a trained weight, because magnitudes
//! of 16 binary orders are 8 such bytes of either sign. So a panel of 32 columns is cut into blocks of 64 steps, each with a
//! table of the upper bytes that occur in it; a weight is its lower byte and 4 bits that name the upper one. `vpshufb` looks up
//! 64 weights at a time. A block with more than 16 different upper bytes keeps its weights as they are, elsewhere: 9 in 100,000
//! blocks of SmolLM2-135M, 9 in 10,000 of normally distributed weights.
//!
//! ```text
//! panel:  block of 64 steps, ...
//! block:  16 upper bytes; u32: 0, or 1 + the place among the blocks as they are; 12 bytes of 0; pairs of steps
//! pair:   64 lower bytes, then 32 bytes of two names, that of the even step in the lower half
//! ```
//! Columns of a pair stand in the order in which `vpunpcklbw` and `vpunpckhbw` leave them sorted, see [`slot`].

use super::pack::Right;
use super::scratch;
use super::tile::PANEL;
use crate::device::Tensor;
use crate::device::buffer::HostBuffer;
use rayon::prelude::*;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Steps of a block.
pub const BLOCK: usize = 64;
/// Pairs of steps of a block.
pub const BLOCK_PAIRS: usize = BLOCK / 2;
/// Bytes of a block's table and place.
pub const HEADER: usize = 32;
/// Where the place stands in the header.
pub const PLACE: usize = 16;
/// Bytes of a pair of steps.
pub const PAIR: usize = 3 * PANEL;
/// Bytes of a block as it is.
pub const RAW_BLOCK: usize = 4 * PANEL * BLOCK_PAIRS;
/// A weight stays as it is when more than one in so many of its blocks do.
const RAW_SHARE: usize = 8;

/// Bytes of `steps` steps of a panel from the start of a block on.
pub fn bytes(steps: usize) -> usize {
    let pairs = steps.div_ceil(2);
    pairs * PAIR + pairs.div_ceil(BLOCK_PAIRS) * HEADER
}

/// Where a pair holds the two weights of a column: lower bytes `2 slot` and `2 slot + 1`, byte `slot` of the names.
fn slot(column: usize) -> usize {
    column % 16 / 4 * 8 + column / 16 * 4 + column % 4
}

/// A block that stays as it is.
struct RawBlock {
    /// Where its place stands in the panel.
    place: usize,
    pairs: Vec<u32>,
}

/// Packs a weight `[n, k]`: its panels, and the blocks that stay as they are. `None` where those are too many.
pub fn pack(weight: &Tensor) -> Option<(HostBuffer, HostBuffer)> {
    let (n, k) = (weight.rows(), weight.row_len());
    let (panels, pairs, bytes) = (n.div_ceil(PANEL), k.div_ceil(2), bytes(k));
    let most = panels * pairs.div_ceil(BLOCK_PAIRS) / RAW_SHARE;
    let found = AtomicUsize::new(0);
    let mut data = HostBuffer::zeroed(panels * bytes);
    let pack_one = |(i, out): (usize, &mut [u8])| {
        if found.load(Ordering::Relaxed) > most {
            return Vec::new();
        }
        scratch::with(PANEL * pairs, |panel| {
            let panel: &mut [u32] = bytemuck::cast_slice_mut(panel);
            Right::Rows(weight, 0).pack_pairs(panel, (n, k), i * PANEL, PANEL.min(n - i * PANEL), 0, k);
            let raw = pack_panel(out, panel);
            found.fetch_add(raw.len(), Ordering::Relaxed);
            raw
        })
    };
    let outs = data.bytes_mut().par_chunks_exact_mut(bytes.max(1)).enumerate();
    let raw: Vec<Vec<RawBlock>> = outs.map(pack_one).collect();
    let count = found.into_inner();
    if count > most {
        return None;
    }
    let mut as_they_are = HostBuffer::zeroed(count * RAW_BLOCK);
    let mut places = as_they_are.bytes_mut().chunks_exact_mut(RAW_BLOCK).zip(1u32..);
    for (i, raw) in raw.iter().enumerate() {
        for (block, (to, place)) in raw.iter().zip(places.by_ref()) {
            let at = i * bytes + block.place;
            data.bytes_mut()[at..at + 4].copy_from_slice(&place.to_le_bytes());
            let from: &[u8] = bytemuck::cast_slice(&block.pairs);
            to[..from.len()].copy_from_slice(from);
        }
    }
    Some((data, as_they_are))
}

/// Packs a panel of pairs but for the blocks that it returns.
fn pack_panel(mut dst: &mut [u8], panel: &[u32]) -> Vec<RawBlock> {
    let (mut raw, all) = (Vec::new(), dst.len());
    for block in panel.chunks(PANEL * BLOCK_PAIRS) {
        let at = all - dst.len();
        let (header, rest) = dst.split_at_mut(HEADER);
        let (pairs, rest) = rest.split_at_mut(block.len() / PANEL * PAIR);
        dst = rest;
        let mut seen = [false; 256];
        for pair in block {
            let [_, even, _, odd] = pair.to_le_bytes();
            seen[usize::from(even)] = true;
            seen[usize::from(odd)] = true;
        }
        let mut names = [0u8; 256];
        let mut count = 0;
        for upper in (0..=255u8).filter(|&upper| seen[usize::from(upper)]) {
            if let Some(entry) = header[..PLACE].get_mut(count) {
                (*entry, names[usize::from(upper)]) = (upper, count as u8);
            }
            count += 1;
        }
        if count > PLACE {
            raw.push(RawBlock { place: at + PLACE, pairs: block.to_vec() });
            continue;
        }
        for (dst, pair) in pairs.chunks_exact_mut(PAIR).zip(block.chunks_exact(PANEL)) {
            let (lower, name) = dst.split_at_mut(2 * PANEL);
            for (column, pair) in pair.iter().enumerate() {
                let ([low_even, even, low_odd, odd], slot) = (pair.to_le_bytes(), slot(column));
                (lower[2 * slot], lower[2 * slot + 1]) = (low_even, low_odd);
                name[slot] = names[usize::from(even)] | names[usize::from(odd)] << 4;
            }
        }
    }
    raw
}

/// Restores pairs from the start of a block on: whole rows of `dst`, `[pairs][PANEL]`.
pub fn unpack(dst: &mut [u32], mut panel: &[u8], raw: &[u8]) {
    for dst in dst.chunks_mut(PANEL * BLOCK_PAIRS) {
        let (header, rest) = panel.split_at(HEADER);
        let (pairs, rest) = rest.split_at(dst.len() / PANEL * PAIR);
        panel = rest;
        let place = u32::from_le_bytes([header[PLACE], header[PLACE + 1], header[PLACE + 2], header[PLACE + 3]]);
        if let Some(place) = place.checked_sub(1) {
            let dst: &mut [u8] = bytemuck::cast_slice_mut(dst);
            let at = place as usize * RAW_BLOCK;
            dst.copy_from_slice(&raw[at..at + dst.len()]);
            continue;
        }
        unpack_block(dst, header, pairs);
    }
}

/// Restores the pairs of a block.
fn unpack_block(dst: &mut [u32], header: &[u8], pairs: &[u8]) {
    for (dst, pair) in dst.chunks_exact_mut(PANEL).zip(pairs.chunks_exact(PAIR)) {
        let (lower, name) = pair.split_at(2 * PANEL);
        for (column, dst) in dst.iter_mut().enumerate() {
            let slot = slot(column);
            let [even, odd] = [name[slot] & 15, name[slot] >> 4].map(|name| header[usize::from(name)]);
            *dst = u32::from_le_bytes([lower[2 * slot], even, lower[2 * slot + 1], odd]);
        }
    }
}
