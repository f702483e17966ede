//! AVX2 tiles: up to 6 rows by 16 columns in 12 of the 16 registers, two passes over a panel of 32 columns.

use super::tile::{Kind, PANEL, Tile, TileFn};
use std::arch::x86_64::*;

/// Rows of the largest tile.
pub const MAX_ROWS: usize = 6;

/// The kernel for a tile of `rows` rows and at most one panel.
pub fn kernel(kind: Kind, rows: usize) -> TileFn {
    match kind {
        Kind::F32 => by_rows::<0>(rows),
        Kind::Bf16 | Kind::Lossless => by_rows::<1>(rows),
        Kind::F16 | Kind::Int8 => by_rows::<2>(rows),
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

/// The chains so far.
///
/// # Safety
/// As [`TileFn`].
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn start<const M: usize>(t: &Tile) -> [[f32; PANEL]; M] {
    let mut sums = [[0.0f32; PANEL]; M];
    if !t.partial.is_null() {
        for (i, row) in sums.iter_mut().enumerate() {
            // SAFETY: the caller vouches for `n` columns of each row.
            row[..t.n].copy_from_slice(unsafe { std::slice::from_raw_parts(t.partial.add(i * t.ldp), t.n) });
        }
    }
    sums
}

/// Bias, old value, destination.
///
/// # Safety
/// As [`TileFn`].
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn finish(t: &Tile, sums: &mut [[f32; PANEL]]) {
    for (i, row) in sums.iter_mut().enumerate() {
        // SAFETY: the caller vouches for `n` columns of each row and of the bias.
        unsafe {
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

/// `M` rows, `G` groups of 16 columns a pass; `KIND` 0, 1, 2 = f32, bf16, f16.
///
/// # Safety
/// As [`TileFn`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile<const M: usize, const G: usize, const KIND: u8>(t: &Tile) {
    // SAFETY: the caller vouches for the tile's pointers; only the first `n` columns of `partial`, `bias` and `c` are touched.
    unsafe {
        let mut sums = start::<M>(t);
        for first in (0..2).step_by(G) {
            pass::<M, G, KIND>(t, &mut sums, 16 * first);
        }
        finish(t, &mut sums);
    }
}

/// Columns `first .. first + 16 G` of [`tile`].
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
                *acc = [0, 8].map(|half| _mm256_loadu_ps(sums.as_ptr().add(first + 16 * g + half)));
            }
        }
        let high = _mm256_set1_epi32(0xffff_0000_u32 as i32);
        let mut a = t.a.cast::<f32>();
        for p in 0..t.k {
            let row: [[__m256; 2]; G] = std::array::from_fn(|g| {
                [0, 8].map(|half| {
                    let column = first + 16 * g + half;
                    match KIND {
                        0 => _mm256_loadu_ps(t.b.cast::<f32>().add(p * PANEL + column)),
                        1 => {
                            let pairs = _mm256_loadu_si256(t.b.cast::<u32>().add(p / 2 * PANEL + column).cast());
                            let wide =
                                if p % 2 == 0 { _mm256_slli_epi32(pairs, 16) } else { _mm256_and_si256(pairs, high) };
                            _mm256_castsi256_ps(wide)
                        }
                        _ => _mm256_cvtph_ps(_mm_loadu_si128(t.b.add(2 * (p * PANEL + column)).cast())),
                    }
                })
            });
            for (i, acc) in acc.iter_mut().enumerate() {
                let x = _mm256_set1_ps(*a.add(i));
                for (acc, row) in acc.iter_mut().flatten().zip(row.iter().flatten()) {
                    *acc = _mm256_fmadd_ps(x, *row, *acc);
                }
            }
            a = a.add(M);
        }
        for (acc, sums) in acc.iter().zip(sums.iter_mut()) {
            for (g, halves) in acc.iter().enumerate() {
                for (half, acc) in halves.iter().enumerate() {
                    _mm256_storeu_ps(sums.as_mut_ptr().add(first + 16 * g + 8 * half), *acc);
                }
            }
        }
    }
}
