//! AVX-512 VNNI tiles of 8-bit integers: up to 6 rows by 32 columns, with a register of integers and one of floats for each
//! 16 columns of a row.

use super::avx512::{finish, masks};
use super::int8::{GROUP, LEFT_GROUP, PANEL_GROUP};
use super::tile::{PANEL, Tile, TileFn};
use std::arch::x86_64::*;

/// Rows of the largest tile.
pub const MAX_ROWS: usize = 6;
/// Bytes ahead of the panel that is read, as in `dot_avx512.rs`.
const AHEAD: usize = 2048;

/// The kernel for a tile of `rows` rows and at most one panel.
pub fn kernel(rows: usize) -> TileFn {
    match rows {
        1 => tile::<1>,
        2 => tile::<2>,
        3 => tile::<3>,
        4 => tile::<4>,
        5 => tile::<5>,
        _ => tile::<6>,
    }
}

/// `M` rows by one panel.
///
/// # Safety
/// As [`TileFn`].
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn tile<const M: usize>(t: &Tile) {
    // SAFETY: the caller vouches for the tile's pointers.
    unsafe {
        let mut acc = [[_mm512_setzero_ps(); 2]; M];
        let mut b = t.b;
        for g in 0..t.k.div_ceil(GROUP) {
            let left: [*const u32; M] = std::array::from_fn(|i| t.a.add(i * t.lda + g * LEFT_GROUP));
            let start =
                left.map(|left| _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_set1_epi32(*left.add(1) as i32)));
            let mut sums = start.map(|start| [start; 2]);
            let weights = b.add(2 * PANEL);
            for s in 0..GROUP / 4 {
                let row: [__m512i; 2] =
                    std::array::from_fn(|v| _mm512_loadu_si512(weights.add(4 * s * PANEL + 64 * v).cast()));
                _mm_prefetch::<_MM_HINT_T0>(weights.wrapping_add(4 * s * PANEL + AHEAD).cast());
                _mm_prefetch::<_MM_HINT_T0>(weights.wrapping_add(4 * s * PANEL + AHEAD + 64).cast());
                for (sums, left) in sums.iter_mut().zip(left) {
                    let x = _mm512_set1_epi32(*left.add(2 + s) as i32);
                    for (sum, row) in sums.iter_mut().zip(row) {
                        *sum = _mm512_dpbusd_epi32(*sum, row, x);
                    }
                }
            }
            let scales: [__m512; 2] =
                std::array::from_fn(|v| _mm512_cvtph_ps(_mm256_loadu_si256(b.add(32 * v).cast())));
            for ((acc, sums), left) in acc.iter_mut().zip(sums).zip(left) {
                let scale = _mm512_set1_ps(f32::from_bits(*left));
                for ((acc, sum), d) in acc.iter_mut().zip(sums).zip(scales) {
                    *acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_mul_ps(d, scale), *acc);
                }
            }
            b = b.add(PANEL_GROUP);
        }
        finish(t, masks::<2>(t.n), acc);
    }
}
