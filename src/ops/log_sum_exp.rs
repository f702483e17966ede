//! Sums of exponentials over rows of logits, for losses and log-probabilities.
//!
//! Sixteen lanes side by side, added up in one fixed order; on processors with AVX2 or AVX-512 the compiler turns the same
//! code into vector instructions, with the same bits.

use super::simd::{LANES, sum_of_lanes};

/// Values summed in f32 before the sum goes into an f64: a lane adds up 128 of them, an error below 128 * 2^-24.
pub const PIECE: usize = 2048;

/// `exp(x)` for `x <= 0` (and up to 88), relative error below 2^-22; 0 below -87.3.
///
/// `exp(x) = 2^n exp(r)` with `n = round(x / ln 2)`, `|r| <= ln 2 / 2` (reduction in two steps, Cody & Waite), and the Taylor
/// polynomial of degree 7, whose remainder is below `r^8 / 8! < 6e-9`.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding and taking away 1.5 * 2^23 rounds to the nearest integer, which the low bits of the sum hold.
    const ROUND: f32 = 12_582_912.0;
    let clamped = if x < -87.3 { -87.3 } else { x };
    let shifted = clamped.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, clamped));
    let mut p = 1.0 / 5040.0f32;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p.mul_add(r, c);
    }
    let scale = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if x < -87.3 { 0.0 } else { p * scale }
}

/// Defines a function that runs with the widest vectors of the processor: the body is compiled once for each.
macro_rules! vectorised {
    ($(#[$doc:meta])* $name:ident, $body:ident, ($($arg:ident: $ty:ty),*) -> $ret:ty) => {
        $(#[$doc])*
        pub fn $name($($arg: $ty),*) -> $ret {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f")]
                fn avx512($($arg: $ty),*) -> $ret {
                    $body($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) -> $ret {
                    $body($($arg),*)
                }
                if is_x86_feature_detected!("avx512f") {
                    // SAFETY: the processor has AVX-512F.
                    return unsafe { avx512($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    // SAFETY: the processor has AVX2 and FMA.
                    return unsafe { avx2($($arg),*) };
                }
            }
            $body($($arg),*)
        }
    };
}

#[inline(always)]
fn max_body(row: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = row.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = larger(lanes[i], chunk[i]);
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, larger)
}

#[inline(always)]
fn sum_exp_body(row: &[f32], max: f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let chunks = row.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] += exp(chunk[i] - max);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane += exp(x - max);
    }
    sum_of_lanes(lanes)
}

#[inline(always)]
fn softmax_body(row: &mut [f32], lse: f32, scale: f32) {
    for x in row {
        *x = scale * exp(*x - lse);
    }
}

#[inline(always)]
fn sum_exp_in_place_body(row: &mut [f32], max: f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (chunks, rest) = row.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            chunk[i] = exp(chunk[i] - max);
            lanes[i] += chunk[i];
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *x = exp(*x - max);
        *lane += *x;
    }
    sum_of_lanes(lanes)
}

#[inline(always)]
fn kl_body(p: &[f32], lse_p: f32, q: &[f32], lse_q: f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let term = |p: f32, q: f32| {
        let (log_p, log_q) = (p - lse_p, q - lse_q);
        let (p, q) = (exp(log_p), exp(log_q));
        // Each term p log(p/q) - p + q is at least 0, so rounding of the normalisation does not pile up; the sum of the
        // two extra terms over the vocabulary is 0.
        p * (log_p - log_q) - p + q
    };
    let chunks = p.chunks_exact(LANES).zip(q.chunks_exact(LANES));
    for (p, q) in chunks {
        for i in 0..LANES {
            lanes[i] += term(p[i], q[i]);
        }
    }
    let done = p.len() / LANES * LANES;
    for ((lane, p), q) in lanes.iter_mut().zip(&p[done..]).zip(&q[done..]) {
        *lane += term(*p, *q);
    }
    sum_of_lanes(lanes)
}

vectorised! {
    /// Largest value of a row; NaN values are passed over.
    max, max_body, (row: &[f32]) -> f32
}
vectorised! {
    /// `sum_i exp(row[i] - max)`.
    sum_exp, sum_exp_body, (row: &[f32], max: f32) -> f32
}
vectorised! {
    /// `row[i] = scale * exp(row[i] - lse)`.
    softmax, softmax_body, (row: &mut [f32], lse: f32, scale: f32) -> ()
}
vectorised! {
    /// [`sum_exp`], with `row[i]` replaced by its exponential.
    sum_exp_in_place, sum_exp_in_place_body, (row: &mut [f32], max: f32) -> f32
}
vectorised! {
    /// `sum_i p_i log(p_i / q_i)` of two distributions, given as logits with their [`LogSumExp::value`].
    kl, kl_body, (p: &[f32], lse_p: f32, q: &[f32], lse_q: f32) -> f32
}

