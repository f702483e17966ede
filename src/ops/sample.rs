//! The next token of each sequence, from its logits: greedy, or drawn after temperature, top-k and top-p.
//!
//! With `p = softmax(logits / temperature)`: top-k keeps the `k` likeliest ids; top-p (nucleus sampling, Holtzman et al. 2020,
//! arXiv 1904.09751) then keeps the shortest run of likeliest ids whose share of what top-k left reaches `top_p`, the one
//! that crosses it included; the draw is from what is left, renormalised. Equal logits are ordered by id. Sums are in f64 in a fixed order,
//! so a probability is off by at most `vocab * 2^-53` and a row's token does not depend on the other rows.

use super::{check, philox};
use crate::device::{Cost, DType, Device, Op, Tensor};
use crate::error::{Error, Result};
use rayon::prelude::*;

/// How tokens are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 is greedy: the largest logit, the lowest id among equals.
    pub temperature: f32,
    /// Keep this many likeliest ids; 0 keeps all.
    pub top_k: usize,
    /// Keep the likeliest ids up to this share of the probability; 1 keeps all.
    pub top_p: f32,
    /// Key of the random numbers.
    pub seed: u64,
}

impl Sampling {
    /// The largest logit always.
    pub const GREEDY: Sampling = Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, seed: 0 };

    /// Refuses numbers that mean nothing: a temperature below 0 or not finite, a `top_p` outside (0, 1].
    pub fn validate(&self) -> Result<()> {
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return Err(Error::usage("--temperature", "a number from 0 up", self.temperature.to_string()));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(Error::usage("--top-p", "a number above 0 and at most 1", self.top_p.to_string()));
        }
        Ok(())
    }
}

/// One row's draw: the random number is a function of the seed, the request and the position and of nothing else.
#[derive(Clone, Copy, Debug)]
pub struct Draw {
    /// How to draw.
    pub sampling: Sampling,
    /// Number of the request's random stream.
    pub request: u64,
    /// Position of the drawn token in its sequence.
    pub position: u32,
}

/// A drawn token.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Drawn {
    /// Its id.
    pub id: u32,
    /// Its log-probability under `softmax(logits)`: temperature and cuts do not enter.
    pub log_prob: f32,
}

/// FLOPs (a subtraction, an exponential and an addition per logit) and bytes of a call.
pub fn cost(rows: usize, vocab: usize) -> Cost {
    Cost { flops: 3 * (rows * vocab) as u64, bytes: (4 * rows * vocab + 8 * rows) as u64 }
}

/// Draws one token a row. `logits`: F32 `[rows, vocab]`; `draws`, `out`: `[rows]`.
///
/// [`Error::NotFinite`] when a row holds NaN or +infinity or nothing above -infinity.
pub fn sample(dev: &Device, out: &mut [Drawn], logits: &Tensor, draws: &[Draw]) -> Result<()> {
    let (rows, vocab) = (draws.len(), logits.row_len());
    check("sample", "logits", logits, DType::F32, &[rows, vocab])?;
    if out.len() != rows || vocab == 0 {
        return Err(Error::shape("sample", "out", format!("{rows} rows of at least one id"), out.len().to_string()));
    }
    let _span = dev.span(Op::Sample, cost(rows, vocab));
    let logits = logits.host()?;
    out.par_iter_mut().zip(logits.f32().par_chunks_exact(vocab)).zip(draws).try_for_each(|((out, row), draw)| {
        *out = draw_row(row, draw)?;
        Ok(())
    })
}

fn draw_row(row: &[f32], draw: &Draw) -> Result<Drawn> {
    let (mut best, mut finite) = (0, true);
    for (id, &logit) in row.iter().enumerate() {
        finite &= logit < f32::INFINITY; // false for NaN too
        if logit > row[best] {
            best = id;
        }
    }
    let max = row[best];
    if !finite || max == f32::NEG_INFINITY {
        let value = row.iter().copied().find(|l| l.partial_cmp(&f32::INFINITY) != Some(std::cmp::Ordering::Less));
        return Err(Error::NotFinite {
            place: format!("logits of request {} at position {}", draw.request, draw.position),
            value: value.unwrap_or(max),
            instead: "check the model's weights with `ratoon inspect --check-values`".into(),
        });
    }
    let id = if draw.sampling.temperature == 0.0 { best } else { draw_id(row, max, draw) };
    let sum: f64 = row.iter().map(|&l| f64::from((l - max).exp())).sum();
    Ok(Drawn { id: id as u32, log_prob: (f64::from(row[id] - max) - sum.ln()) as f32 })
}

