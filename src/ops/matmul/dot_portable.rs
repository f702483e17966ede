//! Tiles over pairs of bf16 in plain Rust: two `f32::mul_add` in the order of `vdpbf16ps` (see `dot_avx512.rs`).

use super::portable::{finish, start};
use super::tile::{PANEL, Tile, TileFn, by_rows};

/// The kernel for a tile of `rows` rows and at most one panel.
pub fn kernel(rows: usize) -> TileFn {
    by_rows!(rows, M => tile::<M>, 1 2 3; 4)
}

/// `M` rows.
///
/// # Safety
/// As [`TileFn`].
unsafe fn tile<const M: usize>(t: &Tile) {
    // SAFETY: the caller vouches for the tile's pointers; panels of pairs are 4-byte aligned.
    unsafe {
        let mut acc = start::<M>(t);
        let (low, high) = (|x: u32| f32::from_bits(x << 16), |x: u32| f32::from_bits(x & 0xffff_0000));
        for p in 0..t.k.div_ceil(2) {
            let row = std::slice::from_raw_parts(t.b.cast::<u32>().add(p * PANEL), PANEL);
            for (i, acc) in acc.iter_mut().enumerate() {
                let x = *t.a.add(i * t.lda + p);
                for (acc, &w) in acc.iter_mut().zip(row) {
                    *acc = low(x).mul_add(low(w), high(x).mul_add(high(w), *acc));
                }
            }
        }
        finish(t, &acc);
    }
}
