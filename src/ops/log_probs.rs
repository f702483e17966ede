//! Log-probabilities of given tokens under a linear output head, without keeping the logits.

use super::check;
use super::log_sum_exp::{LogSumExp, PIECE};
use super::matmul::Weight;
#[cfg(feature = "cuda")]
use super::{
    gather::gather_rows,
    matmul::{Store, matmul_weight},
};
#[cfg(feature = "cuda")]
use crate::device::{
    Backend,
    cuda::{Cuda, Grid, abi::log_probs_params},
};
use crate::device::{Cost, DType, Device, Op, Tensor};
use crate::error::{Error, Result};
use rayon::prelude::*;
#[cfg(feature = "cuda")]
use std::sync::Arc;

/// A target that is not scored: its log-probability is 0 and it carries no loss.
pub const IGNORE: u32 = u32::MAX;

/// Tokens and vocabulary entries of one piece of the logits: 4 MB, which stay in the L3 cache. The vocabulary is always
/// walked in the same pieces, so a token's result does not depend on the others.
const TOKENS: usize = 512;
const VOCAB: usize = PIECE;
/// Bytes of logits that a card keeps at a time.
#[cfg(feature = "cuda")]
pub(super) const LOGITS_BYTES: usize = 64 << 20;

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
    head.check(dev, "log_probs", "head")?;
    check("log_probs", "hidden", hidden, dev.activation(), &[tokens, width])?;
    check("log_probs", "out", out, DType::F32, &[tokens])?;
    #[cfg(feature = "cuda")]
    if let Backend::Cuda(cuda) = dev.backend() {
        let scored = scored("log_probs", hidden, targets, vocab)?;
        return on_card(dev, cuda, out, hidden, head, &scored);
    }
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

/// Bytes that [`log_probs`] of `tokens` tokens needs on a card, with its results: a piece of the logits and of the rows behind them.
/// What it takes on a CPU is told there.
pub fn scratch_bytes(dev: &Device, tokens: usize, hidden: usize, vocab: usize) -> usize {
    #[cfg(feature = "cuda")]
    if let Backend::Cuda(_) = dev.backend() {
        let rows = tokens.min((LOGITS_BYTES / (4 * vocab)).max(1));
        return rows * (4 * vocab + 2 * hidden + 12) + 4 * tokens + 64;
    }
    let _ = (dev, tokens, hidden, vocab);
    0
}

/// [`log_probs`] on a card, which keeps a piece of the logits at a time.
#[cfg(feature = "cuda")]
fn on_card(
    dev: &Device,
    cuda: &Arc<Cuda>,
    out: &mut Tensor,
    hidden: &Tensor,
    head: Weight,
    scored: &[Target],
) -> Result<()> {
    let vocab = head.out_features();
    let mut results = Tensor::zeros(&[hidden.rows()], DType::F32);
    for scored in scored.chunks((LOGITS_BYTES / (4 * vocab)).max(1)) {
        let rows = Tensor::from_u32(&scored.iter().map(|&(t, _)| t as u32).collect::<Vec<u32>>());
        let targets = Tensor::from_u32(&scored.iter().map(|&(_, target)| target).collect::<Vec<u32>>());
        let logits = head_logits(dev, hidden, head, &rows)?;
        let mut values = dev.zeros(&[scored.len()], DType::F32)?;
        let count = logits.elements() as u64;
        let span = dev.span(Op::LogProbs, Cost { flops: 4 * count, bytes: 4 * count });
        let params = log_probs_params {
            out: values.kernel_mut(cuda)?,
            logits: logits.kernel_ptr(cuda)?,
            targets: targets.kernel_ptr(cuda)?,
            vocab: vocab as u32,
        };
        cuda.launch("log_probs", Grid::blocks(scored.len()), &params)?;
        drop(span);
        for (&(t, _), value) in scored.iter().zip(values.host()?.f32()) {
            results.f32_mut()[t] = *value;
        }
    }
    out.copy_from(&results)
}

/// The logits of some rows of the hidden states, on the device: F32 `[rows, vocab]`.
#[cfg(feature = "cuda")]
pub(super) fn head_logits(dev: &Device, hidden: &Tensor, head: Weight, rows: &Tensor) -> Result<Tensor> {
    let mut gathered = dev.zeros(&[rows.rows(), hidden.row_len()], hidden.dtype())?;
    gather_rows(dev, &mut gathered, hidden, rows)?;
    let mut logits = dev.zeros(&[rows.rows(), head.out_features()], DType::F32)?;
    matmul_weight(dev, &mut logits, &gathered, head, None, Store::Replace)?;
    Ok(logits)
}

/// A token that is scored, and its target.
pub(super) type Target = (usize, u32);

