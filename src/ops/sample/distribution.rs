//! What a token is drawn from: the ids that temperature and cuts leave, with their weights.

use super::Sampling;
use crate::ops::log_sum_exp::{max, softmax};

/// The ids that may be drawn and their weights, which need not add up to 1.
#[derive(Clone, Debug)]
pub struct Distribution {
    /// The ids in rising order; `None`: every id of the vocabulary.
    ids: Option<Vec<u32>>,
    /// Weight of each.
    weights: Vec<f32>,
    /// Their sum, in order.
    total: f64,
}

impl Distribution {
    /// Temperature (above 0) and cuts over a row of finite logits.
    pub(super) fn new(row: &[f32], sampling: &Sampling) -> Distribution {
        let Sampling { temperature, top_k, top_p, min_p, .. } = *sampling;
        let max = max(row);
        let mut weights: Vec<f32> = row.iter().map(|&logit| (logit - max) / temperature).collect();
        softmax(&mut weights, 0.0, 1.0);
        let cut_k = top_k > 0 && top_k < row.len();
        if !cut_k && top_p >= 1.0 && min_p <= 0.0 {
            let total = sum(&weights);
            return Distribution { ids: None, weights, total };
        }
        // Logits and not weights are compared: two weights may round to the same number.
        let likelier = |a: &u32, b: &u32| row[*b as usize].total_cmp(&row[*a as usize]).then(a.cmp(b));
        let weight = |id: &u32| weights[*id as usize];
        let mut ids: Vec<u32> = (0..row.len() as u32).collect();
        if cut_k {
            ids.select_nth_unstable_by(top_k - 1, likelier);
            ids.truncate(top_k);
        }
        // The likeliest id has weight 1.
        ids.retain(|id| weight(id) >= min_p);
        if top_p < 1.0 {
            ids.sort_unstable();
            let total: f64 = ids.iter().map(|id| f64::from(weight(id))).sum();
            // Ids below this weight have a share of less than 1 - top_p together, so the nucleus never reaches them.
            let least = ((1.0 - f64::from(top_p)) * total / ids.len() as f64) as f32;
            ids.retain(|id| weight(id) >= least);
            ids.sort_unstable_by(likelier);
            let mut share = 0.0;
            let reached = ids.iter().position(|id| {
                share += f64::from(weight(id));
                share >= f64::from(top_p) * total
            });
            ids.truncate(reached.map_or(ids.len(), |last| last + 1));
        }
        ids.sort_unstable();
        let weights: Vec<f32> = ids.iter().map(weight).collect();
        let total = sum(&weights);
        Distribution { ids: Some(ids), weights, total }
    }

    /// Every id of the support with its probability.
    pub(super) fn probabilities(&self) -> impl Iterator<Item = (u32, f64)> {
        let ids = self.ids.as_deref();
        let id = move |i: usize| ids.map_or(i as u32, |ids| ids[i]);
        self.weights.iter().enumerate().map(move |(i, &weight)| (id(i), f64::from(weight) / self.total))
    }

    /// Probability of an id; 0 for one that was cut.
    pub(super) fn probability(&self, id: u32) -> f64 {
        let at = match &self.ids {
            Some(ids) => ids.binary_search(&id).ok(),
            None => Some(id as usize),
        };
        at.and_then(|at| self.weights.get(at)).map_or(0.0, |&weight| f64::from(weight) / self.total)
    }

    /// The id under a uniform number in [0, 1), by the inverse of the cumulative distribution.
    pub(super) fn pick(&self, uniform: f64) -> u32 {
        let index = pick(self.weights.iter().map(|&w| f64::from(w)), uniform * self.total);
        self.ids.as_ref().map_or(index as u32, |ids| ids[index])
    }
}

fn sum(weights: &[f32]) -> f64 {
    weights.iter().map(|&w| f64::from(w)).sum()
}

/// Index of the first weight whose running sum exceeds `target`; the last one with any weight where rounding leaves none.
pub(super) fn pick(weights: impl Iterator<Item = f64>, target: f64) -> usize {
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
