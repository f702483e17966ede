//! Rotary position embedding (Su et al. 2021), in the "rotate halves" layout of Hugging Face's Llama.

use super::check;
use super::parallel::{self, rows_per_task};
use super::scratch::Scratch;
use super::simd::{Kernel, Simd, dispatch};
#[cfg(feature = "cuda")]
use crate::device::{
    Backend,
    cuda::{
        Grid,
        abi::{ROPE_MAX_HALF, rope_params},
    },
};
use crate::device::{Cost, DType, Device, Op, Tensor};
use crate::error::{Error, Result};

/// Rotates each head of `x` in place by the angles of its token's position.
///
/// `x`: F32 `[tokens, heads * head_dim]`, `positions`: U32 `[tokens]`, `inv_freq`: F32 `[head_dim / 2]`, radians per position.
/// With `a = x[i]`, `b = x[i + head_dim / 2]`: `a' = a cos - b sin`, `b' = b cos + a sin`. The angle is the f32 product
/// `position * inv_freq[i]`, as in PyTorch; its sine and cosine are computed in f64 and are within one unit in the last
/// place, whatever the position.
pub fn rope(dev: &Device, x: &mut Tensor, positions: &Tensor, inv_freq: &Tensor) -> Result<()> {
    rotate(dev, "rope", Op::Rope, x, positions, inv_freq, 1.0)
}

/// Gradient of [`rope`], in place: the rotation by the opposite angles. Arguments as there.
pub fn rope_backward(dev: &Device, dx: &mut Tensor, positions: &Tensor, inv_freq: &Tensor) -> Result<()> {
    rotate(dev, "rope_backward", Op::RopeBackward, dx, positions, inv_freq, -1.0)
}

fn rotate(
    dev: &Device,
    name: &'static str,
    op: Op,
    x: &mut Tensor,
    positions: &Tensor,
    inv_freq: &Tensor,
    direction: f32,
) -> Result<()> {
    let half = inv_freq.elements();
    let (tokens, width) = (x.rows(), x.row_len());
    check(name, "positions", positions, DType::U32, &[tokens])?;
    check(name, "inv_freq", inv_freq, DType::F32, &[half])?;
    check(name, "x", x, dev.activation(), x.shape())?;
    if half == 0 || width == 0 || !width.is_multiple_of(2 * half) {
        return Err(Error::shape(name, "x", format!("rows of whole heads of {}", 2 * half), format!("{width}")));
    }
    let n = (tokens * width) as u64;
    let bytes = 2 * x.size_bytes() as u64 + 4 * (tokens + half) as u64;
    let _span = dev.span(op, Cost { flops: 3 * n, bytes });
    #[cfg(feature = "cuda")]
    if let Backend::Cuda(cuda) = dev.backend() {
        check_card_limits(name, positions, half)?;
        let params = rope_params {
            x: x.kernel_mut(cuda)?,
            positions: positions.kernel_ptr(cuda)?,
            inv_freq: inv_freq.kernel_ptr(cuda)?,
            width: width as u32,
            half: half as u32,
            direction,
        };
        let ahead = [params.positions as u64, params.inv_freq as u64];
        return cuda.launch_dependent("rope", Grid::rows(tokens, width / 2), &params, &ahead);
    }
    let rows = rows_per_task(tokens, width);
    let tasks = x.f32_mut().chunks_mut(rows * width).zip(positions.u32().chunks(rows));
    parallel::for_each(tasks, |(x, positions)| {
        dispatch(Rotate { x, positions, inv_freq: inv_freq.f32(), direction });
    });
    Ok(())
}

/// Errors beyond what the kernel's sines are exact for, and its table holds.
#[cfg(feature = "cuda")]
fn check_card_limits(name: &'static str, positions: &Tensor, half: usize) -> Result<()> {
    const POSITIONS: u32 = 1 << 20;
    if half > ROPE_MAX_HALF as usize {
        return Err(Error::shape(name, "inv_freq", format!("at most {ROPE_MAX_HALF}"), half.to_string()));
    }
    match positions.u32().iter().find(|&&position| position >= POSITIONS) {
        Some(position) => Err(Error::shape(name, "positions", format!("below {POSITIONS}"), position.to_string())),
        None => Ok(()),
    }
}

struct Rotate<'a> {
    x: &'a mut [f32],
    positions: &'a [u32],
    inv_freq: &'a [f32],
    direction: f32,
}

impl Kernel for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let half = self.inv_freq.len();
        let mut scratch = Scratch::new(2 * half);
        let (sin, cos) = scratch.floats().split_at_mut(half);
        let width = self.x.len() / self.positions.len().max(1);
        for (row, &position) in self.x.chunks_exact_mut(width.max(1)).zip(self.positions) {
            for ((sin, cos), f) in sin.iter_mut().zip(cos.iter_mut()).zip(self.inv_freq) {
                let (s, c) = sin_cos(position as f32 * f);
                (*sin, *cos) = (s * self.direction, c);
            }
            for head in row.chunks_exact_mut(2 * half) {
                let (a, b) = head.split_at_mut(half);
                for (((a, b), sin), cos) in a.iter_mut().zip(b).zip(&*sin).zip(&*cos) {
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
        }
    }
}

