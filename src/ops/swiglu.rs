//! Gated activation (Shazeer 2020): `y = silu(gate) * up`.

use super::check;
use super::parallel::{self, rows_per_task};
use super::simd::{Kernel, LANES, Simd, dispatch};
#[cfg(feature = "cuda")]
use crate::device::{
    Backend,
    cuda::{
        Grid,
        abi::{swiglu_backward_params, swiglu_params},
    },
};
use crate::device::{Cost, Device, Op, Tensor};
use crate::error::Result;

/// `y = gate / (1 + exp(-gate)) * up`, element by element; all F32 `[tokens, intermediate]`.
pub fn swiglu(dev: &Device, y: &mut Tensor, gate: &Tensor, up: &Tensor) -> Result<()> {
    check("swiglu", "gate", gate, dev.activation(), gate.shape())?;
    check("swiglu", "y", y, dev.activation(), gate.shape())?;
    check("swiglu", "up", up, dev.activation(), gate.shape())?;
    let n = gate.elements() as u64;
    let _span = dev.span(Op::SwiGlu, Cost { flops: 5 * n, bytes: 3 * gate.size_bytes() as u64 });
    #[cfg(feature = "cuda")]
    if let Backend::Cuda(cuda) = dev.backend() {
        let params =
            swiglu_params { y: y.kernel_mut(cuda)?, gate: gate.kernel_ptr(cuda)?, up: up.kernel_ptr(cuda)?, n };
        return cuda.launch("swiglu", Grid::eights(n), &params);
    }
    let chunk = rows_per_task(gate.elements(), 1);
    let tasks = y.f32_mut().chunks_mut(chunk).zip(gate.f32().chunks(chunk)).zip(up.f32().chunks(chunk));
    parallel::for_each(tasks, |((y, gate), up)| dispatch(Forward { y, gate, up }));
    Ok(())
}

struct Forward<'a> {
    y: &'a mut [f32],
    gate: &'a [f32],
    up: &'a [f32],
}

impl Kernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let rows = self.y.chunks_mut(LANES).zip(self.gate.chunks(LANES)).zip(self.up.chunks(LANES));
        for ((y, gate), up) in rows {
            // SAFETY: inside `dispatch`.
            unsafe {
                let gate = S::read(gate);
                S::write(y, S::mul(S::div(gate, one_plus_exp::<S>(gate)), S::read(up)));
            }
        }
    }
}

/// `1 + exp(-x)`.
#[inline(always)]
unsafe fn one_plus_exp<S: Simd>(x: S::V) -> S::V {
    // SAFETY: inside `dispatch`.
    unsafe { S::add(S::splat(1.0), S::exp(S::sub(S::splat(0.0), x))) }
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
        check("swiglu_backward", argument, t, dev.activation(), gate.shape())?;
    }
    let n = gate.elements() as u64;
    let _span = dev.span(Op::SwiGluBackward, Cost { flops: 11 * n, bytes: 5 * gate.size_bytes() as u64 });
    #[cfg(feature = "cuda")]
    if let Backend::Cuda(cuda) = dev.backend() {
        let params = swiglu_backward_params {
            d_gate: d_gate.kernel_mut(cuda)?,
            d_up: d_up.kernel_mut(cuda)?,
            dy: dy.kernel_ptr(cuda)?,
            gate: gate.kernel_ptr(cuda)?,
            up: up.kernel_ptr(cuda)?,
            n,
        };
        return cuda.launch("swiglu_backward", Grid::eights(n), &params);
    }
    let chunk = rows_per_task(gate.elements(), 1);
    let outputs = d_gate.f32_mut().chunks_mut(chunk).zip(d_up.f32_mut().chunks_mut(chunk));
    let inputs = dy.f32().chunks(chunk).zip(gate.f32().chunks(chunk)).zip(up.f32().chunks(chunk));
    parallel::for_each(outputs.zip(inputs), |((d_gate, d_up), ((dy, gate), up))| {
        dispatch(Backward { d_gate, d_up, dy, gate, up });
    });
    Ok(())
}

struct Backward<'a> {
    d_gate: &'a mut [f32],
    d_up: &'a mut [f32],
    dy: &'a [f32],
    gate: &'a [f32],
    up: &'a [f32],
}

impl Kernel for Backward<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let outputs = self.d_gate.chunks_mut(LANES).zip(self.d_up.chunks_mut(LANES));
        let inputs = self.dy.chunks(LANES).zip(self.gate.chunks(LANES)).zip(self.up.chunks(LANES));
        for ((d_gate, d_up), ((dy, gate), up)) in outputs.zip(inputs) {
            // SAFETY: inside `dispatch`.
            unsafe {
                let (dy, gate, up) = (S::read(dy), S::read(gate), S::read(up));
                let s = S::div(S::splat(1.0), one_plus_exp::<S>(gate));
                let rest = S::sub(S::splat(1.0), s);
                let dy_s = S::mul(dy, s);
                S::write(d_up, S::mul(dy_s, gate));
                S::write(d_gate, S::mul(S::mul(dy_s, up), S::fma(gate, rest, S::splat(1.0))));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{assert_close, assert_derivative, random_tensor, unwritten, wide};

    fn reference(gate: &[f64], up: &[f64]) -> Vec<f64> {
        gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect()
    }

    #[test]
    fn forward_and_gradients_equal_f64() {
        for shape in [[1, 5], [3, 16], [70, 501]] {
            let [gate, up, dy] = [1, 2, 3].map(|seed| random_tensor(&shape, seed));
            let [mut y, mut d_gate, mut d_up] = [(); 3].map(|()| unwritten(&shape));
            swiglu(&Device::cpu(), &mut y, &gate, &up).unwrap();
            swiglu_backward(&Device::cpu(), &mut d_gate, &mut d_up, &dy, &gate, &up).unwrap();
            let [gate, up, dy] = [gate, up, dy].map(|t| wide(t.f32()));
            let sigmoid = |g: f64| 1.0 / (1.0 + (-g).exp());
            let want_up: Vec<f64> = dy.iter().zip(&gate).map(|(dy, &g)| dy * g * sigmoid(g)).collect();
            let slope = |g: f64| sigmoid(g) * (1.0 + g * (1.0 - sigmoid(g)));
            let want_gate: Vec<f64> = dy.iter().zip(&gate).zip(&up).map(|((dy, &g), u)| dy * u * slope(g)).collect();
            // A handful of roundings of 2^-24.
            assert_close("y", y.f32(), &reference(&gate, &up), 1e-6);
            assert_close("d_gate", d_gate.f32(), &want_gate, 1e-6);
            assert_close("d_up", d_up.f32(), &want_up, 1e-6);
            let loss =
                |gate: &[f64], up: &[f64]| -> f64 { reference(gate, up).iter().zip(&dy).map(|(y, d)| y * d).sum() };
            assert_derivative("d_gate", &gate, &want_gate, |gate| loss(gate, &up));
            assert_derivative("d_up", &up, &want_up, |up| loss(&gate, up));
        }
    }

    #[test]
    fn far_gates_are_closed_or_open() {
        let gate = Tensor::from_f32(&[-200.0, -88.0, 0.0, 88.0, 200.0], &[1, 5]);
        let (up, mut y) = (Tensor::from_f32(&[2.0; 5], &[1, 5]), unwritten(&[1, 5]));
        swiglu(&Device::cpu(), &mut y, &gate, &up).unwrap();
        assert_eq!(y.f32()[2..], [0.0, 176.0, 400.0]);
        assert!(y.f32()[..2].iter().all(|y| y.abs() < 1e-35));
    }
}
