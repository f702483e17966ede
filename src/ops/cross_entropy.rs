//! Cross-entropy of a linear output head with its gradients, fused so that the logits of all tokens never exist at once.

use super::cross_entropy_cpu::{kept_bytes, on_cpu};
use super::log_probs::gather;
use super::log_sum_exp::PIECE;
use super::{check, check_weight};
#[cfg(feature = "cuda")]
use super::{
    gather::gather_rows,
    log_probs::{Target, scored},
    matmul::{Store, matmul_nn, matmul_nt, matmul_tn},
};
#[cfg(feature = "cuda")]
use crate::device::{
    Backend,
    cuda::{Cuda, Grid, abi::cross_entropy_params},
};
#[cfg(feature = "cuda")]
use crate::device::{Cost, Op};
use crate::device::{DType, Device, Tensor};
use crate::error::Result;
#[cfg(feature = "cuda")]
use std::sync::Arc;

/// Bytes of F32 logits at a time, of which the CPU keeps exponentials: 512 tokens of a vocabulary of 49,152, so that packing the head
/// and reading and writing its gradient (once for each group of tokens) take a few percent of the time.
const LOGITS_BYTES: usize = 96 << 20;

/// Part of a card's memory that the logits may take, where that is more. A piece of T tokens reads and writes the F32 gradient of
/// the head once, 8 bytes for 2 T FLOPs: at 788 TFLOP/s and 4.3 TB/s (an H200) the product is bound by memory below T = 733. Of 141
/// GB a 128th holds 2,100 tokens of a vocabulary of 128,256.
const CARD_PART: u64 = 128;

/// Tokens computed together. A function of the device and the vocabulary alone, since pieces are added up one by one.
fn tokens_at_once(dev: &Device, vocab: usize) -> usize {
    let bytes = dev.memory_size().map_or(0, |bytes| (bytes / CARD_PART) as usize).max(LOGITS_BYTES);
    (bytes / (4 * vocab.max(1))).max(16)
}

/// Bytes of scratch memory that [`linear_cross_entropy`] takes for a batch of `tokens`, on a card for buffers made for as many.
pub fn plan_bytes(dev: &Device, tokens: usize, hidden: usize, vocab: usize) -> usize {
    let chunk = tokens.min(tokens_at_once(dev, vocab));
    if dev.is_cpu() {
        let logits = if kept_bytes(dev) == 2 { PIECE.min(vocab) } else { 0 };
        chunk * (kept_bytes(dev) * vocab + 4 * (logits + 2 * hidden)) + 4 * tokens * hidden
    } else {
        chunk * (6 * vocab + 4 * hidden + 12) + 2 * (tokens + 1) * hidden + 4 * tokens
    }
}

