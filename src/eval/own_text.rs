//! The base model's own text: what it writes after pieces of a text, and how likely the model still finds it.
//!
//! A model that was fine-tuned on others' words drifts from its own; on text that the base wrote, the drift is seen where
//! the base is sure of itself.

use super::log_likelihood::{Request as Scored, log_likelihoods};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::generate::{EngineOptions, Request, Runtime, Sampling, generate};
use crate::progress::Progress;
use serde::{Deserialize, Serialize};

/// What the base writes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct OwnTextOptions {
    /// Pieces of the text that are continued, spread evenly over it; 0 leaves the measurement out.
    pub prompts: usize,
    /// Tokens of each piece.
    pub prompt_tokens: usize,
    /// Most tokens that the base writes after each.
    pub max_tokens: usize,
    /// Temperature; 0 is greedy.
    pub temperature: f32,
    /// Seed of the samples.
    pub seed: u64,
}

impl Default for OwnTextOptions {
    fn default() -> OwnTextOptions {
        OwnTextOptions { prompts: 16, prompt_tokens: 64, max_tokens: 64, temperature: 0.0, seed: 0 }
    }
}

/// How likely both models find the base's continuations.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct OwnText {
    /// Mean negative log-likelihood per token under the model, in nats.
    pub nll: f64,
    /// The same under the base, which wrote it.
    pub base_nll: f64,
    /// Tokens that the base wrote.
    pub tokens: usize,
    /// How it was written.
    pub options: OwnTextOptions,
}

/// Lets the base continue pieces of `ids`; the two models' negative log-likelihood of what it wrote. `None` when the text is shorter
/// than one piece, nothing is asked for or nothing was written.
pub fn own_text(
    dev: &Device,
    base: &Runtime,
    model: &Runtime,
    ids: &[u32],
    options: OwnTextOptions,
) -> Result<Option<OwnText>> {
    let pieces = options.prompts.min(ids.len() / options.prompt_tokens.max(1));
    if pieces == 0 {
        return Ok(None);
    }
    let sampling = Sampling { temperature: options.temperature, seed: options.seed, ..Sampling::GREEDY };
    let requests = (0..pieces).map(|piece| {
        let start = piece * (ids.len() / pieces);
        let prompt = ids[start..start + options.prompt_tokens].to_vec();
        Request { sampling, ..Request::new(piece as u64, prompt, options.max_tokens) }
    });
    let requests: Vec<Request> = requests.collect();
    let mut written = vec![Vec::new(); pieces];
    let engine = EngineOptions { label: "base's own text".into(), ..EngineOptions::default() };
    generate(dev, base.models(), &requests, &engine, &mut |index, completion| {
        written[index] = completion.ids;
        Ok(())
    })?;
    let scored = requests.iter().zip(&written).filter(|(_, written)| !written.is_empty());
    let scored = scored.map(|(request, written)| Scored {
        ids: [request.prompt.as_slice(), written].concat(),
        continuation: written.len(),
    });
    let scored: Vec<Scored> = scored.collect();
    let tokens: usize = scored.iter().map(|s| s.continuation).sum();
    if tokens == 0 {
        return Ok(None);
    }
    let progress = Progress::start("own text", 2 * scored.len() as u64, "texts");
    let mean_nll = |subject: &Runtime| -> Result<f64> {
        let scores = log_likelihoods(dev, &subject.model, &scored, &progress)?;
        let nll = -scores.iter().sum::<f64>() / tokens as f64;
        if nll.is_finite() {
            return Ok(nll);
        }
        let (place, instead) = (format!("own text under {}", subject.dir.display()), "check the weights".to_string());
        Err(Error::NotFinite { place, value: nll as f32, instead })
    };
    let (nll, base_nll) = (mean_nll(model)?, mean_nll(base)?);
    Ok(Some(OwnText { nll, base_nll, tokens, options }))
}
