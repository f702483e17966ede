//! Gated activation (Shazeer 2020): `y = silu(gate) * up`.

use super::check;
use super::element::Element;
use super::parallel::{self, rows_per_task};
use super::simd::{Kernel, LANES, Simd, dispatch_dot};
#[cfg(feature = "cuda")]
use crate::device::{
    Backend,
    cuda::{
        Grid,
        abi::{swiglu_backward_params, swiglu_params},
    },
};
use crate::device::{Cost, DType, Device, Op, Tensor};
use crate::error::Result;
use half::bf16;

/// The dtype of all tensors but one of a call on `dev`: F32 or BF16 on the CPU, the activation type on a card.
fn dtype_of(dev: &Device, gate: &Tensor) -> DType {
    if dev.is_cpu() && gate.dtype() == DType::BF16 { DType::BF16 } else { dev.activation() }
}

/// `y = gate / (1 + exp(-gate)) * up`, element by element; all F32 or all BF16 `[tokens, intermediate]`.
pub fn swiglu(dev: &Device, y: &mut Tensor, gate: &Tensor, up: &Tensor) -> Result<()> {
    for (argument, t) in [("gate", gate), ("y", &*y), ("up", up)] {
        check("swiglu", argument, t, dtype_of(dev, gate), gate.shape())?;
    }
    let n = gate.elements() as u64;
    let _span = dev.span(Op::SwiGlu, Cost { flops: 5 * n, bytes: 3 * gate.size_bytes() as u64 });
    #[cfg(feature = "cuda")]
    if let Backend::Cuda(cuda) = dev.backend() {
        let params =
            swiglu_params { y: y.kernel_mut(cuda)?, gate: gate.kernel_ptr(cuda)?, up: up.kernel_ptr(cuda)?, n };
        return cuda.launch_dependent("swiglu", Grid::eights(n), &params, &[]);
    }
    if gate.dtype() == DType::BF16 {
        forward::<bf16>(y, gate, up)
    } else {
        forward::<f32>(y, gate, up)
    }
    Ok(())
}

fn forward<E: Element>(y: &mut Tensor, gate: &Tensor, up: &Tensor) {
    let chunk = rows_per_task(gate.elements(), 1);
    let tasks = E::of_mut(y).chunks_mut(chunk).zip(E::of(gate).chunks(chunk)).zip(E::of(up).chunks(chunk));
    parallel::for_each(tasks, |((y, gate), up)| dispatch_dot(Forward { y, gate, up }));
}

struct Forward<'a, E> {
    y: &'a mut [E],
    gate: &'a [E],
    up: &'a [E],
}

impl<E: Element> Kernel for Forward<'_, E> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let rows = self.y.chunks_mut(LANES).zip(self.gate.chunks(LANES)).zip(self.up.chunks(LANES));
        for ((y, gate), up) in rows {
            // SAFETY: inside `dispatch`.
            unsafe {
                let gate = E::read::<S>(gate);
                E::write::<S>(y, S::mul(S::div(gate, one_plus_exp::<S>(gate)), E::read::<S>(up)));
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
/// `d_gate = dy * up * s * (1 + gate * (1 - s))`. All of one shape, and F32, or BF16 but for an F32 `dy`; both outputs are replaced.
pub fn swiglu_backward(
    dev: &Device,
    d_gate: &mut Tensor,
    d_up: &mut Tensor,
    dy: &Tensor,
    gate: &Tensor,
    up: &Tensor,
) -> Result<()> {
    check("swiglu_backward", "dy", dy, dev.activation(), gate.shape())?;
    for (argument, t) in [("d_gate", &*d_gate), ("d_up", &*d_up), ("gate", gate), ("up", up)] {
        check("swiglu_backward", argument, t, dtype_of(dev, gate), gate.shape())?;
    }
    let n = gate.elements() as u64;
    let _span =
        dev.span(Op::SwiGluBackward, Cost { flops: 11 * n, bytes: (4 * gate.size_bytes() + dy.size_bytes()) as u64 });
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
    if gate.dtype() == DType::BF16 {
        backward::<bf16>((d_gate, d_up), dy, gate, up);
    } else {
        backward::<f32>((d_gate, d_up), dy, gate, up);
    }
    Ok(())
}

fn backward<E: Element>((d_gate, d_up): (&mut Tensor, &mut Tensor), dy: &Tensor, gate: &Tensor, up: &Tensor) {
    let chunk = rows_per_task(gate.elements(), 1);
    let outputs = E::of_mut(d_gate).chunks_mut(chunk).zip(E::of_mut(d_up).chunks_mut(chunk));
    let inputs = dy.f32().chunks(chunk).zip(E::of(gate).chunks(chunk)).zip(E::of(up).chunks(chunk));
    parallel::for_each(outputs.zip(inputs), |((d_gate, d_up), ((dy, gate), up))| {
        dispatch_dot(Backward { d_gate, d_up, dy, gate, up });
    });
}

struct Backward<'a, E> {
    d_gate: &'a mut [E],
    d_up: &'a mut [E],
    dy: &'a [f32],
    gate: &'a [E],
    up: &'a [E],
}

impl<E: Element> Kernel for Backward<'_, E> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let outputs = self.d_gate.chunks_mut(LANES).zip(self.d_up.chunks_mut(LANES));
        let inputs = self.dy.chunks(LANES).zip(self.gate.chunks(LANES)).zip(self.up.chunks(LANES));
        for ((d_gate, d_up), ((dy, gate), up)) in outputs.zip(inputs) {
            // SAFETY: inside `dispatch`.
            unsafe {
                let (dy, gate, up) = (S::read(dy), E::read::<S>(gate), E::read::<S>(up));
                let s = S::div(S::splat(1.0), one_plus_exp::<S>(gate));
                let rest = S::sub(S::splat(1.0), s);
                let dy_s = S::mul(dy, s);
                E::write::<S>(d_up, S::mul(dy_s, gate));
                E::write::<S>(d_gate, S::mul(S::mul(dy_s, up), S::fma(gate, rest, S::splat(1.0))));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{assert_close, assert_derivative, random_tensor, to_bf16, unwritten, wide};

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
    fn bf16_is_what_f32_gives_rounded() {
        let dev = Device::cpu();
        let [gate, up] = [1, 2].map(|seed| to_bf16(&random_tensor(&[3, 501], seed)));
        let dy = random_tensor(&[3, 501], 3);
        let [mut y, mut d_gate, mut d_up] = [(); 3].map(|()| unwritten(&[3, 501]));
        let [mut y_half, mut d_gate_half, mut d_up_half] = [(); 3].map(|()| Tensor::zeros(&[3, 501], DType::BF16));
        swiglu(&dev, &mut y, &gate.to_f32(), &up.to_f32()).unwrap();
        swiglu(&dev, &mut y_half, &gate, &up).unwrap();
        swiglu_backward(&dev, &mut d_gate, &mut d_up, &dy, &gate.to_f32(), &up.to_f32()).unwrap();
        swiglu_backward(&dev, &mut d_gate_half, &mut d_up_half, &dy, &gate, &up).unwrap();
        for (wide, half) in [(y, y_half), (d_gate, d_gate_half), (d_up, d_up_half)] {
            assert_eq!(to_bf16(&wide).bytes(), half.bytes());
        }
        assert!(swiglu(&dev, &mut unwritten(&[3, 501]), &gate, &up).is_err());
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
