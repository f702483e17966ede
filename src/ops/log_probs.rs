//! Log-probabilities of given tokens under a linear output head, without keeping the logits.

use super::check;
use super::log_sum_exp::LogSumExp;
use super::matmul::Weight;
use crate::device::{Cost, DType, Device, Op, Tensor};
use crate::error::{Error, Result};
use rayon::prelude::*;

/// A target that is not scored: its log-probability is 0 and it carries no loss.
pub const IGNORE: u32 = u32::MAX;

/// Tokens and vocabulary entries of one piece of the logits: 4 MB, which stay in the L3 cache. The vocabulary is always
/// walked in the same pieces, so a token's result does not depend on the others.
const TOKENS: usize = 512;
const VOCAB: usize = 2048;

/// `out[t] = log_softmax(hidden[t] · headᵀ)[targets[t]]`.
///
/// `out`: F32 `[tokens]`, `hidden`: F32 `[tokens, hidden]`, `head`: float `[vocab, hidden]`, plain or packed, `targets`: U32
/// `[tokens]`, ids or [`IGNORE`].
///
/// Only rows that are not ignored are computed and booked: `2 * scored * vocab * hidden` FLOPs as matmul and 4 per logit
/// (maximum, difference, exponential, sum) as log_probs. Memory: 4 MB of logits and a copy of the scored rows. Error: that
/// of the logits (see [`super::matmul`]) plus about `2^-22` of the sum of exponentials.
pub fn log_probs<'a>(
    dev: &Device,
    out: &mut Tensor,
    hidden: &Tensor,
    head: impl Into<Weight<'a>>,
    targets: &Tensor,
) -> Result<()> {
    let head = head.into();
    let (tokens, width, vocab) = (hidden.rows(), head.in_features(), head.out_features());
    head.check("log_probs", "head")?;
    check("log_probs", "hidden", hidden, DType::F32, &[tokens, width])?;
    check("log_probs", "out", out, DType::F32, &[tokens])?;
    let (scored, rows) = gather("log_probs", hidden, targets, vocab)?;
    out.f32_mut().fill(0.0);
    let mut logits = vec![0.0f32; TOKENS.min(scored.len()) * VOCAB.min(vocab)];
    for (scored, rows) in scored.chunks(TOKENS).zip(rows.chunks((TOKENS * width).max(1))) {
        let mut sums = vec![(LogSumExp::default(), 0.0f32); scored.len()];
        for first in (0..vocab).step_by(VOCAB) {
            let columns = VOCAB.min(vocab - first);
            let logits = &mut logits[..scored.len() * columns];
            head.logits(dev, logits, rows, first, columns);
            let count = logits.len() as u64;
            let _span = dev.span(Op::LogProbs, Cost { flops: 4 * count, bytes: 4 * count });
            let rows = logits.par_chunks_exact(columns).zip(scored).zip(&mut sums).with_min_len(8);
            rows.for_each(|((row, &(_, target)), (sum, at_target))| {
                sum.add(row);
                if let Some(&logit) = (target as usize).checked_sub(first).and_then(|i| row.get(i)) {
                    *at_target = logit;
                }
            });
        }
        for (&(t, _), (sum, at_target)) in scored.iter().zip(&sums) {
            out.f32_mut()[t] = (f64::from(*at_target) - sum.value()) as f32;
        }
    }
    Ok(())
}

/// The tokens whose target is not [`IGNORE`], as (token, target), and their hidden states one after the other.
pub(super) fn gather(
    op: &'static str,
    hidden: &Tensor,
    targets: &Tensor,
    vocab: usize,
) -> Result<(Vec<(usize, u32)>, Vec<f32>)> {
    check(op, "targets", targets, DType::U32, &[hidden.rows()])?;
    let scored: Vec<(usize, u32)> = targets.u32().iter().copied().enumerate().filter(|&(_, id)| id != IGNORE).collect();
    if let Some(&(t, id)) = scored.iter().find(|&&(_, id)| id as usize >= vocab) {
        return Err(Error::shape(op, "targets", format!("ids below {vocab}"), format!("{id} at token {t}")));
    }
    let width = hidden.row_len();
    let mut rows = Vec::with_capacity(scored.len() * width);
    for &(t, _) in &scored {
        rows.extend_from_slice(&hidden.f32()[t * width..(t + 1) * width]);
    }
    Ok((scored, rows))
}
