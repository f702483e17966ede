//! Dropout (Srivastava et al. 2014) with counter-based masks: the mask is never stored, the backward pass draws it again.

use super::{check, philox};
use crate::device::{Cost, DType, Device, Op, Tensor};
use crate::error::{Error, Result};
use rayon::prelude::*;

/// Elements of one parallel task: a multiple of the 4 words of a Philox block.
const CHUNK: usize = 1 << 14;

/// `y[i] = x[i] / (1 - p)` with probability `1 - p`, else 0. Backward is the same call on the gradient.
///
/// `x`, `y`: F32 of one shape; `p` in `[0, 1)`. Element `i` uses word `i` of the Philox stream `(seed, stream)`, so a mask
/// depends on nothing else. Errors on another `p`.
pub fn dropout(dev: &Device, y: &mut Tensor, x: &Tensor, p: f32, seed: u64, stream: u64) -> Result<()> {
    check("dropout", "x", x, DType::F32, x.shape())?;
    check("dropout", "y", y, DType::F32, x.shape())?;
    if !(0.0..1.0).contains(&p) {
        return Err(Error::shape("dropout", "p", "a probability in [0, 1)", p.to_string()));
    }
    let n = x.elements() as u64;
    let _span = dev.span(Op::Dropout, Cost { flops: n, bytes: 8 * n });
    if p == 0.0 {
        y.f32_mut().copy_from_slice(x.f32());
        return Ok(());
    }
    let keep = 1.0 / (1.0 - p);
    y.f32_mut().par_chunks_mut(CHUNK).zip(x.f32().par_chunks(CHUNK)).enumerate().for_each(|(chunk, (y, x))| {
        for (i, (y, x)) in y.chunks_mut(4).zip(x.chunks(4)).enumerate() {
            let words = philox::block(seed, stream, (chunk * CHUNK / 4 + i) as u64);
            for ((y, x), word) in y.iter_mut().zip(x).zip(words) {
                *y = if philox::unit(word) >= p { x * keep } else { 0.0 };
            }
        }
    });
    Ok(())
}
