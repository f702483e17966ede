//! Copying and clearing large tensors with all threads: one alone reaches a quarter of the memory bandwidth.

use super::check;
use super::parallel;
use super::rounding::round;
use crate::device::{DType, Device, Tensor};
use crate::error::Result;

/// Bytes of one task.
const CHUNK: usize = 1 << 16;

/// `to = from`, of one shape; on the CPU between F32 and BF16 too, rounded as products round. Errors on other shapes and dtypes.
pub fn copy(dev: &Device, to: &mut Tensor, from: &Tensor) -> Result<()> {
    if !dev.is_cpu() {
        return to.copy_from(from);
    }
    if to.dtype() == DType::BF16 && from.dtype() == DType::F32 {
        check("copy", "to", to, DType::BF16, from.shape())?;
        let tasks = to.bf16_mut().chunks_mut(CHUNK / 4).zip(from.f32().chunks(CHUNK / 4));
        parallel::for_each(tasks, |(to, from)| round(to, from));
        return Ok(());
    }
    if to.dtype() == DType::F32 && from.dtype() == DType::BF16 {
        check("copy", "to", to, DType::F32, from.shape())?;
        let tasks = to.f32_mut().chunks_mut(CHUNK / 4).enumerate();
        parallel::for_each(tasks, |(i, to)| from.read_f32(i * (CHUNK / 4), to));
        return Ok(());
    }
    check("copy", "to", to, from.dtype(), from.shape())?;
    let tasks = to.bytes_mut().chunks_mut(CHUNK).zip(from.bytes().chunks(CHUNK));
    parallel::for_each(tasks, |(to, from)| to.copy_from_slice(from));
    Ok(())
}

/// Sets every element of the tensors to zero.
pub fn zero(dev: &Device, tensors: Vec<&mut Tensor>) -> Result<()> {
    if !dev.is_cpu() {
        return tensors.into_iter().try_for_each(Tensor::zero);
    }
    let tasks = tensors.into_iter().flat_map(|tensor| tensor.bytes_mut().chunks_mut(1 << 20));
    parallel::for_each(tasks, |bytes| bytes.fill(0));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{bits, random_tensor, to_bf16, unwritten};

    #[test]
    fn a_copy_has_the_bits_or_the_nearest_bf16_and_zeros_are_zeros() {
        let dev = Device::cpu();
        let x = random_tensor(&[300, 101], 1);
        let (mut y, mut half) = (unwritten(&[300, 101]), Tensor::zeros(&[300, 101], DType::BF16));
        copy(&dev, &mut y, &x).unwrap();
        copy(&dev, &mut half, &x).unwrap();
        assert_eq!(bits(y.f32()), bits(x.f32()));
        assert_eq!(half.bytes(), to_bf16(&x).bytes());
        copy(&dev, &mut y, &half).unwrap();
        assert_eq!(bits(y.f32()), bits(half.to_f32().f32()));
        let mut other = unwritten(&[101, 300]);
        assert!(copy(&dev, &mut other, &x).is_err());
        zero(&dev, vec![&mut y, &mut other]).unwrap();
        assert!(y.f32().iter().chain(other.f32()).all(|v| v.to_bits() == 0));
    }
}
