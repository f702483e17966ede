//! The backward pass, written out: the forward pass of `llama.rs` read in reverse, line for line. No tape.
//!
//! `d_x` is the gradient of the loss with respect to `x`. Gradients of parameters are added up, so that micro-batches
//! accumulate; frozen parameters get none, and the pass ends at the lowest block that has a trained one.

use super::Batch;
use super::activations::{Activations, Kept, Recompute};
use super::gradients::{BlockGradients, Gradients, LinearGradients};
use super::linear::{Linear, add_up};
use super::llama::{Block, Llama};
use super::lora::{DropoutKey, Projection};
use crate::device::{Device, Tensor};
use crate::error::Result;
use crate::ops::attention::{attention, attention_backward};
use crate::ops::bias::bias_backward;
use crate::ops::copy::copy;
use crate::ops::cross_entropy::linear_cross_entropy;
use crate::ops::embedding::{embedding, embedding_backward};
use crate::ops::matmul::{Store, matmul_nn, matmul_tn};
use crate::ops::rmsnorm::{rmsnorm, rmsnorm_backward};
use crate::ops::rope::{rope, rope_backward};
use crate::ops::swiglu::{swiglu, swiglu_backward};

impl Linear {
    /// [`Linear::forward_dropout`] into `y` of any activation type, by way of `wide` where products do not give that.
    fn forward_rounded(
        &self,
        dev: &Device,
        y: &mut Tensor,
        wide: &mut Tensor,
        x: &Tensor,
        key: Option<DropoutKey>,
    ) -> Result<()> {
        if y.dtype() == dev.activation() {
            return self.forward_dropout(dev, y, x, Store::Replace, key);
        }
        self.forward_dropout(dev, wide, x, Store::Replace, key)?;
        copy(dev, y, wide)
    }

    /// Adds the parameters' gradients to `grads` and gives the input's: `dx (+)= dy · weight`, `dW += dyᵀ x`, `db += Σ dy`.
    ///
    /// `dy`: F32 or BF16 `[tokens, out]`; `x`: F32 or BF16, `dx`: F32 `[tokens, in]`; `key` as in the forward pass.
    pub fn backward(
        &self,
        dev: &Device,
        dx: Option<(&mut Tensor, Store)>,
        grads: &mut LinearGradients,
        dy: &Tensor,
        x: &Tensor,
        key: Option<DropoutKey>,
    ) -> Result<()> {
        if let Some(dw) = &mut grads.weight {
            matmul_tn(dev, dw, dy, x, Store::Add)?;
        }
        if let Some(db) = &mut grads.bias {
            bias_backward(dev, db, dy)?;
        }
        let of_weight = |dx: &mut Tensor, store| matmul_nn(dev, dx, dy, &self.weight, store);
        match (&self.lora, &mut grads.lora, dx) {
            (Some(lora), Some(grads), Some((dx, store))) => {
                add_up(dev, dx, store, of_weight, |dx, store| lora.backward(dev, Some((dx, store)), grads, dy, x, key))
            }
            (Some(lora), Some(grads), None) => lora.backward(dev, None, grads, dy, x, key),
            (_, _, Some((dx, store))) => of_weight(dx, store),
            (_, _, None) => Ok(()),
        }
    }
}

/// Buffers of one block's pass, borrowed from [`Activations`].
struct Pass<'a> {
    dev: &'a Device,
    batch: &'a Batch,
    /// Block number.
    l: usize,
    dropout: Option<DropoutKey>,
}

impl Pass<'_> {
    fn key(&self, projection: Projection) -> Option<DropoutKey> {
        self.dropout.map(|key| key.at(self.l, projection))
    }
}

