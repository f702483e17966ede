//! How far a model has moved from the one it was cut from, on the same text.

use super::log_likelihood::BATCH_TOKENS;
use super::perplexity::{batches, check_window};
use crate::device::{DType, Device};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::model::{Batch, Llama, Workspace};
use crate::ops::divergence as ops;
use crate::progress::Progress;
use serde::Serialize;

/// Distance of a model from its base over the positions that [`perplexity`](super::perplexity()) scores.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Divergence {
    /// Mean over positions of `KL(base || model)` between the two predictions of the next token, in nats.
    pub kl: f64,
    /// Share of positions where both find the same token likeliest.
    pub top1_agreement: f64,
    /// Positions compared.
    pub tokens: usize,
}

/// `KL(base || model)` and top-1 agreement over `ids` in windows of `window` tokens.
///
/// Errors as [`perplexity`](super::perplexity()), and when the vocabularies differ.
pub fn divergence(dev: &Device, base: &Llama, model: &Llama, ids: &[u32], window: usize) -> Result<Divergence> {
    check_window(model, ids, window)?;
    check_window(base, ids, window)?;
    if base.head().rows() != model.head().rows() {
        let expected = format!("a model with the vocabulary of {} ids", model.head().rows());
        return Err(Error::usage("--base", expected, base.head().rows().to_string()));
    }
    let progress = Progress::start("divergence", ids.len() as u64, "tokens");
    let tokens = BATCH_TOKENS.max(window).min(ids.len());
    let mut workspaces = (Workspace::new(dev, &base.config, tokens)?, Workspace::new(dev, &model.config, tokens)?);
    let mut kl = dev.zeros(&[tokens], DType::F32)?;
    let mut agree = dev.zeros(&[tokens], DType::F32)?;
    let (mut kl_sum, mut agreed, mut count) = (0.0, 0.0, 0usize);
    for windows in batches(ids, window) {
        interrupt::check()?;
        let batch = Batch::pack(&windows);
        base.forward(dev, &batch, &mut workspaces.0, &mut |_, _| Ok(()))?;
        model.forward(dev, &batch, &mut workspaces.1, &mut |_, _| Ok(()))?;
        let (p, q) = (&workspaces.0.hidden, &workspaces.1.hidden);
        kl.set_rows(batch.tokens())?;
        agree.set_rows(batch.tokens())?;
        ops::divergence(dev, &mut kl, &mut agree, p, base.head_weight(), q, model.head_weight())?;
        let (kl, agree) = (kl.host()?, agree.host()?);
        let mut start = 0;
        for window in windows {
            // The last position of a window predicts a token outside it, which perplexity does not score either.
            let scored = start..start + window.len() - 1;
            kl_sum += kl.f32()[scored.clone()].iter().map(|&v| f64::from(v)).sum::<f64>();
            agreed += agree.f32()[scored].iter().map(|&v| f64::from(v)).sum::<f64>();
            start += window.len();
            count += window.len() - 1;
            progress.add(window.len() as u64);
        }
        progress.message(format!("KL {:.4}", kl_sum / count as f64));
    }
    Ok(Divergence { kl: kl_sum / count as f64, top1_agreement: agreed / count as f64, tokens: count })
}
