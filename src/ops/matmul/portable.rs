//! Tiles in plain Rust, for processors without a kernel of their own: the same chains, through `f32::mul_add`.

use super::tile::{Kind, PANEL, Tile, TileFn};
use half::f16;

/// Rows of the largest tile.
pub const MAX_ROWS: usize = 4;

/// The kernel for a tile of `rows` rows and at most one panel.
pub fn kernel(kind: Kind, rows: usize) -> TileFn {
    match (rows, kind) {
        (1, Kind::F32) => tile::<1, 0>,
        (2, Kind::F32) => tile::<2, 0>,
        (3, Kind::F32) => tile::<3, 0>,
        (_, Kind::F32) => tile::<4, 0>,
        (1, Kind::Bf16) => tile::<1, 1>,
        (2, Kind::Bf16) => tile::<2, 1>,
        (3, Kind::Bf16) => tile::<3, 1>,
        (_, Kind::Bf16) => tile::<4, 1>,
        (1, Kind::F16) => tile::<1, 2>,
        (2, Kind::F16) => tile::<2, 2>,
        (3, Kind::F16) => tile::<3, 2>,
        (_, Kind::F16) => tile::<4, 2>,
    }
}

/// `M` rows; `KIND` 0, 1, 2 = f32, bf16, f16.
///
/// # Safety
/// As [`TileFn`].
unsafe fn tile<const M: usize, const KIND: u8>(t: &Tile) {
    let mut acc = [[0.0f32; PANEL]; M];
    // SAFETY: the caller vouches for the tile's pointers; panels hold PANEL elements a row, 2-byte kinds 2-byte aligned.
    unsafe {
        if !t.partial.is_null() {
            for (i, acc) in acc.iter_mut().enumerate() {
                acc[..t.n].copy_from_slice(std::slice::from_raw_parts(t.partial.add(i * t.ldp), t.n));
            }
        }
        for p in 0..t.k {
            let mut row = [0.0f32; PANEL];
            match KIND {
                0 => row.copy_from_slice(std::slice::from_raw_parts(t.b.cast::<f32>().add(p * PANEL), PANEL)),
                1 => {
                    let pairs = std::slice::from_raw_parts(t.b.cast::<[u16; 2]>().add(p * PANEL / 2), PANEL / 2);
                    for (j, pair) in pairs.iter().enumerate() {
                        let pair = u32::from_ne_bytes(std::mem::transmute::<[u16; 2], [u8; 4]>(*pair));
                        row[j] = f32::from_bits(pair << 16);
                        row[j + 16] = f32::from_bits(pair & 0xffff_0000);
                    }
                }
                _ => {
                    let halves = std::slice::from_raw_parts(t.b.cast::<f16>().add(p * PANEL), PANEL);
                    row.iter_mut().zip(halves).for_each(|(wide, half)| *wide = half.to_f32());
                }
            }
            for (i, acc) in acc.iter_mut().enumerate() {
                let x = *t.a.add(p * M + i);
                acc.iter_mut().zip(&row).for_each(|(acc, w)| *acc = x.mul_add(*w, *acc));
            }
        }
        for (i, acc) in acc.iter().enumerate() {
            for (j, sum) in acc[..t.n].iter().enumerate() {
                let c = t.c.add(i * t.ldc + j);
                let sum = if t.bias.is_null() { *sum } else { sum + *t.bias.add(j) };
                *c = if t.add { *c + sum } else { sum };
            }
        }
    }
}