/// The id under a uniform number, by the inverse of the cumulative distribution.
fn draw_id(row: &[f32], max: f32, draw: &Draw) -> usize {
    let Sampling { temperature, top_k, top_p, seed } = draw.sampling;
    let words = philox::block(seed, draw.request, u64::from(draw.position));
    let uniform = unit(words[0], words[1]);
    let weight = |id: usize| (f64::from(row[id] - max) / f64::from(temperature)).exp();
    let cut_k = top_k > 0 && top_k < row.len();
    if !cut_k && top_p >= 1.0 {
        let weights: Vec<f64> = (0..row.len()).map(weight).collect();
        let total: f64 = weights.iter().sum();
        return pick(weights.iter().copied(), uniform * total);
    }
    // The likeliest ids in order, as many as the cuts need: the number sorted grows until top-p is reached.
    let likelier = |a: &u32, b: &u32| row[*b as usize].total_cmp(&row[*a as usize]).then(a.cmp(b));
    let mut ids: Vec<u32> = (0..row.len() as u32).collect();
    let total: f64 = if cut_k {
        ids.select_nth_unstable_by(top_k - 1, likelier);
        ids.truncate(top_k);
        ids.sort_unstable_by(likelier);
        ids.iter().map(|&id| weight(id as usize)).sum()
    } else {
        (0..row.len()).map(weight).sum()
    };
    let mut sorted = if cut_k { ids.len() } else { 0 };
    let (mut kept, mut sum) = (Vec::new(), 0.0);
    while kept.len() < ids.len() && sum < f64::from(top_p) * total {
        if kept.len() == sorted {
            let wanted = (4 * sorted).max(256).min(ids.len());
            let rest = &mut ids[sorted..];
            if wanted - sorted < rest.len() {
                rest.select_nth_unstable_by(wanted - sorted - 1, likelier);
            }
            rest[..wanted - sorted].sort_unstable_by(likelier);
            sorted = wanted;
        }
        let w = weight(ids[kept.len()] as usize);
        kept.push(w);
        sum += w;
    }
    ids[pick(kept.iter().copied(), uniform * sum)] as usize
}

/// A uniform number in [0, 1) with 53 random bits: 24 would never reach the rarest ids of a large vocabulary.
fn unit(high: u32, low: u32) -> f64 {
    (((u64::from(high) << 32) | u64::from(low)) >> 11) as f64 / (1u64 << 53) as f64
}

