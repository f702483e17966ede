//! Perplexity of the data after each cut (Shortened LLaMA, Kim et al. 2024). One pass over the data for each candidate.

use super::passes::Passes;
use crate::device::Device;
use crate::error::Result;
use crate::model::{Llama, Workspace};
use crate::progress::Progress;

/// `exp` of the mean negative log-likelihood of every token but the first of each sequence, without blocks `start..end`.
pub(super) fn perplexity(
    dev: &Device,
    model: &Llama,
    sequences: &[Vec<u32>],
    candidates: &[(usize, usize)],
) -> Result<Vec<f64>> {
    let Passes { batches, tokens, longest, scored } = Passes::new(sequences);
    let mut ws = Workspace::new(dev, &model.config, longest)?;
    let progress = Progress::start("score", (tokens * candidates.len()) as u64, "tokens");
    candidates
        .iter()
        .map(|&(start, end)| {
            let cut = model.without_blocks(&(start..end).collect::<Vec<_>>());
            let mut nll = 0.0f64;
            for batch in &batches {
                crate::interrupt::check()?;
                let log_probs = cut.next_token_log_probs(dev, batch, &mut ws)?;
                nll -= log_probs.iter().map(|&p| f64::from(p)).sum::<f64>();
                progress.add(batch.tokens() as u64);
            }
            Ok((nll / scored as f64).exp())
        })
        .collect()
}
