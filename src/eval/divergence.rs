//! How far a model has moved from the one it was cut from, on the same text.

use super::log_likelihood::BATCH_TOKENS;
use super::perplexity::{batches, check_window};
use crate::device::{DType, Device, Tensor};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::model::{Batch, Llama, Workspace};
use crate::ops::matmul::{Store, matmul_nt};
use crate::progress::Progress;
use rayon::prelude::*;
use serde::Serialize;

/// Distance of a model from its base over the positions that [`perplexity`](super::perplexity()) scores.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Divergence {
    /// Mean over positions of `KL(base || model)` between the two predictions of the next token, in nats.
    pub kl: f64,
    /// Share of positions where both find the same token likeliest.
    pub top1_agreement: f64,
    /// Positions compared.
    pub tokens: usize,
}

/// Rows of logits that are held at once.
const CHUNK: usize = 64;

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
    let mut workspaces = (Workspace::new(&base.config, tokens), Workspace::new(&model.config, tokens));
    let (mut kl, mut agreed, mut count) = (0.0, 0usize, 0usize);
    for windows in batches(ids, window) {
        interrupt::check()?;
        let batch = Batch::pack(&windows);
        base.forward(dev, &batch, &mut workspaces.0, &mut |_, _| Ok(()))?;
        model.forward(dev, &batch, &mut workspaces.1, &mut |_, _| Ok(()))?;
        let rows = compare(dev, (&workspaces.0.hidden, base.head()), (&workspaces.1.hidden, model.head()))?;
        let mut start = 0;
        for window in windows {
            // The last position of a window predicts a token outside it, which perplexity does not score either.
            for &(row_kl, same) in &rows[start..start + window.len() - 1] {
                kl += row_kl;
                agreed += usize::from(same);
            }
            start += window.len();
            count += window.len() - 1;
            progress.add(window.len() as u64);
        }
        progress.message(format!("KL {:.4}", kl / count as f64));
    }
    Ok(Divergence { kl: kl / count as f64, top1_agreement: agreed as f64 / count as f64, tokens: count })
}

/// KL and agreement of each row of two (hidden states, head) pairs, a few rows of logits at a time.
fn compare(dev: &Device, p: (&Tensor, &Tensor), q: (&Tensor, &Tensor)) -> Result<Vec<(f64, bool)>> {
    let (tokens, vocab) = (p.0.rows(), p.1.rows());
    let mut logits = [Tensor::zeros(&[CHUNK, vocab], DType::F32), Tensor::zeros(&[CHUNK, vocab], DType::F32)];
    let mut rows = Vec::with_capacity(tokens);
    for start in (0..tokens).step_by(CHUNK) {
        let len = CHUNK.min(tokens - start);
        for (logits, (hidden, head)) in logits.iter_mut().zip([p, q]) {
            logits.set_rows(len)?;
            let width = hidden.row_len();
            let chunk = Tensor::from_f32(&hidden.f32()[start * width..(start + len) * width], &[len, width]);
            matmul_nt(dev, logits, &chunk, head, None, Store::Replace)?;
        }
        let [p, q] = &logits;
        let pairs = p.f32().par_chunks_exact(vocab).zip(q.f32().par_chunks_exact(vocab));
        rows.par_extend(pairs.map(|(p, q)| row_divergence(p, q)));
    }
    Ok(rows)
}

/// `sum_i p_i (log p_i - log q_i)` of two rows of logits, in f64, and whether their first maxima are the same.
fn row_divergence(p: &[f32], q: &[f32]) -> (f64, bool) {
    let log_sum = |row: &[f32]| -> (usize, f64) {
        let best = (1..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best });
        let max = f64::from(row[best]);
        (best, max + row.iter().map(|&l| (f64::from(l) - max).exp()).sum::<f64>().ln())
    };
    let ((best_p, sum_p), (best_q, sum_q)) = (log_sum(p), log_sum(q));
    let kl = p.iter().zip(q).map(|(&p, &q)| {
        let log_p = f64::from(p) - sum_p;
        log_p.exp() * (log_p - (f64::from(q) - sum_q))
    });
    (kl.sum(), best_p == best_q)
}
