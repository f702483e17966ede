//! Packing for products of bf16: operands rounded and laid out as pairs, u32 with step `2 p` of the reduction in the low and
//! step `2 p + 1` in the high half; 0 beyond an odd length. A left-hand side is `[rows][k / 2]`, a right-hand panel
//! `[k / 2][PANEL]`.

use super::pack::{Left, Right, Source, transpose_u32};
use super::scratch;
use super::tile::PANEL;
use crate::ops::rounding::{bf16_bits, round};
use crate::ops::simd::{Kernel, LANES, Simd, dispatch, dispatch_dot};
use half::bf16;

impl<'a> Left<'a> {
    /// Rows `first ..` where they already are pairs: bf16 rows of even length.
    pub fn as_pairs(self, k: usize, first: usize) -> Option<&'a [u32]> {
        match self {
            Left::Rows(Source::Bf16(x)) if k.is_multiple_of(2) => bytemuck::try_cast_slice(&x[first * k..]).ok(),
            _ => None,
        }
    }

    /// Packs rows `first ..` of an `m` x `k` operand into the whole rows of `dst`.
    pub fn pack_pairs(self, dst: &mut [u32], m: usize, k: usize, first: usize) {
        let pairs = k.div_ceil(2);
        match self {
            Left::Rows(x) => {
                for (i, dst) in dst.chunks_exact_mut(pairs).enumerate() {
                    x.round_row(dst, (first + i) * k, k);
                }
            }
            Left::Columns(x) => {
                let rows = dst.len() / pairs.max(1);
                scratch::with(rows * pairs, |block| {
                    let block: &mut [u32] = bytemuck::cast_slice_mut(block);
                    for (p, block) in block.chunks_exact_mut(rows.max(1)).enumerate() {
                        let odd = (2 * p + 1 < k).then_some((2 * p + 1) * m + first);
                        x.interleave(block, 2 * p * m + first, odd);
                    }
                    transpose_u32(dst, pairs, block, rows, pairs, rows);
                });
            }
        }
    }
}

impl Right<'_> {
    /// Packs columns `first .. first + columns` (at most PANEL), steps `from .. to` of the reduction, into `dst`; `from` is even.
    pub fn pack_pairs(
        self,
        dst: &mut [u32],
        size: (usize, usize),
        first: usize,
        columns: usize,
        from: usize,
        to: usize,
    ) {
        let ((n, k), pairs) = (size, (to - from).div_ceil(2));
        if columns < PANEL {
            dst[..pairs * PANEL].fill(0);
        }
        match self {
            Right::Rows(t, offset) => scratch::with(columns * pairs, |rows| {
                let rows: &mut [u32] = bytemuck::cast_slice_mut(rows);
                for (j, row) in rows.chunks_exact_mut(pairs.max(1)).enumerate() {
                    Source::of(t, 0).round_row(row, (offset + first + j) * k + from, to - from);
                }
                transpose_u32(dst, PANEL, rows, pairs, columns, pairs);
            }),
            Right::Columns(t, offset) => {
                let source = Source::of(t, 0);
                for (p, dst) in (from..to).step_by(2).zip(dst.chunks_exact_mut(PANEL)) {
                    let odd = (p + 1 < to).then_some((offset + p + 1) * n + first);
                    source.interleave(&mut dst[..columns], (offset + p) * n + first, odd);
                }
            }
        }
    }
}

impl Source<'_> {
    /// Elements `at .. at + len`, rounded, as pairs.
    fn round_row(self, dst: &mut [u32], at: usize, len: usize) {
        let out: &mut [u16] = bytemuck::cast_slice_mut(dst);
        out[len..].fill(0);
        let out = &mut out[..len];
        match self {
            Source::F32(x) => round(bytemuck::cast_slice_mut(out), &x[at..at + len]),
            Source::Bf16(x) => out.copy_from_slice(bytemuck::cast_slice(&x[at..at + len])),
            Source::F16(x) => {
                let values = out.iter_mut().zip(&x[at..at + len]);
                values.for_each(|(out, v)| *out = bf16_bits(v.to_f32()));
            }
        }
    }

    /// `dst[i]` = elements `even + i` and `odd + i`, rounded, as a pair.
    fn interleave(self, dst: &mut [u32], even: usize, odd: Option<usize>) {
        let n = dst.len();
        match self {
            Source::F32(x) => {
                let (even, odd) = (&x[even..even + n], odd.map(|odd| &x[odd..odd + n]));
                dispatch_dot(RoundPairs { dst: bytemuck::cast_slice_mut(dst), even, odd });
            }
            Source::Bf16(x) => {
                let (even, odd) = (&x[even..even + n], odd.map(|odd| &x[odd..odd + n]));
                dispatch(Interleave { dst, even, odd, bits: bf16::to_bits });
            }
            Source::F16(x) => {
                let (even, odd) = (&x[even..even + n], odd.map(|odd| &x[odd..odd + n]));
                dispatch(Interleave { dst, even, odd, bits: |v: half::f16| bf16_bits(v.to_f32()) });
            }
        }
    }
}

/// [`Interleave`] of f32; the u32 are the bits of `dst`.
struct RoundPairs<'a> {
    dst: &'a mut [f32],
    even: &'a [f32],
    odd: Option<&'a [f32]>,
}

impl Kernel for RoundPairs<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let mut odd = self.odd.map(|odd| odd.chunks(LANES));
        for (dst, even) in self.dst.chunks_mut(LANES).zip(self.even.chunks(LANES)) {
            // SAFETY: inside `dispatch_dot`.
            unsafe {
                let odd = match odd.as_mut().and_then(Iterator::next) {
                    Some(odd) => S::read(odd),
                    None => S::splat(0.0),
                };
                S::write(dst, S::pair(S::read(even), odd));
            }
        }
    }
}

struct Interleave<'a, T, F> {
    dst: &'a mut [u32],
    even: &'a [T],
    odd: Option<&'a [T]>,
    bits: F,
}

impl<T: Copy, F: Fn(T) -> u16> Kernel for Interleave<'_, T, F> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let bits = self.bits;
        match self.odd {
            Some(odd) => {
                for ((dst, &even), &odd) in self.dst.iter_mut().zip(self.even).zip(odd) {
                    *dst = u32::from(bits(even)) | u32::from(bits(odd)) << 16;
                }
            }
            None => self.dst.iter_mut().zip(self.even).for_each(|(dst, &even)| *dst = u32::from(bits(even))),
        }
    }
}
