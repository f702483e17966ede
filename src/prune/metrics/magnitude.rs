//! Sum of weight magnitudes of a block (the `mag` criterion of Shortened LLaMA, Kim et al. 2024).

use crate::device::Tensor;
use crate::error::Result;
use crate::model::Llama;
use crate::model::llama::Block;
use crate::progress::Progress;
use rayon::prelude::*;

/// Elements that one task sums; the order of the sum does not depend on the number of threads.
pub(super) const CHUNK: usize = 1 << 16;

/// Sum of |W| over the seven projections of each candidate's blocks.
pub(super) fn magnitude(model: &Llama, candidates: &[(usize, usize)]) -> Result<Vec<f64>> {
    let progress = Progress::start("score", candidates.len() as u64, "blocks");
    candidates
        .iter()
        .map(|&(start, end)| {
            crate::interrupt::check()?;
            progress.add(1);
            Ok(model.blocks[start..end].iter().flat_map(projections).map(sum_of_magnitudes).sum())
        })
        .collect()
}

/// The seven weight matrices of a block.
pub(super) fn projections(block: &Block) -> [&Tensor; 7] {
    let Block { q, k, v, o, gate, up, down, .. } = block;
    [q, k, v, o, gate, up, down].map(|linear| &*linear.weight)
}

fn sum_of_magnitudes(weight: &Tensor) -> f64 {
    let n = weight.elements();
    let starts: Vec<usize> = (0..n).step_by(CHUNK).collect();
    let sums: Vec<f64> = starts
        .into_par_iter()
        .map(|start| {
            let mut chunk = vec![0.0f32; CHUNK.min(n - start)];
            weight.read_f32(start, &mut chunk);
            chunk.iter().map(|w| f64::from(w.abs())).sum()
        })
        .collect();
    sums.iter().sum()
}