/// Loss and gradients of `logits = hidden · headᵀ` under cross-entropy.
///
/// ```text
/// losses[t]      = -log softmax(logits[t])[targets[t]]
/// d_logits[t]    = scale (softmax(logits[t]) - onehot(targets[t]))
/// d_hidden[t]    = d_logits[t] · head
/// d_head        += d_logitsᵀ · hidden
/// ```
/// `losses`: F32 `[tokens]`; `d_hidden`, `hidden`: F32 `[tokens, hidden]`; `d_head`: F32 `[vocab, hidden]`, added to, or
/// `None` where the head is frozen; `head`: float `[vocab, hidden]`; `targets`: U32 `[tokens]`, ids or
/// [`IGNORE`](super::log_probs::IGNORE), whose losses and gradients are 0. `scale` is that of the mean over a step, 1 / (number of targets).
///
/// Ignored rows are neither computed nor booked: with S scored tokens, `2 S vocab hidden` FLOPs as matmul for the logits, the
/// same for `d_hidden` and for `d_head`, and 7 per logit as cross_entropy. On the CPU the gradient of the logits sums over the
/// vocabulary in chains of 2,048 steps, added up in order: it sums to zero, so that `d_hidden` is a small rest of large partial
/// sums, and one chain of 49,152 steps loses 1e-3 of it in the features that all rows of a head share (SmolLM2, against f64). Errors on a target beyond the vocabulary.
/// Memory: [`plan_bytes`].
#[allow(clippy::too_many_arguments)]
pub fn linear_cross_entropy(
    dev: &Device,
    losses: &mut Tensor,
    d_hidden: &mut Tensor,
    d_head: Option<&mut Tensor>,
    hidden: &Tensor,
    head: &Tensor,
    targets: &Tensor,
    scale: f32,
) -> Result<()> {
    let (tokens, width, vocab) = (hidden.rows(), hidden.row_len(), head.rows());
    check("linear_cross_entropy", "losses", losses, DType::F32, &[tokens])?;
    check("linear_cross_entropy", "hidden", hidden, dev.activation(), &[tokens, width])?;
    check("linear_cross_entropy", "d_hidden", d_hidden, dev.activation(), &[tokens, width])?;
    check_weight("linear_cross_entropy", "head", head, &[vocab, width])?;
    if let Some(d_head) = &d_head {
        check("linear_cross_entropy", "d_head", d_head, DType::F32, &[vocab, width])?;
    }
    #[cfg(feature = "cuda")]
    if let Backend::Cuda(cuda) = dev.backend() {
        let scored = scored("linear_cross_entropy", hidden, targets, vocab)?;
        return on_card(dev, cuda, (losses, d_hidden, d_head), hidden, head, &scored, scale);
    }
    let (scored, rows) = gather("linear_cross_entropy", hidden, targets, vocab)?;
    on_cpu(dev, (losses, d_hidden, d_head), &rows, head, &scored, scale, tokens_at_once(dev, vocab));
    Ok(())
}

