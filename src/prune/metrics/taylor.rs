//! First-order Taylor criterion (the `taylor` criterion of Shortened LLaMA, Kim et al. 2024): how much the loss would change,
//! to first order, if each weight of a block went to zero on its own.

use super::magnitude::{CHUNK, projections};
use super::passes::Passes;
use crate::device::{Device, Tensor};
use crate::error::{Error, Result};
use crate::model::{Activations, Gradients, Llama, Recompute};
use crate::progress::Progress;
use rayon::prelude::*;

/// `Σ |W · dL/dW|` over the seven projections of each candidate's blocks. L is the mean negative log-likelihood of every token
/// of the data but the first of each sequence, and dL/dW is summed over all the data before the magnitude is taken.
///
/// One forward and one backward pass over the data. Memory: F32 gradients of the candidates' projections.
pub(super) fn taylor(
    dev: &Device,
    model: &Llama,
    sequences: &[Vec<u32>],
    candidates: &[(usize, usize)],
) -> Result<Vec<f64>> {
    let Passes { batches, tokens, longest, scored } = Passes::new(sequences);
    if scored == 0 {
        return Err(Error::usage("--data", "a sequence of two tokens or more", "none"));
    }
    let blocks: Vec<usize> = candidates.iter().flat_map(|&(start, end)| start..end).collect();
    let mut grads = Gradients::of_projections(dev, model, &blocks)?;
    let mut ws = Activations::new(dev, model, longest, Recompute::Block, grads.lowest_block())?;
    let scale = (1.0 / scored as f64) as f32;
    let progress = Progress::start("score", tokens as u64, "tokens");
    for batch in &batches {
        crate::interrupt::check()?;
        model.forward_backward(dev, batch, &batch.next_tokens(), scale, None, &mut ws, &mut grads)?;
        progress.add(batch.tokens() as u64);
    }
    let of_block = |l: usize| -> Result<f64> {
        let weights = projections(&model.blocks[l]).into_iter().zip(&grads.blocks[l].projections);
        let products = weights.filter_map(|(weight, grad)| Some((weight, grad.weight.as_ref()?)));
        products.map(|(weight, grad)| Ok(sum_of_products(&*weight.host()?, &*grad.host()?))).sum()
    };
    candidates.iter().map(|&(start, end)| (start..end).map(of_block).sum()).collect()
}

/// `Σ |weight · grad|` in double precision; the order of the sum does not depend on the number of threads.
fn sum_of_products(weight: &Tensor, grad: &Tensor) -> f64 {
    let chunks = grad.f32().par_chunks(CHUNK).enumerate().map(|(i, grad)| {
        let mut chunk = vec![0.0f32; grad.len()];
        weight.read_f32(i * CHUNK, &mut chunk);
        chunk.iter().zip(grad).map(|(&w, &g)| (f64::from(w) * f64::from(g)).abs()).sum::<f64>()
    });
    let sums: Vec<f64> = chunks.collect();
    sums.iter().sum()
}
