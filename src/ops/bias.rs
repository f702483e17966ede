//! Gradient of a bias. The forward pass adds it inside [`matmul_nt`](super::matmul::matmul_nt).

use super::{check, check_activations};
#[cfg(feature = "cuda")]
use crate::device::{
    Backend,
    cuda::{Cuda, Grid, abi},
};
use crate::device::{Cost, DType, Device, Op, Tensor};
use crate::error::Result;
#[cfg(feature = "cuda")]
use std::sync::Arc;

/// `db[j] += Σ_t dy[t, j]`, tokens in order. `db`: F32 `[out]`, `dy`: F32 or BF16 `[tokens, out]`. Error at most `tokens * 2^-24 * Σ|dy|`.
pub fn bias_backward(dev: &Device, db: &mut Tensor, dy: &Tensor) -> Result<()> {
    let (tokens, out) = (dy.rows(), dy.row_len());
    check_activations("bias_backward", "dy", dy, &[tokens, out])?;
    check("bias_backward", "db", db, DType::F32, &[out])?;
    let n = dy.elements() as u64;
    let _span = dev.span(Op::BiasBackward, Cost { flops: n, bytes: dy.size_bytes() as u64 + 8 * out as u64 });
    #[cfg(feature = "cuda")]
    if let Backend::Cuda(cuda) = dev.backend() {
        let chunks = tokens.div_ceil(abi::COLUMN_SUMS_CHUNK as usize);
        let room = dy.room().div_ceil(abi::COLUMN_SUMS_CHUNK as usize);
        let mut partial = Tensor::zeros_in(dev, &[chunks, out], room, DType::F32)?;
        let params = abi::column_sums_params {
            partial: partial.kernel_mut(cuda)?,
            x: dy.kernel_ptr(cuda)?,
            tokens: tokens as u32,
            width: out as u32,
        };
        let threads = abi::ROW_THREADS;
        let blocks = [out.div_ceil(threads as usize), chunks, 1];
        cuda.launch("column_sums", Grid { blocks, threads, shared: 0 }, &params)?;
        return add_rows(cuda, db, &partial);
    }
    let mut row = vec![0.0; out];
    for t in 0..tokens {
        dy.read_f32(t * out, &mut row);
        db.f32_mut().iter_mut().zip(&row).for_each(|(d, y)| *d += y);
    }
    Ok(())
}

/// Bytes that [`bias_backward`] needs on a card.
pub fn scratch_bytes(dev: &Device, tokens: usize, out: usize) -> usize {
    #[cfg(feature = "cuda")]
    if let Backend::Cuda(_) = dev.backend() {
        return 4 * out * tokens.div_ceil(abi::COLUMN_SUMS_CHUNK as usize);
    }
    let _ = (dev, tokens, out);
    0
}

/// `y += sum of the rows of partial`, in order, on a card. `y`: F32 `[width]`, `partial`: F32 `[rows, width]`.
#[cfg(feature = "cuda")]
pub(super) fn add_rows(cuda: &Arc<Cuda>, y: &mut Tensor, partial: &Tensor) -> Result<()> {
    let (rows, width) = (partial.rows(), partial.row_len());
    check("add_rows", "y", y, DType::F32, &[width])?;
    let params = abi::add_rows_params {
        y: y.kernel_mut(cuda)?,
        partial: partial.kernel_ptr(cuda)?,
        rows: rows as u32,
        width: width as u32,
    };
    cuda.launch("add_rows", Grid::blocks(width.div_ceil(abi::ROW_THREADS as usize)), &params)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bias_gradient_is_the_column_sum_added_to_what_was_there() {
        let mut db = Tensor::from_f32(&[1.0, -1.0, 0.5], &[3]);
        let dy = Tensor::from_f32(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[2, 3]);
        bias_backward(&Device::cpu(), &mut db, &dy).unwrap();
        assert_eq!(db.f32(), &[6.0, 6.0, 9.5]);
        bias_backward(&Device::cpu(), &mut db, &crate::ops::testing::to_bf16(&dy)).unwrap();
        assert_eq!(db.f32(), &[11.0, 13.0, 18.5]);
    }
}
