//! What the operations' tests share: random inputs, comparison with f64, central differences.

use super::philox;
use crate::device::{DType, Tensor};

/// `n` numbers of about unit variance.
pub(crate) fn random(n: usize, seed: u64) -> Vec<f32> {
    let normal = |i| philox::block(seed, 0, i).iter().map(|&w| philox::unit(w) - 0.5).sum::<f32>() * 1.7;
    (0..n as u64).map(normal).collect()
}

/// A tensor of [`random`] numbers.
pub(crate) fn random_tensor(shape: &[usize], seed: u64) -> Tensor {
    Tensor::from_f32(&random(shape.iter().product(), seed), shape)
}

/// A tensor full of a number that no result has, to find elements that were not written.
pub(crate) fn unwritten(shape: &[usize]) -> Tensor {
    Tensor::from_f32(&vec![f32::NAN; shape.iter().product()], shape)
}

/// The same values, rounded to another dtype: bf16 keeps the upper half of an f32.
pub(crate) fn to_bf16(t: &Tensor) -> Tensor {
    let mut out = Tensor::zeros(t.shape(), DType::BF16);
    out.bf16_mut().iter_mut().zip(t.f32()).for_each(|(o, x)| *o = half::bf16::from_f32(*x));
    out
}

/// As f64.
pub(crate) fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

/// The bits, for comparisons without tolerance.
pub(crate) fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Panics unless every element is within `tolerance * (1 + |want|)`.
pub(crate) fn assert_close(what: &str, got: &[f32], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(got) - want).abs();
        assert!(error <= tolerance * (1.0 + want.abs()), "{what}: element {i}: {got} against {want}");
    }
}

/// Panics unless `gradient` is the derivative of `loss` at `x`, by central differences at up to 40 elements. In f64 with
/// a step of 1e-5 the differences are good to some 1e-9.
pub(crate) fn assert_derivative(what: &str, x: &[f64], gradient: &[f64], loss: impl Fn(&[f64]) -> f64) {
    let h = 1e-5;
    for i in (0..x.len()).step_by(x.len().div_ceil(40).max(1)) {
        let shifted = |by: f64| {
            let mut x = x.to_vec();
            x[i] += by;
            loss(&x)
        };
        let slope = (shifted(h) - shifted(-h)) / (2.0 * h);
        let error = (slope - gradient[i]).abs();
        assert!(error <= 1e-6 * (1.0 + slope.abs()), "{what}: element {i}: {} against {slope}", gradient[i]);
    }
}
