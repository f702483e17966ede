//! Sixteen f32 lanes at a time, the same bits on every instruction set.
//!
//! A kernel is written once over [`Simd`] and compiled for AVX-512, AVX2 with FMA, and portably; [`dispatch`] picks at run
//! time. Lanes, their order and every rounding are the same in all three, because a vector has 16 lanes everywhere and
//! multiply-adds are fused everywhere. (On an x86 processor without FMA, from before 2013, a multiply-add is computed in
//! f64 and rounded again, which differs from the fused one about once in 2^29 times.)
//!
//! | file | subject |
//! |-|-|
//! | `portable.rs` | arrays of 16, for every other processor; on aarch64 the compiler makes NEON of them |
//! | `x86.rs` | AVX-512 and AVX2 |
//! | `matrix.rs` | small matrix products in cache |

pub(crate) mod matrix;
mod portable;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86;

use super::rounding::bf16_bits;

/// Lanes of a vector.
pub(crate) const LANES: usize = 16;

/// `n` rounded up to whole vectors.
pub(crate) const fn padded(n: usize) -> usize {
    n.next_multiple_of(LANES)
}

/// One instruction set. Its functions may run only inside [`dispatch`], which has checked that the processor has it.
pub(crate) trait Simd: Copy {
    /// Sixteen f32.
    type V: Copy;
    /// Whether 16 lanes are one register, so that a tile of 8 x 2 vectors fits the register file.
    const WIDE: bool;

