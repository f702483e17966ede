//! Matrix products in the three layouts that a linear layer needs: forward, gradient of the input, gradient of the weight.
//!
//! Every element of a result is one chain of fused multiply-adds over the reduction index in increasing order, starting from
//! 0; then the bias is added, then the old value. So results are the same bits for any number of rows, any number of threads
//! and any processor with a fused multiply-add. The error bound is that of sequential summation:
//! `|error| <= k u / (1 - k u) * sum |x w|` with `u = 2^-24`.
//!
//! | file | subject |
//! |-|-|
//! | `tile.rs` | one register tile; `avx512.rs`, `avx2.rs`, `portable.rs` compute it |
//! | `pack.rs`, `transpose.rs` | operands in the order in which tiles read them |
//! | `packed.rs` | weights packed once, for inference |
//! | `blocked.rs` | cache blocks and threads |
//! | `scratch.rs` | buffers that outlive a call |

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod blocked;
mod pack;
mod packed;
mod portable;
mod scratch;
#[cfg(test)]
pub(crate) mod tests;
mod tile;
#[cfg(target_arch = "x86_64")]
mod transpose;

pub use packed::PackedWeight;
pub use tile::Isa;

use super::{check, check_weight};
use crate::device::{Cost, DType, Device, Op, Tensor};
use crate::error::Result;
use blocked::{Operand, Product};
use pack::{Left, Right};
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
    check_bias("matmul_nt", bias, n)?;
    let _span = dev.span(Op::Matmul, cost(m, n, k, w.dtype().size()));
    run((m, n, k), Left::Rows(x.f32()), Operand::Plain(Right::Rows(w, 0)), bias, store, y);
    Ok(())
}

/// Gradient of the input: `dx[m, k] (+)= dy[m, n] · w[n, k]`. `dx`, `dy`: F32; `w`: float.
pub fn matmul_nn(dev: &Device, dx: &mut Tensor, dy: &Tensor, w: &Tensor, store: Store) -> Result<()> {
    let (m, n, k) = (dy.rows(), w.rows(), w.row_len());
    check("matmul_nn", "dy", dy, DType::F32, &[m, n])?;
    check_weight("matmul_nn", "w", w, &[n, k])?;
    check("matmul_nn", "dx", dx, DType::F32, &[m, k])?;
    let _span = dev.span(Op::Matmul, cost(m, k, n, w.dtype().size()));
    run((m, k, n), Left::Rows(dy.f32()), Operand::Plain(Right::Columns(w, 0)), None, store, dx);
    Ok(())
}

/// Steps of the reduction in a chain of [`matmul_nn_in_pieces`].
pub(crate) const PIECE: usize = 2048;

/// [`matmul_nn`] for a reduction over a whole vocabulary: chains of 2,048 steps, added up in order.
///
/// The gradient of the logits sums to zero over the vocabulary, so the result is a small rest of large partial sums. One chain
/// of 49,152 steps loses 1e-3 of it in the features that all rows of a head share (measured on SmolLM2 against f64); with
/// pieces every gradient norm is within 1e-3 of PyTorch's.
pub(crate) fn matmul_nn_in_pieces(dev: &Device, dx: &mut Tensor, dy: &Tensor, w: &Tensor) -> Result<()> {
    let (m, n, k) = (dy.rows(), w.rows(), w.row_len());
    check("matmul_nn", "dy", dy, DType::F32, &[m, n])?;
    check_weight("matmul_nn", "w", w, &[n, k])?;
    check("matmul_nn", "dx", dx, DType::F32, &[m, k])?;
    let _span = dev.span(Op::Matmul, cost(m, k, n, w.dtype().size()));
    let mut piece = Tensor::zeros(&[m, PIECE.min(n)], DType::F32);
    for first in (0..n).step_by(PIECE) {
        let steps = PIECE.min(n - first);
        let store = if first == 0 { Store::Replace } else { Store::Add };
        let columns = &mut piece.f32_mut()[..m * steps];
        let rows = columns.par_chunks_exact_mut(steps).zip(dy.f32().par_chunks_exact(n));
        rows.for_each(|(to, row)| to.copy_from_slice(&row[first..first + steps]));
        run((m, k, steps), Left::Rows(columns), Operand::Plain(Right::Columns(w, first)), None, store, dx);
    }
    Ok(())
}

