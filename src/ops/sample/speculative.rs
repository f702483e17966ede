//! Draws from a draft model, and their test against the target: the rejection scheme of Leviathan et al. 2023 (arXiv
//! 2211.17192) and Chen et al. 2023 (arXiv 2302.01318).
//!
//! A proposal `x` drawn from `q` is kept with probability `min(1, p(x) / q(x))`; at the first one that is not, the token is drawn
//! from `max(0, p - q)`, renormalised, and the rest is dropped. What comes out is distributed as draws from `p`. Greedy proposals
//! are kept while they are the target's own choice.

use super::distribution::{Distribution, pick};
use super::{Draw, Drawn, Noise, chosen, cost, described};
use crate::device::{DType, Device, Op, Tensor};
use crate::error::{Error, Result};
use crate::ops::argmax;
use crate::ops::check;
use rayon::prelude::*;

/// A token that a draft model drew.
#[derive(Clone, Debug)]
pub struct Proposal {
    /// Its id.
    pub id: u32,
    /// What it was drawn from; `None`: it is the draft's greedy choice.
    drawn_from: Option<Distribution>,
}

/// Draws one token a row from a draft's `logits`, F32 `[rows, vocab]`, under random numbers of their own.
///
/// [`Error::NotFinite`] as [`super::sample`].
pub fn propose(dev: &Device, logits: &Tensor, draws: &[Draw]) -> Result<Vec<Proposal>> {
    let (rows, vocab) = (draws.len(), logits.row_len());
    check("propose", "logits", logits, DType::F32, &[rows, vocab])?;
    let _span = dev.span(Op::Sample, cost(rows, vocab));
    let propose = |(row, draw): (&[f32], &Draw)| {
        super::finite(row, draw)?;
        let row = super::adjust::adjusted(row, draw)?;
        if draw.sampling.temperature == 0.0 {
            return Ok(Proposal { id: argmax::row(&row) as u32, drawn_from: None });
        }
        let distribution = Distribution::new(&row, &draw.sampling);
        Ok(Proposal { id: distribution.pick(draw.uniform(Noise::Draft)), drawn_from: Some(distribution) })
    };
    logits.host()?.f32().par_chunks_exact(vocab.max(1)).zip(draws).map(propose).collect()
}

/// The target's tokens for one sequence: the proposals that it keeps, then one of its own.
///
/// `logits`: `[proposals + 1, vocab]` of the target, row `j` behind the first `j` proposals; `draws`: one a row.
pub(super) fn verify_sequence(logits: &[f32], draws: &[Draw], proposals: &[Proposal]) -> Result<Vec<Drawn>> {
    let vocab = logits.len() / draws.len().max(1);
    let mut out = Vec::with_capacity(draws.len());
    for (j, (raw, draw)) in logits.chunks_exact(vocab.max(1)).zip(draws).enumerate() {
        let lse = super::finite(raw, draw)?;
        let row = super::adjust::adjusted(raw, draw)?;
        let (id, kept) = match proposals.get(j) {
            None => (chosen(&row, draw), false),
            Some(Proposal { id, drawn_from: None }) => {
                let best = argmax::row(&row) as u32;
                (best, best == *id)
            }
            Some(Proposal { id, drawn_from: Some(q) }) => {
                let p = Distribution::new(&row, &draw.sampling);
                let kept = draw.uniform(Noise::Accept) * q.probability(*id) < p.probability(*id);
                (if kept { *id } else { residual(&p, q, draw.uniform(Noise::Target)) }, kept)
            }
        };
        out.push(described(raw, lse, id, draw));
        if !kept {
            break;
        }
    }
    Ok(out)
}

/// A draw from `max(0, p - q)`; from `p` where rounding leaves nothing of it.
fn residual(p: &Distribution, q: &Distribution, uniform: f64) -> u32 {
    let (ids, rest): (Vec<u32>, Vec<f64>) =
        p.probabilities().map(|(id, p)| (id, (p - q.probability(id)).max(0.0))).unzip();
    let total: f64 = rest.iter().sum();
    if total > 0.0 { ids[pick(rest.into_iter(), uniform * total)] } else { p.pick(uniform) }
}

/// One sequence of a call of [`verify`].
pub struct Verification<'a> {
    /// One draw for each proposal and one more.
    pub draws: Vec<Draw<'a>>,
    /// Proposals in order; none at all is a plain draw.
    pub proposals: &'a [Proposal],
}

