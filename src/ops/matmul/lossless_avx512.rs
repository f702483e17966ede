//! AVX-512 BF16 tiles over panels of `lossless.rs`: 64 weights are restored in six instructions, on the way into the registers
//! in which `vdpbf16ps` takes them. Every tile restores its panel anew: a tile of 12 rows leaves half of the issue slots to that, and
//! a restored copy for the other tiles gained nothing at 32 to 512 rows.

use super::avx512::{finish, masks, start};
use super::dot_avx512::prefetch;
use super::lossless::{BLOCK_PAIRS, HEADER, PAIR, PLACE, RAW_BLOCK};
use super::tile::{PANEL, Tile, TileFn, by_rows};
use std::arch::x86_64::*;

/// The kernel for a tile of `rows` rows and at most one panel.
pub fn kernel(rows: usize) -> TileFn {
    by_rows!(rows, M => tile::<M>, 1 2 3 4 5 6 7 8 9 10 11; 12)
}

/// `M` rows by one panel.
///
/// # Safety
/// As [`TileFn`].
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn tile<const M: usize>(t: &Tile) {
    // SAFETY: the caller vouches for the tile's pointers; 16 pairs of bf16 are a register of either type.
    unsafe {
        let masks = masks::<2>(t.n);
        let mut acc = start::<M, 2>(t, masks);
        let bh = |x: __m512i| std::mem::transmute::<__m512i, __m512bh>(x);
        let rows: [*const u32; M] = std::array::from_fn(|i| t.a.wrapping_add(i * t.lda));
        let low_halves = _mm512_set1_epi8(15);
        let (mut b, pairs) = (t.b, t.k.div_ceil(2));
        for first in (0..pairs).step_by(BLOCK_PAIRS) {
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(b.cast()));
            let place = b.add(PLACE).cast::<u32>().read_unaligned() as usize;
            let mut raw = t.raw.wrapping_add(place.wrapping_sub(1).wrapping_mul(RAW_BLOCK));
            b = b.add(HEADER);
            for p in first..pairs.min(first + BLOCK_PAIRS) {
                prefetch(t, M, b);
                let row = if place == 0 {
                    let lower = _mm512_loadu_si512(b.cast());
                    let names = _mm512_cvtepu8_epi16(_mm256_loadu_si256(b.add(2 * PANEL).cast()));
                    // (names | names << 4) & 0x0f0f
                    let names = _mm512_ternarylogic_epi32::<0xa8>(names, _mm512_slli_epi16(names, 4), low_halves);
                    let upper = _mm512_shuffle_epi8(table, names);
                    [_mm512_unpacklo_epi8(lower, upper), _mm512_unpackhi_epi8(lower, upper)]
                } else {
                    [_mm512_loadu_si512(raw.cast()), _mm512_loadu_si512(raw.add(64).cast())]
                };
                raw = raw.wrapping_add(4 * PANEL);
                b = b.add(PAIR);
                for (acc, a) in acc.iter_mut().zip(rows) {
                    let x = bh(_mm512_set1_epi32(*a.add(p) as i32));
                    for (acc, row) in acc.iter_mut().zip(row) {
                        *acc = _mm512_dpbf16_ps(*acc, x, bh(row));
                    }
                }
            }
        }
        finish(t, masks, acc);
    }
}
