//! AdamW (Loshchilov & Hutter 2019), in the order of operations of `torch.optim.AdamW`.

use super::check;
use super::parallel;
use super::simd::{Kernel, LANES, Simd, dispatch};
#[cfg(feature = "cuda")]
use crate::device::{
    Backend,
    cuda::{
        Cuda, Grid,
        abi::{OPTIMIZER_CHUNK, adamw_params, optimizer_tensor},
    },
};
use crate::device::{Cost, DType, Device, Op, Tensor};
use crate::error::{Error, Result};
#[cfg(feature = "cuda")]
use std::{ptr::null_mut, sync::Arc};

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

/// A parameter in training with what a step of it reads and writes, all of one shape.
pub struct Parameter<'a> {
    /// F32; on a card BF16, the copy that it computes with.
    pub p: &'a mut Tensor,
    /// On a card the F32 parameter that the step is made on; the CPU takes none.
    pub master: Option<&'a mut Tensor>,
    /// Running mean of gradients, F32.
    pub m: &'a mut Tensor,
    /// Running mean of squared gradients, F32.
    pub v: &'a mut Tensor,
    /// Gradient, F32.
    pub g: &'a Tensor,
    /// Whether `weight_decay` applies.
    pub decayed: bool,
}

impl Parameter<'_> {
    fn check(&self, dev: &Device) -> Result<()> {
        let shape = self.g.shape();
        check("adamw", "g", self.g, DType::F32, shape)?;
        check("adamw", "p", self.p, dev.activation(), shape)?;
        check("adamw", "m", self.m, DType::F32, shape)?;
        check("adamw", "v", self.v, DType::F32, shape)?;
        match &self.master {
            Some(master) if !dev.is_cpu() => check("adamw", "master", master, DType::F32, shape),
            None if dev.is_cpu() => Ok(()),
            _ => Err(Error::shape("adamw", "master", "one on a card, none on the CPU", "the other")),
        }
    }
}

/// One step of all parameters, on a card in one launch: `p -= lr * weight_decay * p`, `m = beta1 m + (1 - beta1) g`, `v = beta2 v + (1 - beta2) g²`,
/// `p -= lr / (1 - beta1^step) * m / (sqrt(v) / sqrt(1 - beta2^step) + eps)` with `g` scaled by `grad_scale`.
///
/// On a card the step is made on the F32 master and rounded into `p`. The step-wise factors are computed in f64 and each is rounded
/// to f32 once, as PyTorch does; the elements are within a few units in the last place of its result. Errors on step 0.
pub fn adamw(dev: &Device, parameters: &mut [Parameter], settings: AdamW) -> Result<()> {
    parameters.iter().try_for_each(|parameter| parameter.check(dev))?;
    settings.check("adamw")?;
    let n: u64 = parameters.iter().map(|parameter| parameter.g.elements() as u64).sum();
    let _span = dev.span(Op::AdamW, Cost { flops: 14 * n, bytes: 28 * n });
    let decayed = Factors::new(&settings);
    #[cfg(feature = "cuda")]
    if let Backend::Cuda(cuda) = dev.backend() {
        return on_card(cuda, parameters, settings.step, decayed);
    }
    let tasks = parameters.iter_mut().flat_map(|Parameter { p, m, v, g, decayed: decays, .. }| {
        let factors = if *decays { decayed } else { Factors { keep: 1.0, ..decayed } };
        let state = p.f32_mut().chunks_mut(CHUNK).zip(m.f32_mut().chunks_mut(CHUNK)).zip(v.f32_mut().chunks_mut(CHUNK));
        state.zip(g.f32().chunks(CHUNK)).map(move |(((p, m), v), g)| Step { p, m, v, g, factors })
    });
    parallel::for_each(tasks, dispatch);
    Ok(())
}

