//! Cross-entropy and its gradients on the CPU, the vocabulary in pieces that stay in the cache.
//!
//! With `m` the largest logit of a row up to and with a piece, `e = exp(logit - m)` is what is kept of the logits: F32, or bf16
//! where products round to it anyway. `p = e * exp(m - lse)` then needs a factor of the row and the piece alone, which the
//! gradients take up after and before their products. The target's own entry, where `p - 1` can be far smaller than either,
//! goes around the products in f32.

use super::log_probs::Target;
use super::log_sum_exp::{LogSumExp, PIECE};
use super::matmul::{Source, Weight, matmul_nn_rows, matmul_tn_rows};
use super::parallel::{self, rows_per_task};
use super::rounding::round;
use super::scratch::Scratch;
use super::simd::{Kernel, LANES, Simd, dispatch};
use crate::device::{Compute, Cost, DType, Device, Op, Tensor};
use half::bf16;

/// Bytes of one kept exponential.
pub(super) fn kept_bytes(dev: &Device) -> usize {
    if dev.compute() == Compute::Bf16 { 2 } else { 4 }
}

/// Exponentials of `rows` tokens, piece after piece, each `[rows, columns of the piece]`.
struct Kept<'a> {
    bytes: &'a mut [u8],
    bf16: bool,
    rows: usize,
    vocab: usize,
}

impl Kept<'_> {
    /// Where the piece from entry `first` on lies, and its columns.
    fn place(&self, first: usize) -> (std::ops::Range<usize>, usize) {
        let (columns, size) = (PIECE.min(self.vocab - first), if self.bf16 { 2 } else { 4 });
        (size * self.rows * first..size * self.rows * (first + columns), columns)
    }

    fn piece(&self, first: usize) -> Source<'_> {
        let bytes = &self.bytes[self.place(first).0];
        if self.bf16 { Source::Bf16(bytemuck::cast_slice(bytes)) } else { Source::F32(bytemuck::cast_slice(bytes)) }
    }
}

/// What is known of a row of logits.
#[derive(Clone, Copy, Default)]
struct Row {
    sum: LogSumExp,
    at_target: f32,
}

/// Losses, `d_hidden` and `d_head` of `scored` tokens, whose hidden states are `rows`, in groups of `at_once`.
#[allow(clippy::too_many_arguments)]
pub(super) fn on_cpu(
    dev: &Device,
    (losses, d_hidden, mut d_head): (&mut Tensor, &mut Tensor, Option<&mut Tensor>),
    rows: &[f32],
    head: &Tensor,
    scored: &[Target],
    scale: f32,
    at_once: usize,
) {
    let (width, vocab) = (head.row_len(), head.rows());
    losses.f32_mut().fill(0.0);
    d_hidden.f32_mut().fill(0.0);
    // Of one size whatever the batch, so that the thread keeps one buffer; memory is taken as it is written.
    let mut kept = Scratch::new((at_once * vocab * kept_bytes(dev)).div_ceil(4));
    for (scored, x) in scored.chunks(at_once).zip(rows.chunks((at_once * width).max(1))) {
        let bytes = bytemuck::cast_slice_mut(kept.floats());
        let mut kept = Kept { bytes, bf16: dev.compute() == Compute::Bf16, rows: scored.len(), vocab };
        let (rows, maxima) = exponentials(dev, &mut kept, x, head, scored);
        let mut dx = vec![0.0; x.len()];
        let mut part = Tensor::zeros(&[scored.len(), width], DType::F32);
        for (first, maxima) in (0..vocab).step_by(PIECE).zip(&maxima) {
            let factor = |(row, max): (&Row, &f32)| scale * (f64::from(*max) - row.sum.value()).exp() as f32;
            let factors: Vec<f32> = rows.iter().zip(maxima).map(factor).collect();
            let columns = kept.place(first).1;
            matmul_nn_rows(dev, &mut part, kept.piece(first), head, first, columns);
            add_scaled(dev, &mut dx, part.f32(), &factors);
            if let Some(d_head) = d_head.as_deref_mut() {
                part.f32_mut().fill(0.0);
                add_scaled(dev, part.f32_mut(), x, &factors);
                matmul_tn_rows(dev, d_head, first, columns, kept.piece(first), &part);
            }
        }
        let mut w = vec![0.0; width];
        for (i, (&(t, target), row)) in scored.iter().zip(&rows).enumerate() {
            let (target, own) = (target as usize * width, i * width..(i + 1) * width);
            let from_target = f64::from(row.at_target) - row.sum.value();
            losses.f32_mut()[t] = -from_target as f32;
            let d_logit = scale * from_target.exp_m1() as f32;
            head.read_f32(target, &mut w);
            let d_hidden = &mut d_hidden.f32_mut()[t * width..(t + 1) * width];
            d_hidden.iter_mut().zip(&dx[own.clone()]).zip(&w).for_each(|((d, dx), w)| *d = dx + d_logit * w);
            if let Some(d_head) = d_head.as_deref_mut() {
                let d_head = &mut d_head.f32_mut()[target..target + width];
                d_head.iter_mut().zip(&x[own]).for_each(|(d, x)| *d += d_logit * x);
            }
        }
    }
}

