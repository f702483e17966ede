//! Gated activation (Shazeer 2020): `y = silu(gate) * up`.

use super::check;
use crate::device::{Cost, DType, Device, Op, Tensor};
use crate::error::Result;

/// `y = gate / (1 + exp(-gate)) * up`, element by element; all F32 `[tokens, intermediate]`.
pub fn swiglu(dev: &Device, y: &mut Tensor, gate: &Tensor, up: &Tensor) -> Result<()> {
    check("swiglu", "y", y, DType::F32, gate.shape())?;
    check("swiglu", "up", up, DType::F32, gate.shape())?;
    let n = gate.elements() as u64;
    let _span = dev.span(Op::SwiGlu, Cost { flops: 5 * n, bytes: 12 * n });
    for ((y, g), u) in y.f32_mut().iter_mut().zip(gate.f32()).zip(up.f32()) {
        *y = g / (1.0 + (-g).exp()) * u;
    }
    Ok(())
}

/// Gradients of [`swiglu`]: with `s = 1 / (1 + exp(-gate))`, `d_up = dy * gate * s` and
/// `d_gate = dy * up * s * (1 + gate * (1 - s))`. All F32 of one shape; both outputs are replaced.
pub fn swiglu_backward(
    dev: &Device,
    d_gate: &mut Tensor,
    d_up: &mut Tensor,
    dy: &Tensor,
    gate: &Tensor,
    up: &Tensor,
) -> Result<()> {
    for (argument, t) in [("d_gate", &*d_gate), ("d_up", &*d_up), ("dy", dy), ("up", up)] {
        check("swiglu_backward", argument, t, DType::F32, gate.shape())?;
    }
    let n = gate.elements() as u64;
    let _span = dev.span(Op::SwiGluBackward, Cost { flops: 11 * n, bytes: 20 * n });
    let outputs = d_gate.f32_mut().iter_mut().zip(d_up.f32_mut());
    for ((((d_gate, d_up), dy), g), u) in outputs.zip(dy.f32()).zip(gate.f32()).zip(up.f32()) {
        let s = 1.0 / (1.0 + (-g).exp());
        *d_up = dy * g * s;
        *d_gate = dy * u * s * (1.0 + g * (1.0 - s));
    }
    Ok(())
}