/// `pi / 2` in two parts; the first has 33 bits, so that its product with a whole number below 2^20 is exact.
const HALF_PI: [f64; 2] = [f64::from_bits(0x3FF9_21FB_5440_0000), 6.077_100_506_506_192e-11];

/// Sine and cosine of an angle below 2^20, through f64 (no fused operations: the same bits everywhere): the angle less a
/// multiple of pi/2, then Taylor's series to `r^13` and `r^14` on `|r| <= pi / 4` (remainders 2e-14 and 1e-15), so the error
/// is that of rounding to f32, even near the zeros.
#[inline(always)]
fn sin_cos(angle: f32) -> (f32, f32) {
    // Adding 1.5 * 2^52 rounds to a whole number and leaves it in the low bits.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    let x = f64::from(angle);
    let rounded = x * std::f64::consts::FRAC_2_PI + ROUND;
    let (quadrant, n) = (rounded.to_bits(), rounded - ROUND);
    let r = x - n * HALF_PI[0] - n * HALF_PI[1];
    let z = r * r;
    let sin = 1.0 / 6_227_020_800.0;
    let sin = sin * z - 1.0 / 39_916_800.0;
    let sin = sin * z + 1.0 / 362_880.0;
    let sin = sin * z - 1.0 / 5_040.0;
    let sin = sin * z + 1.0 / 120.0;
    let sin = sin * z - 1.0 / 6.0;
    let sin = r + r * z * sin;
    let cos = -1.0 / 87_178_291_200.0;
    let cos = cos * z + 1.0 / 479_001_600.0;
    let cos = cos * z - 1.0 / 3_628_800.0;
    let cos = cos * z + 1.0 / 40_320.0;
    let cos = cos * z - 1.0 / 720.0;
    let cos = cos * z + 1.0 / 24.0;
    let cos = cos * z - 0.5;
    let cos = 1.0 + z * cos;
    let (s, c) = if quadrant & 1 == 0 { (sin, cos) } else { (cos, sin) };
    let s = if quadrant & 2 == 0 { s } else { -s };
    let c = if (quadrant + 1) & 2 == 0 { c } else { -c };
    (s as f32, c as f32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{assert_close, random_tensor, wide};

    #[test]
    fn rotations_equal_f64_at_every_position_up_to_131072() {
        for (heads, head_dim) in [(1, 12), (3, 64), (2, 80)] {
            let positions = [0u32, 1, 2, 999, 8191, 65_537, 131_071, 131_072];
            let inv_freq: Vec<f32> =
                (0..head_dim / 2).map(|i| 500_000f32.powf(-2.0 * i as f32 / head_dim as f32)).collect();
            let mut x = random_tensor(&[positions.len(), heads * head_dim], 1);
            let before = wide(x.f32());
            let (positions_t, freq) = (Tensor::from_u32(&positions), Tensor::from_f32(&inv_freq, &[head_dim / 2]));
            rope(&Device::cpu(), &mut x, &positions_t, &freq).unwrap();
            let mut want = before.clone();
            for (row, want) in want.chunks_mut(head_dim).enumerate() {
                for i in 0..head_dim / 2 {
                    // The angle is an f32 product by contract; everything after it is exact here.
                    let (sin, cos) = f64::from(positions[row / heads] as f32 * inv_freq[i]).sin_cos();
                    let (a, b) = (want[i], want[i + head_dim / 2]);
                    (want[i], want[i + head_dim / 2]) = (a * cos - b * sin, b * cos + a * sin);
                }
            }
            assert_close("rope", x.f32(), &want, 5e-7);
            // The backward rotation is the transpose of an orthogonal matrix: it leads back.
            rope_backward(&Device::cpu(), &mut x, &positions_t, &freq).unwrap();
            assert_close("rope_backward", x.f32(), &before, 1e-6);
        }
    }

    #[test]
    fn sines_are_rounded_f64_even_next_to_their_zeros() {
        for i in 0..200_000u32 {
            // Whole angles, odd ones, and the f32 nearest to multiples of pi / 2.
            let nearest = (f64::from(i) * std::f64::consts::FRAC_PI_2) as f32;
            for angle in [i as f32, i as f32 * 0.618_034, nearest] {
                let ((sin, cos), (want_sin, want_cos)) = (sin_cos(angle), f64::from(angle).sin_cos());
                for (got, want) in [(sin, want_sin), (cos, want_cos)] {
                    let error = (f64::from(got) - want).abs();
                    assert!(error <= 1.2e-7 * want.abs() + 1e-12, "{angle}: {got} against {want}");
                }
            }
        }
    }
}
