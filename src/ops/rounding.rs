//! F32 to BF16, the way AVX-512 BF16 does it on every processor.

use super::simd::{Kernel, LANES, Simd, dispatch_dot};
use half::bf16;

/// The bits of `x` as bf16: to nearest, ties to even; subnormal numbers become 0 with their sign, NaN stays NaN (quiet).
/// What `vcvtneps2bf16` gives.
#[inline(always)]
pub(crate) fn bf16_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    let nearest = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    let special = if magnitude > 0x7f80_0000 { bits >> 16 | 0x40 } else { bits >> 16 & 0x8000 };
    let normal = (0x0080_0000..=0x7f80_0000).contains(&magnitude);
    (if normal { nearest } else { special }) as u16
}

/// `x` rounded as [`bf16_bits`], as f32.
#[inline(always)]
pub(crate) fn bf16_value(x: f32) -> f32 {
    f32::from_bits(u32::from(bf16_bits(x)) << 16)
}

/// `y[i] = x[i]` rounded. Equal lengths.
pub(crate) fn round(y: &mut [bf16], x: &[f32]) {
    dispatch_dot(Round { y, x });
}

struct Round<'a> {
    y: &'a mut [bf16],
    x: &'a [f32],
}

impl Kernel for Round<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let whole = self.x.len() / LANES * LANES;
        for (y, x) in self.y.chunks_exact_mut(LANES).zip(self.x.chunks_exact(LANES)) {
            // SAFETY: inside `dispatch_dot`; 16 elements are there on both sides.
            unsafe { S::store_bf16(y.as_mut_ptr().cast(), S::load(x.as_ptr())) };
        }
        for (y, x) in self.y[whole..].iter_mut().zip(&self.x[whole..]) {
            *y = bf16::from_bits(bf16_bits(*x));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_to_the_nearest_even_and_flushes_what_is_subnormal() {
        let cases: [(u32, u16); 12] = [
            (0x3f80_0000, 0x3f80),
            (0x3f80_7fff, 0x3f80),
            (0x3f80_8000, 0x3f80),
            (0x3f80_8001, 0x3f81),
            (0x3f81_8000, 0x3f82),
            (0xbf81_8000, 0xbf82),
            (0x7f7f_ffff, 0x7f80),
            (0xff80_0000, 0xff80),
            (0x7fa0_0001, 0x7fe0),
            (0xffff_ffff, 0xffff),
            (0x007f_ffff, 0x0000),
            (0x8000_0001, 0x8000),
        ];
        for (x, want) in cases {
            let mut y = [bf16::ZERO; 33];
            round(&mut y, &[f32::from_bits(x); 33]);
            assert!(y.iter().all(|y| y.to_bits() == want), "{x:08x}: {:04x} for {want:04x}", y[0].to_bits());
        }
        // Normal numbers: as the `half` crate rounds them.
        for i in 0..1_000_000u32 {
            let x = f32::from_bits(i.wrapping_mul(2_654_435_761));
            if x.is_normal() {
                assert_eq!(bf16_bits(x), bf16::from_f32(x).to_bits(), "{x:e}");
            }
        }
    }
}
