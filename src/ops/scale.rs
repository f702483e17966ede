//! A matrix times a number: the strength of a low-rank adapter.

use super::check;
use super::parallel::{self, rows_per_task};
use crate::device::{Cost, DType, Device, Op, Tensor};
use crate::error::Result;

/// `x[i] *= factor`, rounded once. `x`: F32 of any shape.
pub fn scale(dev: &Device, x: &mut Tensor, factor: f32) -> Result<()> {
    check("scale", "x", x, DType::F32, x.shape())?;
    let n = x.elements();
    let _span = dev.span(Op::Scale, Cost { flops: n as u64, bytes: 8 * n as u64 });
    let part = rows_per_task(n, 1);
    parallel::for_each(x.f32_mut().chunks_mut(part), |x| x.iter_mut().for_each(|x| *x *= factor));
    Ok(())
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
}
