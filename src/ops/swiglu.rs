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
