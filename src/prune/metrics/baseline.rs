//! Choices that look at nothing: what a metric has to beat.

/// Distance of the run from the last block, as a share of the model: 0 for the last run.
pub(super) fn last(layers: usize, candidates: &[(usize, usize)]) -> Vec<f64> {
    candidates.iter().map(|&(_, end)| (layers - end) as f64 / layers as f64).collect()
}

/// Distance of the run from the first block, as a share of the model: 0 for the first run.
pub(super) fn first(layers: usize, candidates: &[(usize, usize)]) -> Vec<f64> {
    candidates.iter().map(|&(start, _)| start as f64 / layers as f64).collect()
}
