//! Log-probabilities of given tokens under a linear output head, without keeping the logits.

use super::{check, check_weight, matmul};
use crate::device::{DType, Device, Tensor};
use crate::error::{Error, Result};

/// A target that is not scored: its log-probability is 0 and it carries no loss.
pub const IGNORE: u32 = u32::MAX;

/// `out[t] = log_softmax(hidden[t] · headᵀ)[targets[t]]`.
///
/// `out`: F32 `[tokens]`, `hidden`: F32 `[tokens, hidden]`, `head`: float `[vocab, hidden]`, `targets`: U32 `[tokens]`, ids or [`IGNORE`].
pub fn log_probs(dev: &Device, out: &mut Tensor, hidden: &Tensor, head: &Tensor, targets: &Tensor) -> Result<()> {
    let (tokens, vocab) = (hidden.rows(), head.rows());
    check("log_probs", "out", out, DType::F32, &[tokens])?;
    check("log_probs", "targets", targets, DType::U32, &[tokens])?;
    check_weight("log_probs", "head", head, &[vocab, hidden.row_len()])?;
    let mut logits = Tensor::zeros(&[tokens, vocab], DType::F32);
    matmul::matmul_nt(dev, &mut logits, hidden, head, None, matmul::Store::Replace)?;
    for ((out, row), &target) in out.f32_mut().iter_mut().zip(logits.f32().chunks_exact(vocab)).zip(targets.u32()) {
        if target == IGNORE {
            *out = 0.0;
            continue;
        }
        if target as usize >= vocab {
            return Err(Error::shape("log_probs", "targets", format!("ids below {vocab}"), target.to_string()));
        }
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f32 = row.iter().map(|l| (l - max).exp()).sum();
        *out = row[target as usize] - max - sum.ln();
    }
    Ok(())
}