/// [`adamw`] on a card.
#[cfg(feature = "cuda")]
fn on_card(cuda: &Arc<Cuda>, parameters: &mut [Parameter], step: u64, factors: Factors) -> Result<()> {
    let (mut tensors, mut blocks) = (Vec::with_capacity(parameters.len()), 0u32);
    for Parameter { p, master, m, v, g, decayed } in parameters.iter_mut().filter(|p| p.g.elements() > 0) {
        let n = g.elements() as u64;
        tensors.push(optimizer_tensor {
            master: master.as_mut().map_or(Ok(null_mut()), |master| master.kernel_mut(cuda))?,
            p: p.kernel_mut(cuda)?,
            m: m.kernel_mut(cuda)?,
            v: v.kernel_mut(cuda)?,
            g: g.kernel_ptr(cuda)?,
            n,
            first_block: blocks,
            decayed: u32::from(*decayed),
        });
        blocks += n.div_ceil(u64::from(OPTIMIZER_CHUNK)) as u32;
    }
    let n_tensors = tensors.len() as u32;
    let tensors = cuda.upload_structs(&tensors, tensors.len())?;
    let Factors { grad_scale, keep, gain1, beta2, gain2, step_size, root, eps } = factors;
    let params = adamw_params {
        tensors: tensors.address() as *const optimizer_tensor,
        seed: 0, // of random rounding, which a master makes needless
        n_tensors,
        step: step as u32,
        grad_scale,
        keep,
        gain1,
        beta2,
        gain2,
        step_size,
        root,
        eps,
    };
    cuda.launch("adamw", Grid::blocks(blocks as usize), &params)
}

impl AdamW {
    /// Errors on step 0.
    pub(super) fn check(&self, op: &'static str) -> Result<()> {
        if self.step == 0 { Err(Error::shape(op, "step", "1 or more", "0")) } else { Ok(()) }
    }
}

/// The factors of one step, each rounded to f32 once.
#[derive(Clone, Copy)]
pub(super) struct Factors {
    grad_scale: f32,
    keep: f32,
    gain1: f32,
    beta2: f32,
    gain2: f32,
    step_size: f32,
    root: f32,
    eps: f32,
}

impl Factors {
    pub(super) fn new(settings: &AdamW) -> Factors {
        let AdamW { lr, beta1, beta2, eps, weight_decay, step, grad_scale } = *settings;
        Factors {
            grad_scale,
            keep: (1.0 - lr * weight_decay) as f32,
            gain1: (1.0 - beta1) as f32,
            beta2: beta2 as f32,
            gain2: (1.0 - beta2) as f32,
            step_size: (lr / (1.0 - beta1.powf(step as f64))) as f32,
            root: (1.0 - beta2.powf(step as f64)).sqrt() as f32,
            eps: eps as f32,
        }
    }

    /// Parameters and both moments after the step.
    #[inline(always)]
    pub(super) unsafe fn step<S: Simd>(self, p: S::V, m: S::V, v: S::V, g: S::V) -> (S::V, S::V, S::V) {
        // SAFETY: arithmetic on registers; the caller runs inside `dispatch`.
        unsafe {
            let g = S::mul(g, S::splat(self.grad_scale));
            let mean = S::add(m, S::mul(S::splat(self.gain1), S::sub(g, m)));
            let square = S::mul(S::mul(S::splat(self.gain2), g), g);
            let square = S::add(S::mul(v, S::splat(self.beta2)), square);
            let below = S::add(S::div(S::sqrt(square), S::splat(self.root)), S::splat(self.eps));
            let change = S::div(S::mul(S::splat(self.step_size), mean), below);
            (S::sub(S::mul(p, S::splat(self.keep)), change), mean, square)
        }
    }
}

struct Step<'a> {
    p: &'a mut [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
    g: &'a [f32],
    factors: Factors,
}

