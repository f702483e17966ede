//! One register tile of a product, and the choice of the instruction set that computes it.
//!
//! Whatever the instruction set, an element of the result is one chain of fused multiply-adds over the reduction index in
//! increasing order, so all of them give the same bits.

use super::portable;
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};
use std::sync::OnceLock;

/// Columns of a packed panel of the right-hand side: two AVX-512 registers, four AVX2 registers.
pub const PANEL: usize = 32;

/// How the elements of a packed panel `[k][PANEL]` are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// f32, in order.
    F32,
    /// bf16 pairs: the `j`-th u32 of a row holds column `j` in its low and column `j + 16` in its high half, so that a shift
    /// and a mask widen a whole row.
    Bf16,
    /// f16, in order.
    F16,
}

/// Arguments of one tile: `c[m][n] = chain(partial, a, b) (+ bias) (+ c)`.
pub struct Tile {
    /// Steps of the reduction.
    pub k: usize,
    /// `[k][m]`: left-hand panel.
    pub a: *const f32,
    /// `[k][PANEL]` elements of the kernel's [`Kind`]: right-hand panel.
    pub b: *const u8,
    /// Elements from one right-hand panel to the next, for tiles wider than [`PANEL`].
    pub panel_stride: usize,
    /// `[m][ldp]`: the chain so far; null at its start, where it is 0.
    pub partial: *const f32,
    /// Row stride of `partial`.
    pub ldp: usize,
    /// `[m][ldc]`: destination.
    pub c: *mut f32,
    /// Row stride of `c`.
    pub ldc: usize,
    /// Columns that exist; the panel is padded beyond them.
    pub n: usize,
    /// `[n]`: added after the chain; null for none.
    pub bias: *const f32,
    /// Adds the old `c` last.
    pub add: bool,
}

/// Computes one tile.
///
/// # Safety
/// The pointers of the tile cover what its fields say, `c` is not shared, and the CPU has the kernel's instruction set.
pub type TileFn = unsafe fn(&Tile);

/// Instruction sets with a kernel of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// AVX-512F: tiles of 12 x 32.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX2, FMA and F16C: tiles of 6 x 16.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// Any processor; fast only where the compiler's target has a fused multiply-add.
    Portable,
}

impl Isa {
    /// What this processor can run, fastest first.
    pub fn available() -> Vec<Isa> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                all.push(Isa::Avx512);
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
                all.push(Isa::Avx2);
            }
        }
        all.push(Isa::Portable);
        all
    }

    /// The fastest one of this processor.
    pub fn best() -> Isa {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| Isa::available()[0])
    }

    /// Name in benchmark results.
    pub fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => "avx2",
            Isa::Portable => "portable",
        }
    }

    /// Most rows of a tile.
    pub(super) fn max_rows(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => avx512::MAX_ROWS,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::MAX_ROWS,
            Isa::Portable => portable::MAX_ROWS,
        }
    }

    /// Panels that a tile of `rows` rows takes at once: few rows need several to keep the multipliers busy.
    pub(super) fn panels(self, rows: usize) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => avx512::panels(rows),
            _ => 1,
        }
    }

    /// The kernel for `rows` rows (at most [`Isa::max_rows`]) and `n` columns, at most `panels(rows) * PANEL`.
    pub(super) fn kernel(self, kind: Kind, rows: usize, n: usize) -> TileFn {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => avx512::kernel(kind, rows, n),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::kernel(kind, rows),
            Isa::Portable => portable::kernel(kind, rows),
        }
    }
}
