//! The next token of each sequence, from its logits: greedy, or drawn after temperature, top-k, min-p and top-p.
//!
//! With `p = softmax(logits / temperature)`: top-k keeps the `k` likeliest ids; min-p (Nguyen et al. 2024, arXiv 2407.01082) those
//! with at least `min_p` of the likeliest one's probability; top-p (nucleus sampling, Holtzman et al. 2020, arXiv 1904.09751)
//! then keeps the shortest run of likeliest ids whose share of what is left reaches `top_p`, the one that crosses it
//! included; the draw is from what is left, renormalised. Equal logits are ordered by id. Weights are f32 exponentials
//! (relative error below `2^-22`, and that of the scaled logit), their sums f64 in a fixed order, so a row's token does not depend
//! on the other rows.
//!
//! | file | subject |
//! |-|-|
//! | `mod.rs` | settings, random numbers, the draw |
//! | `adjust.rs` | repetition penalty and logit bias |
//! | `distribution.rs` | the ids that temperature and cuts leave |
//! | `cuda.rs` | draws on a card |
//! | `speculative.rs` | draft proposals and their test against the target |

mod adjust;
#[cfg(feature = "cuda")]
mod cuda;
mod distribution;
mod speculative;

pub use speculative::{Proposal, Verification, propose, verify};

use super::log_sum_exp::LogSumExp;
use super::{argmax, check, philox};
#[cfg(feature = "cuda")]
use crate::device::Backend;
use crate::device::{Cost, DType, Device, Op, Tensor};
use crate::error::{Error, Result};
use distribution::Distribution;
use rayon::prelude::*;

/// Bytes of a draw on a card: the number of its row, its settings, its id and log-probability, each rounded up to 16.
pub const DRAW_BYTES: usize = 64;

/// How tokens are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 is greedy: the largest logit, the lowest id among equals.
    pub temperature: f32,
    /// Keep this many likeliest ids; 0 keeps all.
    pub top_k: usize,
    /// Keep the likeliest ids up to this share of the probability; 1 keeps all.
    pub top_p: f32,
    /// Keep ids with at least this share of the likeliest one's probability; 0 keeps all.
    pub min_p: f32,
    /// Divides positive logits of ids that stand in the prompt or the output already, multiplies the others; 1 for none.
    pub repetition_penalty: f32,
    /// Key of the random numbers.
    pub seed: u64,
}

impl Sampling {
    /// The largest logit always.
    pub const GREEDY: Sampling =
        Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, seed: 0 };

    /// Refuses numbers that mean nothing: a temperature below 0 or not finite, a `top_p` outside (0, 1], a `min_p` outside
    /// [0, 1], a repetition penalty that is not above 0.
    pub fn validate(&self) -> Result<()> {
        let wrong = |option: &str, expected: &str, found: f32| Err(Error::usage(option, expected, found.to_string()));
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return wrong("--temperature", "a number from 0 up", self.temperature);
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return wrong("--top-p", "a number above 0 and at most 1", self.top_p);
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return wrong("--min-p", "a number from 0 to 1", self.min_p);
        }
        if !(self.repetition_penalty.is_finite() && self.repetition_penalty > 0.0) {
            return wrong("--repetition-penalty", "a number above 0", self.repetition_penalty);
        }
        Ok(())
    }
}

/// One row's draw: the random numbers are a function of the seed, the request and the position and of nothing else.
#[derive(Clone, Copy, Debug)]
pub struct Draw<'a> {
    /// How to draw.
    pub sampling: Sampling,
    /// Number of the request's random stream.
    pub request: u64,
    /// What errors call the request.
    pub name: &'a str,
    /// Position of the drawn token in its sequence.
    pub position: u32,
    /// Added to the logits of these ids.
    pub logit_bias: &'a [(u32, f32)],
    /// Ids that the repetition penalty is for.
    pub seen: &'a [u32],
    /// How many of the likeliest ids are reported.
    pub top: usize,
}

/// Random numbers of one position, each independent of the others.
#[derive(Clone, Copy)]
enum Noise {
    /// The target's draw.
    Target,
    /// A draft model's draw.
    Draft,
    /// Whether the draft's draw is kept.
    Accept,
}

