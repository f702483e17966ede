//! AVX2 tiles over pairs of bf16, up to 6 rows by 16 columns, two passes over a panel: two multiply-adds in the order of
//! `vdpbf16ps` (see `dot_avx512.rs`).

use super::avx2::{finish, start};
use super::tile::{PANEL, Tile, TileFn, by_rows};
use std::arch::x86_64::*;

/// The kernel for a tile of `rows` rows and at most one panel.
pub fn kernel(rows: usize) -> TileFn {
    by_rows!(rows, M => tile::<M>, 1 2 3 4 5; 6)
}

/// `M` rows by one panel.
///
/// # Safety
/// As [`TileFn`].
#[target_feature(enable = "avx2,fma")]
unsafe fn tile<const M: usize>(t: &Tile) {
    // SAFETY: the caller vouches for the tile's pointers; `sums` has room for a panel's columns.
    unsafe {
        let mut sums = start::<M>(t);
        let low = |x: __m256i| _mm256_castsi256_ps(_mm256_slli_epi32(x, 16));
        let high = |x: __m256i| _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32(0xffff_0000_u32 as i32)));
        for column in [0, 16] {
            let mut acc = [[_mm256_setzero_ps(); 2]; M];
            for (acc, sums) in acc.iter_mut().zip(&sums) {
                *acc = [0, 8].map(|half| _mm256_loadu_ps(sums.as_ptr().add(column + half)));
            }
            for p in 0..t.k.div_ceil(2) {
                let b = t.b.add(4 * (p * PANEL + column));
                let row = [0, 32].map(|half| _mm256_loadu_si256(b.add(half).cast()));
                for (i, acc) in acc.iter_mut().enumerate() {
                    let x = _mm256_set1_epi32(*t.a.add(i * t.lda + p) as i32);
                    for (acc, row) in acc.iter_mut().zip(row) {
                        *acc = _mm256_fmadd_ps(high(x), high(row), *acc);
                        *acc = _mm256_fmadd_ps(low(x), low(row), *acc);
                    }
                }
            }
            for (acc, sums) in acc.iter().zip(sums.iter_mut()) {
                for (half, acc) in acc.iter().enumerate() {
                    _mm256_storeu_ps(sums.as_mut_ptr().add(column + 8 * half), *acc);
                }
            }
        }
        finish(t, &mut sums);
    }
}