/// Keeps the exponentials, 0 at the target; gives the rows, and for each piece the maximum that its exponentials are relative to.
fn exponentials(
    dev: &Device,
    kept: &mut Kept,
    x: &[f32],
    head: &Tensor,
    scored: &[Target],
) -> (Vec<Row>, Vec<Vec<f32>>) {
    let (n, bf16_kept) = (scored.len(), kept.bf16);
    let mut rows = vec![Row::default(); n];
    let mut maxima = Vec::new();
    let mut logits = vec![0.0f32; if bf16_kept { n * PIECE.min(kept.vocab) } else { 0 }];
    for first in (0..kept.vocab).step_by(PIECE) {
        let (place, columns) = kept.place(first);
        let bytes = &mut kept.bytes[place];
        let (logits, rounded): (&mut [f32], &mut [bf16]) = if bf16_kept {
            (&mut logits[..n * columns], bytemuck::cast_slice_mut(bytes))
        } else {
            (bytemuck::cast_slice_mut(bytes), &mut [])
        };
        Weight::Plain(head).logits(dev, logits, x, first, columns);
        let count = logits.len() as u64;
        let _span = dev.span(Op::CrossEntropy, Cost { flops: 7 * count, bytes: 6 * count });
        let mut largest = vec![0.0f32; n];
        let at_once = rows_per_task(n, columns);
        let outputs = rows.chunks_mut(at_once).zip(largest.chunks_mut(at_once));
        let mut rounded = rounded.chunks_mut(at_once * columns);
        let tasks = outputs.zip(logits.chunks_mut(at_once * columns)).zip(scored.chunks(at_once));
        let tasks = tasks.map(|task| (task, rounded.next()));
        parallel::for_each(tasks, |((((rows, largest), logits), scored), rounded)| {
            for (((row, max), logits), &(_, target)) in
                rows.iter_mut().zip(largest).zip(logits.chunks_exact_mut(columns)).zip(scored)
            {
                let at = (target as usize).checked_sub(first).filter(|&at| at < columns);
                if let Some(at) = at {
                    row.at_target = logits[at];
                }
                *max = row.sum.add_in_place(logits);
                if let Some(at) = at {
                    logits[at] = 0.0;
                }
            }
            if let Some(rounded) = rounded {
                round(rounded, logits);
            }
        });
        maxima.push(largest);
    }
    (rows, maxima)
}

/// `y[t] += factors[t] * x[t]`, row by row.
fn add_scaled(dev: &Device, y: &mut [f32], x: &[f32], factors: &[f32]) {
    let width = x.len() / factors.len().max(1);
    let _span = dev.span(Op::CrossEntropy, Cost { flops: 2 * x.len() as u64, bytes: 12 * x.len() as u64 });
    let rows = rows_per_task(factors.len(), width);
    let tasks = y.chunks_mut(rows * width).zip(x.chunks(rows * width)).zip(factors.chunks(rows));
    parallel::for_each(tasks, |((y, x), factors)| dispatch(AddScaled { y, x, factors }));
}

/// [`add_scaled`] of a task.
struct AddScaled<'a> {
    y: &'a mut [f32],
    x: &'a [f32],
    factors: &'a [f32],
}

impl Kernel for AddScaled<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let width = self.x.len() / self.factors.len();
        let rows = self.y.chunks_exact_mut(width).zip(self.x.chunks_exact(width));
        for ((y, x), factor) in rows.zip(self.factors) {
            for (y, x) in y.chunks_mut(LANES).zip(x.chunks(LANES)) {
                // SAFETY: inside `dispatch`.
                unsafe { S::write(y, S::fma(S::splat(*factor), S::read(x), S::read(y))) };
            }
        }
    }
}