    /// Sixteen floats from `p`, at any alignment.
    unsafe fn load(p: *const f32) -> Self::V;
    /// Sixteen floats to `p`, at any alignment.
    unsafe fn store(p: *mut f32, v: Self::V);
    /// The same number in every lane.
    unsafe fn splat(x: f32) -> Self::V;
    /// `a + b`
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// `a - b`
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b`
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// `a / b`
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// The square root.
    unsafe fn sqrt(a: Self::V) -> Self::V;
    /// `a * b + c` with one rounding.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger of each lane; `b` where either is NaN.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// The smaller of each lane; `b` where either is NaN.
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// The nearest integer, ties to even.
    unsafe fn round(a: Self::V) -> Self::V;
    /// `a * 2^n` with one rounding; `n` holds integers in `-252 ..= 252`.
    unsafe fn scale(a: Self::V, n: Self::V) -> Self::V;

    /// `fma(a0, b0, fma(a1, b1, acc))` lane by lane, where the bits of a lane of `a` and `b` are two bf16, number 1 in the
    /// high half. As `vdpbf16ps`, but for sums that are subnormal.
    unsafe fn dot(acc: Self::V, a: Self::V, b: Self::V) -> Self::V;
    /// Sixteen floats rounded to bf16, to `p` at any alignment.
    #[inline(always)]
    unsafe fn store_bf16(p: *mut u16, v: Self::V) {
        let mut lanes = [0.0f32; LANES];
        // SAFETY: `lanes` holds 16 floats, and the caller gives room for 16 bf16 at `p`.
        unsafe {
            Self::store(lanes.as_mut_ptr(), v);
            for (i, lane) in lanes.into_iter().enumerate() {
                *p.add(i) = bf16_bits(lane);
            }
        }
    }

    /// Both rounded to bf16, as the halves of each lane's bits: what [`Simd::dot`] takes.
    #[inline(always)]
    unsafe fn pair(low: Self::V, high: Self::V) -> Self::V {
        // SAFETY: the caller runs inside `dispatch`.
        unsafe { pair_lanes::<Self>(low, high) }
    }

    /// Writes the transpose of the 16 x 16 block at `src` to `dst`.
    #[inline(always)]
    unsafe fn transpose(dst: *mut f32, dst_stride: usize, src: *const f32, src_stride: usize) {
        for i in 0..LANES {
            for j in 0..LANES {
                // SAFETY: the caller gives two blocks of 16 rows of 16 floats at these strides.
                unsafe { *dst.add(j * dst_stride + i) = *src.add(i * src_stride + j) };
            }
        }
    }

    /// `exp(x)`. Relative error below 2^-22.9 where the result is a normal number; 0 below -104, infinity above 88.73, NaN kept.
    ///
    /// `exp(x) = 2^n exp(r)` with `n = round(x / ln 2)`, and a polynomial of degree 6 for `exp(r)`, fitted to the smallest
    /// relative error on `|r| <= ln(2) / 2`.
    #[inline(always)]
    unsafe fn exp(x: Self::V) -> Self::V {
        // SAFETY: arithmetic on registers; the caller runs inside `dispatch`.
        unsafe {
            let x = Self::max(Self::splat(-105.0), Self::min(Self::splat(89.0), x));
            let n = Self::round(Self::mul(x, Self::splat(std::f32::consts::LOG2_E)));
            // ln(2) as the sum of two f32; the first product is exact inside the fused operation.
            let r = Self::fma(n, Self::splat(-std::f32::consts::LN_2), x);
            let r = Self::fma(n, Self::splat(1.904_654_3e-9), r);
            let mut q = Self::splat(EXP[0]);
            let mut i = 1;
            while i < EXP.len() {
                q = Self::fma(q, r, Self::splat(EXP[i]));
                i += 1;
            }
            let p = Self::add(Self::fma(q, Self::mul(r, r), r), Self::splat(1.0));
            Self::scale(p, n)
        }
    }

    /// `2^x`, for `x` up to 88. Relative error below 2^-23.5 where the result is a normal number; 0 below -150, NaN kept.
    ///
    /// `2^x = 2^n 2^f` with `n = round(x)`, and a polynomial of degree 6 for `2^f`, fitted to the smallest relative error on
    /// `|f| <= 1 / 2`.
    #[inline(always)]
    unsafe fn exp2(x: Self::V) -> Self::V {
        // SAFETY: arithmetic on registers; the caller runs inside `dispatch`.
        unsafe {
            let x = Self::max(Self::splat(-160.0), x);
            let n = Self::round(x);
            let f = Self::sub(x, n);
            let mut p = Self::splat(EXP2[0]);
            let mut i = 1;
            while i < EXP2.len() {
                p = Self::fma(p, f, Self::splat(EXP2[i]));
                i += 1;
            }
            Self::scale(p, n)
        }
    }

    /// [`sum_of_lanes`]
    #[inline(always)]
    unsafe fn sum(v: Self::V) -> f32 {
        let mut lanes = [0.0f32; LANES];
        // SAFETY: `lanes` holds 16 floats.
        unsafe { Self::store(lanes.as_mut_ptr(), v) };
        sum_of_lanes(lanes)
    }

    /// The largest lane.
    #[inline(always)]
    unsafe fn largest(v: Self::V) -> f32 {
        let mut lanes = [0.0f32; LANES];
        // SAFETY: `lanes` holds 16 floats.
        unsafe { Self::store(lanes.as_mut_ptr(), v) };
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width {
                lanes[i] = if lanes[i] > lanes[i + width] { lanes[i] } else { lanes[i + width] };
            }
            width /= 2;
        }
        lanes[0]
    }

    /// Up to 16 floats; the lanes beyond are 0.
    #[inline(always)]
    unsafe fn read(x: &[f32]) -> Self::V {
        if x.len() >= LANES {
            // SAFETY: 16 floats are there.
            return unsafe { Self::load(x.as_ptr()) };
        }
        let mut lanes = [0.0f32; LANES];
        lanes[..x.len()].copy_from_slice(x);
        // SAFETY: `lanes` holds 16 floats.
        unsafe { Self::load(lanes.as_ptr()) }
    }

    /// Writes as many lanes as `y` has room for, 16 at most.
    #[inline(always)]
    unsafe fn write(y: &mut [f32], v: Self::V) {
        if y.len() >= LANES {
            // SAFETY: room for 16 floats.
            return unsafe { Self::store(y.as_mut_ptr(), v) };
        }
        let mut lanes = [0.0f32; LANES];
        // SAFETY: `lanes` holds 16 floats.
        unsafe { Self::store(lanes.as_mut_ptr(), v) };
        let n = y.len();
        y.copy_from_slice(&lanes[..n]);
    }
}

/// The sum, always in the same order: halves are added to each other until one lane is left.
#[inline(always)]
pub(crate) fn sum_of_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// [`Simd::pair`] lane by lane.
#[inline(always)]
unsafe fn pair_lanes<S: Simd>(low: S::V, high: S::V) -> S::V {
    let (mut lanes, mut upper) = ([0.0f32; LANES], [0.0f32; LANES]);
    // SAFETY: both hold 16 floats.
    unsafe {
        S::store(lanes.as_mut_ptr(), low);
        S::store(upper.as_mut_ptr(), high);
        for (low, high) in lanes.iter_mut().zip(upper) {
            *low = f32::from_bits(u32::from(bf16_bits(*low)) | u32::from(bf16_bits(high)) << 16);
        }
        S::load(lanes.as_ptr())
    }
}

/// `(exp(r) - 1 - r) / r^2`, highest power first.
const EXP: [f32; 5] = [0.001_381_453_8, 0.008_368_745, 0.041_668_39, 0.166_665_21, 0.499_999_94];

/// `2^f`, highest power first.
const EXP2: [f32; 7] =
    [0.000_155_946_78, 0.001_340_663_4, 0.009_617_693, 0.055_503_104, 0.240_226_52, 0.693_147_24, 1.0];

/// A computation written over any [`Simd`]. `run` and all it calls must be `#[inline(always)]` and free of closures that
/// compute with vectors, so that everything is compiled for the instruction set of the caller.
pub(crate) trait Kernel {
    /// What it gives back.
    type Output;
    /// The computation. Called only by [`dispatch`].
    unsafe fn run<S: Simd>(self) -> Self::Output;
}

/// [`dispatch`] for kernels that spend their time in [`Simd::dot`] or in rounding to bf16: AVX-512 BF16 where this processor has it.
#[inline]
pub(crate) fn dispatch_dot<K: Kernel>(kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512bf16")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("fma")
    {
        // SAFETY: the features were detected just now.
        return unsafe { x86::run_avx512_bf16(kernel) };
    }
    dispatch(kernel)
}

/// Runs `kernel` with the widest instruction set that this processor has.
#[inline]
pub(crate) fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("fma") {
            // SAFETY: the features were detected just now.
            return unsafe { x86::run_avx512(kernel) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the features were detected just now.
            return unsafe { x86::run_avx2(kernel) };
        }
    }
    // SAFETY: the portable implementation needs no feature.
    unsafe { kernel.run::<portable::Portable>() }
}
