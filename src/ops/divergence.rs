//! How far two models' next-token distributions lie apart, token by token.

#[cfg(feature = "cuda")]
use super::log_probs::head_logits;
use super::log_sum_exp::{LogSumExp, PIECE, kl as kl_of_pieces};
use super::matmul::Weight;
use super::{argmax, check};
#[cfg(feature = "cuda")]
use crate::device::{
    Backend,
    cuda::{Cuda, Grid, abi::divergence_params},
};
use crate::device::{Cost, DType, Device, Op, Tensor};
use crate::error::{Error, Result};
use rayon::prelude::*;
#[cfg(feature = "cuda")]
use std::sync::Arc;

/// Bytes of logits of each model at a time.
const LOGITS_BYTES: usize = 32 << 20;

/// `kl[t] = KL(P || Q) = sum_i p_i log(p_i / q_i)` in nats, and `agree[t]` = 1 where P and Q have the same most likely token
/// (ties to the lowest id), else 0.
///
/// `p = softmax(hidden_p[t] · head_pᵀ)`, `q` likewise. `kl`, `agree`: F32 `[tokens]`; `hidden_p`: F32 `[tokens, width_p]`,
/// `head_p`: float `[vocab, width_p]`, plain or packed; the widths of P and Q may differ, the vocabularies not.
///
/// Booked: `2 tokens vocab (width_p + width_q)` FLOPs as matmul, 14 per vocabulary entry as divergence. Error: about
/// `2^-21 + |error of the logits|`. Memory: at most 64 MB of logits.
#[allow(clippy::too_many_arguments)]
pub fn divergence<'a>(
    dev: &Device,
    kl: &mut Tensor,
    agree: &mut Tensor,
    hidden_p: &Tensor,
    head_p: impl Into<Weight<'a>>,
    hidden_q: &Tensor,
    head_q: impl Into<Weight<'a>>,
) -> Result<()> {
    let (head_p, head_q) = (head_p.into(), head_q.into());
    let (tokens, vocab) = (hidden_p.rows(), head_p.out_features());
    head_p.check(dev, "divergence", "head_p")?;
    head_q.check(dev, "divergence", "head_q")?;
    if head_q.out_features() != vocab || vocab == 0 {
        let found = format!("{} rows", head_q.out_features());
        return Err(Error::shape("divergence", "head_q", format!("{} rows, as head_p", vocab.max(1)), found));
    }
    check("divergence", "hidden_p", hidden_p, dev.activation(), &[tokens, head_p.in_features()])?;
    check("divergence", "hidden_q", hidden_q, dev.activation(), &[tokens, head_q.in_features()])?;
    check("divergence", "kl", kl, DType::F32, &[tokens])?;
    check("divergence", "agree", agree, DType::F32, &[tokens])?;
    #[cfg(feature = "cuda")]
    if let Backend::Cuda(cuda) = dev.backend() {
        return on_card(dev, cuda, (kl, agree), (hidden_p, head_p), (hidden_q, head_q));
    }
    let chunk = (LOGITS_BYTES / (4 * vocab)).max(16).min(tokens);
    let mut logits_p = vec![0.0f32; chunk * vocab];
    let mut logits_q = vec![0.0f32; chunk * vocab];
    for first in (0..tokens).step_by(chunk.max(1)) {
        let range = first..tokens.min(first + chunk);
        let rows = |hidden: &'_ Tensor| range.start * hidden.row_len()..range.end * hidden.row_len();
        let (p, q) = (&mut logits_p[..range.len() * vocab], &mut logits_q[..range.len() * vocab]);
        head_p.logits(dev, p, &hidden_p.f32()[rows(hidden_p)], 0, vocab);
        head_q.logits(dev, q, &hidden_q.f32()[rows(hidden_q)], 0, vocab);
        let count = p.len() as u64;
        let _span = dev.span(Op::Divergence, Cost { flops: 14 * count, bytes: 8 * count });
        let (kl, agree) = (&mut kl.f32_mut()[range.clone()], &mut agree.f32_mut()[range]);
        let pairs = p.par_chunks_exact(vocab).zip(q.par_chunks_exact(vocab));
        pairs.zip(kl).zip(agree).for_each(|(((p, q), kl), agree)| {
            let lse = |row: &[f32]| {
                let mut sum = LogSumExp::default();
                sum.add(row);
                sum.value() as f32
            };
            let (lse_p, lse_q) = (lse(p), lse(q));
            let pieces = p.chunks(PIECE).zip(q.chunks(PIECE));
            *kl = pieces.map(|(p, q)| f64::from(kl_of_pieces(p, lse_p, q, lse_q))).sum::<f64>() as f32;
            *agree = f32::from(argmax::row(p) == argmax::row(q));
        });
    }
    Ok(())
}