/// The tokens whose target is not [`IGNORE`].
pub(super) fn scored(op: &'static str, hidden: &Tensor, targets: &Tensor, vocab: usize) -> Result<Vec<Target>> {
    check(op, "targets", targets, DType::U32, &[hidden.rows()])?;
    let scored: Vec<Target> = targets.u32().iter().copied().enumerate().filter(|&(_, id)| id != IGNORE).collect();
    match scored.iter().find(|&&(_, id)| id as usize >= vocab) {
        Some(&(t, id)) => Err(Error::shape(op, "targets", format!("ids below {vocab}"), format!("{id} at token {t}"))),
        None => Ok(scored),
    }
}

/// The tokens whose target is not [`IGNORE`], and their hidden states one after the other.
pub(super) fn gather(
    op: &'static str,
    hidden: &Tensor,
    targets: &Tensor,
    vocab: usize,
) -> Result<(Vec<Target>, Vec<f32>)> {
    let scored = scored(op, hidden, targets, vocab)?;
    let width = hidden.row_len();
    let mut rows = Vec::with_capacity(scored.len() * width);
    for &(t, _) in &scored {
        rows.extend_from_slice(&hidden.f32()[t * width..(t + 1) * width]);
    }
    Ok((scored, rows))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Compute;
    use crate::ops::matmul::PackedWeight;
    use crate::ops::matmul::tests::numbers;

    #[test]
    fn log_probs_equal_f64_and_only_scored_rows_are_computed() {
        // More tokens and entries than one piece has.
        let (tokens, vocab, width) = (530, 4500, 6);
        let hidden = Tensor::from_f32(&numbers(1, tokens * width), &[tokens, width]);
        let head = Tensor::from_f32(&numbers(2, vocab * width), &[vocab, width]);
        let target = |t: usize| if t % 50 == 7 { IGNORE } else { (t * 8) as u32 };
        let targets: Vec<u32> = (0..tokens).map(target).collect();
        let dev = Device::cpu();
        let mut out = Tensor::from_f32(&vec![3.0; tokens], &[tokens]);
        log_probs(&dev, &mut out, &hidden, &head, &Tensor::from_u32(&targets)).unwrap();
        for t in (0..tokens).step_by(3).chain([tokens - 1, 57, 511, 512]) {
            if targets[t] == IGNORE {
                assert_eq!(out.f32()[t], 0.0);
                continue;
            }
            let h = &hidden.f32()[t * width..(t + 1) * width];
            let dot = |w: &[f32]| w.iter().zip(h).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
            let logits: Vec<f64> = head.f32().chunks_exact(width).map(dot).collect();
            let want = logits[targets[t] as usize] - logits.iter().map(|l| l.exp()).sum::<f64>().ln();
            // One rounding of about 9, 6 roundings of a logit below 6, 2^-22 of the sum.
            assert!((f64::from(out.f32()[t]) - want).abs() < 4e-6, "token {t}: {} for {want}", out.f32()[t]);
        }
        let scored = targets.iter().filter(|&&t| t != IGNORE).count();
        assert_eq!(dev.ledger().entry(Op::Matmul).flops, (2 * scored * vocab * width) as u64);
        assert_eq!(dev.ledger().entry(Op::LogProbs).flops, (4 * scored * vocab) as u64);

        let mut packed = Tensor::zeros(&[tokens], DType::F32);
        let head = PackedWeight::new(&head, Compute::F32).unwrap();
        log_probs(&dev, &mut packed, &hidden, &head, &Tensor::from_u32(&targets)).unwrap();
        assert_eq!(packed.bytes(), out.bytes(), "a packed head gives the same bits");

        let (one, mut alone) = (512, Tensor::zeros(&[1], DType::F32));
        let row = Tensor::from_f32(&hidden.f32()[one * width..(one + 1) * width], &[1, width]);
        log_probs(&dev, &mut alone, &row, &head, &Tensor::from_u32(&targets[one..=one])).unwrap();
        assert_eq!(alone.f32()[0].to_bits(), out.f32()[one].to_bits(), "a token alone gives the same bits");
    }

    #[test]
    fn a_target_beyond_the_vocabulary_is_named() {
        let (hidden, head) = (Tensor::zeros(&[2, 3], DType::F32), Tensor::zeros(&[5, 3], DType::BF16));
        let mut out = Tensor::zeros(&[2], DType::F32);
        let error = log_probs(&Device::cpu(), &mut out, &hidden, &head, &Tensor::from_u32(&[4, 5])).unwrap_err();
        assert_eq!(error.to_string(), "log_probs: targets: expected ids below 5, found 5 at token 1");
    }
}
