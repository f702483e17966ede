//! Root-mean-square normalisation (Zhang & Sennrich 2019): `y = x / sqrt(mean(x^2) + eps) * w`, row by row.

#[cfg(feature = "cuda")]
use super::bias::add_rows;
use super::element::Element;
use super::matmul::Store;
use super::parallel::{self, rows_per_task};
use super::scratch::Scratch;
use super::simd::{Kernel, LANES, Simd, dispatch, dispatch_dot};
use super::{check, check_weight};
#[cfg(feature = "cuda")]
use crate::device::{
    Backend,
    cuda::{Cuda, Grid, abi},
};
use crate::device::{Cost, DType, Device, Op, Tensor};
use crate::error::{Error, Result};
use half::bf16;
#[cfg(feature = "cuda")]
use std::sync::Arc;

/// `y[t, i] = x[t, i] * rsqrt(mean_i(x[t, i]^2) + eps) * w[i]`. `x`: F32 `[tokens, hidden]`, `y`: F32 or BF16,
/// `w`: float `[hidden]`.
pub fn rmsnorm(dev: &Device, y: &mut Tensor, x: &Tensor, w: &Tensor, eps: f32) -> Result<()> {
    let (tokens, hidden) = (x.rows(), x.row_len());
    nonzero("rmsnorm", hidden)?;
    check("rmsnorm", "x", x, dev.activation(), &[tokens, hidden])?;
    let rounded = dev.is_cpu() && y.dtype() == DType::BF16;
    check("rmsnorm", "y", y, if rounded { DType::BF16 } else { dev.activation() }, &[tokens, hidden])?;
    check_weight("rmsnorm", "w", w, &[hidden])?;
    let bytes = x.size_bytes() + y.size_bytes() + w.size_bytes();
    let _span = dev.span(Op::RmsNorm, Cost { flops: (4 * tokens * hidden) as u64, bytes: bytes as u64 });
    #[cfg(feature = "cuda")]
    if let Backend::Cuda(cuda) = dev.backend() {
        let (y, x, w) = (y.kernel_mut(cuda)?, x.kernel_ptr(cuda)?, w.kernel_ptr(cuda)?);
        let params = abi::rmsnorm_params { y, x, w, hidden: hidden as u32, eps };
        return cuda.launch_dependent("rmsnorm", Grid::rows(tokens, hidden), &params, &[]);
    }
    with_f32(w, |w| if rounded { forward::<bf16>(y, x, w, eps) } else { forward::<f32>(y, x, w, eps) });
    Ok(())
}

fn forward<E: Element>(y: &mut Tensor, x: &Tensor, w: &[f32], eps: f32) {
    let rows = rows_per_task(x.rows(), w.len()) * w.len();
    let tasks = E::of_mut(y).chunks_mut(rows).zip(x.f32().chunks(rows));
    parallel::for_each(tasks, |(y, x)| dispatch_dot(Forward { y, x, w, eps }));
}

/// Errors when rows have no elements.
fn nonzero(op: &'static str, hidden: usize) -> Result<()> {
    if hidden > 0 { Ok(()) } else { Err(Error::shape(op, "x", "rows of 1 or more", "0")) }
}

/// Calls `run` with the elements as f32, converted into the thread's scratch when they are not.
fn with_f32(w: &Tensor, run: impl FnOnce(&[f32])) {
    if w.dtype() == DType::F32 {
        return run(w.f32());
    }
    let mut scratch = Scratch::new(w.elements());
    w.read_f32(0, scratch.floats());
    run(scratch.floats())
}

struct Forward<'a, E> {
    y: &'a mut [E],
    x: &'a [f32],
    w: &'a [f32],
    eps: f32,
}

