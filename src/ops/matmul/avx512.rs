//! AVX-512F tiles: up to 12 rows by 32 columns in 24 of the 32 registers, so that each loaded row of the right-hand panel
//! feeds 24 independent chains. Fewer rows take up to four panels at once.

use super::tile::{Kind, PANEL, Tile, TileFn};
use std::arch::x86_64::*;

/// Rows of the largest tile.
pub const MAX_ROWS: usize = 12;

/// Panels at once: the chains of one tile must cover the latency of a multiply-add (4 cycles).
pub fn panels(rows: usize) -> usize {
    match rows {
        1..=3 => 4,
        4..=6 => 2,
        _ => 1,
    }
}

/// The kernel for a tile of `rows` x `n`.
pub fn kernel(kind: Kind, rows: usize, n: usize) -> TileFn {
    match kind {
        Kind::F32 => by_rows::<0>(rows, n),
        Kind::Bf16 | Kind::Lossless => by_rows::<1>(rows, n),
        Kind::F16 | Kind::Int8 => by_rows::<2>(rows, n),
    }
}

fn by_rows<const KIND: u8>(rows: usize, n: usize) -> TileFn {
    match rows {
        1 => few::<1, KIND>(n),
        2 => few::<2, KIND>(n),
        3 => few::<3, KIND>(n),
        4 => some::<4, KIND>(n),
        5 => some::<5, KIND>(n),
        6 => some::<6, KIND>(n),
        7 => many::<7, KIND>(n),
        8 => many::<8, KIND>(n),
        9 => many::<9, KIND>(n),
        10 => many::<10, KIND>(n),
        11 => many::<11, KIND>(n),
        _ => many::<12, KIND>(n),
    }
}

fn few<const M: usize, const KIND: u8>(n: usize) -> TileFn {
    // A tile reads every panel that it spans, so it must not be wider than the panels that exist.
    match n.div_ceil(PANEL) {
        4 => tile::<M, 8, KIND>,
        3 => tile::<M, 6, KIND>,
        _ => some::<M, KIND>(n),
    }
}

fn some<const M: usize, const KIND: u8>(n: usize) -> TileFn {
    if n > 32 { tile::<M, 4, KIND> } else { many::<M, KIND>(n) }
}

fn many<const M: usize, const KIND: u8>(n: usize) -> TileFn {
    if n > 16 { tile::<M, 2, KIND> } else { tile::<M, 1, KIND> }
}

/// Which of the `n` columns each of `V` registers holds.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn masks<const V: usize>(n: usize) -> [__mmask16; V] {
    std::array::from_fn(|v| {
        let left = n.saturating_sub(16 * v);
        if left >= 16 { !0 } else { (1u16 << left) - 1 }
    })
}

/// Fewest rows of a tile that fetches its destination beforehand. Fewer rows wait for the weight, not for the destination.
const ROWS_TO_FETCH: usize = 9;

/// The chains so far; and the destination is fetched, which takes as long from memory as a tenth of a tile's work.
///
/// # Safety
/// As [`TileFn`].
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn start<const M: usize, const V: usize>(t: &Tile, masks: [__mmask16; V]) -> [[__m512; V]; M] {
    if M >= ROWS_TO_FETCH {
        for i in 0..M {
            for v in 0..V {
                _mm_prefetch::<_MM_HINT_ET0>(t.c.wrapping_add(i * t.ldc + 16 * v).cast());
            }
        }
    }
    let mut acc = [[_mm512_setzero_ps(); V]; M];
    if !t.partial.is_null() {
        for (i, acc) in acc.iter_mut().enumerate() {
            let partial = t.partial.wrapping_add(i * t.ldp);
            // SAFETY: the caller vouches for `n` columns of each row; those beyond are masked.
            *acc = std::array::from_fn(|v| unsafe { _mm512_maskz_loadu_ps(masks[v], partial.wrapping_add(16 * v)) });
        }
    }
    acc
}

/// Bias, old value, destination.
///
/// # Safety
/// As [`TileFn`].
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn finish<const M: usize, const V: usize>(t: &Tile, masks: [__mmask16; V], acc: [[__m512; V]; M]) {
    for (i, acc) in acc.into_iter().enumerate() {
        for (v, mut sum) in acc.into_iter().enumerate() {
            let c = t.c.wrapping_add(i * t.ldc + 16 * v);
            // SAFETY: the caller vouches for `n` columns of each row and of the bias; those beyond are masked.
            unsafe {
                if !t.bias.is_null() {
                    sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(masks[v], t.bias.wrapping_add(16 * v)));
                }
                if t.add {
                    sum = _mm512_add_ps(_mm512_maskz_loadu_ps(masks[v], c), sum);
                }
                _mm512_mask_storeu_ps(c, masks[v], sum);
            }
        }
    }
}

/// `M` rows by `V` registers of 16 columns; `KIND` 0, 1, 2 = f32, bf16, f16.
///
/// # Safety
/// As [`TileFn`].
#[target_feature(enable = "avx512f")]
unsafe fn tile<const M: usize, const V: usize, const KIND: u8>(t: &Tile) {
    // SAFETY: the caller vouches for the tile's pointers; columns beyond `n` are masked in `partial`, `bias` and `c`.
    unsafe {
        let masks = masks::<V>(t.n);
        let mut acc = start::<M, V>(t, masks);
        let high = _mm512_set1_epi32(0xffff_0000_u32 as i32);
        let mut a = t.a.cast::<f32>();
        for p in 0..t.k {
            let row: [__m512; V] = std::array::from_fn(|v| {
                let panel = t.b.add((v / 2) * t.panel_stride);
                let column = 16 * (v % 2);
                match KIND {
                    0 => _mm512_loadu_ps(panel.cast::<f32>().add(p * PANEL + column)),
                    1 => {
                        let pairs = _mm512_loadu_si512(panel.cast::<u32>().add(p / 2 * PANEL + column).cast());
                        let wide =
                            if p % 2 == 0 { _mm512_slli_epi32(pairs, 16) } else { _mm512_and_si512(pairs, high) };
                        _mm512_castsi512_ps(wide)
                    }
                    _ => _mm512_cvtph_ps(_mm256_loadu_si256(panel.add(2 * (p * PANEL + column)).cast())),
                }
            });
            for (i, acc) in acc.iter_mut().enumerate() {
                let x = _mm512_set1_ps(*a.add(i));
                for (acc, row) in acc.iter_mut().zip(row) {
                    *acc = _mm512_fmadd_ps(x, row, *acc);
                }
            }
            a = a.add(M);
        }
        finish(t, masks, acc);
    }
}
