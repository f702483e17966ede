//! Weights of 8 bits in groups of 32 steps of the reduction, each group of a row with a scale of its own (the layout of
//! GGUF's q8_0); activations are quantised on the way in, row by row and group by group.
//!
//! With `w = d q`, `|q| <= 127`, and `x = e p` likewise, a group adds `d e sum(q p)`: a sum of integers, which is exact, then one
//! fused multiply-add. A stored weight is off by at most `max|w| / 254` of its group plus the rounding of `d` to f16, an
//! activation by `max|x| / 254` of its.

use super::pack::{Left, Source};
use super::tile::PANEL;
use crate::ops::simd::{Kernel, LANES, Simd, dispatch};
use half::f16;

/// Steps of the reduction that share a scale.
pub const GROUP: usize = 32;
/// u32 of a group of steps on the left: its scale (f32), 128 times the sum of its integers (i32), 32 integers of 8 bits.
pub const LEFT_GROUP: usize = 2 + GROUP / 4;
/// Bytes of a group of steps of a panel: the scales of its columns (f16), then `[GROUP / 4][PANEL]` u32 of four weights
/// each, one step after the other, stored plus 128: `vpdpbusd` takes one side unsigned.
pub const PANEL_GROUP: usize = PANEL * (2 + GROUP);

/// u32 of one quantised row of `k` steps.
pub fn left_len(k: usize) -> usize {
    k.div_ceil(GROUP) * LEFT_GROUP
}

/// Quantises up to 32 values: the scale, and integers in `-127 ..= 127` such that `x` is about scale times integer. A value that
/// is not finite gives a scale that is not a number.
#[inline(always)]
fn quantise(x: &[f32], out: &mut [i8; GROUP], round_scale: impl Fn(f32) -> f32) -> f32 {
    let mut values = [0.0f32; GROUP];
    values[..x.len()].copy_from_slice(x);
    let mut largest = [0.0f32; LANES];
    // 0 times what is not finite is not a number.
    let mut zeros = [0.0f32; LANES];
    for half in values.chunks_exact(LANES) {
        for i in 0..LANES {
            largest[i] = if half[i].abs() > largest[i] { half[i].abs() } else { largest[i] };
            zeros[i] += half[i] * 0.0;
        }
    }
    let (largest, zero) = (tree(largest, |a, b| if a > b { a } else { b }), tree(zeros, |a, b| a + b));
    let scale = round_scale(largest / 127.0) + zero;
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    for (out, v) in out.iter_mut().zip(values) {
        let v = v * inverse;
        let v = if v > 127.0 { 127.0 } else { v };
        let v = if v < -127.0 { -127.0 } else { v };
        // Adding 1.5 * 2^23 rounds to the nearest integer, which the low bits of the sum hold.
        *out = (v + 12_582_912.0).to_bits() as i8;
    }
    scale
}

/// Combines lanes in one order.
#[inline(always)]
fn tree(mut lanes: [f32; LANES], combine: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = combine(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

impl Left<'_> {
    /// Quantises rows `first ..` of an `m` x `k` operand into the whole rows of `dst`, [`left_len`] u32 each.
    pub fn quantise(self, dst: &mut [u32], m: usize, k: usize, first: usize) {
        let mut row = Vec::new();
        for (i, dst) in dst.chunks_exact_mut(left_len(k)).enumerate() {
            let row = match self {
                Left::Rows(Source::F32(x)) => &x[(first + i) * k..(first + i + 1) * k],
                Left::Rows(x) => {
                    row.resize(k, 0.0);
                    x.read((first + i) * k, &mut row);
                    &row
                }
                Left::Columns(x) => {
                    row.clear();
                    row.extend((0..k).map(|p| x.at(p * m + first + i)));
                    &row
                }
            };
            dispatch(QuantiseRow { dst, row });
        }
    }
}

struct QuantiseRow<'a> {
    dst: &'a mut [u32],
    row: &'a [f32],
}

impl Kernel for QuantiseRow<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for (dst, x) in self.dst.chunks_exact_mut(LEFT_GROUP).zip(self.row.chunks(GROUP)) {
            let mut integers = [0i8; GROUP];
            let scale = quantise(x, &mut integers, |scale| scale);
            let sum: i32 = integers.iter().map(|&p| i32::from(p)).sum();
            dst[0] = scale.to_bits();
            dst[1] = (128 * sum) as u32;
            for (dst, four) in dst[2..].iter_mut().zip(integers.chunks_exact(4)) {
                *dst = u32::from_le_bytes([four[0] as u8, four[1] as u8, four[2] as u8, four[3] as u8]);
            }
        }
    }
}

/// Packs rows `first .. first + columns` of a weight `[_, k]` as one panel.
pub fn pack_panel(dst: &mut [u8], weight: Source, k: usize, first: usize, columns: usize) {
    let mut row = vec![0.0f32; k];
    let mut integers = [0i8; GROUP];
    for group in dst.chunks_exact_mut(PANEL_GROUP) {
        // A weight of 0, for the columns that do not exist.
        group[..2 * PANEL].fill(0);
        group[2 * PANEL..].fill(128);
    }
    for j in 0..columns {
        weight.read((first + j) * k, &mut row);
        for (group, w) in dst.chunks_exact_mut(PANEL_GROUP).zip(row.chunks(GROUP)) {
            let scale = quantise(w, &mut integers, |scale| f16::from_f32(scale).to_f32());
            group[2 * j..2 * j + 2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
            for (p, q) in integers.iter().enumerate() {
                group[2 * PANEL + (p / 4 * PANEL + j) * 4 + p % 4] = (i32::from(*q) + 128) as u8;
            }
        }
    }
}
