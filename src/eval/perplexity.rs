//! Perplexity of a text in windows.

use crate::device::Device;
use crate::error::{Error, Result};
use crate::eval::log_likelihood::BATCH_TOKENS;
use crate::interrupt;
use crate::model::{Batch, Llama, Tokenizer, Workspace};
use crate::progress::Progress;
use serde::Serialize;

/// Tokens of a window where none is asked for: 1,024, or the model's context if that is less.
pub fn default_window(context: usize) -> usize {
    context.min(1024)
}

/// How well a model predicts a text that is cut into windows; the first token of each window is context only.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Perplexity {
    /// `exp(nll)`.
    pub perplexity: f64,
    /// Mean negative log-likelihood of the scored tokens, in nats.
    pub nll: f64,
    /// Bits per byte of the scored tokens' text; absent where the text is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bits_per_byte: Option<f64>,
    /// Tokens in a window; the last window may be shorter.
    pub window: usize,
    /// Tokens read.
    pub tokens: usize,
    /// Tokens scored: all but the first of each window.
    pub scored: usize,
    /// Mean negative log-likelihood of each window.
    pub nll_per_window: Vec<f64>,
}

impl Perplexity {
    /// Adds [`Perplexity::bits_per_byte`]: the bytes are those that the scored tokens of `ids` decode to.
    pub fn with_bytes(mut self, ids: &[u32], tokenizer: &Tokenizer) -> Result<Perplexity> {
        let mut bytes = 0;
        for window in windows(ids, self.window) {
            bytes += tokenizer.decode(window, false)?.len() - tokenizer.decode(&window[..1], false)?.len();
        }
        let bits = self.nll * self.scored as f64 / std::f64::consts::LN_2;
        self.bits_per_byte = (bytes > 0).then(|| bits / bytes as f64);
        Ok(self)
    }
}

/// The windows of a text. One last token alone has nothing to be predicted from and is left out.
pub fn windows(ids: &[u32], window: usize) -> impl Iterator<Item = &[u32]> {
    ids.chunks(window).filter(|w| w.len() > 1)
}

/// Checks that a window fits the model and that the text has something to score.
pub fn check_window(model: &Llama, ids: &[u32], window: usize) -> Result<()> {
    let longest = model.config.max_position_embeddings;
    if window < 2 || window > longest {
        let expected = format!("2 to {longest}, the model's max_position_embeddings");
        return Err(Error::usage("--window", expected, window.to_string()));
    }
    if ids.len() < 2 {
        return Err(Error::usage("--perplexity", "a text of two tokens or more", format!("{} tokens", ids.len())));
    }
    Ok(())
}

/// Windows packed into batches of at most [`BATCH_TOKENS`] tokens (one window where it alone is longer).
pub fn batches(ids: &[u32], window: usize) -> Vec<Vec<&[u32]>> {
    let windows: Vec<&[u32]> = windows(ids, window).collect();
    windows.chunks((BATCH_TOKENS / window).max(1)).map(<[_]>::to_vec).collect()
}

/// Perplexity of `ids` in windows of `window` tokens.
///
/// Errors when the window is longer than the model was made for, the text has fewer than two tokens, or a loss is not finite.
pub fn perplexity(dev: &Device, model: &Llama, ids: &[u32], window: usize) -> Result<Perplexity> {
    check_window(model, ids, window)?;
    let progress = Progress::start("perplexity", ids.len() as u64, "tokens");
    let mut ws = Workspace::new(dev, &model.config, BATCH_TOKENS.max(window).min(ids.len()))?;
    let mut nll_per_window = Vec::new();
    let (mut sum, mut scored) = (0.0, 0);
    for batch in batches(ids, window) {
        interrupt::check()?;
        let log_probs = model.next_token_log_probs(dev, &Batch::pack(&batch), &mut ws)?;
        let mut start = 0;
        for window in batch {
            let nll: f64 = log_probs[start..start + window.len() - 1].iter().map(|&lp| -f64::from(lp)).sum();
            if !nll.is_finite() {
                let place = format!("perplexity, window {}", nll_per_window.len());
                let instead = "check the weights with `ratoon inspect --check-values`".to_string();
                return Err(Error::NotFinite { place, value: nll as f32, instead });
            }
            nll_per_window.push(nll / (window.len() - 1) as f64);
            sum += nll;
            scored += window.len() - 1;
            start += window.len();
            progress.add(window.len() as u64);
        }
        progress.message(format!("perplexity {:.3}", (sum / scored as f64).exp()));
    }
    let nll = sum / scored as f64;
    let perplexity = nll.exp();
    Ok(Perplexity { perplexity, nll, bits_per_byte: None, window, tokens: ids.len(), scored, nll_per_window })
}
