//! Dropout (Srivastava et al. 2014) with counter-based masks: the mask is never stored, the backward pass draws it again.

use super::matmul::Store;
#[cfg(feature = "cuda")]
use super::scale;
use super::{check, philox};
#[cfg(feature = "cuda")]
use crate::device::{
    Backend,
    cuda::{Grid, abi::dropout_params},
};
use crate::device::{Cost, Device, Op, Tensor};
use crate::error::{Error, Result};
use rayon::prelude::*;

/// Elements of one parallel task: a multiple of the 4 words of a Philox block.
const CHUNK: usize = 1 << 14;

/// `y[i] (+)= x[i] / (1 - p)` with probability `1 - p`, else 0. Backward is the same call on the gradient.
///
/// `x`, `y`: F32 of one shape; `p` in `[0, 1)`. Element `i` uses word `i` of the Philox stream `(seed, stream)`, so a mask
/// depends on nothing else. Errors on another `p`.
pub fn dropout(dev: &Device, y: &mut Tensor, x: &Tensor, p: f32, seed: u64, stream: u64, store: Store) -> Result<()> {
    check("dropout", "x", x, dev.activation(), x.shape())?;
    check("dropout", "y", y, dev.activation(), x.shape())?;
    if !(0.0..1.0).contains(&p) {
        return Err(Error::shape("dropout", "p", "a probability in [0, 1)", p.to_string()));
    }
    let n = x.elements() as u64;
    let add = store == Store::Add;
    let (flops, moves) = if add { (2 * n, 3) } else { (n, 2) };
    let _span = dev.span(Op::Dropout, Cost { flops, bytes: moves * x.size_bytes() as u64 });
    #[cfg(feature = "cuda")]
    if let Backend::Cuda(cuda) = dev.backend() {
        let mut masked = if add { Some(Tensor::zeros_in(dev, x.shape(), x.room(), x.dtype())?) } else { None };
        let (y, x) = (y.kernel_mut(cuda)?, x.kernel_ptr(cuda)?);
        let to = masked.as_mut().map_or(Ok(y), |masked| masked.kernel_mut(cuda))?;
        let params = dropout_params { y: to, x, n, seed, stream, probability: p };
        cuda.launch("dropout", Grid::eights(n), &params)?;
        return if add { scale::launch(cuda, y, to, n, 1.0, true) } else { Ok(()) };
    }
    let keep = 1.0 / (1.0 - p);
    y.f32_mut().par_chunks_mut(CHUNK).zip(x.f32().par_chunks(CHUNK)).enumerate().for_each(|(chunk, (y, x))| {
        for (i, (y, x)) in y.chunks_mut(4).zip(x.chunks(4)).enumerate() {
            let words = philox::block(seed, stream, (chunk * CHUNK / 4 + i) as u64);
            for ((y, x), word) in y.iter_mut().zip(x).zip(words) {
                let kept = if philox::unit(word) >= p { x * keep } else { 0.0 };
                *y = if add { *y + kept } else { kept };
            }
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{random_tensor, unwritten};

    #[test]
    fn kept_elements_are_scaled_and_the_share_is_right() {
        let n = 3 * CHUNK + 5;
        let (x, mut y) = (Tensor::from_f32(&vec![1.0; n], &[n]), unwritten(&[n]));
        dropout(&Device::cpu(), &mut y, &x, 0.25, 7, 3, Store::Replace).unwrap();
        assert!(y.f32().iter().all(|&y| y == 0.0 || y == 1.0 / 0.75));
        let kept = y.f32().iter().filter(|&&y| y != 0.0).count() as f64 / n as f64;
        // Four standard deviations of a share of 49,157 draws.
        assert!((kept - 0.75).abs() < 4.0 * (0.75 * 0.25 / n as f64).sqrt(), "{kept}");
    }

    #[test]
    fn an_element_depends_on_seed_stream_and_its_number_alone() {
        let mask = |n: usize, seed, stream| {
            let (x, mut y) = (random_tensor(&[n], 1), unwritten(&[n]));
            dropout(&Device::cpu(), &mut y, &x, 0.5, seed, stream, Store::Replace).unwrap();
            y.f32().iter().map(|&y| y != 0.0).collect::<Vec<_>>()
        };
        let long = mask(CHUNK + 9, 1, 2);
        assert_eq!(mask(101, 1, 2)[..], long[..101]);
        assert_ne!(mask(101, 1, 3)[..], long[..101]);
        assert_ne!(mask(101, 2, 2)[..], long[..101]);
        let last = CHUNK + 8;
        let word = philox::block(1, 2, last as u64 / 4)[last % 4];
        assert_eq!(long[last], philox::unit(word) >= 0.5);
    }

    #[test]
    fn a_probability_of_one_is_refused_and_zero_copies() {
        let (x, mut y) = (random_tensor(&[9], 1), unwritten(&[9]));
        assert!(dropout(&Device::cpu(), &mut y, &x, 1.0, 0, 0, Store::Replace).is_err());
        assert!(dropout(&Device::cpu(), &mut y, &x, f32::NAN, 0, 0, Store::Replace).is_err());
        dropout(&Device::cpu(), &mut y, &x, 0.0, 0, 0, Store::Replace).unwrap();
        assert_eq!(x.f32(), y.f32());
    }
}
