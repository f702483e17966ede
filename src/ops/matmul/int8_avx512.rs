//! AVX-512 VNNI tiles of 8-bit integers: up to 6 rows by 32 columns, with a register of integers and one of floats for each
//! 16 columns of a row.

use super::avx512::{finish, masks};
use super::int8::{GROUP, LEFT_GROUP, PANEL_GROUP};
use super::tile::{PANEL, Tile, TileFn, by_rows};
use std::arch::x86_64::*;

/// Rows of the largest tile.
pub const MAX_ROWS: usize = 6;
/// Bytes ahead of the panel that is read, as in `dot_avx512.rs`.
const AHEAD: usize = 2048;

/// The kernel for a tile of `rows` rows and at most one panel.
pub fn kernel(rows: usize) -> TileFn {
    by_rows!(rows, M => tile::<M>, 1 2 3 4 5; 6)
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
        let (mut a, mut b) = (t.a, t.b);
        // Plain loops: closures over vectors are not always inlined here, which costs a factor of ten.
        for _ in 0..t.k.div_ceil(GROUP) {
            let mut sums = [[_mm512_setzero_si512(); 2]; M];
            for (i, sums) in sums.iter_mut().enumerate() {
                let offset = _mm512_set1_epi32((*a.add(i * t.lda + 1)).wrapping_neg() as i32);
                *sums = [offset, offset];
            }
            let weights = b.add(2 * PANEL);
            for s in 0..GROUP / 4 {
                let w = weights.add(4 * s * PANEL);
                let row = [_mm512_loadu_si512(w.cast()), _mm512_loadu_si512(w.add(64).cast())];
                _mm_prefetch::<_MM_HINT_T0>(w.wrapping_add(AHEAD).cast());
                _mm_prefetch::<_MM_HINT_T0>(w.wrapping_add(AHEAD + 64).cast());
                for (i, sums) in sums.iter_mut().enumerate() {
                    let x = _mm512_set1_epi32(*a.add(i * t.lda + 2 + s) as i32);
                    sums[0] = _mm512_dpbusd_epi32(sums[0], row[0], x);
                    sums[1] = _mm512_dpbusd_epi32(sums[1], row[1], x);
                }
            }
            let low = _mm512_cvtph_ps(_mm256_loadu_si256(b.cast()));
            let high = _mm512_cvtph_ps(_mm256_loadu_si256(b.add(32).cast()));
            for (i, (acc, sums)) in acc.iter_mut().zip(&sums).enumerate() {
                let scale = _mm512_set1_ps(f32::from_bits(*a.add(i * t.lda)));
                acc[0] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[0]), _mm512_mul_ps(low, scale), acc[0]);
                acc[1] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[1]), _mm512_mul_ps(high, scale), acc[1]);
            }
            a = a.add(LEFT_GROUP);
            b = b.add(PANEL_GROUP);
        }
        finish(t, masks::<2>(t.n), acc);
    }
}
