//! A matrix times a number: the strength of a low-rank adapter; a matrix added to another.

use super::check;
use super::parallel::{self, rows_per_task};
#[cfg(feature = "cuda")]
use crate::device::{
    Backend,
    cuda::{Cuda, Grid, abi},
};
use crate::device::{Cost, Device, Op, Tensor};
use crate::error::Result;
#[cfg(feature = "cuda")]
use std::sync::Arc;

/// `x[i] *= factor`, rounded once. `x`: F32 of any shape.
pub fn scale(dev: &Device, x: &mut Tensor, factor: f32) -> Result<()> {
    check("scale", "x", x, dev.activation(), x.shape())?;
    let n = x.elements();
    let _span = dev.span(Op::Scale, Cost { flops: n as u64, bytes: 2 * x.size_bytes() as u64 });
    #[cfg(feature = "cuda")]
    if let Backend::Cuda(cuda) = dev.backend() {
        let y = x.kernel_mut(cuda)?;
        return launch(cuda, y, y, n as u64, factor, false);
    }
    let part = rows_per_task(n, 1);
    parallel::for_each(x.f32_mut().chunks_mut(part), |x| x.iter_mut().for_each(|x| *x *= factor));
    Ok(())
}

/// `y[i] += x[i]`, rounded once. `x`, `y`: F32 of one shape.
pub fn add(dev: &Device, y: &mut Tensor, x: &Tensor) -> Result<()> {
    check("add", "x", x, dev.activation(), x.shape())?;
    check("add", "y", y, dev.activation(), x.shape())?;
    let n = x.elements();
    let _span = dev.span(Op::Scale, Cost { flops: n as u64, bytes: 3 * x.size_bytes() as u64 });
    #[cfg(feature = "cuda")]
    if let Backend::Cuda(cuda) = dev.backend() {
        return launch(cuda, y.kernel_mut(cuda)?, x.kernel_ptr(cuda)?, n as u64, 1.0, true);
    }
    let part = rows_per_task(n, 1);
    let parts = y.f32_mut().chunks_mut(part).zip(x.f32().chunks(part));
    parallel::for_each(parts, |(y, x)| y.iter_mut().zip(x).for_each(|(y, x)| *y += x));
    Ok(())
}

/// `y = factor x (+ y)` on a card.
#[cfg(feature = "cuda")]
pub(super) fn launch(
    cuda: &Arc<Cuda>,
    y: *mut abi::bf16,
    x: *const abi::bf16,
    n: u64,
    factor: f32,
    add: bool,
) -> Result<()> {
    let params = abi::scale_params { y, x, n, factor, add: u32::from(add) };
    cuda.launch_dependent("scale", Grid::eights(n), &params, &[])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::random_tensor;

    #[test]
    fn every_element_is_multiplied_once() {
        let before = random_tensor(&[7, 9001], 1);
        let mut x = random_tensor(&[7, 9001], 1);
        scale(&Device::cpu(), &mut x, 0.3).unwrap();
        assert!(x.f32().iter().zip(before.f32()).all(|(x, b)| *x == b * 0.3));
    }

    #[test]
    fn every_element_is_added_once() {
        let (before, x) = (random_tensor(&[7, 9001], 1), random_tensor(&[7, 9001], 2));
        let mut y = random_tensor(&[7, 9001], 1);
        add(&Device::cpu(), &mut y, &x).unwrap();
        assert!(y.f32().iter().zip(before.f32().iter().zip(x.f32())).all(|(y, (b, x))| *y == b + x));
        assert!(add(&Device::cpu(), &mut y, &random_tensor(&[7, 9000], 2)).is_err(), "another shape");
    }
}
