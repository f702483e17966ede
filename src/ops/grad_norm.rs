//! The Euclidean norm of all gradients together, for clipping.

use super::check;
use super::parallel;
use super::simd::{Kernel, Simd, dispatch};
#[cfg(feature = "cuda")]
use crate::device::{
    Backend,
    cuda::{Cuda, Grid, abi},
};
use crate::device::{Cost, DType, Device, Op, Tensor};
use crate::error::Result;
#[cfg(feature = "cuda")]
use std::sync::Arc;

/// Elements of one partial sum. Part of the result's definition: another value gives another rounding.
const CHUNK: usize = 1 << 14;

/// `sqrt(sum of squares)` over all elements of all tensors (F32, any shapes).
///
/// Two stages: each chunk of 16,384 elements is summed in f64, then the partial sums in order, so the result does not
/// depend on the number of threads. Relative error below 1e-12.
pub fn grad_norm(dev: &Device, grads: &[&Tensor]) -> Result<f64> {
    for g in grads {
        check("grad_norm", "grads", g, DType::F32, g.shape())?;
    }
    let n: u64 = grads.iter().map(|g| g.elements() as u64).sum();
    let _span = dev.span(Op::GradNorm, Cost { flops: 2 * n, bytes: 4 * n });
    #[cfg(feature = "cuda")]
    if let Backend::Cuda(cuda) = dev.backend() {
        return on_card(cuda, grads);
    }
    let chunks: Vec<&[f32]> = grads.iter().flat_map(|g| g.f32().chunks(CHUNK)).collect();
    let mut partial = vec![0.0; chunks.len()];
    parallel::for_each(chunks.iter().zip(&mut partial), |(chunk, sum)| *sum = dispatch(SumOfSquares(chunk)));
    Ok(partial.iter().sum::<f64>().sqrt())
}

/// Bytes that [`grad_norm`] of so many tensors and elements in all needs on a card, and a step of AdamW after it.
pub fn scratch_bytes(dev: &Device, tensors: usize, elements: u64) -> u64 {
    #[cfg(feature = "cuda")]
    if let Backend::Cuda(_) = dev.backend() {
        let (tensors, listed) = (tensors as u64, size_of::<abi::optimizer_tensor>() as u64);
        let partials = elements / u64::from(abi::OPTIMIZER_CHUNK) + tensors;
        return 8 * partials + listed * tensors + 64;
    }
    let _ = (dev, tensors, elements);
    0
}

/// [`grad_norm`] on a card.
#[cfg(feature = "cuda")]
fn on_card(cuda: &Arc<Cuda>, grads: &[&Tensor]) -> Result<f64> {
    use std::ptr::null_mut;
    let (mut tensors, mut blocks) = (Vec::with_capacity(grads.len()), 0u32);
    for g in grads.iter().filter(|g| g.elements() > 0) {
        let (g, n) = (g.kernel_ptr(cuda)?, g.elements() as u64);
        let (master, p, m, v) = (null_mut(), null_mut(), null_mut(), null_mut());
        tensors.push(abi::optimizer_tensor { master, p, m, v, g, n, first_block: blocks, decayed: 0 });
        blocks += n.div_ceil(u64::from(abi::OPTIMIZER_CHUNK)) as u32;
    }
    if blocks == 0 {
        return Ok(0.0);
    }
    let (norm, partial) = (cuda.allocate(8)?, cuda.allocate(8 * blocks as usize)?);
    let n_tensors = tensors.len() as u32;
    let tensors = cuda.upload_structs(&tensors, tensors.len())?;
    let params = abi::grad_norm_params {
        norm: norm.address() as *mut f64,
        partial: partial.address() as *mut f64,
        tensors: tensors.address() as *const abi::optimizer_tensor,
        n_tensors,
        n_partials: blocks,
    };
    cuda.launch("grad_norm_partials", Grid::blocks(blocks as usize), &params)?;
    cuda.launch("grad_norm", Grid::blocks(1), &params)?;
    let mut bytes = [0; 8];
    cuda.read(&norm, &mut bytes)?;
    Ok(f64::from_ne_bytes(bytes))
}

/// Eight running sums, so that the additions do not wait for one another.
struct SumOfSquares<'a>(&'a [f32]);

impl Kernel for SumOfSquares<'_> {
    type Output = f64;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f64 {
        let mut sums = [0.0f64; 8];
        let (eights, rest) = self.0.as_chunks::<8>();
        for eight in eights {
            for (sum, &x) in sums.iter_mut().zip(eight) {
                *sum += f64::from(x) * f64::from(x);
            }
        }
        for (sum, &x) in sums.iter_mut().zip(rest) {
            *sum += f64::from(x) * f64::from(x);
        }
        sums.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::random_tensor;

    #[test]
    fn the_norm_is_over_all_tensors_together() {
        let (a, b) = (Tensor::from_f32(&[3.0, 0.0], &[2]), Tensor::from_f32(&[-4.0, 12.0, 0.0], &[3, 1]));
        assert_eq!(grad_norm(&Device::cpu(), &[&a, &b]).unwrap(), 13.0);
        assert_eq!(grad_norm(&Device::cpu(), &[]).unwrap(), 0.0);
        let c = random_tensor(&[3 * CHUNK + 11], 5);
        let want = c.f32().iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
        assert!((grad_norm(&Device::cpu(), &[&c]).unwrap() / want - 1.0).abs() < 1e-12);
    }
}
