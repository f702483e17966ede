//! What a training pass keeps of the forward pass, and its scratch buffers: planned once, for the largest micro-batch.

use super::{Config, Llama, Projection};
use crate::device::{Compute, DType, Device, Tensor};
use crate::error::Result;
use crate::ops::attention::scratch_bytes;
use crate::ops::copy::copy;
use crate::ops::{bias, rmsnorm};
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

/// Kept of one block: `[tokens, features]`, `lse` F32, `middle` of the device's activation type, the others of [`operand`] type.
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
    /// What attention works on where what is kept is rounded.
    pub(super) wide: Option<Wide>,
    /// Residual stream.
    pub(super) x: Tensor,
    /// Final hidden states.
    pub(super) hidden: Tensor,
    /// Input of the projections of attention, of [`operand`] type.
    pub(super) normed: Tensor,
    /// Input of gate and up, of [`operand`] type.
    pub(super) post_normed: Tensor,
    /// Input of down, of [`operand`] type.
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
    /// And, in the forward pass, `gate` and `up` before they are rounded.
    pub(super) d_activated: Tensor,
    /// Of [`operand`] type, as `d_up`.
    pub(super) d_gate: Tensor,
    pub(super) d_up: Tensor,
}

/// What attention reads and writes, of the device's activation type.
pub(super) struct Wide {
    pub q: Tensor,
    pub k: Tensor,
    pub v: Tensor,
    pub attended: Tensor,
}

impl Kept {
    /// What attention works on: `wide`, or where there is none what is kept.
    pub(super) fn of_attention<'a>(&'a mut self, wide: &'a mut Option<Wide>) -> ([&'a mut Tensor; 4], &'a mut Tensor) {
        let tensors = match wide {
            Some(Wide { q, k, v, attended }) => [q, k, v, attended],
            None => [&mut self.q, &mut self.k, &mut self.v, &mut self.attended],
        };
        (tensors, &mut self.lse)
    }

    /// Rounds queries, keys and values from `wide`, which then holds the rounded ones.
    pub(super) fn round_inputs(&mut self, dev: &Device, wide: &mut Option<Wide>) -> Result<()> {
        let Some(Wide { q, k, v, .. }) = wide else { return Ok(()) };
        for (kept, wide) in [(&mut self.q, q), (&mut self.k, k), (&mut self.v, v)] {
            copy(dev, kept, wide)?;
            copy(dev, wide, kept)?;
        }
        Ok(())
    }

    /// Brings back into `wide` what the backward pass of attention reads.
    pub(super) fn widen(&self, dev: &Device, wide: &mut Option<Wide>) -> Result<()> {
        let Some(Wide { q, k, v, attended }) = wide else { return Ok(()) };
        let kept = [&self.q, &self.k, &self.v, &self.attended];
        [q, k, v, attended].into_iter().zip(kept).try_for_each(|(wide, kept)| copy(dev, wide, kept))
    }
}