impl Llama {
    /// Loss and gradients of one micro-batch: adds `scale * Σ -log p(target)`'s gradient to `grads` and returns the
    /// unscaled sum of the losses.
    ///
    /// `targets`: U32 `[tokens]`, the id to predict at each position or [`IGNORE`](crate::ops::log_probs::IGNORE).
    /// `dropout` keys the masks of the adapters; a key's streams `stream .. stream + DropoutKey::streams(blocks)` are used.
    #[allow(clippy::too_many_arguments)]
    pub fn forward_backward(
        &self,
        dev: &Device,
        batch: &Batch,
        targets: &Tensor,
        scale: f32,
        dropout: Option<DropoutKey>,
        ws: &mut Activations,
        grads: &mut Gradients,
    ) -> Result<f64> {
        let eps = self.config.rms_norm_eps;
        self.forward_keeping(dev, batch, dropout, ws)?;

        // hidden = norm(x);  loss = cross_entropy(hidden · headᵀ)
        let d_head = if self.lm_head.is_some() { grads.lm_head.as_mut() } else { grads.embed_tokens.as_mut() };
        let (losses, d_hidden) = (&mut ws.losses, &mut ws.d_normed);
        linear_cross_entropy(dev, losses, d_hidden, d_head, &ws.hidden, self.head(), targets, scale)?;
        rmsnorm_backward(dev, &mut ws.dx, grads.norm.as_mut(), d_hidden, &ws.x, &self.norm, eps, Store::Replace)?;

        for (l, block) in self.blocks.iter().enumerate().skip(ws.lowest_block).rev() {
            let pass = Pass { dev, batch, l, dropout };
            self.restore(&pass, block, ws)?;
            let input_needs_gradient = l > ws.lowest_block || grads.embed_tokens.is_some();
            self.block_backward(&pass, block, input_needs_gradient, ws, &mut grads.blocks[l])?;
        }

        // x = embed[ids]
        if let Some(d_table) = &mut grads.embed_tokens {
            embedding_backward(dev, d_table, &ws.dx, &batch.ids)?;
        }
        Ok(ws.losses.host()?.f32().iter().map(|&l| f64::from(l)).sum())
    }

    /// [`Llama::forward`], keeping what the backward pass reads. `ws.hidden` holds the final hidden states afterwards.
    fn forward_keeping(
        &self,
        dev: &Device,
        batch: &Batch,
        dropout: Option<DropoutKey>,
        ws: &mut Activations,
    ) -> Result<()> {
        ws.set_tokens(batch.tokens())?;
        dev.ledger().add_tokens(batch.tokens());
        embedding(dev, &mut ws.x, &self.embed_tokens, &batch.ids)?;
        for (l, block) in self.blocks.iter().enumerate() {
            let pass = Pass { dev, batch, l, dropout };
            if l >= ws.lowest_block {
                copy(dev, &mut ws.inputs[l - ws.lowest_block], &ws.x)?;
            }
            self.block_inner(&pass, block, ws)?;
            let key = pass.key(Projection::DownProj);
            block.down.forward_dropout(dev, &mut ws.x, &ws.activated, Store::Add, key)?;
        }
        rmsnorm(dev, &mut ws.hidden, &ws.x, &self.norm, self.config.rms_norm_eps)
    }

    /// A block up to the input of its down projection.
    fn block_inner(&self, pass: &Pass, block: &Block, ws: &mut Activations) -> Result<()> {
        let (dev, eps, slot) = (pass.dev, self.config.rms_norm_eps, ws.slot(pass.l));
        let kept = &mut ws.kept[slot];
        rmsnorm(dev, &mut ws.normed, &ws.x, &block.input_norm, eps)?;
        let ([q, k, v, _], _) = kept.of_attention(&mut ws.wide);
        block.q.forward_dropout(dev, q, &ws.normed, Store::Replace, pass.key(Projection::QProj))?;
        block.k.forward_dropout(dev, k, &ws.normed, Store::Replace, pass.key(Projection::KProj))?;
        block.v.forward_dropout(dev, v, &ws.normed, Store::Replace, pass.key(Projection::VProj))?;
        rope(dev, q, &pass.batch.positions, &self.inv_freq)?;
        rope(dev, k, &pass.batch.positions, &self.inv_freq)?;
        kept.round_inputs(dev, &mut ws.wide)?;
        let ([q, k, v, attended], lse) = kept.of_attention(&mut ws.wide);
        attention(dev, attended, lse, q, k, v, &pass.batch.cu_seqlens, self.config.heads)?;
        let Kept { attended, middle, gate, up, .. } = kept;
        if let Some(wide) = &ws.wide {
            copy(dev, attended, &wide.attended)?;
        }
        block.o.forward_dropout(dev, &mut ws.x, attended, Store::Add, pass.key(Projection::OProj))?;
        copy(dev, middle, &ws.x)?;
        rmsnorm(dev, &mut ws.post_normed, middle, &block.post_norm, eps)?;
        let (wide, key) = (&mut ws.d_activated, pass.key(Projection::GateProj));
        block.gate.forward_rounded(dev, gate, wide, &ws.post_normed, key)?;
        block.up.forward_rounded(dev, up, wide, &ws.post_normed, pass.key(Projection::UpProj))?;
        swiglu(dev, &mut ws.activated, gate, up)
    }

