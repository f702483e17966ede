//! Packing for products of bf16: operands rounded and laid out as pairs, u32 with step `2 p` of the reduction in the low and
//! step `2 p + 1` in the high half; 0 beyond an odd length. A left-hand side is `[rows][k / 2]`, a right-hand panel
//! `[k / 2][PANEL]`.

use super::pack::{Left, Right, Source, transpose_u32};
use super::scratch;
use super::tile::{Isa, PANEL};
#[cfg(target_arch = "x86_64")]
use super::transpose;
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
                    x.interleave(block, rows, Columns { first, columns: rows, row: m, steps: k });
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
            Right::Rows(t, offset) => {
                let at = (offset + first) * k + from;
                let done = Source::of(t, at).transpose_pairs(dst, k, columns, (to - from) / 2);
                let (dst, from, pairs) = (&mut dst[done * PANEL..], from + 2 * done, pairs - done);
                scratch::with(columns * pairs, |rows| {
                    let rows: &mut [u32] = bytemuck::cast_slice_mut(rows);
                    for (j, row) in rows.chunks_exact_mut(pairs.max(1)).enumerate() {
                        Source::of(t, 0).round_row(row, (offset + first + j) * k + from, to - from);
                    }
                    transpose_u32(dst, PANEL, rows, pairs, columns, pairs);
                });
            }
            Right::Columns(t, offset) => {
                let of = Columns { first: (offset + from) * n + first, columns, row: n, steps: to - from };
                Source::of(t, 0).interleave(dst, PANEL, of);
            }
        }
    }
}

impl Source<'_> {
    /// Pairs of `columns` rows of f32 at a stride of `k`, each row into a column of a panel: as many of `pairs` as vector instructions
    /// can do; returns how many.
    #[cfg(target_arch = "x86_64")]
    fn transpose_pairs(self, dst: &mut [u32], k: usize, columns: usize, pairs: usize) -> usize {
        let done = pairs / transpose::BLOCK * transpose::BLOCK;
        match self {
            Source::F32(x) if done > 0 && columns > 0 && Isa::best() == Isa::Avx512Bf16 => {
                assert!(x.len() >= (columns - 1) * k + 2 * done && dst.len() >= done * PANEL && columns <= PANEL);
                // SAFETY: the sizes were asserted, the instructions detected.
                unsafe { transpose::transpose_pairs(dst.as_mut_ptr().cast(), PANEL, x.as_ptr(), k, columns, done) };
                done
            }
            _ => 0,
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn transpose_pairs(self, _: &mut [u32], _: usize, _: usize, _: usize) -> usize {
        0
    }

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

    /// Rows of `width` pairs: in each, numbers from two rows, rounded.
    fn interleave(self, dst: &mut [u32], width: usize, of: Columns) {
        match self {
            Source::F32(x) => dispatch_dot(RoundPairs { dst: bytemuck::cast_slice_mut(dst), width, x, of }),
            Source::Bf16(x) => dispatch(Interleave { dst, width, x, of, bits: bf16::to_bits }),
            Source::F16(x) => dispatch(Interleave { dst, width, x, of, bits: |v: half::f16| bf16_bits(v.to_f32()) }),
        }
    }
}

/// Some columns of a matrix: `steps` rows at a stride of `row`, the first of which starts at element `first`.
#[derive(Clone, Copy)]
struct Columns {
    first: usize,
    columns: usize,
    row: usize,
    steps: usize,
}

impl Columns {
    /// Two neighbouring rows of `x`; none behind the last of an odd number.
    #[inline(always)]
    fn pair<T>(self, x: &[T], i: usize) -> [&[T]; 2] {
        let row = |p: usize| {
            let at = self.first + p * self.row;
            if p < self.steps { &x[at..at + self.columns] } else { &[] }
        };
        [row(2 * i), row(2 * i + 1)]
    }
}

/// [`Source::interleave`] of f32; the u32 are the bits of `dst`.
struct RoundPairs<'a> {
    dst: &'a mut [f32],
    width: usize,
    x: &'a [f32],
    of: Columns,
}

impl Kernel for RoundPairs<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for (i, dst) in self.dst.chunks_exact_mut(self.width.max(1)).take(self.of.steps.div_ceil(2)).enumerate() {
            let [even, odd] = self.of.pair(self.x, i);
            for (c, dst) in dst[..self.of.columns].chunks_mut(LANES).enumerate() {
                let odd = odd.get(c * LANES..).unwrap_or(&[]);
                // SAFETY: inside `dispatch_dot`.
                unsafe { S::write(dst, S::pair(S::read(&even[c * LANES..]), S::read(odd))) };
            }
        }
    }
}

/// [`Source::interleave`] of numbers of 16 bits, each as the `bits` of a bf16.
struct Interleave<'a, T, F> {
    dst: &'a mut [u32],
    width: usize,
    x: &'a [T],
    of: Columns,
    bits: F,
}

impl<T: Copy, F: Fn(T) -> u16> Kernel for Interleave<'_, T, F> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let bits = self.bits;
        for (i, dst) in self.dst.chunks_exact_mut(self.width.max(1)).take(self.of.steps.div_ceil(2)).enumerate() {
            let [even, odd] = self.of.pair(self.x, i);
            if odd.is_empty() {
                dst.iter_mut().zip(even).for_each(|(dst, &even)| *dst = u32::from(bits(even)));
            }
            for ((dst, &even), &odd) in dst.iter_mut().zip(even).zip(odd) {
                *dst = u32::from(bits(even)) | u32::from(bits(odd)) << 16;
            }
        }
    }
}