impl Draw<'_> {
    /// A draw without bias, penalty and report.
    pub fn new(sampling: Sampling, request: u64, position: u32) -> Draw<'static> {
        Draw { sampling, request, name: "a request", position, logit_bias: &[], seen: &[], top: 0 }
    }

    /// A uniform number in [0, 1) with 53 random bits: 24 would never reach the rarest ids of a large vocabulary.
    fn uniform(&self, noise: Noise) -> f64 {
        // Positions are below 2^32; the block numbers above are those of speculative decoding.
        let speculative = match noise {
            Noise::Target => 0,
            Noise::Draft | Noise::Accept => 1 << 32,
        };
        let words = philox::block(self.sampling.seed, self.request, speculative | u64::from(self.position));
        let (high, low) = match noise {
            Noise::Target | Noise::Draft => (words[0], words[1]),
            Noise::Accept => (words[2], words[3]),
        };
        (((u64::from(high) << 32) | u64::from(low)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// A drawn token.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Drawn {
    /// Its id.
    pub id: u32,
    /// Its log-probability under `softmax(logits)`: bias, penalty, temperature and cuts do not enter.
    pub log_prob: f32,
    /// The likeliest ids with their log-probabilities, as many as asked for.
    pub top: Vec<(u32, f32)>,
}

/// FLOPs (a subtraction, an exponential and an addition per logit) and bytes of a call.
pub fn cost(rows: usize, vocab: usize) -> Cost {
    Cost { flops: 3 * (rows * vocab) as u64, bytes: (4 * rows * vocab + 8 * rows) as u64 }
}

/// Draws one token a row. `logits`: F32 `[rows, vocab]`; `draws`: `[rows]`.
///
/// [`Error::NotFinite`] when a row holds NaN or +infinity or nothing above -infinity; an error when a bias or a seen id is beyond
/// the vocabulary.
pub fn sample(dev: &Device, logits: &Tensor, draws: &[Draw]) -> Result<Vec<Drawn>> {
    let (rows, vocab) = (draws.len(), logits.row_len());
    check("sample", "logits", logits, DType::F32, &[rows, vocab])?;
    let _span = dev.span(Op::Sample, cost(rows, vocab));
    #[cfg(feature = "cuda")]
    if let Backend::Cuda(cuda) = dev.backend()
        && draws.iter().any(cuda::makes)
    {
        return cuda::sample(cuda, logits, draws);
    }
    logits.host()?.f32().par_chunks_exact(vocab.max(1)).zip(draws).map(|(row, draw)| on_host(row, draw)).collect()
}

/// A draw from a row of logits.
fn on_host(row: &[f32], draw: &Draw) -> Result<Drawn> {
    let lse = finite(row, draw)?;
    let adjusted = adjust::adjusted(row, draw)?;
    Ok(described(row, lse, chosen(&adjusted, draw), draw))
}

/// `log(sum(exp(row)))`; an error when the row cannot be drawn from.
fn finite(row: &[f32], draw: &Draw) -> Result<f64> {
    let mut sum = LogSumExp::default();
    sum.add(row);
    if sum.value().is_finite() {
        return Ok(sum.value());
    }
    let number = |l: f32| l < f32::INFINITY; // false for NaN too
    Err(Error::NotFinite {
        place: format!("logits of {} at position {}", draw.name, draw.position),
        value: row.iter().copied().find(|&l| !number(l)).unwrap_or(f32::NEG_INFINITY),
        instead: "check the model's weights with `ratoon inspect --check-values`".into(),
    })
}

/// The id that a draw gives over adjusted logits.
fn chosen(row: &[f32], draw: &Draw) -> u32 {
    if draw.sampling.temperature == 0.0 {
        return argmax::row(row) as u32;
    }
    Distribution::new(row, &draw.sampling).pick(draw.uniform(Noise::Target))
}

/// A drawn id with what is reported of it.
fn described(row: &[f32], lse: f64, id: u32, draw: &Draw) -> Drawn {
    let log_prob = |id: u32| (f64::from(row[id as usize]) - lse) as f32;
    // The likeliest so far, in order; of equals the lower id stands first.
    let mut top: Vec<u32> = Vec::with_capacity(draw.top);
    for (id, &logit) in row.iter().enumerate().filter(|_| draw.top > 0) {
        if top.len() < draw.top || top.last().is_some_and(|&last| logit > row[last as usize]) {
            let at = top.partition_point(|&other| row[other as usize] >= logit);
            top.truncate(draw.top - 1);
            top.insert(at, id as u32);
        }
    }
    Drawn { id, log_prob: log_prob(id), top: top.into_iter().map(|id| (id, log_prob(id))).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(n: usize, sampling: Sampling) -> Vec<Draw<'static>> {
        (0..n).map(|i| Draw::new(sampling, (i / 64) as u64, (i % 64) as u32)).collect()
    }

    fn counts(row: &[f32], n: usize, sampling: Sampling) -> Vec<usize> {
        let logits = Tensor::from_f32(&row.repeat(n), &[n, row.len()]);
        let out = sample(&Device::cpu(), &logits, &draws(n, sampling)).unwrap();
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
        let likeliest = weights[order[0]];
        order.retain(|&i| weights[i] >= f64::from(s.min_p) * likeliest);
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
        for (temperature, top_k, top_p, min_p) in [
            (1.0, 0, 1.0, 0.0),
            (0.7, 0, 1.0, 0.0),
            (1.0, 5, 1.0, 0.0),
            (1.5, 0, 0.8, 0.0),
            (0.9, 12, 0.6, 0.0),
            (2.0, 0, 0.95, 0.0),
            (1.0, 1, 1.0, 0.0),
            (1.0, 0, 1e-6, 0.0),
            (1.0, 0, 1.0, 0.13),
            (0.8, 9, 1.0, 0.3),
            (1.3, 0, 0.7, 0.07),
            (1.0, 0, 1.0, 1.0),
        ] {
            let sampling = Sampling { temperature, top_k, top_p, min_p, seed: 1, ..Sampling::GREEDY };
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
            let sampling = Sampling { temperature: 4.0, top_k, top_p, seed: 9, ..Sampling::GREEDY };
            let p = exact(&row, sampling);
            let seen = counts(&row, 2_000, sampling);
            assert!(seen.iter().zip(&p).all(|(&seen, &p)| seen == 0 || p > 0.0), "{sampling:?}");
        }
    }

    #[test]
    fn greedy_takes_the_largest_and_the_lowest_id_among_equals() {
        let logits = Tensor::from_f32(&[1.0, 3.0, 3.0, -1.0, 0.0, 0.0, 0.0, f32::NEG_INFINITY], &[2, 4]);
        let out = sample(&Device::cpu(), &logits, &draws(2, Sampling::GREEDY)).unwrap();
        assert_eq!([out[0].id, out[1].id], [1, 0]);
        let want = -(2.0 + (-2.0f64).exp() + (-4.0f64).exp()).ln();
        assert!((f64::from(out[0].log_prob) - want).abs() < 1e-6);
        assert!((f64::from(out[1].log_prob) + 3.0f64.ln()).abs() < 1e-6);
    }

    #[test]
    fn a_draw_depends_on_its_own_request_and_position_alone() {
        let row: Vec<f32> = (0..100).map(|i| (i % 10) as f32 * 0.1).collect();
        let sampling = Sampling { temperature: 1.0, top_p: 0.9, seed: 3, ..Sampling::GREEDY };
        let all = draws(256, sampling);
        let dev = Device::cpu();
        let together = sample(&dev, &Tensor::from_f32(&row.repeat(256), &[256, 100]), &all).unwrap();
        for (i, draw) in all.iter().enumerate().rev() {
            let alone = sample(&dev, &Tensor::from_f32(&row, &[1, 100]), &[*draw]).unwrap();
            assert_eq!(alone[0], together[i]);
        }
    }

    #[test]
    fn logits_that_are_not_numbers_are_an_error() {
        for bad in [[f32::NAN, 1.0], [1.0, f32::NAN], [f32::INFINITY, 0.0], [f32::NEG_INFINITY; 2]] {
            let error = sample(&Device::cpu(), &Tensor::from_f32(&bad, &[1, 2]), &draws(1, Sampling::GREEDY));
            assert!(matches!(error, Err(Error::NotFinite { .. })), "{bad:?}");
        }
        assert!(Sampling { temperature: -1.0, ..Sampling::GREEDY }.validate().is_err());
        assert!(Sampling { temperature: f32::NAN, ..Sampling::GREEDY }.validate().is_err());
        assert!(Sampling { top_p: 0.0, ..Sampling::GREEDY }.validate().is_err());
        assert!(Sampling { min_p: 1.1, ..Sampling::GREEDY }.validate().is_err());
        assert!(Sampling { repetition_penalty: 0.0, ..Sampling::GREEDY }.validate().is_err());
    }

    #[test]
    fn the_likeliest_ids_are_reported_under_the_models_own_distribution() {
        let logits = Tensor::from_f32(&[0.0, 2.0, -1.0, 2.0, 1.0], &[1, 5]);
        let draw = Draw { top: 3, logit_bias: &[(2, 50.0)], ..Draw::new(Sampling::GREEDY, 0, 0) };
        let drawn = sample(&Device::cpu(), &logits, &[draw]).unwrap().remove(0);
        let lse = (2.0 * 2f64.exp() + 1f64.exp() + 1.0 + (-1f64).exp()).ln();
        assert_eq!(drawn.id, 2, "the bias decides");
        assert!((f64::from(drawn.log_prob) - (-1.0 - lse)).abs() < 1e-6, "but does not change the log-probability");
        assert_eq!(drawn.top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 3, 4]);
        assert!((f64::from(drawn.top[2].1) - (1.0 - lse)).abs() < 1e-6);
        let all = Draw { top: 9, ..draw };
        assert_eq!(sample(&Device::cpu(), &logits, &[all]).unwrap()[0].top.len(), 5);
    }
}
