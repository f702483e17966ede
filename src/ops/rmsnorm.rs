//! Root-mean-square normalisation (Zhang & Sennrich 2019): `y = x / sqrt(mean(x^2) + eps) * w`, row by row.

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