/// [`linear_cross_entropy`] on a card: the logits of a piece in F32, their gradient in BF16.
#[cfg(feature = "cuda")]
fn on_card(
    dev: &Device,
    cuda: &Arc<Cuda>,
    (losses, d_hidden, mut d_head): (&mut Tensor, &mut Tensor, Option<&mut Tensor>),
    hidden: &Tensor,
    head: &Tensor,
    scored: &[Target],
    scale: f32,
) -> Result<()> {
    let (tokens, width, vocab) = (hidden.rows(), hidden.row_len(), head.rows());
    let mut all_losses = Tensor::zeros(&[tokens], DType::F32);
    // The gradient of every scored row, and a row of zeros for the others.
    let mut d_rows = Tensor::zeros_in(dev, &[scored.len() + 1, width], hidden.room() + 1, hidden.dtype())?;
    let mut row_of = vec![scored.len() as u32; tokens];
    let chunk = tokens_at_once(dev, vocab).min(hidden.room()).max(1);
    let most = chunk.min(scored.len());
    let buffer = |features: usize, dtype| Tensor::zeros_in(dev, &[most, features], chunk, dtype);
    let (mut logits, mut d_logits) = (buffer(vocab, DType::F32)?, buffer(vocab, hidden.dtype())?);
    let (mut x, mut dx) = (buffer(width, hidden.dtype())?, buffer(width, hidden.dtype())?);
    for (i, scored) in scored.chunks(chunk).enumerate() {
        let n = scored.len();
        let rows = Tensor::from_u32_in(&scored.iter().map(|&(t, _)| t as u32).collect::<Vec<u32>>(), chunk);
        let targets = Tensor::from_u32_in(&scored.iter().map(|&(_, target)| target).collect::<Vec<u32>>(), chunk);
        for buffer in [&mut logits, &mut d_logits, &mut x, &mut dx] {
            buffer.set_rows(n)?;
        }
        gather_rows(dev, &mut x, hidden, &rows)?;
        matmul_nt(dev, &mut logits, &x, head, None, Store::Replace)?;
        let mut chunk_losses = Tensor::zeros_in(dev, &[n], chunk, DType::F32)?;
        let count = logits.elements() as u64;
        let span = dev.span(Op::CrossEntropy, Cost { flops: 7 * count, bytes: 6 * count });
        let params = cross_entropy_params {
            losses: chunk_losses.kernel_mut(cuda)?,
            d_logits: d_logits.kernel_mut(cuda)?,
            logits: logits.kernel_ptr(cuda)?,
            targets: targets.kernel_ptr(cuda)?,
            vocab: vocab as u32,
            scale,
        };
        cuda.launch("cross_entropy", Grid::blocks(n), &params)?;
        drop(span);
        matmul_nn(dev, &mut dx, &d_logits, head, Store::Replace)?;
        d_rows.copy_rows_from(&dx, i * chunk)?;
        if let Some(d_head) = d_head.as_deref_mut() {
            matmul_tn(dev, d_head, &d_logits, &x, Store::Add)?;
        }
        let chunk_losses = chunk_losses.host()?;
        for (j, (&(t, _), loss)) in scored.iter().zip(chunk_losses.f32()).enumerate() {
            all_losses.f32_mut()[t] = *loss;
            row_of[t] = (i * chunk + j) as u32;
        }
    }
    gather_rows(dev, d_hidden, &d_rows, &Tensor::from_u32_in(&row_of, hidden.room()))?;
    losses.copy_from(&all_losses)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Op;
    use crate::ops::log_probs::{IGNORE, log_probs};
    use crate::ops::matmul::tests::numbers;

    /// Sum over scored tokens of the loss, in f64.
    fn loss(hidden: &[f64], head: &[f64], targets: &[u32], width: usize) -> f64 {
        let rows = hidden.chunks_exact(width).zip(targets).filter(|&(_, &t)| t != IGNORE);
        rows.map(|(h, &target)| {
            let logits: Vec<f64> =
                head.chunks_exact(width).map(|w| w.iter().zip(h).map(|(a, b)| a * b).sum()).collect();
            logits.iter().map(|l| l.exp()).sum::<f64>().ln() - logits[target as usize]
        })
        .sum()
    }

    /// Central differences of `f` over every element of `at`.
    fn differences(at: &[f64], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
        let step = 1e-5;
        let mut x = at.to_vec();
        (0..x.len())
            .map(|i| {
                x[i] = at[i] + step;
                let up = f(&x);
                x[i] = at[i] - step;
                let down = f(&x);
                x[i] = at[i];
                (up - down) / (2.0 * step)
            })
            .collect()
    }

    #[test]
    fn losses_and_gradients_equal_f64_central_differences() {
        let (tokens, width, vocab, scale) = (7, 5, 37, 0.25);
        let (hidden, head) = (numbers(1, tokens * width), numbers(2, vocab * width));
        let targets = [3, IGNORE, 36, 0, 7, IGNORE, 3];
        let dev = Device::cpu();
        let mut losses = Tensor::from_f32(&[9.0; 7], &[tokens]);
        let mut d_hidden = Tensor::from_f32(&[9.0; 35], &[tokens, width]);
        let before = numbers(3, vocab * width);
        let mut d_head = Tensor::from_f32(&before, &[vocab, width]);
        let (h, w) = (Tensor::from_f32(&hidden, &[tokens, width]), Tensor::from_f32(&head, &[vocab, width]));
        let ids = Tensor::from_u32(&targets);
        linear_cross_entropy(&dev, &mut losses, &mut d_hidden, Some(&mut d_head), &h, &w, &ids, scale).unwrap();

        let wide = |x: &[f32]| x.iter().map(|&v| f64::from(v)).collect::<Vec<f64>>();
        let (hidden, head) = (wide(&hidden), wide(&head));
        for t in 0..tokens {
            let exact = loss(&hidden[t * width..(t + 1) * width], &head, &targets[t..t + 1], width);
            // A logit of |x| <= 5 carries width * u * 5 < 2e-6 of error.
            assert!((f64::from(losses.f32()[t]) - exact).abs() < 4e-6, "token {t}: {} for {exact}", losses.f32()[t]);
        }
        let by_hidden = differences(&hidden, |h| loss(h, &head, &targets, width));
        let by_head = differences(&head, |w| loss(&hidden, w, &targets, width));
        // Central differences err by step^2 / 6 of the third derivative and 1e-16 / step: below 1e-10; f32 by 1e-6.
        for (got, want) in d_hidden.f32().iter().zip(by_hidden) {
            assert!((f64::from(*got) - f64::from(scale) * want).abs() < 2e-6, "d_hidden {got} for {want}");
        }
        for ((got, before), want) in d_head.f32().iter().zip(before).zip(by_head) {
            let want = f64::from(before) + f64::from(scale) * want;
            assert!((f64::from(*got) - want).abs() < 2e-6, "d_head {got} for {want}");
        }
        let scored = 5;
        assert_eq!(dev.ledger().entry(Op::Matmul).flops, 3 * 2 * scored * (vocab * width) as u64);
    }

    #[test]
    fn several_pieces_give_the_same_losses_and_gradients_as_each_token_alone() {
        // 1.6 M entries make pieces of 16 tokens.
        let (tokens, width, vocab) = (19, 2, 1_600_000);
        let hidden = Tensor::from_f32(&numbers(4, tokens * width), &[tokens, width]);
        let head = Tensor::from_f32(&numbers(5, vocab * width), &[vocab, width]);
        let targets: Vec<u32> = (0..tokens as u32).map(|t| t * 77_777).collect();
        let dev = Device::cpu();
        let run = |from: usize, to: usize| {
            let h = Tensor::from_f32(&hidden.f32()[from * width..to * width], &[to - from, width]);
            let (mut losses, mut dh) =
                (Tensor::zeros(&[to - from], DType::F32), Tensor::zeros(&[to - from, width], DType::F32));
            let ids = Tensor::from_u32(&targets[from..to]);
            linear_cross_entropy(&dev, &mut losses, &mut dh, None, &h, &head, &ids, 1.0).unwrap();
            (losses, dh)
        };
        let (losses, dh) = run(0, tokens);
        for t in [0, 15, 16, 18] {
            let (loss, d) = run(t, t + 1);
            assert_eq!(loss.f32(), &losses.f32()[t..=t]);
            assert_eq!(d.f32(), &dh.f32()[t * width..(t + 1) * width]);
        }
        let mut log_p = Tensor::zeros(&[tokens], DType::F32);
        log_probs(&dev, &mut log_p, &hidden, &head, &Tensor::from_u32(&targets)).unwrap();
        for (loss, log_p) in losses.f32().iter().zip(log_p.f32()) {
            assert_eq!(*loss, -log_p);
        }
    }

    #[test]
    fn all_ignored_gives_zeros_and_a_wrong_target_is_named() {
        let dev = Device::cpu();
        let (hidden, head) = (Tensor::from_f32(&[1.0; 4], &[2, 2]), Tensor::from_f32(&[1.0; 6], &[3, 2]));
        let mut losses = Tensor::from_f32(&[5.0; 2], &[2]);
        let mut dh = Tensor::from_f32(&[5.0; 4], &[2, 2]);
        let mut run = |targets: &[u32]| {
            let ids = Tensor::from_u32(targets);
            linear_cross_entropy(&dev, &mut losses, &mut dh, None, &hidden, &head, &ids, 1.0)
                .map(|()| (losses.f32().to_vec(), dh.f32().to_vec()))
        };
        assert_eq!(run(&[IGNORE; 2]).unwrap(), (vec![0.0; 2], vec![0.0; 4]));
        let error = run(&[0, 3]).unwrap_err().to_string();
        assert_eq!(error, "linear_cross_entropy: targets: expected ids below 3, found 3 at token 1");
    }
}
