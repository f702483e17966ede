//! Packing for products of f32: operands rearranged so that a tile reads them front to back. A left-hand panel is `[k][rows]`,
//! a right-hand panel `[k][PANEL]`, padded with zeros beyond the last column.

use super::tile::PANEL;
#[cfg(target_arch = "x86_64")]
use super::transpose;
use crate::device::{DType, Tensor};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// `dst[p * width + i] = src[i * ld + p]` for `i < rows`, `p < k`.
pub(super) fn transpose_u32(dst: &mut [u32], width: usize, src: &[u32], ld: usize, rows: usize, k: usize) {
    Source::F32(bytemuck::cast_slice(src)).transpose(bytemuck::cast_slice_mut(dst), width, ld, rows, k);
}

/// Elements of a stored operand.
#[derive(Clone, Copy)]
pub enum Source<'a> {
    /// As they are.
    F32(&'a [f32]),
    /// Widened, or taken as they are by products of bf16.
    Bf16(&'a [bf16]),
    /// Widened.
    F16(&'a [f16]),
}

impl<'a> Source<'a> {
    /// The elements of a float tensor from `start` on.
    pub fn of(t: &'a Tensor, start: usize) -> Source<'a> {
        match t.dtype() {
            DType::BF16 => Source::Bf16(&t.bf16()[start..]),
            DType::F16 => Source::F16(&t.f16()[start..]),
            _ => Source::F32(&t.f32()[start..]),
        }
    }

    /// The elements from `start` on.
    fn skip(self, start: usize) -> Self {
        match self {
            Source::F32(x) => Source::F32(&x[start..]),
            Source::Bf16(x) => Source::Bf16(&x[start..]),
            Source::F16(x) => Source::F16(&x[start..]),
        }
    }

    /// `out[i] = self[start + i]` as f32.
    pub(super) fn read(self, start: usize, out: &mut [f32]) {
        let range = start..start + out.len();
        match self {
            Source::F32(x) => out.copy_from_slice(&x[range]),
            Source::Bf16(x) => {
                for (out, v) in out.iter_mut().zip(&x[range]) {
                    *out = f32::from_bits(u32::from(v.to_bits()) << 16);
                }
            }
            Source::F16(x) => x[range].convert_to_f32_slice(out),
        }
    }

    fn len(self) -> usize {
        match self {
            Source::F32(x) => x.len(),
            Source::Bf16(x) => x.len(),
            Source::F16(x) => x.len(),
        }
    }

    pub(super) fn at(self, i: usize) -> f32 {
        match self {
            Source::F32(x) => x[i],
            Source::Bf16(x) => x[i].to_f32(),
            Source::F16(x) => x[i].to_f32(),
        }
    }

    /// `dst[p * width + i] = self[i * ld + p]` for `i < rows`, `p < k`.
    fn transpose(self, dst: &mut [f32], width: usize, ld: usize, rows: usize, k: usize) {
        if rows == 0 || k == 0 {
            return;
        }
        assert!(rows <= width && dst.len() >= (k - 1) * width + rows && self.len() >= (rows - 1) * ld + k);
        let done = self.transpose_blocks(dst, width, ld, rows, k);
        for p in done..k {
            for i in 0..rows {
                dst[p * width + i] = self.at(i * ld + p);
            }
        }
    }

    /// The part of [`Source::transpose`] that vector instructions can do; returns the columns done.
    #[cfg(target_arch = "x86_64")]
    fn transpose_blocks(self, dst: &mut [f32], width: usize, ld: usize, rows: usize, k: usize) -> usize {
        if !is_x86_feature_detected!("avx512f") {
            return 0;
        }
        let (dst, k) = (dst.as_mut_ptr(), k / transpose::BLOCK * transpose::BLOCK);
        // SAFETY: `transpose` asserted the sizes; AVX-512F was detected.
        unsafe {
            match self {
                Source::F32(x) => transpose::transpose::<0>(dst, width, x.as_ptr().cast(), ld, rows, k),
                Source::Bf16(x) => transpose::transpose::<1>(dst, width, x.as_ptr().cast(), ld, rows, k),
                Source::F16(x) => transpose::transpose::<2>(dst, width, x.as_ptr().cast(), ld, rows, k),
            }
        }
        k
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn transpose_blocks(self, _: &mut [f32], _: usize, _: usize, _: usize, _: usize) -> usize {
        0
    }
}

/// The left-hand side of a product, `[m, k]`.
#[derive(Clone, Copy)]
pub enum Left<'a> {
    /// Stored `[m, k]`.
    Rows(Source<'a>),
    /// Stored `[k, m]`.
    Columns(Source<'a>),
}

impl Left<'_> {
    /// Packs rows `first .. first + rows` of an `m` x `k` operand into `dst`, `[k][rows]`.
    pub fn pack(self, dst: &mut [f32], m: usize, k: usize, first: usize, rows: usize) {
        match self {
            Left::Rows(data) => data.skip(first * k).transpose(dst, rows, k, rows, k),
            Left::Columns(data) => {
                for (p, dst) in dst.chunks_exact_mut(rows).enumerate() {
                    data.read(p * m + first, dst);
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
    /// Rows `first ..` of a tensor `[.., n]`: the operand itself.
    Columns(&'a Tensor, usize),
}

impl Right<'_> {
    /// Packs columns `first .. first + columns` (at most PANEL), steps `from .. to` of the reduction, into `dst`, `[to - from][PANEL]`.
    pub fn pack(self, dst: &mut [f32], size: (usize, usize), first: usize, columns: usize, from: usize, to: usize) {
        let (n, k) = size;
        if columns < PANEL {
            dst[..(to - from) * PANEL].fill(0.0);
        }
        match self {
            Right::Rows(t, offset) => {
                Source::of(t, (offset + first) * k + from).transpose(dst, PANEL, k, columns, to - from);
            }
            Right::Columns(t, offset) => {
                for (p, dst) in (from..to).zip(dst.chunks_exact_mut(PANEL)) {
                    Source::of(t, 0).read((offset + p) * n + first, &mut dst[..columns]);
                }
            }
        }
    }
}