impl<E: Element> Kernel for Forward<'_, E> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let hidden = self.w.len();
        for (y, x) in self.y.chunks_exact_mut(hidden).zip(self.x.chunks_exact(hidden)) {
            // SAFETY: inside `dispatch`.
            unsafe {
                let scale = S::splat(row_scale::<S>(x, self.eps));
                for ((y, x), w) in y.chunks_mut(LANES).zip(x.chunks(LANES)).zip(self.w.chunks(LANES)) {
                    E::write::<S>(y, S::mul(S::mul(S::read(x), scale), S::read(w)));
                }
            }
        }
    }
}

/// `1 / sqrt(mean(x^2) + eps)`.
#[inline(always)]
unsafe fn row_scale<S: Simd>(x: &[f32], eps: f32) -> f32 {
    // SAFETY: inside `dispatch`.
    unsafe {
        let mut sum = S::splat(0.0);
        for x in x.chunks(LANES) {
            let x = S::read(x);
            sum = S::fma(x, x, sum);
        }
        1.0 / (S::sum(sum) / x.len() as f32 + eps).sqrt()
    }
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
    nonzero("rmsnorm_backward", hidden)?;
    check("rmsnorm_backward", "x", x, dev.activation(), &[tokens, hidden])?;
    check("rmsnorm_backward", "dx", dx, dev.activation(), &[tokens, hidden])?;
    check("rmsnorm_backward", "dy", dy, dev.activation(), &[tokens, hidden])?;
    check_weight("rmsnorm_backward", "w", w, &[hidden])?;
    if let Some(dw) = dw.as_deref() {
        check("rmsnorm_backward", "dw", dw, DType::F32, &[hidden])?;
    }
    let add = store == Store::Add;
    let bytes = (3 + usize::from(add)) * x.size_bytes() + w.size_bytes();
    let _span = dev.span(Op::RmsNormBackward, Cost { flops: 10 * (tokens * hidden) as u64, bytes: bytes as u64 });
    #[cfg(feature = "cuda")]
    if let Backend::Cuda(cuda) = dev.backend() {
        return launch_backward(dev, cuda, dx, dw, (dy, x, w), eps, add);
    }
    let rows = CHUNK * hidden;
    let mut partials = Scratch::new(if dw.is_some() { tokens.div_ceil(CHUNK) * hidden } else { 0 });
    with_f32(w, |w| {
        let inputs = dx.f32_mut().chunks_mut(rows).zip(dy.f32().chunks(rows)).zip(x.f32().chunks(rows));
        if dw.is_some() {
            let tasks = inputs.zip(partials.floats().chunks_mut(hidden));
            parallel::for_each(tasks, |(((dx, dy), x), dw)| {
                dw.fill(0.0);
                dispatch(Backward { dx, dw: Some(dw), dy, x, w, eps, add });
            });
        } else {
            parallel::for_each(inputs, |((dx, dy), x)| dispatch(Backward { dx, dw: None, dy, x, w, eps, add }));
        }
    });
    if let Some(dw) = dw {
        for partial in partials.floats().chunks_exact(hidden) {
            dw.f32_mut().iter_mut().zip(partial).for_each(|(d, p)| *d += p);
        }
    }
    Ok(())
}

/// Bytes that [`rmsnorm_backward`] needs on a card for the gradient of its weight.
pub fn scratch_bytes(dev: &Device, tokens: usize, hidden: usize) -> usize {
    #[cfg(feature = "cuda")]
    if let Backend::Cuda(_) = dev.backend() {
        return 4 * hidden * tokens.div_ceil(abi::RMSNORM_CHUNK as usize);
    }
    let _ = (dev, tokens, hidden);
    0
}