/// Index of the first weight whose running sum exceeds `target`; the last one with any weight where rounding leaves none.
fn pick(weights: impl Iterator<Item = f64>, target: f64) -> usize {
    let (mut sum, mut last) = (0.0, 0);
    for (i, weight) in weights.enumerate() {
        if weight > 0.0 {
            (sum, last) = (sum + weight, i);
        }
        if sum > target {
            break;
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(n: usize, sampling: Sampling) -> Vec<Draw> {
        (0..n).map(|i| Draw { sampling, request: (i / 64) as u64, position: (i % 64) as u32 }).collect()
    }

    fn counts(row: &[f32], n: usize, sampling: Sampling) -> Vec<usize> {
        let logits = Tensor::from_f32(&row.repeat(n), &[n, row.len()]);
        let mut out = vec![Drawn::default(); n];
        sample(&Device::cpu(), &mut out, &logits, &draws(n, sampling)).unwrap();
        let mut counts = vec![0; row.len()];
        out.iter().for_each(|d| counts[d.id as usize] += 1);
        counts
    }

    /// The definition, written out in f64 over a full sort.
    fn exact(row: &[f32], s: Sampling) -> Vec<f64> {
        let weights: Vec<f64> = row.iter().map(|&l| (f64::from(l) / f64::from(s.temperature)).exp()).collect();
        let mut order: Vec<usize> = (0..row.len()).collect();
        order.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]).then(a.cmp(&b)));
        if s.top_k > 0 {
            order.truncate(s.top_k);
        }
        let total: f64 = order.iter().map(|&i| weights[i]).sum();
        let mut sum = 0.0;
        let reached = order.iter().position(|&i| {
            sum += weights[i];
            sum >= f64::from(s.top_p) * total
        });
        order.truncate(reached.map_or(order.len(), |r| r + 1));
        let kept: f64 = order.iter().map(|&i| weights[i]).sum();
        let mut p = vec![0.0; row.len()];
        order.iter().for_each(|&i| p[i] = weights[i] / kept);
        p
    }

    #[test]
    fn draws_follow_the_distribution_that_the_settings_define() {
        // 40 logits, some equal, over a range where every cut bites.
        let row: Vec<f32> = (0..40).map(|i| ((i * 7 % 40) / 2) as f32 * 0.2 - 3.0).collect();
        let n = 40_000;
        for (temperature, top_k, top_p) in [
            (1.0, 0, 1.0),
            (0.7, 0, 1.0),
            (1.0, 5, 1.0),
            (1.5, 0, 0.8),
            (0.9, 12, 0.6),
            (2.0, 0, 0.95),
            (1.0, 1, 1.0),
            (1.0, 0, 1e-6),
        ] {
            let sampling = Sampling { temperature, top_k, top_p, seed: 1 };
            let (seen, p) = (counts(&row, n, sampling), exact(&row, sampling));
            let (mut chi2, mut cells) = (0.0, 0);
            for (&seen, &p) in seen.iter().zip(&p) {
                if p == 0.0 {
                    assert_eq!(seen, 0, "an id that the cuts remove is never drawn: {sampling:?}");
                    continue;
                }
                let expected = p * n as f64;
                chi2 += (seen as f64 - expected).powi(2) / expected;
                cells += 1;
            }
            // Mean k and standard deviation sqrt(2k) for k degrees of freedom; 4 deviations are passed once in 20,000 times.
            let k = f64::from(cells - 1);
            assert!(
                chi2 <= k + 4.0 * (2.0 * k).sqrt(),
                "{sampling:?}: chi-square {chi2:.1} for {k} degrees of freedom"
            );
        }
    }

    #[test]
    fn a_large_vocabulary_is_cut_exactly_where_a_full_sort_cuts_it() {
        let row: Vec<f32> = (0..5_000u64).map(|i| (i * 2_654_435_761 % 10_007) as f32 * 1e-3).collect();
        for (top_k, top_p) in [(0, 0.5), (0, 0.999), (700, 0.9), (4_999, 1.0)] {
            let sampling = Sampling { temperature: 4.0, top_k, top_p, seed: 9 };
            let p = exact(&row, sampling);
            let seen = counts(&row, 2_000, sampling);
            assert!(seen.iter().zip(&p).all(|(&seen, &p)| seen == 0 || p > 0.0), "{sampling:?}");
        }
    }

    #[test]
    fn greedy_takes_the_largest_and_the_lowest_id_among_equals() {
        let mut out = [Drawn::default(); 2];
        let logits = Tensor::from_f32(&[1.0, 3.0, 3.0, -1.0, 0.0, 0.0, 0.0, f32::NEG_INFINITY], &[2, 4]);
        sample(&Device::cpu(), &mut out, &logits, &draws(2, Sampling::GREEDY)).unwrap();
        assert_eq!([out[0].id, out[1].id], [1, 0]);
        let want = -(2.0 + (-2.0f64).exp() + (-4.0f64).exp()).ln();
        assert!((f64::from(out[0].log_prob) - want).abs() < 1e-6);
        assert!((f64::from(out[1].log_prob) + 3.0f64.ln()).abs() < 1e-6);
    }

    #[test]
    fn a_draw_depends_on_its_own_request_and_position_alone() {
        let row: Vec<f32> = (0..100).map(|i| (i % 10) as f32 * 0.1).collect();
        let sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 0.9, seed: 3 };
        let all = draws(256, sampling);
        let mut together = vec![Drawn::default(); 256];
        let dev = Device::cpu();
        sample(&dev, &mut together, &Tensor::from_f32(&row.repeat(256), &[256, 100]), &all).unwrap();
        for (i, draw) in all.iter().enumerate().rev() {
            let mut alone = [Drawn::default()];
            sample(&dev, &mut alone, &Tensor::from_f32(&row, &[1, 100]), &[*draw]).unwrap();
            assert_eq!(alone[0], together[i]);
        }
    }

    #[test]
    fn logits_that_are_not_numbers_are_an_error() {
        for bad in [[f32::NAN, 1.0], [1.0, f32::NAN], [f32::INFINITY, 0.0], [f32::NEG_INFINITY; 2]] {
            let mut out = [Drawn::default()];
            let error = sample(&Device::cpu(), &mut out, &Tensor::from_f32(&bad, &[1, 2]), &draws(1, Sampling::GREEDY));
            assert!(matches!(error, Err(Error::NotFinite { .. })), "{bad:?}");
        }
        assert!(Sampling { temperature: -1.0, ..Sampling::GREEDY }.validate().is_err());
        assert!(Sampling { temperature: f32::NAN, ..Sampling::GREEDY }.validate().is_err());
        assert!(Sampling { top_p: 0.0, ..Sampling::GREEDY }.validate().is_err());
    }
}
