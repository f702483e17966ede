//! Fused output head and cross-entropy: losses and gradients without keeping the logits of all tokens.

use super::log_probs::IGNORE;
use super::matmul::{Store, matmul_nn, matmul_nt, matmul_tn};
use super::{check, check_weight};
use crate::device::{DType, Device, Tensor};
use crate::error::{Error, Result};

/// Tokens whose logits exist at once.
const CHUNK: usize = 256;

/// `losses[t] = -log_softmax(hidden[t] · headᵀ)[targets[t]]` and the gradients of `scale * Σ losses`: `d_hidden` is replaced,
/// `d_head` added to. Ignored targets have loss and gradient 0.
///
/// `losses`: F32 `[tokens]`; `hidden`, `d_hidden`: F32 `[tokens, hidden]`; `head`: float `[vocab, hidden]`; `d_head`: F32 of
/// that shape; `targets`: U32 `[tokens]`, ids or [`IGNORE`].
#[allow(clippy::too_many_arguments)]
pub fn linear_cross_entropy(
    dev: &Device,
    losses: &mut Tensor,
    d_hidden: &mut Tensor,
    mut d_head: Option<&mut Tensor>,
    hidden: &Tensor,
    head: &Tensor,
    targets: &Tensor,
    scale: f32,
) -> Result<()> {
    let (tokens, width, vocab) = (hidden.rows(), hidden.row_len(), head.rows());
    check("linear_cross_entropy", "losses", losses, DType::F32, &[tokens])?;
    check("linear_cross_entropy", "d_hidden", d_hidden, DType::F32, &[tokens, width])?;
    check("linear_cross_entropy", "targets", targets, DType::U32, &[tokens])?;
    check_weight("linear_cross_entropy", "head", head, &[vocab, width])?;
    for first in (0..tokens).step_by(CHUNK) {
        let n = CHUNK.min(tokens - first);
        let x = Tensor::from_f32(&hidden.f32()[first * width..(first + n) * width], &[n, width]);
        let mut logits = Tensor::zeros(&[n, vocab], DType::F32);
        matmul_nt(dev, &mut logits, &x, head, None, Store::Replace)?;
        for (i, row) in logits.f32_mut().chunks_exact_mut(vocab).enumerate() {
            let target = targets.u32()[first + i];
            if target == IGNORE {
                row.fill(0.0);
                losses.f32_mut()[first + i] = 0.0;
                continue;
            }
            if target as usize >= vocab {
                let expected = format!("ids below {vocab}");
                return Err(Error::shape("linear_cross_entropy", "targets", expected, target.to_string()));
            }
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum = row.iter().map(|l| f64::from((l - max).exp())).sum::<f64>() as f32;
            losses.f32_mut()[first + i] = max + sum.ln() - row[target as usize];
            row.iter_mut().for_each(|l| *l = scale * (*l - max).exp() / sum);
            row[target as usize] -= scale;
        }
        let mut dx = Tensor::zeros(&[n, width], DType::F32);
        matmul_nn(dev, &mut dx, &logits, head, Store::Replace)?;
        d_hidden.f32_mut()[first * width..(first + n) * width].copy_from_slice(dx.f32());
        if let Some(d_head) = d_head.as_deref_mut() {
            matmul_tn(dev, d_head, &logits, &x, Store::Add)?;
        }
    }
    Ok(())
}