/// [`rmsnorm_backward`] on a card, and the sum of its partial sums.
#[cfg(feature = "cuda")]
fn launch_backward(
    dev: &Device,
    cuda: &Arc<Cuda>,
    dx: &mut Tensor,
    dw: Option<&mut Tensor>,
    (dy, x, w): (&Tensor, &Tensor, &Tensor),
    eps: f32,
    add: bool,
) -> Result<()> {
    let (tokens, hidden) = (x.rows(), x.row_len());
    let chunks = tokens.div_ceil(abi::RMSNORM_CHUNK as usize);
    let room = x.room().div_ceil(abi::RMSNORM_CHUNK as usize);
    let sums = || Tensor::zeros_in(dev, &[chunks, hidden], room, DType::F32);
    let mut partial = dw.is_some().then(sums).transpose()?;
    let params = abi::rmsnorm_backward_params {
        dx: dx.kernel_mut(cuda)?,
        partial: partial.as_mut().map_or(Ok(std::ptr::null_mut()), |partial| partial.kernel_mut(cuda))?,
        dy: dy.kernel_ptr(cuda)?,
        x: x.kernel_ptr(cuda)?,
        w: w.kernel_ptr(cuda)?,
        tokens: tokens as u32,
        hidden: hidden as u32,
        add: u32::from(add),
        eps,
    };
    cuda.launch("rmsnorm_backward", Grid::blocks(chunks), &params)?;
    match (dw, partial) {
        (Some(dw), Some(partial)) => add_rows(cuda, dw, &partial),
        _ => Ok(()),
    }
}

struct Backward<'a> {
    dx: &'a mut [f32],
    dw: Option<&'a mut [f32]>,
    dy: &'a [f32],
    x: &'a [f32],
    w: &'a [f32],
    eps: f32,
    add: bool,
}

