//! Matrix products in the three layouts that a linear layer needs: forward, gradient of the input, gradient of the weight.
//!
//! Every element of a result is one chain of fused multiply-adds over the reduction index, starting from 0; then the bias is
//! added, then the old value. So results are the same bits for any number of rows, any number of threads and any processor
//! with a fused multiply-add. The error bound is that of sequential summation: `|error| <= k u / (1 - k u) * sum |x w|` with
//! `u = 2^-24`.
//!
//! With [`Compute::F32`](crate::device::Compute::F32) the chain runs in increasing order. With [`Compute::Bf16`](crate::device::Compute::Bf16) both operands are first rounded to bf16
//! (nearest even, subnormal numbers to 0) and the chain takes steps `1, 0, 3, 2, ...`, as `vdpbf16ps` does; the bound is that
//! of the rounded operands, each of them within `2^-8` of the given one. Only where a sum is a subnormal number (below
//! 1.2e-38) do processors differ: `vdpbf16ps` makes it 0.
//!
//! | file | subject |
//! |-|-|
//! | `tile.rs` | one register tile |
//! | `avx512.rs`, `avx2.rs`, `portable.rs` | compute it in f32 |
//! | `dot_avx512.rs`, `dot_avx2.rs`, `dot_portable.rs` | compute it from pairs of bf16 |
//! | `int8.rs`, `int8_avx512.rs`, `int8_portable.rs` | weights and activations of 8 bits |
//! | `lossless.rs`, `lossless_avx512.rs` | weights of bf16 in 12 bits, the same to the bit |
//! | `pack.rs`, `pairs.rs`, `transpose.rs` | operands in the order in which tiles read them |
//! | `packed.rs` | weights packed once, for inference |
//! | `head.rs` | products with some rows of an output head |
//! | `blocked.rs` | cache blocks and threads |
//! | `cuda.rs`, `cuda_sm90.rs` | launches on a card |
//! | `scratch.rs` | buffers that outlive a call |

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod blocked;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "cuda")]
mod cuda_sm90;
#[cfg(target_arch = "x86_64")]
mod dot_avx2;
#[cfg(target_arch = "x86_64")]
mod dot_avx512;
mod dot_portable;
mod head;
mod int8;
#[cfg(target_arch = "x86_64")]
mod int8_avx512;
mod int8_portable;
#[cfg(test)]
mod int8_tests;
mod lossless;
#[cfg(target_arch = "x86_64")]
mod lossless_avx512;
#[cfg(test)]
mod lossless_tests;
mod pack;
mod packed;
mod pairs;
mod portable;
mod scratch;
#[cfg(test)]
pub(crate) mod tests;
mod tile;
#[cfg(target_arch = "x86_64")]
mod transpose;

pub(crate) use head::{matmul_nn_rows, matmul_tn_rows};
pub(crate) use pack::Source;
pub use packed::PackedWeight;
pub use tile::Isa;

use super::{check, check_activations, check_weight};
#[cfg(feature = "cuda")]
use crate::device::Backend;
use crate::device::{Cost, DType, Device, Op, Tensor};
use crate::error::{Error, Result};
use blocked::{Operand, Product};
#[cfg(feature = "cuda")]
use cuda::Layout;
use pack::{Left, Right};

/// FLOPs and fewest bytes of an `m x k` by `k x n` product with a weight (or second operand) of `element` bytes.
pub fn cost(m: usize, n: usize, k: usize, element: usize) -> Cost {
    Cost { flops: 2 * (m * n * k) as u64, bytes: (4 * (m * k + m * n) + element * n * k) as u64 }
}

/// FLOPs of a product, and the bytes of its operands and result, each once.
fn cost_of(flops: usize, tensors: [&Tensor; 3]) -> Cost {
    Cost { flops: flops as u64, bytes: tensors.iter().map(|t| t.size_bytes() as u64).sum() }
}

/// Checks a result: F32, or the device's activation type.
fn check_output(op: &'static str, argument: &'static str, dev: &Device, y: &Tensor, shape: &[usize]) -> Result<()> {
    let dtype = if y.dtype() == dev.activation() { y.dtype() } else { DType::F32 };
    check(op, argument, y, dtype, shape)
}

