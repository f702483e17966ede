//! AdamW (Loshchilov & Hutter 2019), in the order of operations of `torch.optim.AdamW`.

use super::check;
use crate::device::{Cost, DType, Device, Op, Tensor};
use crate::error::{Error, Result};
use rayon::prelude::*;

/// Elements of one parallel task.
const CHUNK: usize = 1 << 14;

/// Settings of one optimiser step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the running mean of gradients.
    pub beta1: f64,
    /// Decay of the running mean of squared gradients.
    pub beta2: f64,
    /// Added outside the square root.
    pub eps: f64,
    /// Decoupled decay: the parameter loses `lr * weight_decay` of itself before the step.
    pub weight_decay: f64,
    /// Number of this step, from 1.
    pub step: u64,
    /// Factor on every gradient (clipping, accumulation).
    pub grad_scale: f32,
}

/// One step: `p -= lr * weight_decay * p`, `m = beta1 m + (1 - beta1) g`, `v = beta2 v + (1 - beta2) g²`,
/// `p -= lr / (1 - beta1^step) * m / (sqrt(v) / sqrt(1 - beta2^step) + eps)` with `g` scaled by `grad_scale`.
///
/// `p`, `m`, `v`, `g`: F32 of one shape. The step-wise factors are computed in f64 and each is rounded to f32 once, as
/// PyTorch does; the elements are within a few units in the last place of its result. Errors on step 0.
pub fn adamw(dev: &Device, p: &mut Tensor, m: &mut Tensor, v: &mut Tensor, g: &Tensor, settings: AdamW) -> Result<()> {
    check("adamw", "g", g, DType::F32, g.shape())?;
    check("adamw", "p", p, DType::F32, g.shape())?;
    check("adamw", "m", m, DType::F32, g.shape())?;
    check("adamw", "v", v, DType::F32, g.shape())?;
    let AdamW { lr, beta1, beta2, eps, weight_decay, step, grad_scale } = settings;
    if step == 0 {
        return Err(Error::shape("adamw", "step", "1 or more", "0"));
    }
    let n = g.elements() as u64;
    let _span = dev.span(Op::AdamW, Cost { flops: 14 * n, bytes: 28 * n });
    let keep = (1.0 - lr * weight_decay) as f32;
    let (gain1, beta2, gain2) = ((1.0 - beta1) as f32, beta2 as f32, (1.0 - beta2) as f32);
    let step_size = (lr / (1.0 - beta1.powf(step as f64))) as f32;
    let root = (1.0 - settings.beta2.powf(step as f64)).sqrt() as f32;
    let eps = eps as f32;
    let state = p.f32_mut().par_chunks_mut(CHUNK).zip(m.f32_mut().par_chunks_mut(CHUNK));
    let state = state.zip(v.f32_mut().par_chunks_mut(CHUNK)).zip(g.f32().par_chunks(CHUNK));
    state.for_each(|(((p, m), v), g)| {
        for (((p, m), v), g) in p.iter_mut().zip(m).zip(v).zip(g) {
            let g = g * grad_scale;
            *p *= keep;
            *m += gain1 * (g - *m);
            *v = *v * beta2 + gain2 * g * g;
            *p -= step_size * *m / (v.sqrt() / root + eps);
        }
    });
    Ok(())
}
