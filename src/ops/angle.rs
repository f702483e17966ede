//! Angles between hidden states, by which blocks are chosen (Gromov et al. 2024, arXiv 2403.17887).

use super::check;
use crate::device::{Cost, DType, Device, Op, Tensor};
use crate::error::Result;
use rayon::prelude::*;

/// `out[t] = a[t]·b[t] / (|a[t]| |b[t]|)`, 0 where either is the zero vector.
///
/// `out`: F32 `[tokens]`; `a`, `b`: F32 `[tokens, hidden]`. Summed in f64: the error is that of rounding to f32.
pub fn cosine(dev: &Device, out: &mut Tensor, a: &Tensor, b: &Tensor) -> Result<()> {
    let (tokens, hidden) = (a.rows(), a.row_len());
    check("cosine", "a", a, DType::F32, &[tokens, hidden])?;
    check("cosine", "b", b, DType::F32, &[tokens, hidden])?;
    check("cosine", "out", out, DType::F32, &[tokens])?;
    let n = (tokens * hidden) as u64;
    let _span = dev.span(Op::Angle, Cost { flops: 6 * n, bytes: 8 * n + 4 * tokens as u64 });
    let rows = a.f32().par_chunks_exact(hidden.max(1)).zip(b.f32().par_chunks_exact(hidden.max(1)));
    out.f32_mut().par_iter_mut().zip(rows).with_min_len(64).for_each(|(out, (a, b))| *out = cosine_of(a, b) as f32);
    Ok(())
}

/// Four running sums of each kind, added in order at the end.
fn cosine_of(a: &[f32], b: &[f32]) -> f64 {
    let mut sums = [[0.0f64; 4]; 3];
    for (a, b) in a.chunks(4).zip(b.chunks(4)) {
        for (i, (&a, &b)) in a.iter().zip(b).enumerate() {
            let (a, b) = (f64::from(a), f64::from(b));
            sums[0][i] += a * b;
            sums[1][i] += a * a;
            sums[2][i] += b * b;
        }
    }
    let [dot, aa, bb] = sums.map(|s| s.iter().sum::<f64>());
    if aa == 0.0 || bb == 0.0 { 0.0 } else { dot / (aa.sqrt() * bb.sqrt()) }
}

/// `arccos(cos) / pi`, in `[0, 1]`; a cosine that rounding pushed past 1 is taken as 1.
pub fn angular_distance(cos: f64) -> f64 {
    cos.clamp(-1.0, 1.0).acos() / std::f64::consts::PI
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::unwritten;

    #[test]
    fn known_angles_and_the_zero_vector() {
        let a = Tensor::from_f32(&[1.0, 0.0, 0.0, 1.0, 2.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0], &[4, 3]);
        let b = Tensor::from_f32(&[0.0, 5.0, 0.0, 2.0, 4.0, 0.0, -1.0, -1.0, -1.0, 1.0, 1.0, 1.0], &[4, 3]);
        let mut out = unwritten(&[4]);
        cosine(&Device::cpu(), &mut out, &a, &b).unwrap();
        assert_eq!(out.f32(), [0.0, 1.0, -1.0, 0.0]);
        assert_eq!(angular_distance(0.0), 0.5);
        assert_eq!(angular_distance(1.0 + 1e-9), 0.0);
        assert_eq!(angular_distance(-1.0), 1.0);
    }
}