/// Whether a product replaces its destination or is added to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// `y = ...`
    Replace,
    /// `y += ...`: residual connections, gradient accumulation.
    Add,
}

/// Forward: `y[m, n] (+)= x[m, k] · w[n, k]ᵀ (+ bias[n])`. `y`: F32; `x`: F32 or BF16; `w`, `bias`: float.
pub fn matmul_nt(
    dev: &Device,
    y: &mut Tensor,
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    store: Store,
) -> Result<()> {
    let (m, k, n) = (x.rows(), x.row_len(), w.rows());
    check_activations("matmul_nt", "x", x, &[m, k])?;
    check_weight("matmul_nt", "w", w, &[n, k])?;
    check_output("matmul_nt", "y", dev, y, &[m, n])?;
    check_bias("matmul_nt", bias, n)?;
    let _span = dev.span(Op::Matmul, cost_of(2 * m * n * k, [x, w, y]));
    #[cfg(feature = "cuda")]
    if let Backend::Cuda(cuda) = dev.backend() {
        return cuda::launch(cuda, Layout::Nt, (m, n, k), y, (x, w), bias, store);
    }
    run(dev, (m, n, k), Left::Rows(Source::of(x, 0)), Operand::Plain(Right::Rows(w, 0)), bias, store, y);
    Ok(())
}

/// Gradient of the input: `dx[m, k] (+)= dy[m, n] · w[n, k]`. `dx`: F32; `dy`: F32 or BF16; `w`: float.
pub fn matmul_nn(dev: &Device, dx: &mut Tensor, dy: &Tensor, w: &Tensor, store: Store) -> Result<()> {
    let (m, n, k) = (dy.rows(), w.rows(), w.row_len());
    check_activations("matmul_nn", "dy", dy, &[m, n])?;
    check_weight("matmul_nn", "w", w, &[n, k])?;
    check_output("matmul_nn", "dx", dev, dx, &[m, k])?;
    let _span = dev.span(Op::Matmul, cost_of(2 * m * n * k, [dy, w, dx]));
    #[cfg(feature = "cuda")]
    if let Backend::Cuda(cuda) = dev.backend() {
        return cuda::launch(cuda, Layout::Nn, (m, k, n), dx, (dy, w), None, store);
    }
    run(dev, (m, k, n), Left::Rows(Source::of(dy, 0)), Operand::Plain(Right::Columns(w, 0)), None, store, dx);
    Ok(())
}

