//! One register tile of a product, and the choice of the instruction set that computes it.
//!
//! Whatever the instruction set, an element of the result is one chain of fused multiply-adds over the reduction index, so
//! all of them give the same bits: in increasing order for [`Inputs::F32`]; for [`Inputs::Bf16`] in increasing order of pairs,
//! the odd step of a pair before the even one, which is what `vdpbf16ps` does; for [`Inputs::Int8`] over groups of 32 steps.

#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512, dot_avx2, dot_avx512, int8_avx512, lossless_avx512};
use super::{dot_portable, int8, int8_portable, lossless, portable};
use crate::device::Compute;
use std::sync::OnceLock;

/// Columns of a packed panel of the right-hand side: two AVX-512 registers, four AVX2 registers.
pub const PANEL: usize = 32;

/// What a product multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inputs {
    /// f32 by whatever the panel holds, widened.
    F32,
    /// Pairs of bf16; the panel is one of [`Kind::Bf16`] or [`Kind::Lossless`].
    Bf16,
    /// Integers of 8 bits; the panel is one of [`Kind::Int8`].
    Int8,
}

impl Inputs {
    /// Those of a product computed as `compute` with a panel of `kind`.
    pub fn new(compute: Compute, kind: Option<Kind>) -> Inputs {
        match (compute, kind) {
            (_, Some(Kind::Int8)) => Inputs::Int8,
            (Compute::F32, _) => Inputs::F32,
            (Compute::Bf16, _) => Inputs::Bf16,
        }
    }

    /// u32 of a packed row of the left-hand side with `k` steps.
    pub fn left_len(self, k: usize) -> usize {
        match self {
            Inputs::F32 => k,
            Inputs::Bf16 => k.div_ceil(2),
            Inputs::Int8 => int8::left_len(k),
        }
    }
}

/// How the elements of a packed panel are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `[k][PANEL]` f32.
    F32,
    /// `[k / 2][PANEL]` pairs of bf16: step `2 p` in the low, step `2 p + 1` in the high half of a u32, 0 beyond an odd `k`.
    /// A shift and a mask widen them; `vdpbf16ps` takes them as they are.
    Bf16,
    /// bf16 in 12 bits, see `lossless.rs`.
    Lossless,
    /// `[k][PANEL]` f16.
    F16,
    /// Groups of 32 steps with scales, see `int8.rs`.
    Int8,
}

impl Kind {
    /// Bytes of `steps` steps of a panel; `steps` is even for [`Kind::Bf16`] and whole blocks for [`Kind::Lossless`], or up to the last.
    pub fn bytes(self, steps: usize) -> usize {
        match self {
            Kind::F32 => 4 * PANEL * steps,
            Kind::Bf16 => 4 * PANEL * steps.div_ceil(2),
            Kind::Lossless => lossless::bytes(steps),
            Kind::F16 => 2 * PANEL * steps,
            Kind::Int8 => int8::PANEL_GROUP * steps.div_ceil(int8::GROUP),
        }
    }
}

/// Arguments of one tile: `c[m][n] = chain(partial, a, b) (+ bias) (+ c)`.
pub struct Tile {
    /// Steps of the reduction.
    pub k: usize,
    /// Left-hand side. [`Inputs::F32`]: f32 `[k][m]`. [`Inputs::Bf16`]: pairs of bf16, rows of `k / 2` u32 at a stride of `lda`.
    /// [`Inputs::Int8`]: rows of quantised groups at a stride of `lda`.
    pub a: *const u32,
    /// u32 from one row of `a` to the next; not for [`Inputs::F32`].
    pub lda: usize,
    /// Right-hand panel of the kernel's [`Kind`].
    pub b: *const u8,
    /// Bytes from one right-hand panel to the next, for tiles wider than [`PANEL`] and to fetch the next one beforehand; 0 where the
    /// panel is the only one.
    pub panel_stride: usize,
    /// Blocks of [`Kind::Lossless`] panels that stay as they are.
    pub raw: *const u8,
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

/// The [`TileFn`] for `rows` rows: what an expression of the constant names for each number of them, the last for all above.
macro_rules! by_rows {
    ($rows:expr, $m:ident => $tile:expr, $($n:literal)*; $most:literal) => {
        match $rows {
            $($n => {
                const $m: usize = $n;
                $tile as $crate::ops::matmul::tile::TileFn
            })*
            _ => {
                const $m: usize = $most;
                $tile
            }
        }
    };
}
pub(super) use by_rows;

/// Instruction sets with a kernel of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// AVX-512F, BW and BF16: tiles of 12 x 32.
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
                if is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512bw") {
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

    /// Whether tiles of integers have AVX-512 VNNI.
    #[cfg(target_arch = "x86_64")]
    fn has_vnni(self) -> bool {
        matches!(self, Isa::Avx512Bf16 | Isa::Avx512) && is_x86_feature_detected!("avx512vnni")
    }

    /// Most rows of a tile.
    pub(super) fn max_rows(self, inputs: Inputs) -> usize {
        match (self, inputs) {
            #[cfg(target_arch = "x86_64")]
            (_, Inputs::Int8) if self.has_vnni() => int8_avx512::MAX_ROWS,
            (_, Inputs::Int8) | (Isa::Portable, _) => portable::MAX_ROWS,
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512Bf16 | Isa::Avx512, _) => avx512::MAX_ROWS,
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, _) => avx2::MAX_ROWS,
        }
    }

    /// Panels that a tile of `rows` rows takes at once: few rows need several to keep the f32 multipliers busy. Products of
    /// bf16 with few rows wait for memory, which one stream at a time feeds best.
    pub(super) fn panels(self, inputs: Inputs, rows: usize) -> usize {
        match (self, inputs) {
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512Bf16 | Isa::Avx512, Inputs::F32) => avx512::panels(rows),
            _ => 1,
        }
    }

    /// Whether tiles restore panels of [`Kind::Lossless`] themselves.
    pub(super) fn restores(self, inputs: Inputs) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => inputs == Inputs::Bf16,
            _ => false,
        }
    }

    /// The kernel for `rows` rows (at most [`Isa::max_rows`]) and `n` columns, at most `panels(rows) * PANEL`;
    /// [`Kind::Lossless`] only where tiles [restore](Isa::restores) it.
    pub(super) fn kernel(self, inputs: Inputs, kind: Kind, rows: usize, n: usize) -> TileFn {
        match (self, inputs) {
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512Bf16, Inputs::Bf16) if kind == Kind::Lossless => lossless_avx512::kernel(rows),
            #[cfg(target_arch = "x86_64")]
            (_, Inputs::Int8) if self.has_vnni() => int8_avx512::kernel(rows),
            (_, Inputs::Int8) => int8_portable::kernel(rows),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512Bf16 | Isa::Avx512, Inputs::F32) => avx512::kernel(kind, rows, n),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512Bf16, Inputs::Bf16) => dot_avx512::kernel(rows, n),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, Inputs::Bf16) => dot_avx512::kernel_without_bf16(rows, n),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, Inputs::F32) => avx2::kernel(kind, rows),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, Inputs::Bf16) => dot_avx2::kernel(rows),
            (Isa::Portable, Inputs::F32) => portable::kernel(kind, rows),
            (Isa::Portable, Inputs::Bf16) => dot_portable::kernel(rows),
        }
    }
}
