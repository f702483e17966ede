//! Matrix products in the three layouts that a linear layer needs: forward, gradient of the input, gradient of the weight.

use super::{check, check_weight};
use crate::device::{Cost, DType, Device, Op, Tensor};
use crate::error::Result;
use rayon::prelude::*;

/// FLOPs and fewest bytes of an `m x k` by `k x n` product with a weight (or second operand) of `element` bytes.
pub fn cost(m: usize, n: usize, k: usize, element: usize) -> Cost {
    Cost { flops: 2 * (m * n * k) as u64, bytes: (4 * (m * k + m * n) + element * n * k) as u64 }
}

/// Whether a product replaces its destination or is added to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// `y = ...`
    Replace,
    /// `y += ...`: residual connections, gradient accumulation.
    Add,
}

/// Forward: `y[m, n] (+)= x[m, k] · w[n, k]ᵀ (+ bias[n])`. `x`, `y`: F32; `w`, `bias`: float.
pub fn matmul_nt(
    dev: &Device,
    y: &mut Tensor,
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    store: Store,
) -> Result<()> {
    let (m, k, n) = (x.rows(), x.row_len(), w.rows());
    check("matmul_nt", "x", x, DType::F32, &[m, k])?;
    check_weight("matmul_nt", "w", w, &[n, k])?;
    check("matmul_nt", "y", y, DType::F32, &[m, n])?;
    if let Some(bias) = bias {
        check_weight("matmul_nt", "bias", bias, &[n])?;
    }
    let _span = dev.span(Op::Matmul, cost(m, n, k, w.dtype().size()));
    let bias = bias.map(Tensor::to_f32);
    let w = w.to_f32();
    y.f32_mut().par_chunks_mut(n).zip(x.f32().par_chunks(k)).for_each(|(y, x)| {
        for (j, y) in y.iter_mut().enumerate() {
            let dot: f32 = x.iter().zip(&w.f32()[j * k..]).map(|(a, b)| a * b).sum();
            let sum = dot + bias.as_ref().map_or(0.0, |b| b.f32()[j]);
            *y = if store == Store::Add { *y + sum } else { sum };
        }
    });
    Ok(())
}
