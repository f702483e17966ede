//! Packing: operands rearranged so that a tile reads them front to back. A left-hand panel is `[k][rows]`, a right-hand
//! panel `[k][PANEL]`, padded with zeros beyond the last column.

use super::tile::PANEL;
use crate::device::{DType, Tensor};
use half::slice::HalfFloatSliceExt;

/// `out[i] = t[start + i]` as f32.
pub fn read(t: &Tensor, start: usize, out: &mut [f32]) {
    let range = start..start + out.len();
    match t.dtype() {
        DType::BF16 => {
            for (out, v) in out.iter_mut().zip(&t.bf16()[range]) {
                *out = f32::from_bits(u32::from(v.to_bits()) << 16);
            }
        }
        DType::F16 => t.f16()[range].convert_to_f32_slice(out),
        _ => out.copy_from_slice(&t.f32()[range]),
    }
}

/// `dst[p * width + i] = src[i * ld + p]` for `i < rows`, `p < k`.
pub fn transpose(dst: &mut [f32], width: usize, src: &[f32], ld: usize, rows: usize, k: usize) {
    if rows == 0 || k == 0 {
        return;
    }
    assert!(rows <= width && dst.len() >= (k - 1) * width + rows && src.len() >= (rows - 1) * ld + k);
    let (rows4, k4) = (rows / 4 * 4, k / 4 * 4);
    #[cfg(target_arch = "x86_64")]
    for p in (0..k4).step_by(4) {
        for i in (0..rows4).step_by(4) {
            // SAFETY: rows i .. i + 4 and columns p .. p + 4 lie inside both slices by the assertion; SSE is part of x86-64.
            unsafe {
                use std::arch::x86_64::*;
                let at = |r: usize| _mm_loadu_ps(src.as_ptr().add((i + r) * ld + p));
                let (mut r0, mut r1, mut r2, mut r3) = (at(0), at(1), at(2), at(3));
                _MM_TRANSPOSE4_PS(&mut r0, &mut r1, &mut r2, &mut r3);
                for (r, row) in [r0, r1, r2, r3].into_iter().enumerate() {
                    _mm_storeu_ps(dst.as_mut_ptr().add((p + r) * width + i), row);
                }
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    for p in 0..k4 {
        for i in 0..rows4 {
            dst[p * width + i] = src[i * ld + p];
        }
    }
    for p in 0..k {
        let first = if p < k4 { rows4 } else { 0 };
        for i in first..rows {
            dst[p * width + i] = src[i * ld + p];
        }
    }
}

/// The left-hand side of a product, `[m, k]`.
#[derive(Clone, Copy)]
pub enum Left<'a> {
    /// Stored `[m, k]`.
    Rows(&'a [f32]),
    /// Stored `[k, m]`.
    Columns(&'a [f32]),
}

impl Left<'_> {
    /// Packs rows `first .. first + rows` of an `m` x `k` operand into `dst`, `[k][rows]`.
    pub fn pack(self, dst: &mut [f32], m: usize, k: usize, first: usize, rows: usize) {
        match self {
            Left::Rows(data) => transpose(dst, rows, &data[first * k..], k, rows, k),
            Left::Columns(data) => {
                for (dst, src) in dst.chunks_exact_mut(rows).zip(data.chunks_exact(m)) {
                    dst.copy_from_slice(&src[first..first + rows]);
                }
            }
        }
    }
}

/// An unpacked right-hand side of a product, `[k, n]`.
#[derive(Clone, Copy)]
pub enum Right<'a> {
    /// Rows `first ..` of a tensor `[.., k]`: the operand is its transpose.
    Rows(&'a Tensor, usize),
    /// A tensor `[k, n]`.
    Columns(&'a Tensor),
}

/// Columns of the reduction that are widened to f32 at a time: 32 rows of them fill a quarter of a 32 KB L1 cache.
const STRIP: usize = 64;

impl Right<'_> {
    /// Packs columns `first .. first + columns` (at most PANEL), steps `from .. to` of the reduction, into `dst`, `[to - from][PANEL]`.
    pub fn pack(self, dst: &mut [f32], size: (usize, usize), first: usize, columns: usize, from: usize, to: usize) {
        let (n, k) = size;
        if columns < PANEL {
            dst[..(to - from) * PANEL].fill(0.0);
        }
        match self {
            Right::Rows(t, offset) if t.dtype() == DType::F32 => {
                transpose(dst, PANEL, &t.f32()[(offset + first) * k + from..], k, columns, to - from);
            }
            Right::Rows(t, offset) => {
                let mut strip = [0.0; PANEL * STRIP];
                for p in (from..to).step_by(STRIP) {
                    let steps = STRIP.min(to - p);
                    for (j, row) in strip.chunks_exact_mut(STRIP).take(columns).enumerate() {
                        read(t, (offset + first + j) * k + p, &mut row[..steps]);
                    }
                    transpose(&mut dst[(p - from) * PANEL..], PANEL, &strip, STRIP, columns, steps);
                }
            }
            Right::Columns(t) => {
                for (p, dst) in (from..to).zip(dst.chunks_exact_mut(PANEL)) {
                    read(t, p * n + first, &mut dst[..columns]);
                }
            }
        }
    }
}