impl Kernel for Step<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let state = self.p.chunks_mut(LANES).zip(self.m.chunks_mut(LANES)).zip(self.v.chunks_mut(LANES));
        for (((p, m), v), g) in state.zip(self.g.chunks(LANES)) {
            // SAFETY: inside `dispatch`.
            unsafe {
                let (next, mean, square) = self.factors.step::<S>(S::read(p), S::read(m), S::read(v), S::read(g));
                S::write(p, next);
                S::write(m, mean);
                S::write(v, square);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{assert_close, random, random_tensor};

    /// Loshchilov & Hutter's algorithm 2 in f64.
    #[test]
    fn five_steps_follow_the_published_algorithm() {
        let n = CHUNK + 37;
        let (mut p, mut m, mut v) =
            (random_tensor(&[n], 1), Tensor::zeros(&[n], DType::F32), Tensor::zeros(&[n], DType::F32));
        let mut want: Vec<[f64; 3]> = p.f32().iter().map(|&p| [f64::from(p), 0.0, 0.0]).collect();
        let dev = Device::cpu();
        for step in 1..=5 {
            let g = random(n, 10 + step);
            let settings =
                AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, step, grad_scale: 0.5 };
            let tensor = Tensor::from_f32(&g, &[n]);
            let parameter = Parameter { p: &mut p, master: None, m: &mut m, v: &mut v, g: &tensor, decayed: true };
            adamw(&dev, &mut [parameter], settings).unwrap();
            for ([p, m, v], g) in want.iter_mut().zip(&g) {
                let g = 0.5 * f64::from(*g);
                *p -= 1e-2 * 0.1 * *p;
                *m = 0.9 * *m + 0.1 * g;
                *v = 0.999 * *v + 0.001 * g * g;
                let (m, v) = (*m / (1.0 - 0.9f64.powi(step as i32)), *v / (1.0 - 0.999f64.powi(step as i32)));
                *p -= 1e-2 * m / (v.sqrt() + 1e-8);
            }
        }
        // Five steps of a few roundings of 2^-24 each.
        assert_close("p", p.f32(), &want.iter().map(|w| w[0]).collect::<Vec<_>>(), 1e-6);
        assert_close("m", m.f32(), &want.iter().map(|w| w[1]).collect::<Vec<_>>(), 1e-6);
        assert_close("v", v.f32(), &want.iter().map(|w| w[2]).collect::<Vec<_>>(), 1e-6);
    }

    /// The first step moves every parameter by `lr` against the sign of its gradient, whatever the gradient's size.
    #[test]
    fn the_first_step_is_the_learning_rate() {
        let (mut p, g) = (Tensor::zeros(&[3], DType::F32), Tensor::from_f32(&[1e-3, -5.0, 40.0], &[3]));
        let (mut m, mut v) = (Tensor::zeros(&[3], DType::F32), Tensor::zeros(&[3], DType::F32));
        let settings =
            AdamW { lr: 0.25, beta1: 0.9, beta2: 0.95, eps: 1e-12, weight_decay: 0.0, step: 1, grad_scale: 1.0 };
        let mut step = |settings| {
            let parameter = Parameter { p: &mut p, master: None, m: &mut m, v: &mut v, g: &g, decayed: true };
            adamw(&Device::cpu(), &mut [parameter], settings).map(|()| p.f32().to_vec())
        };
        assert_close("p", &step(settings).unwrap(), &[-0.25, 0.25, -0.25], 1e-6);
        assert!(step(AdamW { step: 0, ..settings }).unwrap_err().to_string().contains("step"));
    }

    #[test]
    fn of_several_parameters_only_those_that_decay_do() {
        let (mut p, mut q) = (Tensor::from_f32(&[2.0; 5], &[5]), Tensor::from_f32(&[2.0; 3], &[3]));
        let [mut m, mut v, mut n, mut w] = [5, 5, 3, 3].map(|n| Tensor::zeros(&[n], DType::F32));
        let (g, h) = (Tensor::zeros(&[5], DType::F32), Tensor::zeros(&[3], DType::F32));
        let settings =
            AdamW { lr: 0.5, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.25, step: 1, grad_scale: 1.0 };
        let first = Parameter { p: &mut p, master: None, m: &mut m, v: &mut v, g: &g, decayed: true };
        let second = Parameter { p: &mut q, master: None, m: &mut n, v: &mut w, g: &h, decayed: false };
        let dev = Device::cpu();
        adamw(&dev, &mut [first, second], settings).unwrap();
        assert_eq!((p.f32(), q.f32()), (&[1.75; 5][..], &[2.0; 3][..]));
        assert_eq!(dev.ledger().entry(Op::AdamW).flops, 14 * 8);
    }
}