/// A running `log(sum(exp(x)))` over chunks of a row (Milakov & Gimelshein 2018, arXiv 1805.02867).
#[derive(Clone, Copy, Debug)]
pub struct LogSumExp {
    max: f32,
    sum: f64,
}

impl Default for LogSumExp {
    fn default() -> Self {
        LogSumExp { max: f32::NEG_INFINITY, sum: 0.0 }
    }
}

impl LogSumExp {
    /// Takes in the next chunk. Chunks of whole [`PIECE`]s give the bits of the row taken in at once.
    pub fn add(&mut self, chunk: &[f32]) {
        for piece in chunk.chunks(PIECE) {
            self.raise(max(piece));
            self.sum += f64::from(sum_exp(piece, self.max));
        }
    }

    /// [`LogSumExp::add`] of at most one [`PIECE`], which becomes its exponentials relative to the maximum that is given back: the
    /// largest value so far.
    pub fn add_in_place(&mut self, piece: &mut [f32]) -> f32 {
        debug_assert!(piece.len() <= PIECE);
        self.raise(max(piece));
        self.sum += f64::from(sum_exp_in_place(piece, self.max));
        self.max
    }

    /// Makes the sum relative to `max` where that is larger.
    fn raise(&mut self, max: f32) {
        if max > self.max {
            self.sum *= f64::from(self.max - max).exp();
            self.max = max;
        }
    }

    /// `log(sum(exp(x)))` of all that was taken in; NaN when a value was NaN.
    pub fn value(&self) -> f64 {
        f64::from(self.max) + self.sum.ln()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::matmul::tests::numbers;

    #[test]
    fn exp_is_right_to_three_units_of_the_last_place() {
        for i in 0..=200_000 {
            let x = -87.0 + i as f32 * 87.5 / 200_000.0;
            let want = f64::from(x).exp();
            assert!((f64::from(exp(x)) - want).abs() <= want * 2f64.powi(-22), "exp({x}) = {} for {want}", exp(x));
        }
        assert_eq!((exp(0.0), exp(f32::NEG_INFINITY), exp(-100.0)), (1.0, 0.0, 0.0));
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn a_sum_over_chunks_equals_f64() {
        for n in [1, 15, 16, 17, 1000, 5000] {
            let row: Vec<f32> = numbers(n as u64, n).iter().map(|v| v * 40.0).collect();
            let mut sum = LogSumExp::default();
            row.chunks(700).for_each(|chunk| sum.add(chunk));
            let want = row.iter().map(|&v| f64::from(v).exp()).sum::<f64>().ln();
            // Lanes of at most 44 terms round 44 times at 2^-24, on top of 2^-22 of each exponential.
            assert!((sum.value() - want).abs() < 3e-6, "{n}: {} for {want}", sum.value());
        }
    }

    #[test]
    fn vector_code_has_the_bits_of_plain_code() {
        let row: Vec<f32> = numbers(1, 1003).iter().map(|v| v * 20.0).collect();
        assert_eq!(sum_exp(&row, max(&row)).to_bits(), sum_exp_body(&row, max_body(&row)).to_bits());
        let q: Vec<f32> = numbers(2, 1003).iter().map(|v| v * 20.0).collect();
        assert_eq!(kl(&row, 21.0, &q, 22.0).to_bits(), kl_body(&row, 21.0, &q, 22.0).to_bits());
        let (mut a, mut b) = (row.clone(), row.clone());
        assert_eq!(sum_exp_in_place(&mut a, 20.0).to_bits(), sum_exp(&row, 20.0).to_bits());
        assert_eq!(sum_exp_in_place_body(&mut b, 20.0).to_bits(), sum_exp(&row, 20.0).to_bits());
        assert_eq!(a, b);
        let (mut a, mut b) = (row.clone(), row);
        softmax(&mut a, 21.0, 0.3);
        softmax_body(&mut b, 21.0, 0.3);
        assert_eq!(a, b);
    }
}