/// Element type of what products read and of what they would be given: BF16 where products round to it anyway. The inputs of
/// projections lose nothing by it; queries, keys, values, `gate` and `up` are rounded once, as they are in a BF16 model.
fn operand(dev: &Device) -> DType {
    if dev.compute() == Compute::Bf16 { DType::BF16 } else { dev.activation() }
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
        let config = &model.config;
        let heads = config.heads;
        let buffer = |features: usize| dev.zeros(&[tokens, features], dev.activation());
        let hidden = || buffer(config.hidden_size);
        let wide = || buffer(config.intermediate_size);
        let dtype = operand(dev);
        let operand = |features: usize| dev.zeros(&[tokens, features], dtype);
        let (query_features, key_features) = (heads.n_heads * heads.head_dim, heads.n_kv_heads * heads.head_dim);
        let queries = || buffer(query_features);
        let keys = || buffer(key_features);
        let rounds = dtype != dev.activation();
        let wide_attention = || Ok(Wide { q: queries()?, k: keys()?, v: keys()?, attended: queries()? });
        let trained = model.blocks.len().saturating_sub(lowest_block);
        let sets = if recompute == Recompute::None { trained.max(1) } else { 1 };
        let kept = || {
            Ok(Kept {
                q: operand(query_features)?,
                k: operand(key_features)?,
                v: operand(key_features)?,
                attended: operand(query_features)?,
                lse: dev.zeros(&[tokens, heads.n_heads], DType::F32)?,
                middle: hidden()?,
                gate: operand(config.intermediate_size)?,
                up: operand(config.intermediate_size)?,
            })
        };
        Ok(Activations {
            recompute,
            lowest_block,
            inputs: (0..trained).map(|_| hidden()).collect::<Result<_>>()?,
            kept: (0..sets).map(|_| kept()).collect::<Result<_>>()?,
            wide: rounds.then(wide_attention).transpose()?,
            x: hidden()?,
            hidden: hidden()?,
            normed: operand(config.hidden_size)?,
            post_normed: operand(config.hidden_size)?,
            activated: operand(config.intermediate_size)?,
            losses: dev.zeros(&[tokens], DType::F32)?,
            dx: hidden()?,
            d_normed: hidden()?,
            d_attended: queries()?,
            dq: queries()?,
            dk: keys()?,
            dv: keys()?,
            d_activated: wide()?,
            d_gate: operand(config.intermediate_size)?,
            d_up: operand(config.intermediate_size)?,
        })
    }

    /// Bytes of [`Activations::new`] on `dev` when `trained` of the blocks are kept, of attention's scratch, and on a card of the copy of
    /// a batch, of what the backward pass of attention sums up and of the largest gradients of its sequences.
    pub fn plan_bytes(dev: &Device, config: &Config, tokens: usize, recompute: Recompute, trained: usize) -> u64 {
        let heads = config.heads;
        let sets = if recompute == Recompute::None { trained.max(1) } else { 1 };
        let attention = 2 * (heads.n_heads + heads.n_kv_heads) * heads.head_dim;
        let wide = if operand(dev) == dev.activation() { 0 } else { attention };
        let scratch = 4 * config.hidden_size + config.intermediate_size + attention + wide;
        let features = (trained + sets) * config.hidden_size + scratch;
        let operands =
            2 * config.hidden_size + 3 * config.intermediate_size + sets * (attention + 2 * config.intermediate_size);
        let in_f32 = sets * heads.n_heads + 1;
        let planned = tokens * (dev.activation().size() * features + operand(dev).size() * operands + 4 * in_f32);
        let on_card = if dev.is_cpu() { 0 } else { 4 * (tokens * (4 + heads.n_heads) + 16) };
        (planned + scratch_bytes(dev, tokens, heads) + on_card) as u64
    }

    /// Bytes that the gradients of norms and biases need on a card for the sums of pieces of `tokens` tokens.
    pub fn full_scratch_bytes(dev: &Device, config: &Config, tokens: usize) -> usize {
        let widest = Projection::ALL.map(|p| config.projection_shape(p)[0]).into_iter().max().unwrap_or(0);
        let biased = config.attention_bias || config.mlp_bias;
        let biases = if biased { bias::scratch_bytes(dev, tokens, widest) } else { 0 };
        rmsnorm::scratch_bytes(dev, tokens, config.hidden_size) + biases
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
        if let Some(Wide { q, k, v, attended }) = &mut self.wide {
            [q, k, v, attended].into_iter().try_for_each(|t| t.set_rows(tokens))?;
        }
        let Activations { x, hidden, normed, post_normed, activated, losses, dx, d_normed, .. } = self;
        let buffers = [x, hidden, normed, post_normed, activated, losses, dx, d_normed];
        buffers.into_iter().try_for_each(|t| t.set_rows(tokens))?;
        let Activations { d_attended, dq, dk, dv, d_activated, d_gate, d_up, .. } = self;
        [d_attended, dq, dk, dv, d_activated, d_gate, d_up].into_iter().try_for_each(|t| t.set_rows(tokens))
    }
}
