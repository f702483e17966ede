//! Tiles of 8-bit integers in plain Rust, the same bits as `int8_avx512.rs`.

use super::int8::{GROUP, LEFT_GROUP, PANEL_GROUP};
use super::portable::finish;
use super::tile::{PANEL, Tile, TileFn, by_rows};
use crate::ops::simd::{Kernel, Simd, dispatch};
use half::f16;

/// The kernel for a tile of `rows` rows (at most 4) and at most one panel.
pub fn kernel(rows: usize) -> TileFn {
    by_rows!(rows, M => tile::<M>, 1 2 3; 4)
}

/// `M` rows.
///
/// # Safety
/// As [`TileFn`].
unsafe fn tile<const M: usize>(t: &Tile) {
    dispatch(Integers::<M>(t));
}

struct Integers<'a, const M: usize>(&'a Tile);

impl<const M: usize> Kernel for Integers<'_, M> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let t = self.0;
        let mut acc = [[0.0f32; PANEL]; M];
        // SAFETY: the caller of the tile vouches for its pointers.
        unsafe {
            for g in 0..t.k.div_ceil(GROUP) {
                let panel = std::slice::from_raw_parts(t.b.add(g * PANEL_GROUP), PANEL_GROUP);
                let (scales, weights) = panel.split_at(2 * PANEL);
                for (i, acc) in acc.iter_mut().enumerate() {
                    let left = std::slice::from_raw_parts(t.a.add(i * t.lda + g * LEFT_GROUP), LEFT_GROUP);
                    let mut sums = [(left[1] as i32).wrapping_neg(); PANEL];
                    for (weights, &x) in weights.chunks_exact(4 * PANEL).zip(&left[2..]) {
                        let x = x.to_le_bytes().map(|x| i32::from(x as i8));
                        for (sum, w) in sums.iter_mut().zip(weights.chunks_exact(4)) {
                            *sum += (0..4).map(|i| i32::from(w[i]) * x[i]).sum::<i32>();
                        }
                    }
                    let scale = f32::from_bits(left[0]);
                    for ((acc, sum), d) in acc.iter_mut().zip(sums).zip(scales.chunks_exact(2)) {
                        let d = f16::from_le_bytes([d[0], d[1]]).to_f32();
                        *acc = (sum as f32).mul_add(d * scale, *acc);
                    }
                }
            }
            finish(t, &acc);
        }
    }
}
