//! Products with some rows of an output head, for losses that walk the vocabulary in pieces.

use super::blocked::{Operand, Product};
use super::pack::{Left, Right, Source};
use super::{Isa, Store, cost, run};
use crate::device::{Device, Op, Tensor};

/// `dx[m, k] = dy[m, rows] · w[first .. first + rows, k]`. `dx`: F32; `dy`: `m` rows.
pub(crate) fn matmul_nn_rows(dev: &Device, dx: &mut Tensor, dy: Source, w: &Tensor, first: usize, rows: usize) {
    let (m, k) = (dx.rows(), w.row_len());
    let _span = dev.span(Op::Matmul, cost(m, k, rows, w.dtype().size()));
    run(dev, (m, k, rows), Left::Rows(dy), Operand::Plain(Right::Columns(w, first)), None, Store::Replace, dx);
}

/// `dw[first .. first + rows, k] += dy[m, rows]ᵀ · x[m, k]`. `dw`, `x`: F32; `dy`: `m` rows.
pub(crate) fn matmul_tn_rows(dev: &Device, dw: &mut Tensor, first: usize, rows: usize, dy: Source, x: &Tensor) {
    let (m, k) = (x.rows(), x.row_len());
    let _span = dev.span(Op::Matmul, cost(m, k, rows, dw.dtype().size()));
    let (left, right) = (Left::Columns(dy), Operand::Plain(Right::Columns(x, 0)));
    let inputs = right.inputs(dev);
    let product = Product { isa: Isa::best(), inputs, size: (rows, k, m), left, right, bias: None, store: Store::Add };
    product.run(&mut dw.f32_mut()[first * k..(first + rows) * k], k);
}
