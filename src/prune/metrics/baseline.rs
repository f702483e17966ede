//! Choices that look at nothing: what a metric has to beat.

use crate::ops::philox;

/// A uniform number in [0, 1) for each run, a function of the seed and the run alone: every run is as likely to be the lowest.
pub(super) fn random(seed: u64, candidates: &[(usize, usize)]) -> Vec<f64> {
    let number = |&(start, end): &(usize, usize)| {
        let words = philox::block(seed, (end - start) as u64, start as u64);
        f64::from(words[0]) / 2.0f64.powi(32)
    };
    candidates.iter().map(number).collect()
}

/// Distance of the run from the last block, as a share of the model: 0 for the last run.
pub(super) fn last(layers: usize, candidates: &[(usize, usize)]) -> Vec<f64> {
    candidates.iter().map(|&(_, end)| (layers - end) as f64 / layers as f64).collect()
}

/// Distance of the run from the first block, as a share of the model: 0 for the first run.
pub(super) fn first(layers: usize, candidates: &[(usize, usize)]) -> Vec<f64> {
    candidates.iter().map(|&(start, _)| start as f64 / layers as f64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_run_is_about_as_often_the_random_choice() {
        let candidates: Vec<(usize, usize)> = (0..10).map(|start| (start, start + 6)).collect();
        let mut chosen = [0; 10];
        for seed in 0..2000 {
            let values = random(seed, &candidates);
            assert_eq!(values, random(seed, &candidates), "the same seed, the same numbers");
            let lowest = (0..10).min_by(|&a, &b| values[a].total_cmp(&values[b]));
            chosen[lowest.unwrap()] += 1;
        }
        // 200 expected, standard deviation 13.4: five of them.
        assert!(chosen.iter().all(|&n| (133..=267).contains(&n)), "{chosen:?}");
    }
}
