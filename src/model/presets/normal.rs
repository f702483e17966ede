//! Normally distributed weights, fast: 16 random bits choose one of 65,536 equally probable quantiles.
//!
//! One Philox call gives eight values, and a value costs one look-up in a table that stays in cache. The spread ends at 4.2
//! standard deviations, which no benchmark sees. Value `i` of a tensor depends on (seed, tensor, `i`) alone.

use crate::device::{DType, Tensor};
use crate::ops::philox;
use rayon::prelude::*;

/// Quantiles of one sign.
const HALF: usize = 1 << 15;
/// Values of one Philox call: four words of two 16-bit halves.
const PER_BLOCK: usize = 8;
/// Values of one task.
const CHUNK: usize = 1 << 16;

/// The quantiles of a normal distribution as the little-endian bytes of a float dtype.
pub(crate) struct Normal {
    table: Vec<[u8; 4]>,
    dtype: DType,
    size: usize,
}

impl Normal {
    /// Mean 0, the given standard deviation. `dtype` is F32, F16 or BF16.
    pub(crate) fn new(std: f64, dtype: DType) -> Normal {
        let positive = positive_quantiles();
        let signed = positive.iter().copied().chain(positive.iter().map(|x| -x));
        let bytes = |x: f64| match dtype {
            DType::BF16 => pad(half::bf16::from_f64(x).to_le_bytes()),
            DType::F16 => pad(half::f16::from_f64(x).to_le_bytes()),
            DType::F32 | DType::U32 => (x as f32).to_le_bytes(),
        };
        Normal { table: signed.map(|z| bytes(z * std)).collect(), dtype, size: dtype.size() }
    }

    /// A host tensor of such values; `stream` tells tensors of one seed apart.
    pub(crate) fn tensor(&self, shape: &[usize], seed: u64, stream: u64) -> Tensor {
        let mut tensor = Tensor::zeros(shape, self.dtype);
        self.fill(tensor.bytes_mut(), seed, stream, 0);
        tensor
    }

    /// Fills `out` with the values of tensor `stream` from element `start`, a multiple of [`PER_BLOCK`], on all cores.
    pub(super) fn fill(&self, out: &mut [u8], seed: u64, stream: u64, start: u64) {
        out.par_chunks_mut(CHUNK * self.size).enumerate().for_each(|(i, chunk)| {
            let first = (start + (i * CHUNK) as u64) / PER_BLOCK as u64;
            for (block, values) in chunk.chunks_mut(PER_BLOCK * self.size).enumerate() {
                let words = philox::block(seed, stream, first + block as u64);
                for (j, value) in values.chunks_exact_mut(self.size).enumerate() {
                    let bits = (words[j / 2] >> (16 * (j % 2))) as u16;
                    value.copy_from_slice(&self.table[bits as usize][..self.size]);
                }
            }
        });
    }
}

fn pad([a, b]: [u8; 2]) -> [u8; 4] {
    [a, b, 0, 0]
}

/// The standard normal's quantiles of (i + 1/2) / 65,536 above the median, by Newton's method on the series
/// `Φ(x) - 1/2 = φ(x) (x + x³/3 + x⁵/(3·5) + …)` (Marsaglia 2004). `Φ` is concave there, so the steps never overshoot.
fn positive_quantiles() -> Vec<f64> {
    let density = |x: f64| (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let above_median = |x: f64| {
        let (mut term, mut sum, mut k) = (x, 0.0, 1.0);
        while term > 1e-18 {
            sum += term;
            k += 2.0;
            term *= x * x / k;
        }
        sum * density(x)
    };
    let mut x = 0.0;
    let quantile = |i: usize| {
        let p = (i as f64 + 0.5) / (2 * HALF) as f64;
        for _ in 0..64 {
            let step = (p - above_median(x)) / density(x);
            x += step;
            if step.abs() < 1e-12 {
                break;
            }
        }
        x
    };
    (0..HALF).map(quantile).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_normal_distribution() {
        let quantiles = positive_quantiles();
        // From tables: Φ⁻¹(0.75) = 0.674490, Φ⁻¹(0.975) = 1.959964, Φ⁻¹(0.999) = 3.090232. The grid is 1/65,536 wide.
        for (p, x) in [(0.75, 0.674_490), (0.975, 1.959_964), (0.999, 3.090_232)] {
            let i = (p - 0.5) * (2 * HALF) as f64 - 0.5;
            let (low, high) = (quantiles[i.floor() as usize], quantiles[i.ceil() as usize]);
            assert!(low - 1e-6 <= x && x <= high + 1e-6, "{p}: {low} {high}");
        }
        assert!(quantiles.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn values_have_the_asked_mean_and_deviation_and_do_not_depend_on_the_pieces() {
        let normal = Normal::new(0.02, DType::F32);
        let n = 1 << 18;
        let mut all = vec![0u8; 4 * n];
        normal.fill(&mut all, 7, 3, 0);
        let mut tail = vec![0u8; 4 * (n - 4096)];
        normal.fill(&mut tail, 7, 3, 4096);
        assert_eq!(all[4 * 4096..], tail);
        let values: Vec<f64> = all.chunks(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]) as f64).collect();
        let mean = values.iter().sum::<f64>() / n as f64;
        let deviation = (values.iter().map(|x| x * x).sum::<f64>() / n as f64).sqrt();
        // Five standard errors: 0.02 / sqrt(n) for the mean, 0.02 / sqrt(2 n) for the deviation.
        assert!(mean.abs() < 5.0 * 0.02 / (n as f64).sqrt(), "{mean}");
        assert!((deviation - 0.02).abs() < 5.0 * 0.02 / (2.0 * n as f64).sqrt(), "{deviation}");
        let mut other = vec![0u8; 4 * 64];
        normal.fill(&mut other, 8, 3, 0);
        assert_ne!(all[..256], other[..]);
    }
}