impl Kernel for Backward<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(mut self) {
        let hidden = self.w.len();
        let rows = self.dx.chunks_exact_mut(hidden).zip(self.dy.chunks_exact(hidden)).zip(self.x.chunks_exact(hidden));
        for ((dx, dy), x) in rows {
            // SAFETY: inside `dispatch`.
            unsafe {
                let scale = row_scale::<S>(x, self.eps);
                let mut dot = S::splat(0.0);
                for ((dy, x), w) in dy.chunks(LANES).zip(x.chunks(LANES)).zip(self.w.chunks(LANES)) {
                    dot = S::fma(S::mul(S::read(dy), S::read(w)), S::read(x), dot);
                }
                let shrink = S::splat(-(scale * scale * scale * (S::sum(dot) / hidden as f32)));
                let scale = S::splat(scale);
                for (((dx, dy), x), w) in
                    dx.chunks_mut(LANES).zip(dy.chunks(LANES)).zip(x.chunks(LANES)).zip(self.w.chunks(LANES))
                {
                    let d = S::fma(S::read(x), shrink, S::mul(S::mul(S::read(dy), S::read(w)), scale));
                    let d = if self.add { S::add(S::read(dx), d) } else { d };
                    S::write(dx, d);
                }
                if let Some(dw) = self.dw.as_deref_mut() {
                    for ((dw, dy), x) in dw.chunks_mut(LANES).zip(dy.chunks(LANES)).zip(x.chunks(LANES)) {
                        S::write(dw, S::fma(S::mul(S::read(dy), S::read(x)), scale, S::read(dw)));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{assert_close, assert_derivative, bits, random_tensor, to_bf16, unwritten, wide};

    const EPS: f32 = 1e-5;

    fn reference(x: &[f64], w: &[f64]) -> Vec<f64> {
        let scale =
            |row: &[f64]| (row.iter().map(|v| v * v).sum::<f64>() / row.len() as f64 + f64::from(EPS)).powf(-0.5);
        x.chunks(w.len()).flat_map(|row| row.iter().zip(w).map(move |(x, w)| x * scale(row) * w)).collect()
    }

    fn reference_backward(dy: &[f64], x: &[f64], w: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let (n, mut dx, mut dw) = (w.len(), Vec::new(), vec![0.0; w.len()]);
        for (dy, x) in dy.chunks(n).zip(x.chunks(n)) {
            let scale = (x.iter().map(|v| v * v).sum::<f64>() / n as f64 + f64::from(EPS)).powf(-0.5);
            let mean = (0..n).map(|i| dy[i] * w[i] * x[i]).sum::<f64>() / n as f64;
            dx.extend((0..n).map(|i| scale * (dy[i] * w[i] - x[i] * scale * scale * mean)));
            (0..n).for_each(|i| dw[i] += dy[i] * x[i] * scale);
        }
        (dx, dw)
    }

    #[test]
    fn forward_and_gradients_equal_f64() {
        for (tokens, hidden) in [(1, 1), (1, 576), (7, 37), (131, 300)] {
            let [x, dy, before] = [1, 2, 3].map(|seed| random_tensor(&[tokens, hidden], seed));
            let w = to_bf16(&random_tensor(&[hidden], 4));
            let (mut y, mut dx) = (unwritten(x.shape()), unwritten(x.shape()));
            let (mut added, mut dw) = (before.to_f32(), Tensor::from_f32(&vec![1.0; hidden], &[hidden]));
            let dev = Device::cpu();
            rmsnorm(&dev, &mut y, &x, &w, EPS).unwrap();
            rmsnorm_backward(&dev, &mut dx, None, &dy, &x, &w, EPS, Store::Replace).unwrap();
            rmsnorm_backward(&dev, &mut added, Some(&mut dw), &dy, &x, &w, EPS, Store::Add).unwrap();
            let [x, dy, before, w] = [x, dy, before, w.to_f32()].map(|t| wide(t.f32()));
            let (want_dx, want_dw) = reference_backward(&dy, &x, &w);
            // Sums of up to 576 products in 16 chains: (36 + 4) roundings of 2^-24.
            assert_close("y", y.f32(), &reference(&x, &w), 5e-6);
            assert_close("dx", dx.f32(), &want_dx, 5e-6);
            let want_added: Vec<f64> = want_dx.iter().zip(&before).map(|(d, b)| d + b).collect();
            assert_close("dx added", added.f32(), &want_added, 5e-6);
            assert_close("dw", dw.f32(), &want_dw.iter().map(|d| d + 1.0).collect::<Vec<_>>(), 2e-5);
            let loss = |x: &[f64], w: &[f64]| -> f64 { reference(x, w).iter().zip(&dy).map(|(y, d)| y * d).sum() };
            if hidden > 1 {
                assert_derivative("dx", &x, &want_dx, |x| loss(x, &w));
            }
            assert_derivative("dw", &w, &want_dw, |w| loss(&x, w));
        }
    }

    #[test]
    fn rows_do_not_depend_on_their_neighbours_nor_dw_on_threads() {
        let dev = Device::cpu();
        let (x, dy, w) = (random_tensor(&[200, 300], 1), random_tensor(&[200, 300], 2), random_tensor(&[300], 3));
        let (mut all, mut one) = (unwritten(&[200, 300]), unwritten(&[1, 300]));
        rmsnorm(&dev, &mut all, &x, &w, EPS).unwrap();
        rmsnorm(&dev, &mut one, &Tensor::from_f32(&x.f32()[150 * 300..151 * 300], &[1, 300]), &w, EPS).unwrap();
        assert_eq!(bits(&all.f32()[150 * 300..151 * 300]), bits(one.f32()));
        let mut rounded = Tensor::zeros(&[200, 300], DType::BF16);
        rmsnorm(&dev, &mut rounded, &x, &w, EPS).unwrap();
        assert_eq!(rounded.bytes(), to_bf16(&all).bytes());
        let run = |threads| {
            let (mut dx, mut dw) = (unwritten(&[200, 300]), Tensor::zeros(&[300], DType::F32));
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| rmsnorm_backward(&dev, &mut dx, Some(&mut dw), &dy, &x, &w, EPS, Store::Replace)).unwrap();
            (bits(dx.f32()), bits(dw.f32()))
        };
        assert_eq!(run(1), run(4));
    }
}
