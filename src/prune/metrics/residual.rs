//! Metrics that compare the residual stream before and after a run of blocks.
//!
//! One forward pass over the data serves all sizes. Only the inputs of the last n + 1 blocks are kept (n: the largest size),
//! and of those only the last token of each sequence where that is what is asked for.

use super::Tokens;
use super::passes::Passes;
use crate::device::{Device, Tensor};
use crate::error::{Error, Result};
use crate::model::{Llama, Workspace};
use crate::ops::gather::gather_rows;
use crate::progress::Progress;
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Mean angular distance arccos(cos) / pi, between 0 and 1, for each candidate `(start, end)`.
pub(super) fn angular(
    dev: &Device,
    model: &Llama,
    sequences: &[Vec<u32>],
    tokens: Tokens,
    candidates: &[(usize, usize)],
) -> Result<Vec<f64>> {
    mean_over_tokens(dev, model, sequences, tokens, candidates, |cos| cos.acos() / std::f64::consts::PI)
}

/// 1 - mean cosine for each candidate.
pub(super) fn block_influence(
    dev: &Device,
    model: &Llama,
    sequences: &[Vec<u32>],
    tokens: Tokens,
    candidates: &[(usize, usize)],
) -> Result<Vec<f64>> {
    mean_over_tokens(dev, model, sequences, tokens, candidates, |cos| 1.0 - cos)
}

/// Mean of `f(cos(h_start, h_end))` over the tokens, summed in the order of the tokens.
fn mean_over_tokens(
    dev: &Device,
    model: &Llama,
    sequences: &[Vec<u32>],
    tokens: Tokens,
    candidates: &[(usize, usize)],
    f: impl Fn(f64) -> f64 + Sync,
) -> Result<Vec<f64>> {
    let mut by_end: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (i, &(_, end)) in candidates.iter().enumerate() {
        by_end.entry(end).or_default().push(i);
    }
    let reach = candidates.iter().map(|(start, end)| end - start).max().unwrap_or(0) + 1;
    let mut sums = vec![0.0f64; candidates.len()];
    let mut count = 0usize;
    let passes = Passes::new(sequences);
    let mut ws = Workspace::new(dev, &model.config, passes.longest)?;
    let hidden = model.config.hidden_size;
    let progress = Progress::start("score", passes.tokens as u64, "tokens");
    for batch in &passes.batches {
        crate::interrupt::check()?;
        let rows: Vec<u32> = match tokens {
            Tokens::Last => batch.cu_seqlens.u32()[1..].iter().map(|&end| end - 1).collect(),
            Tokens::Mean => (0..batch.tokens() as u32).collect(),
        };
        count += rows.len();
        let mut ring: Vec<Vec<f32>> = vec![vec![0.0; rows.len() * hidden]; reach];
        let mut gathered = dev.zeros(&[rows.len(), hidden], dev.activation())?;
        let rows = Tensor::from_u32(&rows);
        model.forward(dev, batch, &mut ws, &mut |l, x| {
            gather_rows(dev, &mut gathered, x, &rows)?;
            gathered.host()?.read_f32(0, &mut ring[l % reach]);
            let after = &ring[l % reach];
            for &i in by_end.get(&l).map_or(&[][..], Vec::as_slice) {
                let before = &ring[candidates[i].0 % reach];
                let pairs = before.par_chunks_exact(hidden).zip(after.par_chunks_exact(hidden));
                let values: Vec<f64> = pairs.map(|(a, b)| f(cosine(a, b))).collect();
                sums[i] += values.iter().sum::<f64>();
            }
            Ok(())
        })?;
        progress.add(batch.tokens() as u64);
    }
    if count == 0 {
        return Err(Error::usage("--data", "at least one token", "none"));
    }
    Ok(sums.into_iter().map(|sum| sum / count as f64).collect())
}

/// Cosine of the angle between two vectors, in double precision; exactly 1 for equal vectors, NaN when one is zero.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let (mut ab, mut aa, mut bb) = (0.0f64, 0.0f64, 0.0f64);
    for (&a, &b) in a.iter().zip(b) {
        let (a, b) = (f64::from(a), f64::from(b));
        ab += a * b;
        aa += a * a;
        bb += b * b;
    }
    // One root of the product: for a = b it is the root of a square, which is exact.
    (ab / (aa * bb).sqrt()).clamp(-1.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_vectors_have_no_angle_at_all() {
        let a: Vec<f32> = (0..577).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.013).collect();
        assert_eq!(cosine(&a, &a).acos(), 0.0);
        let opposite: Vec<f32> = a.iter().map(|v| -v).collect();
        assert_eq!(cosine(&a, &opposite).acos(), std::f64::consts::PI);
        assert!(cosine(&a, &vec![0.0; a.len()]).is_nan());
    }

    #[test]
    fn right_and_half_right_angles() {
        assert_eq!(cosine(&[1.0, 0.0], &[0.0, 2.0]).acos() / std::f64::consts::PI, 0.5);
        let eighth = cosine(&[1.0, 0.0], &[3.0, 3.0]).acos() / std::f64::consts::PI;
        assert!((eighth - 0.25).abs() < 1e-15);
    }
}