/// The target's tokens for each sequence: the proposals that it keeps, then one of its own.
///
/// `logits`: F32 `[rows, vocab]`, for each sequence in order a row per draw; row `j` of a sequence is behind its first `j`
/// proposals. [`Error::NotFinite`] as [`super::sample`]. Without any proposals this is [`super::sample`].
pub fn verify(dev: &Device, logits: &Tensor, sequences: &[Verification]) -> Result<Vec<Vec<Drawn>>> {
    let (rows, vocab) = (sequences.iter().map(|s| s.draws.len()).sum(), logits.row_len());
    check("verify", "logits", logits, DType::F32, &[rows, vocab])?;
    if let Some(bad) = sequences.iter().find(|s| s.draws.len() != s.proposals.len() + 1) {
        let expected = format!("one more than its {} proposals", bad.proposals.len());
        return Err(Error::shape("verify", "draws", expected, bad.draws.len().to_string()));
    }
    if sequences.iter().all(|s| s.proposals.is_empty()) {
        let draws: Vec<Draw> = sequences.iter().map(|s| s.draws[0]).collect();
        return Ok(super::sample(dev, logits, &draws)?.into_iter().map(|drawn| vec![drawn]).collect());
    }
    let _span = dev.span(Op::Sample, cost(rows, vocab));
    let host = logits.host()?;
    let mut rest = host.f32();
    let mut parts = Vec::with_capacity(sequences.len());
    for sequence in sequences {
        let (own, others) = rest.split_at(sequence.draws.len() * vocab);
        parts.push((own, sequence));
        rest = others;
    }
    parts.into_par_iter().map(|(own, s)| verify_sequence(own, &s.draws, s.proposals)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::sample::Sampling;
    use crate::ops::testing::random;

    /// Ten draws a round, thousands of rounds: the first token, and the second given the first, follow the target.
    #[test]
    fn what_comes_out_is_distributed_as_the_targets_draws() {
        let vocab = 12;
        let target: Vec<Vec<f32>> = (0..=vocab as u64).map(|i| random(vocab, 100 + i)).collect();
        // A draft of its own mind: related to the target, but another distribution.
        let draft: Vec<Vec<f32>> = target
            .iter()
            .zip(0u64..)
            .map(|(t, i)| t.iter().zip(random(vocab, 500 + i)).map(|(t, n)| 0.5 * t + n).collect())
            .collect();
        for sampling in [
            Sampling { temperature: 1.0, seed: 5, ..Sampling::GREEDY },
            Sampling { temperature: 0.8, top_p: 0.85, seed: 6, ..Sampling::GREEDY },
            Sampling { temperature: 1.2, top_k: 7, min_p: 0.05, seed: 7, ..Sampling::GREEDY },
        ] {
            let rounds = 60_000u64;
            let dev = Device::cpu();
            let (mut first, mut second) = (vec![0usize; vocab], vec![vec![0usize; vocab]; vocab]);
            let mut kept = 0u32;
            // The context of a token is the token before it: row `vocab` is the start.
            for request in 0..rounds {
                let draw = |position| Draw::new(sampling, request, position);
                let row = |rows: &[Vec<f32>], at: usize| Tensor::from_f32(&rows[at], &[1, vocab]);
                let one = propose(&dev, &row(&draft, vocab), &[draw(0)]).unwrap().remove(0);
                let two = propose(&dev, &row(&draft, one.id as usize), &[draw(1)]).unwrap().remove(0);
                let rows = [vocab, one.id as usize, two.id as usize].map(|at| target[at].clone()).concat();
                let proposals = [one, two];
                let draws: Vec<Draw> = (0..3).map(draw).collect();
                let out = verify_sequence(&rows, &draws, &proposals).unwrap();
                kept += u32::from(out.len() > 1);
                first[out[0].id as usize] += 1;
                // The next round goes on behind what this one gave.
                let next = match out.get(1) {
                    Some(drawn) => drawn.id,
                    None => {
                        let plain = verify_sequence(&target[out[0].id as usize], &[draw(1)], &[]).unwrap();
                        plain[0].id
                    }
                };
                second[out[0].id as usize][next as usize] += 1;
            }
            let fits = |seen: &[usize], row: &[f32]| {
                let p = Distribution::new(row, &sampling);
                let n: usize = seen.iter().sum();
                let (mut chi2, mut cells) = (0.0, 0);
                for (id, &seen) in seen.iter().enumerate() {
                    let expected = p.probability(id as u32) * n as f64;
                    assert!(expected > 0.0 || seen == 0, "an id that the cuts remove is never drawn");
                    if expected > 0.0 {
                        chi2 += (seen as f64 - expected).powi(2) / expected;
                        cells += 1;
                    }
                }
                // Mean k and standard deviation sqrt(2k); 4 deviations are passed once in 20,000 times.
                let k = f64::from(cells - 1);
                assert!(chi2 <= k + 4.0 * (2.0 * k).sqrt() + 1e-9, "{sampling:?}: chi-square {chi2:.1} for {k}");
            };
            fits(&first, &target[vocab]);
            // Contexts seen often enough for the chi-square to hold.
            (0..vocab).filter(|&c| first[c] > 2_000).for_each(|c| fits(&second[c], &target[c]));
            // The first proposal is kept with probability 1 - TV(p, q) = sum of min(p, q).
            let (p, q) = (Distribution::new(&target[vocab], &sampling), Distribution::new(&draft[vocab], &sampling));
            let rate: f64 = p.probabilities().map(|(id, p)| p.min(q.probability(id))).sum();
            let (seen, deviation) = (f64::from(kept) / rounds as f64, (rate * (1.0 - rate) / rounds as f64).sqrt());
            assert!((seen - rate).abs() < 4.0 * deviation, "{seen} kept where {rate} is due");
        }
    }

    #[test]
    fn greedy_proposals_are_kept_while_they_are_the_targets_choice() {
        let rows = [0.0f32, 1.0, 0.0, /**/ 2.0, 1.0, 0.0, /**/ 0.0, 0.0, 3.0];
        let draws: Vec<Draw> = (0..3).map(|position| Draw::new(Sampling::GREEDY, 0, position)).collect();
        let ids = |proposals: [u32; 2]| {
            let proposals = proposals.map(|id| Proposal { id, drawn_from: None });
            let out = verify_sequence(&rows, &draws, &proposals).unwrap();
            out.iter().map(|d| d.id).collect::<Vec<u32>>()
        };
        assert_eq!(ids([1, 0]), [1, 0, 2]);
        assert_eq!(ids([1, 1]), [1, 0]);
        assert_eq!(ids([2, 0]), [1]);
    }
}
