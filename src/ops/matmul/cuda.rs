//! Launches of `kernels/matmul.cu`, and the choice of `kernels/matmul_sm90.cu` where card and shape allow it.

use super::{Store, Weight, check_bias, check_output, cuda_sm90, matmul_weight};
use crate::device::cuda::{Cuda, Grid, abi};
use crate::device::{Cost, DType, Device, Op, Tensor};
use crate::error::Result;
use crate::ops::largest::Largest;
use crate::ops::{check_activations, check_weight};
use std::sync::Arc;

/// Which operands are transposed; see the kernel file.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Layout {
    Nt,
    Nn,
    Tn,
}

/// What kernels take.
fn params(
    cuda: &Arc<Cuda>,
    (m, n, k): (usize, usize, usize),
    y: &mut Tensor,
    (a, b): (&Tensor, &Tensor),
    bias: Option<&Tensor>,
    store: Store,
) -> Result<abi::matmul_params> {
    let wide = y.dtype() == DType::F32;
    let add = if store == Store::Add { abi::MATMUL_ADD } else { 0 };
    Ok(abi::matmul_params {
        y: if wide { y.kernel_mut::<f32>(cuda)?.cast() } else { y.kernel_mut::<abi::bf16>(cuda)?.cast() },
        a: a.kernel_ptr(cuda)?,
        b: b.kernel_ptr(cuda)?,
        bias: bias.map_or(Ok(std::ptr::null()), |bias| bias.kernel_ptr(cuda))?,
        largest_a: std::ptr::null(),
        m: m as u32,
        n: n as u32,
        k: k as u32,
        flags: add | if wide { abi::MATMUL_F32 } else { 0 },
    })
}

/// [`super::matmul_weights`]: one launch where the kernels of compute capability 9.0 can.
pub(super) fn matmul_weights(
    dev: &Device,
    cuda: &Arc<Cuda>,
    x: &Tensor,
    products: &mut [(&mut Tensor, Weight, Option<&Tensor>)],
) -> Result<()> {
    let one_by_one = |products: &mut [(&mut Tensor, Weight, Option<&Tensor>)]| {
        products.iter_mut().try_for_each(|(y, w, bias)| matmul_weight(dev, y, x, *w, *bias, Store::Replace))
    };
    if !cuda_sm90::has_kernels(cuda) {
        return one_by_one(products);
    }
    let (m, k) = (x.rows(), x.row_len());
    check_activations("matmul_weights", "x", x, &[m, k])?;
    let mut together = Vec::with_capacity(products.len());
    let mut cost = Cost { flops: 0, bytes: x.size_bytes() as u64 };
    for (y, w, bias) in products.iter_mut() {
        let Weight::Plain(w) = *w else { break };
        let n = w.rows();
        check_weight("matmul_weights", "w", w, &[n, k])?;
        check_output("matmul_weights", "y", dev, y, &[m, n])?;
        check_bias("matmul_weights", *bias, n)?;
        cost.flops += 2 * (m * n * k) as u64;
        cost.bytes += (w.size_bytes() + y.size_bytes()) as u64;
        together.push(params(cuda, (m, n, k), y, (x, w), *bias, Store::Replace)?);
    }
    if together.len() == products.len() && cuda_sm90::takes_together(cuda, &together) {
        let _span = dev.span(Op::Matmul, cost);
        return cuda_sm90::few_rows(cuda, &together);
    }
    one_by_one(products)
}

/// `y[m, n] (+)= a · b (+ bias)` with the reduction over `k`; `y`: BF16 or F32, the rest BF16.
pub(super) fn launch(
    cuda: &Arc<Cuda>,
    layout: Layout,
    (m, n, k): (usize, usize, usize),
    y: &mut Tensor,
    (a, b): (&Tensor, &Tensor),
    bias: Option<&Tensor>,
    store: Store,
) -> Result<()> {
    let mut params = params(cuda, (m, n, k), y, (a, b), bias, store)?;
    // The other layouts are those of gradients.
    let largest = (layout != Layout::Nt).then(|| Largest::of(cuda, a)).transpose()?;
    params.largest_a = largest.as_ref().map_or(std::ptr::null(), Largest::ptr);
    if cuda_sm90::takes(cuda, layout, &params) {
        return cuda_sm90::launch(cuda, layout, params);
    }
    let tiles = |rows: usize, columns: usize| m.div_ceil(rows) * n.div_ceil(columns);
    // Large tiles read operands least often; where they would leave multiprocessors idle, smaller ones share the work out.
    let (kernel, blocks, threads, shared) = if layout == Layout::Nt && m <= 16 {
        ("matmul_nt_small", tiles(16, 32), 64, abi::MATMUL_SMALL_SHARED)
    } else if tiles(128, 128) >= cuda.card.multiprocessors as usize {
        let kernel = match layout {
            Layout::Nt => "matmul_nt_large",
            Layout::Nn => "matmul_nn_large",
            Layout::Tn => "matmul_tn_large",
        };
        (kernel, tiles(128, 128), 256, abi::MATMUL_LARGE_SHARED)
    } else {
        let kernel = match layout {
            Layout::Nt => "matmul_nt_medium",
            Layout::Nn => "matmul_nn_medium",
            Layout::Tn => "matmul_tn_medium",
        };
        (kernel, tiles(64, 64), 128, abi::MATMUL_MEDIUM_SHARED)
    };
    cuda.launch(kernel, Grid { blocks: [blocks, 1, 1], threads, shared }, &params)
}
