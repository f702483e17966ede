//! AVX2 tiles: up to 6 rows by 16 columns in 12 of the 16 registers, two passes over a panel of 32 columns.
//!
//! A pass takes columns `8 g .. 8 g + 8` and `16 + 8 g .. 16 + 8 g + 8`, which the pairs of a bf16 panel hold together.

use super::tile::{Kind, PANEL, Tile, TileFn};
use std::arch::x86_64::*;

/// Rows of the largest tile.
pub const MAX_ROWS: usize = 6;

/// The kernel for a tile of `rows` rows and at most one panel.
pub fn kernel(kind: Kind, rows: usize) -> TileFn {
    match kind {
        Kind::F32 => by_rows::<0>(rows),
        Kind::Bf16 => by_rows::<1>(rows),
        Kind::F16 => by_rows::<2>(rows),
    }
}

fn by_rows<const KIND: u8>(rows: usize) -> TileFn {
    match rows {
        1 => tile::<1, 2, KIND>,
        2 => tile::<2, 2, KIND>,
        3 => tile::<3, 2, KIND>,
        4 => tile::<4, 1, KIND>,
        5 => tile::<5, 1, KIND>,
        _ => tile::<6, 1, KIND>,
    }
}

/// `M` rows, `G` groups of columns a pass; `KIND` 0, 1, 2 = f32, bf16, f16.
///
/// # Safety
/// As [`TileFn`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile<const M: usize, const G: usize, const KIND: u8>(t: &Tile) {
    let mut sums = [[0.0f32; PANEL]; M];
    // SAFETY: the caller vouches for the tile's pointers; only the first `n` columns of `partial`, `bias` and `c` are touched.
    unsafe {
        if !t.partial.is_null() {
            for (i, row) in sums.iter_mut().enumerate() {
                row[..t.n].copy_from_slice(std::slice::from_raw_parts(t.partial.add(i * t.ldp), t.n));
            }
        }
        for first in (0..2).step_by(G) {
            pass::<M, G, KIND>(t, &mut sums, first);
        }
        for (i, row) in sums.iter_mut().enumerate() {
            let c = std::slice::from_raw_parts_mut(t.c.add(i * t.ldc), t.n);
            if !t.bias.is_null() {
                let bias = std::slice::from_raw_parts(t.bias, t.n);
                row.iter_mut().zip(bias).for_each(|(sum, bias)| *sum += bias);
            }
            if t.add {
                c.iter_mut().zip(row.iter()).for_each(|(c, sum)| *c += sum);
            } else {
                c.copy_from_slice(&row[..t.n]);
            }
        }
    }
}

/// Column groups `first .. first + G` of [`tile`].
///
/// # Safety
/// As [`TileFn`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn pass<const M: usize, const G: usize, const KIND: u8>(t: &Tile, sums: &mut [[f32; PANEL]; M], first: usize) {
    // SAFETY: the panels hold `k` rows of PANEL elements and `a` holds `k` rows of M.
    unsafe {
        let mut acc = [[[_mm256_setzero_ps(); 2]; G]; M];
        for (acc, sums) in acc.iter_mut().zip(sums.iter()) {
            for (g, acc) in acc.iter_mut().enumerate() {
                *acc = [0, 1].map(|half| _mm256_loadu_ps(sums.as_ptr().add(8 * (first + g) + 16 * half)));
            }
        }
        let high = _mm256_set1_epi32(0xffff_0000_u32 as i32);
        let (mut a, mut b) = (t.a, t.b);
        for _ in 0..t.k {
            let row: [[__m256; 2]; G] = std::array::from_fn(|g| {
                let column = 8 * (first + g);
                match KIND {
                    0 => [0, 1].map(|half| _mm256_loadu_ps(b.cast::<f32>().add(column + 16 * half))),
                    1 => {
                        let pairs = _mm256_loadu_si256(b.add(4 * column).cast());
                        let wide = [_mm256_slli_epi32(pairs, 16), _mm256_and_si256(pairs, high)];
                        [_mm256_castsi256_ps(wide[0]), _mm256_castsi256_ps(wide[1])]
                    }
                    _ => [0, 1].map(|half| _mm256_cvtph_ps(_mm_loadu_si128(b.add(2 * (column + 16 * half)).cast()))),
                }
            });
            for (i, acc) in acc.iter_mut().enumerate() {
                let x = _mm256_set1_ps(*a.add(i));
                for (acc, row) in acc.iter_mut().flatten().zip(row.iter().flatten()) {
                    *acc = _mm256_fmadd_ps(x, *row, *acc);
                }
            }
            a = a.add(M);
            b = b.add(PANEL * if KIND == 0 { 4 } else { 2 });
        }
        for (acc, sums) in acc.iter().zip(sums.iter_mut()) {
            for (g, [low, high]) in acc.iter().enumerate() {
                let sums = sums.as_mut_ptr().add(8 * (first + g));
                _mm256_storeu_ps(sums, *low);
                _mm256_storeu_ps(sums.add(16), *high);
            }
        }
    }
}