/// [`divergence`] on a card, which keeps a piece of both models' logits at a time.
#[cfg(feature = "cuda")]
fn on_card(
    dev: &Device,
    cuda: &Arc<Cuda>,
    (kl, agree): (&mut Tensor, &mut Tensor),
    (hidden_p, head_p): (&Tensor, Weight),
    (hidden_q, head_q): (&Tensor, Weight),
) -> Result<()> {
    let (tokens, vocab) = (hidden_p.rows(), head_p.out_features());
    let chunk = (LOGITS_BYTES / (4 * vocab)).max(1);
    for first in (0..tokens).step_by(chunk) {
        let range = first..tokens.min(first + chunk);
        let rows = Tensor::from_u32(&range.clone().map(|t| t as u32).collect::<Vec<u32>>());
        let (p, q) = (head_logits(dev, hidden_p, head_p, &rows)?, head_logits(dev, hidden_q, head_q, &rows)?);
        let (mut kls, mut agrees) = (dev.zeros(&[range.len()], DType::F32)?, dev.zeros(&[range.len()], DType::F32)?);
        let count = p.elements() as u64;
        let _span = dev.span(Op::Divergence, Cost { flops: 14 * count, bytes: 8 * count });
        let params = divergence_params {
            kl: kls.kernel_mut(cuda)?,
            agree: agrees.kernel_mut(cuda)?,
            logits_p: p.kernel_ptr(cuda)?,
            logits_q: q.kernel_ptr(cuda)?,
            vocab: vocab as u32,
        };
        cuda.launch("divergence", Grid::blocks(range.len()), &params)?;
        kl.copy_rows_from(&kls, first)?;
        agree.copy_rows_from(&agrees, first)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Compute;
    use crate::ops::matmul::PackedWeight;
    use crate::ops::matmul::tests::numbers;

    fn log_softmax(h: &[f32], head: &[f32]) -> Vec<f64> {
        let dot = |w: &[f32]| w.iter().zip(h).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        let logits: Vec<f64> = head.chunks_exact(h.len()).map(dot).collect();
        let lse = logits.iter().map(|l| l.exp()).sum::<f64>().ln();
        logits.iter().map(|l| l - lse).collect()
    }

    #[test]
    fn divergence_and_agreement_equal_f64_for_models_of_different_width() {
        let (tokens, vocab, wide, narrow) = (9, 1003, 24, 17);
        let dev = Device::cpu();
        let t = |seed, shape: &[usize]| Tensor::from_f32(&numbers(seed, shape.iter().product()), shape);
        let (hp, wp) = (t(1, &[tokens, wide]), t(2, &[vocab, wide]));
        let (hq, wq) = (t(3, &[tokens, narrow]), t(4, &[vocab, narrow]));
        let (mut kl, mut agree) = (Tensor::zeros(&[tokens], DType::F32), Tensor::zeros(&[tokens], DType::F32));
        divergence(&dev, &mut kl, &mut agree, &hp, &wp, &hq, &PackedWeight::new(&wq, Compute::F32).unwrap()).unwrap();
        for i in 0..tokens {
            let p = log_softmax(&hp.f32()[i * wide..(i + 1) * wide], wp.f32());
            let q = log_softmax(&hq.f32()[i * narrow..(i + 1) * narrow], wq.f32());
            let want: f64 = p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum();
            // Logits below 24 err by 24 * 24 * 2^-24 < 4e-5 at the very worst, a hundredth of it in fact.
            assert!((f64::from(kl.f32()[i]) - want).abs() < 5e-6, "token {i}: {} for {want}", kl.f32()[i]);
            let top = |x: &[f64]| (0..vocab).max_by(|&a, &b| x[a].total_cmp(&x[b])).unwrap();
            assert_eq!(agree.f32()[i], f32::from(top(&p) == top(&q)));
        }
        let flops = 2 * tokens * vocab * (wide + narrow);
        assert_eq!(dev.ledger().entry(Op::Matmul).flops, flops as u64);
    }

    #[test]
    fn a_model_does_not_diverge_from_itself_and_vocabularies_must_match() {
        let (tokens, vocab, width) = (5, 4099, 8);
        let dev = Device::cpu();
        let t = |seed, shape: &[usize]| Tensor::from_f32(&numbers(seed, shape.iter().product()), shape);
        let (h, w) = (t(1, &[tokens, width]), t(2, &[vocab, width]));
        let (mut kl, mut agree) = (Tensor::zeros(&[tokens], DType::F32), Tensor::zeros(&[tokens], DType::F32));
        divergence(&dev, &mut kl, &mut agree, &h, &w, &h, &w).unwrap();
        assert_eq!((kl.f32(), agree.f32()), (&[0.0; 5][..], &[1.0; 5][..]));
        let error = divergence(&dev, &mut kl, &mut agree, &h, &w, &h, &t(2, &[9, width])).unwrap_err();
        assert_eq!(error.to_string(), "divergence: head_q: expected 4099 rows, as head_p, found 9 rows");
    }
}
