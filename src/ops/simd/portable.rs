//! Arrays of 16 lanes in plain Rust.

use super::{LANES, Simd};

/// Any processor.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

/// Whether the target has a fused multiply-add instruction without asking at run time.
const FUSED: bool = cfg!(any(target_feature = "fma", target_arch = "aarch64"));

#[inline(always)]
fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
    // The product of two f32 is exact in f64; calling the C library's fmaf instead would be some 50 times slower.
    if FUSED { a.mul_add(b, c) } else { (f64::from(a) * f64::from(b) + f64::from(c)) as f32 }
}

/// `2^n` for an integer `-126 ..= 127`.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits(((n + 127) as u32) << 23)
}

macro_rules! lanes {
    (|$i:ident| $value:expr) => {{
        let mut out = [0.0f32; LANES];
        for $i in 0..LANES {
            out[$i] = $value;
        }
        out
    }};
}

impl Simd for Portable {
    type V = [f32; LANES];
    const WIDE: bool = false;

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        // SAFETY: the caller gives 16 floats.
        unsafe { p.cast::<[f32; LANES]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        // SAFETY: the caller gives room for 16 floats.
        unsafe { p.cast::<[f32; LANES]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        lanes!(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        lanes!(|i| a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        lanes!(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        lanes!(|i| a[i] / b[i])
    }
    #[inline(always)]
    unsafe fn sqrt(a: Self::V) -> Self::V {
        lanes!(|i| a[i].sqrt())
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        lanes!(|i| multiply_add(a[i], b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn dot(acc: Self::V, a: Self::V, b: Self::V) -> Self::V {
        let (low, high) =
            (|x: f32| f32::from_bits(x.to_bits() << 16), |x: f32| f32::from_bits(x.to_bits() & 0xffff_0000));
        lanes!(|i| multiply_add(low(a[i]), low(b[i]), multiply_add(high(a[i]), high(b[i]), acc[i])))
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        lanes!(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        lanes!(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn round(a: Self::V) -> Self::V {
        lanes!(|i| a[i].round_ties_even())
    }
    #[inline(always)]
    unsafe fn scale(a: Self::V, n: Self::V) -> Self::V {
        // Two steps, because 2^n itself may not be a normal number; the first is exact.
        lanes!(|i| {
            let (n, half) = (n[i] as i32, n[i] as i32 >> 1);
            a[i] * power_of_two(half) * power_of_two(n - half)
        })
    }
}
