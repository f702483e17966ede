//! One register tile of a product, and the choice of the instruction set that computes it.
//!
//! Whatever the instruction set, an element of the result is one chain of fused multiply-adds over the reduction index, so
//! all of them give the same bits: in increasing order for [`Compute::F32`]; for [`Compute::Bf16`] in increasing order of
//! pairs, the odd step of a pair before the even one, which is what `vdpbf16ps` does.

#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512, dot_avx2, dot_avx512};
use super::{dot_portable, portable};
use crate::device::Compute;
use std::sync::OnceLock;

/// Columns of a packed panel of the right-hand side: two AVX-512 registers, four AVX2 registers.
pub const PANEL: usize = 32;

/// How the elements of a packed panel are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `[k][PANEL]` f32.
    F32,
    /// `[k / 2][PANEL]` pairs of bf16: step `2 p` in the low, step `2 p + 1` in the high half of a u32, 0 beyond an odd `k`.
    /// A shift and a mask widen them; `vdpbf16ps` takes them as they are.
    Bf16,
    /// `[k][PANEL]` f16.
    F16,
}

impl Kind {
    /// Bytes of `steps` steps of a panel; `steps` is even for [`Kind::Bf16`], or the last ones.
    pub fn bytes(self, steps: usize) -> usize {
        match self {
            Kind::F32 => 4 * PANEL * steps,
            Kind::Bf16 => 4 * PANEL * steps.div_ceil(2),
            Kind::F16 => 2 * PANEL * steps,
        }
    }
}

/// Arguments of one tile: `c[m][n] = chain(partial, a, b) (+ bias) (+ c)`.
pub struct Tile {
    /// Steps of the reduction.
    pub k: usize,
    /// Left-hand side. [`Compute::F32`]: f32 `[k][m]`. [`Compute::Bf16`]: pairs of bf16, rows of `k / 2` u32 at a stride of `lda`.
    pub a: *const u32,
    /// u32 from one row of `a` to the next, for [`Compute::Bf16`].
    pub lda: usize,
    /// Right-hand panel of the kernel's [`Kind`].
    pub b: *const u8,
    /// Bytes from one right-hand panel to the next, for tiles wider than [`PANEL`].
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
    /// AVX-512F and AVX-512 BF16: tiles of 12 x 32.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
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
                if is_x86_feature_detected!("avx512bf16") {
                    all.push(Isa::Avx512Bf16);
                }
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
            Isa::Avx512Bf16 => "avx512bf16",
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
            Isa::Avx512Bf16 | Isa::Avx512 => avx512::MAX_ROWS,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::MAX_ROWS,
            Isa::Portable => portable::MAX_ROWS,
        }
    }

    /// Panels that a tile of `rows` rows takes at once: few rows need several to keep the f32 multipliers busy. Products of
    /// bf16 with few rows wait for memory, which one stream at a time feeds best.
    pub(super) fn panels(self, compute: Compute, rows: usize) -> usize {
        match (self, compute) {
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512Bf16 | Isa::Avx512, Compute::F32) => avx512::panels(rows),
            _ => 1,
        }
    }

    /// The kernel for `rows` rows (at most [`Isa::max_rows`]) and `n` columns, at most `panels(rows) * PANEL`. For
    /// [`Compute::Bf16`] the panel is one of [`Kind::Bf16`].
    pub(super) fn kernel(self, compute: Compute, kind: Kind, rows: usize, n: usize) -> TileFn {
        match (self, compute) {
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512Bf16 | Isa::Avx512, Compute::F32) => avx512::kernel(kind, rows, n),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512Bf16, Compute::Bf16) => dot_avx512::kernel(rows, n),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, Compute::Bf16) => dot_avx512::kernel_without_bf16(rows, n),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, Compute::F32) => avx2::kernel(kind, rows),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, Compute::Bf16) => dot_avx2::kernel(rows),
            (Isa::Portable, Compute::F32) => portable::kernel(kind, rows),
            (Isa::Portable, Compute::Bf16) => dot_portable::kernel(rows),
        }
    }
}
