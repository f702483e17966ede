//! What a training pass keeps of the forward pass, and its scratch buffers: planned once, for the largest micro-batch.

use super::{Config, Llama};
use crate::device::{DType, Device, Tensor};
use crate::error::Result;
use serde::{Deserialize, Serialize};

/// What the backward pass computes again instead of having kept it. Both give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Recompute {
    /// Keep each block's input and compute the rest of the block again: least memory, a third more FLOPs (Chen et al. 2016).
    Block,
    /// Keep the result of every matrix product and of attention; only norms and the gated activation are computed again.
    None,
}

/// Kept of one block: `[tokens, features]` of the device's activation type, `lse` F32.
pub(super) struct Kept {
    /// Queries and keys after rotation, values.
    pub q: Tensor,
    pub k: Tensor,
    pub v: Tensor,
    pub attended: Tensor,
    pub lse: Tensor,
    /// Residual stream between attention and MLP.
    pub middle: Tensor,
    pub gate: Tensor,
    pub up: Tensor,
}

/// Activation and gradient buffers of a training pass.
pub struct Activations {
    /// What is computed again.
    pub recompute: Recompute,
    /// First block whose input is kept: the lowest with a trained parameter.
    pub lowest_block: usize,
    /// Input of each block from `lowest_block` on.
    pub(super) inputs: Vec<Tensor>,
    /// One for each of those blocks, or a single one that is computed again.
    pub(super) kept: Vec<Kept>,
    /// Residual stream.
    pub(super) x: Tensor,
    /// Input of the projections of attention; after the forward pass, the final hidden states.
    pub(super) normed: Tensor,
    /// Input of gate and up.
    pub(super) post_normed: Tensor,
    /// Input of down.
    pub(super) activated: Tensor,
    /// Loss of each token.
    pub(super) losses: Tensor,
    /// Gradient of the residual stream.
    pub(super) dx: Tensor,
    /// Gradient of a norm's output.
    pub(super) d_normed: Tensor,
    pub(super) d_attended: Tensor,
    pub(super) dq: Tensor,
    pub(super) dk: Tensor,
    pub(super) dv: Tensor,
    pub(super) d_activated: Tensor,
    pub(super) d_gate: Tensor,
    pub(super) d_up: Tensor,
}

/// Features of one token in [`Kept`], but for its F32 `lse`.
fn kept_features(config: &Config) -> usize {
    let heads = config.heads;
    2 * (heads.n_heads + heads.n_kv_heads) * heads.head_dim + config.hidden_size + 2 * config.intermediate_size
}

impl Activations {
    /// Buffers for micro-batches of at most `tokens` tokens.
    pub fn new(
        dev: &Device,
        model: &Llama,
        tokens: usize,
        recompute: Recompute,
        lowest_block: usize,
    ) -> Result<Activations> {
        dev.check_gradients()?;
        let config = &model.config;
        let heads = config.heads;
        let buffer = |features: usize| dev.zeros(&[tokens, features], dev.activation());
        let hidden = || buffer(config.hidden_size);
        let wide = || buffer(config.intermediate_size);
        let queries = || buffer(heads.n_heads * heads.head_dim);
        let keys = || buffer(heads.n_kv_heads * heads.head_dim);
        let trained = model.blocks.len().saturating_sub(lowest_block);
        let sets = if recompute == Recompute::None { trained.max(1) } else { 1 };
        let kept = || {
            Ok(Kept {
                q: queries()?,
                k: keys()?,
                v: keys()?,
                attended: queries()?,
                lse: dev.zeros(&[tokens, heads.n_heads], DType::F32)?,
                middle: hidden()?,
                gate: wide()?,
                up: wide()?,
            })
        };
        Ok(Activations {
            recompute,
            lowest_block,
            inputs: (0..trained).map(|_| hidden()).collect::<Result<_>>()?,
            kept: (0..sets).map(|_| kept()).collect::<Result<_>>()?,
            x: hidden()?,
            normed: hidden()?,
            post_normed: hidden()?,
            activated: wide()?,
            losses: dev.zeros(&[tokens], DType::F32)?,
            dx: hidden()?,
            d_normed: hidden()?,
            d_attended: queries()?,
            dq: queries()?,
            dk: keys()?,
            dv: keys()?,
            d_activated: wide()?,
            d_gate: wide()?,
            d_up: wide()?,
        })
    }

    /// Bytes of [`Activations::new`] on `dev` when `trained` of the blocks are kept.
    pub fn plan_bytes(dev: &Device, config: &Config, tokens: usize, recompute: Recompute, trained: usize) -> u64 {
        let heads = config.heads;
        let sets = if recompute == Recompute::None { trained.max(1) } else { 1 };
        let scratch = 5 * config.hidden_size
            + 4 * config.intermediate_size
            + 2 * (heads.n_heads + heads.n_kv_heads) * heads.head_dim;
        let features = trained * config.hidden_size + sets * kept_features(config) + scratch;
        let in_f32 = sets * heads.n_heads + 1;
        (tokens * (dev.activation().size() * features + 4 * in_f32)) as u64
    }

    /// Index into `kept` for block `l`. Blocks below the lowest trained one share the first set: nobody reads it later.
    pub(super) fn slot(&self, l: usize) -> usize {
        if self.kept.len() == 1 { 0 } else { l.saturating_sub(self.lowest_block) }
    }

    /// Uses the first `tokens` rows of every buffer.
    pub(super) fn set_tokens(&mut self, tokens: usize) -> Result<()> {
        self.inputs.iter_mut().try_for_each(|t| t.set_rows(tokens))?;
        for kept in &mut self.kept {
            let Kept { q, k, v, attended, lse, middle, gate, up } = kept;
            [q, k, v, attended, lse, middle, gate, up].into_iter().try_for_each(|t| t.set_rows(tokens))?;
        }
        let Activations { x, normed, post_normed, activated, losses, dx, d_normed, .. } = self;
        [x, normed, post_normed, activated, losses, dx, d_normed].into_iter().try_for_each(|t| t.set_rows(tokens))?;
        let Activations { d_attended, dq, dk, dv, d_activated, d_gate, d_up, .. } = self;
        [d_attended, dq, dk, dv, d_activated, d_gate, d_up].into_iter().try_for_each(|t| t.set_rows(tokens))
    }
}