/// Gradient of the weight: `dw[n, k] (+)= dy[m, n]ᵀ · x[m, k]`, the reduction over tokens in their order. `dw`: F32; `dy`, `x`:
/// F32 or BF16.
pub fn matmul_tn(dev: &Device, dw: &mut Tensor, dy: &Tensor, x: &Tensor, store: Store) -> Result<()> {
    let (m, n, k) = (dy.rows(), dy.row_len(), x.row_len());
    check_activations("matmul_tn", "dy", dy, &[m, n])?;
    check_activations("matmul_tn", "x", x, &[m, k])?;
    check("matmul_tn", "dw", dw, DType::F32, &[n, k])?;
    let _span = dev.span(Op::Matmul, cost_of(2 * m * n * k, [dy, x, dw]));
    #[cfg(feature = "cuda")]
    if let Backend::Cuda(cuda) = dev.backend() {
        return cuda::launch(cuda, Layout::Tn, (n, k, m), dw, (dy, x), None, store);
    }
    run(dev, (n, k, m), Left::Columns(Source::of(dy, 0)), Operand::Plain(Right::Columns(x, 0)), None, store, dw);
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
    check_activations("matmul_packed", "x", x, &[m, k])?;
    w.check("matmul_packed", dev.compute())?;
    check("matmul_packed", "y", y, DType::F32, &[m, n])?;
    check_bias("matmul_packed", bias, n)?;
    let _span = dev.span(Op::Matmul, w.cost(m, n));
    run(dev, (m, n, k), Left::Rows(Source::of(x, 0)), Operand::Packed(w, 0), bias, store, y);
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

/// [`matmul_weight`] of several weights with one input, each replacing its output: the same bits, computed as one product so
/// that threads wait for each other once, or a card for one launch.
pub fn matmul_weights<const N: usize>(
    dev: &Device,
    x: &Tensor,
    products: &mut [(&mut Tensor, Weight, Option<&Tensor>); N],
) -> Result<()> {
    #[cfg(feature = "cuda")]
    if let Backend::Cuda(cuda) = dev.backend() {
        return cuda::matmul_weights(dev, cuda, x, products);
    }
    let (m, k) = (x.rows(), x.row_len());
    check_activations("matmul_weights", "x", x, &[m, k])?;
    let mut cost_of_all = Cost::default();
    for (y, w, bias) in products.iter() {
        w.check(dev, "matmul_weights", "w")?;
        let n = w.out_features();
        if w.in_features() != k {
            let found = format!("[{n}, {}]", w.in_features());
            return Err(Error::shape("matmul_weights", "w", format!("[{n}, {k}]"), found));
        }
        check("matmul_weights", "y", y, DType::F32, &[m, n])?;
        check_bias("matmul_weights", *bias, n)?;
        let Cost { flops, bytes } = w.cost(m, n);
        cost_of_all = Cost { flops: cost_of_all.flops + flops, bytes: cost_of_all.bytes + bytes };
    }
    let _span = dev.span(Op::Matmul, cost_of_all);
    let biases = products.each_ref().map(|(_, _, bias)| bias.map(Tensor::to_f32));
    let mut biases = biases.iter();
    blocked::run_all(products.each_mut().map(|(y, w, _)| {
        let product = Product {
            isa: Isa::best(),
            inputs: w.operand(0).inputs(dev),
            size: (m, w.out_features(), k),
            left: Left::Rows(Source::of(x, 0)),
            right: w.operand(0),
            bias: biases.next().and_then(Option::as_ref).map(Tensor::f32),
            store: Store::Replace,
        };
        (product, y.f32_mut())
    }));
    Ok(())
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

    /// Errors unless this is a float matrix that the device's products can use.
    pub(crate) fn check(&self, dev: &Device, op: &'static str, argument: &'static str) -> Result<()> {
        match self {
            Weight::Plain(w) => check_weight(op, argument, w, &[w.rows(), w.row_len()]),
            Weight::Packed(w) => w.check(op, dev.compute()),
        }
    }

    /// Rows `first ..` as the right-hand side of a product.
    fn operand(&self, first: usize) -> Operand<'_> {
        match *self {
            Weight::Plain(w) => Operand::Plain(Right::Rows(w, first)),
            Weight::Packed(w) => Operand::Packed(w, first),
        }
    }

    /// Cost of a product of `m` rows with `n` rows of the weight.
    fn cost(&self, m: usize, n: usize) -> Cost {
        match self {
            Weight::Plain(w) => cost(m, n, w.row_len(), w.dtype().size()),
            Weight::Packed(w) => w.cost(m, n),
        }
    }

    /// `out[m, rows] = x[m, k] · w[first .. first + rows]ᵀ`; `first` is a multiple of 32. Booked as a matmul.
    pub(crate) fn logits(&self, dev: &Device, out: &mut [f32], x: &[f32], first: usize, rows: usize) {
        let k = self.in_features();
        let m = x.len().checked_div(k).unwrap_or(0);
        let right = self.operand(first);
        let _span = dev.span(Op::Matmul, self.cost(m, rows));
        let product = Product {
            isa: Isa::best(),
            inputs: right.inputs(dev),
            size: (m, rows, k),
            left: Left::Rows(Source::F32(x)),
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

fn run(
    dev: &Device,
    size: (usize, usize, usize),
    left: Left,
    right: Operand,
    bias: Option<&Tensor>,
    store: Store,
    out: &mut Tensor,
) {
    let bias = bias.map(Tensor::to_f32);
    let bias = bias.as_ref().map(Tensor::f32);
    let product = Product { isa: Isa::best(), inputs: right.inputs(dev), size, left, right, bias, store };
    product.run(out.f32_mut(), size.1);
}
