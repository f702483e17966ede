//! Tiles in plain Rust, for processors without a kernel of their own: the same chains, through `f32::mul_add`.

use super::tile::{Kind, PANEL, Tile, TileFn, by_rows};
use half::f16;

/// Rows of the largest tile.
pub const MAX_ROWS: usize = 4;

/// The kernel for a tile of `rows` rows and at most one panel.
pub fn kernel(kind: Kind, rows: usize) -> TileFn {
    match kind {
        Kind::F32 => by_rows!(rows, M => tile::<M, 0>, 1 2 3; 4),
        Kind::Bf16 | Kind::Lossless => by_rows!(rows, M => tile::<M, 1>, 1 2 3; 4),
        Kind::F16 | Kind::Int8 => by_rows!(rows, M => tile::<M, 2>, 1 2 3; 4),
    }
}

/// The chains so far.
///
/// # Safety
/// As [`TileFn`].
pub(super) unsafe fn start<const M: usize>(t: &Tile) -> [[f32; PANEL]; M] {
    let mut acc = [[0.0f32; PANEL]; M];
    if !t.partial.is_null() {
        for (i, acc) in acc.iter_mut().enumerate() {
            // SAFETY: the caller vouches for `n` columns of each row.
            acc[..t.n].copy_from_slice(unsafe { std::slice::from_raw_parts(t.partial.add(i * t.ldp), t.n) });
        }
    }
    acc
}

/// Bias, old value, destination.
///
/// # Safety
/// As [`TileFn`].
pub(super) unsafe fn finish(t: &Tile, acc: &[[f32; PANEL]]) {
    for (i, acc) in acc.iter().enumerate() {
        for (j, sum) in acc[..t.n].iter().enumerate() {
            // SAFETY: the caller vouches for `n` columns of each row and of the bias.
            unsafe {
                let c = t.c.add(i * t.ldc + j);
                let sum = if t.bias.is_null() { *sum } else { sum + *t.bias.add(j) };
                *c = if t.add { *c + sum } else { sum };
            }
        }
    }
}

/// `M` rows; `KIND` 0, 1, 2 = f32, bf16, f16.
///
/// # Safety
/// As [`TileFn`].
unsafe fn tile<const M: usize, const KIND: u8>(t: &Tile) {
    // SAFETY: the caller vouches for the tile's pointers; panels hold PANEL elements a row, aligned to their kind.
    unsafe {
        let mut acc = start::<M>(t);
        let a = t.a.cast::<f32>();
        for p in 0..t.k {
            let mut row = [0.0f32; PANEL];
            match KIND {
                0 => row.copy_from_slice(std::slice::from_raw_parts(t.b.cast::<f32>().add(p * PANEL), PANEL)),
                1 => {
                    let pairs = std::slice::from_raw_parts(t.b.cast::<u32>().add(p / 2 * PANEL), PANEL);
                    let wide = |pair: u32| if p % 2 == 0 { pair << 16 } else { pair & 0xffff_0000 };
                    row.iter_mut().zip(pairs).for_each(|(w, &pair)| *w = f32::from_bits(wide(pair)));
                }
                _ => {
                    let halves = std::slice::from_raw_parts(t.b.cast::<f16>().add(p * PANEL), PANEL);
                    row.iter_mut().zip(halves).for_each(|(wide, half)| *wide = half.to_f32());
                }
            }
            for (i, acc) in acc.iter_mut().enumerate() {
                let x = *a.add(p * M + i);
                acc.iter_mut().zip(&row).for_each(|(acc, w)| *acc = x.mul_add(*w, *acc));
            }
        }
        finish(t, &acc);
    }
}
