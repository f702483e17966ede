//! Root-mean-square normalisation (Zhang & Sennrich 2019): `y = x / sqrt(mean(x^2) + eps) * w`, row by row.

use super::matmul::Store;
use super::{check, check_weight};
use crate::device::{Cost, DType, Device, Op, Tensor};
use crate::error::Result;

/// `y[t, i] = x[t, i] * rsqrt(mean_i(x[t, i]^2) + eps) * w[i]`. `x`, `y`: F32 `[tokens, hidden]`, `w`: float `[hidden]`.
pub fn rmsnorm(dev: &Device, y: &mut Tensor, x: &Tensor, w: &Tensor, eps: f32) -> Result<()> {
    let (tokens, hidden) = (x.rows(), x.row_len());
    check("rmsnorm", "y", y, DType::F32, &[tokens, hidden])?;
    check_weight("rmsnorm", "w", w, &[hidden])?;
    let cost =
        Cost { flops: (4 * tokens * hidden) as u64, bytes: (8 * tokens * hidden + hidden * w.dtype().size()) as u64 };
    let _span = dev.span(Op::RmsNorm, cost);
    let w = w.to_f32();
    for (y, x) in y.f32_mut().chunks_exact_mut(hidden).zip(x.f32().chunks_exact(hidden)) {
        let mean = x.iter().map(|v| v * v).sum::<f32>() / hidden as f32;
        let scale = 1.0 / (mean + eps).sqrt();
        for ((y, x), w) in y.iter_mut().zip(x).zip(w.f32()) {
            *y = x * scale * w;
        }
    }
    Ok(())
}

/// Rows whose share of `dw` is summed before it joins the others. Part of the result's definition.
const CHUNK: usize = 64;

/// Gradients of [`rmsnorm`]: with `r = 1 / sqrt(mean(x^2) + eps)` and `g = dy * w`,
/// `dx (+)= r * (g - x * r^2 * mean(g * x))` and `dw += sum over tokens of dy * x * r`.
///
/// `dx`, `dy`, `x`: F32 `[tokens, hidden]`; `w`: float `[hidden]`; `dw`: F32 `[hidden]`, accumulated. `dw` is summed over
/// chunks of 64 tokens and then over the chunks in order, so it does not depend on the number of threads.
#[allow(clippy::too_many_arguments)]
pub fn rmsnorm_backward(
    dev: &Device,
    dx: &mut Tensor,
    dw: Option<&mut Tensor>,
    dy: &Tensor,
    x: &Tensor,
    w: &Tensor,
    eps: f32,
    store: Store,
) -> Result<()> {
    let (tokens, hidden) = (x.rows(), x.row_len());
    check("rmsnorm_backward", "dx", dx, DType::F32, &[tokens, hidden])?;
    check("rmsnorm_backward", "dy", dy, DType::F32, &[tokens, hidden])?;
    check_weight("rmsnorm_backward", "w", w, &[hidden])?;
    if let Some(dw) = dw.as_deref() {
        check("rmsnorm_backward", "dw", dw, DType::F32, &[hidden])?;
    }
    let n = (tokens * hidden) as u64;
    let add = if store == Store::Add { 4 * n } else { 0 };
    let cost = Cost { flops: 10 * n, bytes: 12 * n + add + (hidden * w.dtype().size()) as u64 };
    let _span = dev.span(Op::RmsNormBackward, cost);
    let w = w.to_f32();
    let mut partials = vec![0.0f32; if dw.is_some() { tokens.div_ceil(CHUNK) * hidden } else { 0 }];
    let rows =
        dx.f32_mut().chunks_exact_mut(hidden).zip(dy.f32().chunks_exact(hidden)).zip(x.f32().chunks_exact(hidden));
    for (t, ((dx, dy), x)) in rows.enumerate() {
        let mean = x.iter().map(|v| v * v).sum::<f32>() / hidden as f32;
        let scale = 1.0 / (mean + eps).sqrt();
        let dot: f32 = dy.iter().zip(x).zip(w.f32()).map(|((dy, x), w)| dy * w * x).sum();
        let shrink = scale * scale * scale * dot / hidden as f32;
        for (((dx, dy), x), w) in dx.iter_mut().zip(dy).zip(x).zip(w.f32()) {
            let d = dy * w * scale - x * shrink;
            *dx = if store == Store::Add { *dx + d } else { d };
        }
        if dw.is_some() {
            let partial = &mut partials[t / CHUNK * hidden..(t / CHUNK + 1) * hidden];
            partial.iter_mut().zip(dy).zip(x).for_each(|((p, dy), x)| *p += dy * x * scale);
        }
    }
    if let Some(dw) = dw {
        for partial in partials.chunks_exact(hidden) {
            dw.f32_mut().iter_mut().zip(partial).for_each(|(d, p)| *d += p);
        }
    }
    Ok(())
}