    /// Brings back what [`Llama::block_inner`] left for this block: all of it, or the norms and the activation only.
    fn restore(&self, pass: &Pass, block: &Block, ws: &mut Activations) -> Result<()> {
        let (dev, eps) = (pass.dev, self.config.rms_norm_eps);
        let input = &ws.inputs[pass.l - ws.lowest_block];
        if ws.recompute == Recompute::Block {
            copy(dev, &mut ws.x, input)?;
            return self.block_inner(pass, block, ws);
        }
        let kept = &ws.kept[ws.slot(pass.l)];
        rmsnorm(dev, &mut ws.normed, input, &block.input_norm, eps)?;
        rmsnorm(dev, &mut ws.post_normed, &kept.middle, &block.post_norm, eps)?;
        swiglu(dev, &mut ws.activated, &kept.gate, &kept.up)
    }

    /// A block in reverse: `ws.dx` is the gradient of its output before, of its input after (if that is needed).
    fn block_backward(
        &self,
        pass: &Pass,
        block: &Block,
        input_needs_gradient: bool,
        ws: &mut Activations,
        grads: &mut BlockGradients,
    ) -> Result<()> {
        use Projection::{DownProj, GateProj, KProj, OProj, QProj, UpProj, VProj};
        let (dev, eps, slot) = (pass.dev, self.config.rms_norm_eps, ws.slot(pass.l));
        ws.kept[slot].widen(dev, &mut ws.wide)?;
        let Kept { q, k, v, attended, lse, middle, gate, up } = &ws.kept[slot];
        let wide = ws.wide.as_ref();
        let [q, k, v, wide_attended] = wide.map_or([q, k, v, attended], |w| [&w.q, &w.k, &w.v, &w.attended]);
        let input = &ws.inputs[pass.l - ws.lowest_block];
        let Activations { dx, d_normed, d_attended, dq, dk, dv, d_activated, d_gate, d_up, .. } = ws;
        let (replace, add) = (Store::Replace, Store::Add);

        // x = middle + down(swiglu(gate, up))
        let (to, key) = (Some((&mut *d_activated, replace)), pass.key(DownProj));
        block.down.backward(dev, to, grads.projection(DownProj), dx, &ws.activated, key)?;
        swiglu_backward(dev, d_gate, d_up, d_activated, gate, up)?;
        // gate, up = gate(norm'(middle)), up(norm'(middle))
        let (to, key) = (Some((&mut *d_normed, replace)), pass.key(UpProj));
        block.up.backward(dev, to, grads.projection(UpProj), d_up, &ws.post_normed, key)?;
        let (to, key) = (Some((&mut *d_normed, add)), pass.key(GateProj));
        block.gate.backward(dev, to, grads.projection(GateProj), d_gate, &ws.post_normed, key)?;
        rmsnorm_backward(dev, dx, grads.post_norm.as_mut(), d_normed, middle, &block.post_norm, eps, add)?;

        // middle = x + o(attention(q, k, v))
        let (to, key) = (Some((&mut *d_attended, replace)), pass.key(OProj));
        block.o.backward(dev, to, grads.projection(OProj), dx, attended, key)?;
        let offsets = &pass.batch.cu_seqlens;
        attention_backward(dev, dq, dk, dv, d_attended, wide_attended, q, k, v, lse, offsets, self.config.heads)?;
        rope_backward(dev, dk, &pass.batch.positions, &self.inv_freq)?;
        rope_backward(dev, dq, &pass.batch.positions, &self.inv_freq)?;
        // q, k, v = q(norm(x)), k(norm(x)), v(norm(x))
        for (linear, projection, dy, store) in
            [(&block.v, VProj, &*dv, replace), (&block.k, KProj, &*dk, add), (&block.q, QProj, &*dq, add)]
        {
            let to = input_needs_gradient.then_some((&mut *d_normed, store));
            linear.backward(dev, to, grads.projection(projection), dy, &ws.normed, pass.key(projection))?;
        }
        if !input_needs_gradient {
            return Ok(());
        }
        rmsnorm_backward(dev, dx, grads.input_norm.as_mut(), d_normed, input, &block.input_norm, eps, add)
    }
}
