//! Elements that row operations read and write as f32: f32 itself, or bf16 where only products of bf16 use the result.

use super::simd::{LANES, Simd};
use crate::device::Tensor;
use half::bf16;

/// f32 or bf16. Kernels that write bf16 run in [`dispatch_dot`](super::simd::dispatch_dot).
pub(crate) trait Element: Copy + Send + Sync {
    /// Up to 16 elements as f32; the lanes beyond are 0.
    unsafe fn read<S: Simd>(x: &[Self]) -> S::V;
    /// Writes as many lanes as `y` has room for, 16 at most, rounded as products round them.
    unsafe fn write<S: Simd>(y: &mut [Self], v: S::V);
    /// The elements of a tensor of this type.
    fn of(t: &Tensor) -> &[Self];
    /// [`Element::of`], writable.
    fn of_mut(t: &mut Tensor) -> &mut [Self];
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn read<S: Simd>(x: &[f32]) -> S::V {
        // SAFETY: the caller runs inside `dispatch`.
        unsafe { S::read(x) }
    }

    #[inline(always)]
    unsafe fn write<S: Simd>(y: &mut [f32], v: S::V) {
        // SAFETY: as above.
        unsafe { S::write(y, v) }
    }

    fn of(t: &Tensor) -> &[f32] {
        t.f32()
    }

    fn of_mut(t: &mut Tensor) -> &mut [f32] {
        t.f32_mut()
    }
}

impl Element for bf16 {
    #[inline(always)]
    unsafe fn read<S: Simd>(x: &[bf16]) -> S::V {
        let mut lanes = [0.0f32; LANES];
        for (lane, x) in lanes.iter_mut().zip(x) {
            *lane = f32::from_bits(u32::from(x.to_bits()) << 16);
        }
        // SAFETY: `lanes` holds 16 floats.
        unsafe { S::load(lanes.as_ptr()) }
    }

    #[inline(always)]
    unsafe fn write<S: Simd>(y: &mut [bf16], v: S::V) {
        if y.len() >= LANES {
            // SAFETY: room for 16 bf16.
            return unsafe { S::store_bf16(y.as_mut_ptr().cast(), v) };
        }
        let mut lanes = [bf16::ZERO; LANES];
        // SAFETY: as above.
        unsafe { S::store_bf16(lanes.as_mut_ptr().cast(), v) };
        let n = y.len();
        y.copy_from_slice(&lanes[..n]);
    }

    fn of(t: &Tensor) -> &[bf16] {
        t.bf16()
    }

    fn of_mut(t: &mut Tensor) -> &mut [bf16] {
        t.bf16_mut()
    }
}