/// Gradient of the weight: `dw[n, k] (+)= dy[m, n]ᵀ · x[m, k]`, the reduction over tokens in their order. All F32.
pub fn matmul_tn(dev: &Device, dw: &mut Tensor, dy: &Tensor, x: &Tensor, store: Store) -> Result<()> {
    let (m, n, k) = (dy.rows(), dy.row_len(), x.row_len());
    check("matmul_tn", "dy", dy, DType::F32, &[m, n])?;
    check("matmul_tn", "x", x, DType::F32, &[m, k])?;
    check("matmul_tn", "dw", dw, DType::F32, &[n, k])?;
    let _span = dev.span(Op::Matmul, cost(n, k, m, 4));
    run((n, k, m), Left::Columns(dy.f32()), Operand::Plain(Right::Columns(x, 0)), None, store, dw);
    Ok(())
}

/// [`matmul_nt`] with a weight that was packed before; the same bits, at memory bandwidth for few rows.
pub fn matmul_packed(
    dev: &Device,
    y: &mut Tensor,
    x: &Tensor,
    w: &PackedWeight,
    bias: Option<&Tensor>,
    store: Store,
) -> Result<()> {
    let (m, k, n) = (x.rows(), w.in_features(), w.out_features());
    check("matmul_packed", "x", x, DType::F32, &[m, k])?;
    check("matmul_packed", "y", y, DType::F32, &[m, n])?;
    check_bias("matmul_packed", bias, n)?;
    let _span = dev.span(Op::Matmul, cost(m, n, k, w.element()));
    run((m, n, k), Left::Rows(x.f32()), Operand::Packed(w, 0), bias, store, y);
    Ok(())
}

/// Forward with a weight of either form: [`matmul_nt`] or [`matmul_packed`], equal to the bit.
pub fn matmul_weight(
    dev: &Device,
    y: &mut Tensor,
    x: &Tensor,
    w: Weight,
    bias: Option<&Tensor>,
    store: Store,
) -> Result<()> {
    match w {
        Weight::Plain(w) => matmul_nt(dev, y, x, w, bias, store),
        Weight::Packed(w) => matmul_packed(dev, y, x, w, bias, store),
    }
}

/// A weight `[n, k]`, plain or packed; `From` both, so that an operation takes either.
#[derive(Clone, Copy, Debug)]
pub enum Weight<'a> {
    /// As stored in a model.
    Plain(&'a Tensor),
    /// Packed before.
    Packed(&'a PackedWeight),
}

impl<'a> From<&'a Tensor> for Weight<'a> {
    fn from(weight: &'a Tensor) -> Self {
        Weight::Plain(weight)
    }
}

impl<'a> From<&'a PackedWeight> for Weight<'a> {
    fn from(weight: &'a PackedWeight) -> Self {
        Weight::Packed(weight)
    }
}

impl Weight<'_> {
    /// Rows of the weight.
    pub fn out_features(&self) -> usize {
        match self {
            Weight::Plain(w) => w.rows(),
            Weight::Packed(w) => w.out_features(),
        }
    }

    /// Columns of the weight.
    pub fn in_features(&self) -> usize {
        match self {
            Weight::Plain(w) => w.row_len(),
            Weight::Packed(w) => w.in_features(),
        }
    }

    /// Errors unless this is a float matrix.
    pub(crate) fn check(&self, op: &'static str, argument: &'static str) -> Result<()> {
        match self {
            Weight::Plain(w) => check_weight(op, argument, w, &[w.rows(), w.row_len()]),
            Weight::Packed(_) => Ok(()),
        }
    }

    /// `out[m, rows] = x[m, k] · w[first .. first + rows]ᵀ`; `first` is a multiple of 32. Booked as a matmul.
    pub(crate) fn logits(&self, dev: &Device, out: &mut [f32], x: &[f32], first: usize, rows: usize) {
        let k = self.in_features();
        let m = x.len().checked_div(k).unwrap_or(0);
        let (right, element) = match *self {
            Weight::Plain(w) => (Operand::Plain(Right::Rows(w, first)), w.dtype().size()),
            Weight::Packed(w) => (Operand::Packed(w, first), w.element()),
        };
        let _span = dev.span(Op::Matmul, cost(m, rows, k, element));
        let product = Product {
            isa: Isa::best(),
            size: (m, rows, k),
            left: Left::Rows(x),
            right,
            bias: None,
            store: Store::Replace,
        };
        product.run(out, rows);
    }
}

fn check_bias(op: &'static str, bias: Option<&Tensor>, n: usize) -> Result<()> {
    bias.map_or(Ok(()), |bias| check_weight(op, "bias", bias, &[n]))
}

fn run(size: (usize, usize, usize), left: Left, right: Operand, bias: Option<&Tensor>, store: Store, out: &mut Tensor) {
    let bias = bias.map(Tensor::to_f32);
    let bias = bias.as_ref().map(Tensor::f32);
    Product { isa: Isa::best(), size, left, right, bias, store }.run(out.f32_mut(), size.1);
}
