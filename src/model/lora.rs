//! Low-rank adapters (Hu et al. 2021, arXiv 2106.09685): `y += scale * (dropout(x) · Aᵀ) · Bᵀ` beside a frozen projection.

use super::Config;
use super::adapter::LoraConfig;
use super::gradients::LoraGradients;
use super::linear::Linear;
use super::llama::{Block, Llama};
use crate::device::{Device, Tensor};
use crate::error::Result;
use crate::ops::dropout::dropout;
use crate::ops::matmul::{Store, matmul_nn, matmul_nt, matmul_tn};
use crate::ops::scale::scale;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The seven projections of a block, in the order of the forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
#[allow(clippy::enum_variant_names)]
pub enum Projection {
    /// Queries.
    QProj,
    /// Keys.
    KProj,
    /// Values.
    VProj,
    /// Output of attention.
    OProj,
    /// Gate of the MLP.
    GateProj,
    /// Up projection of the MLP.
    UpProj,
    /// Down projection of the MLP.
    DownProj,
}

impl Projection {
    /// All seven.
    pub const ALL: [Projection; 7] = [
        Projection::QProj,
        Projection::KProj,
        Projection::VProj,
        Projection::OProj,
        Projection::GateProj,
        Projection::UpProj,
        Projection::DownProj,
    ];

    /// `q_proj` ... `down_proj`, as Hugging Face names them.
    pub const fn name(self) -> &'static str {
        match self {
            Projection::QProj => "q_proj",
            Projection::KProj => "k_proj",
            Projection::VProj => "v_proj",
            Projection::OProj => "o_proj",
            Projection::GateProj => "gate_proj",
            Projection::UpProj => "up_proj",
            Projection::DownProj => "down_proj",
        }
    }

    /// Of the attention layer, not of the MLP.
    pub const fn in_attention(self) -> bool {
        matches!(self, Projection::QProj | Projection::KProj | Projection::VProj | Projection::OProj)
    }

    /// `self_attn.q_proj` ... `mlp.down_proj`: the path inside a block.
    pub fn path(self) -> String {
        let part = if self.in_attention() { "self_attn" } else { "mlp" };
        format!("{part}.{}", self.name())
    }

    /// The projection of that name.
    pub fn parse(name: &str) -> Option<Projection> {
        Projection::ALL.into_iter().find(|p| p.name() == name)
    }
}

/// One adapter. Both factors are F32 whatever the frozen weight's type.
pub struct Lora {
    /// F32 `[rank, in_features]`.
    pub a: Tensor,
    /// F32 `[out_features, rank]`.
    pub b: Tensor,
    /// `alpha / rank`, or `alpha / sqrt(rank)` for rank-stabilised adapters (Kalajdzievski 2023).
    pub scale: f32,
}

/// Which random mask a dropout draws: a pass with the same key draws the same one, so recomputation and backward agree.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DropoutKey {
    /// Probability of zeroing an element.
    pub p: f32,
    /// Seed of the run.
    pub seed: u64,
    /// Number of the draw: unique for each (micro-batch, block, projection).
    pub stream: u64,
}

impl DropoutKey {
    /// Draws of one micro-batch begin at `stream`; this is the one of a block's projection.
    pub fn at(self, block: usize, projection: Projection) -> DropoutKey {
        DropoutKey { stream: self.stream + (block * Projection::ALL.len() + projection as usize) as u64, ..self }
    }

    /// Streams that one pass over a model of `blocks` blocks uses.
    pub fn streams(blocks: usize) -> u64 {
        (blocks * Projection::ALL.len()) as u64
    }
}

impl Lora {
    /// Rank of the update.
    pub fn rank(&self) -> usize {
        self.a.rows()
    }

    /// `y (+)= scale * (dropout(x) · Aᵀ) · Bᵀ`. `x`: F32 or BF16 `[tokens, in]`, `y`: F32 `[tokens, out]`; no dropout without
    /// a key.
    pub fn forward(
        &self,
        dev: &Device,
        y: &mut Tensor,
        x: &Tensor,
        store: Store,
        key: Option<DropoutKey>,
    ) -> Result<()> {
        let dropped = dropped(dev, x, key)?;
        let low = self.low_rank(dev, dropped.as_ref().unwrap_or(x))?;
        matmul_nt(dev, y, &low, &self.b, None, store)
    }

    /// Adds to `grads` and gives the input's gradient where that is needed. `dy`: F32 `[tokens, out]`, `dx`, `x`: F32
    /// `[tokens, in]`.
    ///
    /// With `u = scale * dropout(x) · Aᵀ` and `du = scale * dy · B`: `dB += dyᵀ u`, `dA += duᵀ dropout(x)`,
    /// `dx (+)= mask * (du · A)`.
    pub fn backward(
        &self,
        dev: &Device,
        dx: Option<(&mut Tensor, Store)>,
        grads: &mut LoraGradients,
        dy: &Tensor,
        x: &Tensor,
        key: Option<DropoutKey>,
    ) -> Result<()> {
        let dropped_x = dropped(dev, x, key)?;
        let seen = dropped_x.as_ref().unwrap_or(x);
        let low = self.low_rank(dev, seen)?;
        matmul_tn(dev, &mut grads.b, dy, &low, Store::Add)?;
        let mut d_low = low;
        matmul_nn(dev, &mut d_low, dy, &self.b, Store::Replace)?;
        scale(dev, &mut d_low, self.scale)?;
        matmul_tn(dev, &mut grads.a, &d_low, seen, Store::Add)?;
        let Some((dx, store)) = dx else { return Ok(()) };
        let Some(key) = key else { return matmul_nn(dev, dx, &d_low, &self.a, store) };
        let mut d_dropped = Tensor::zeros_in(dev, x.shape(), x.room(), dev.activation())?;
        matmul_nn(dev, &mut d_dropped, &d_low, &self.a, Store::Replace)?;
        dropout(dev, dx, &d_dropped, key.p, key.seed, key.stream, store)
    }

    /// `scale * x · Aᵀ`, F32 `[tokens, rank]`.
    fn low_rank(&self, dev: &Device, x: &Tensor) -> Result<Tensor> {
        let mut low = Tensor::zeros_in(dev, &[x.rows(), self.rank()], x.room(), dev.activation())?;
        matmul_nt(dev, &mut low, x, &self.a, None, Store::Replace)?;
        scale(dev, &mut low, self.scale)?;
        Ok(low)
    }
}

fn dropped(dev: &Device, x: &Tensor, key: Option<DropoutKey>) -> Result<Option<Tensor>> {
    let Some(key) = key else { return Ok(None) };
    let mut y = Tensor::zeros_in(dev, x.shape(), x.room(), dev.activation())?;
    let wide = (x.dtype() != dev.activation()).then(|| x.to_f32());
    dropout(dev, &mut y, wide.as_ref().unwrap_or(x), key.p, key.seed, key.stream, Store::Replace)?;
    Ok(Some(y))
}

/// Bytes that adapters of rank `rank` (0 without any) need beside the buffers of a forward pass over `tokens` tokens: the low-rank
/// activations and, on a card, what an adapted projection adds to the residual stream.
pub fn forward_bytes(dev: &Device, config: &Config, rank: usize, tokens: usize) -> usize {
    let sum = if dev.is_cpu() || rank == 0 { 0 } else { config.hidden_size };
    tokens * dev.activation().size() * (rank + sum)
}

impl LoraConfig {
    /// [`forward_bytes`] of a training pass, with the inputs that dropout leaves and their gradients. On a card, which keeps memory
    /// for buffers of that size, those of the hidden size and of the widest input.
    pub fn training_bytes(&self, dev: &Device, config: &Config, tokens: usize) -> usize {
        let widest = self.target_modules.iter().map(|&p| config.projection_shape(p)[1]).max().unwrap_or(0);
        let kept = if dev.is_cpu() || widest == config.hidden_size { widest } else { config.hidden_size + widest };
        let dropped = if self.lora_dropout > 0.0 { 2 * kept } else { 0 };
        forward_bytes(dev, config, self.r, tokens) + tokens * dev.activation().size() * dropped
    }
}

impl Block {
    /// One of the seven projections.
    pub fn projection(&self, projection: Projection) -> &Linear {
        match projection {
            Projection::QProj => &self.q,
            Projection::KProj => &self.k,
            Projection::VProj => &self.v,
            Projection::OProj => &self.o,
            Projection::GateProj => &self.gate,
            Projection::UpProj => &self.up,
            Projection::DownProj => &self.down,
        }
    }

    /// One of the seven projections, to attach an adapter.
    pub fn projection_mut(&mut self, projection: Projection) -> &mut Linear {
        match projection {
            Projection::QProj => &mut self.q,
            Projection::KProj => &mut self.k,
            Projection::VProj => &mut self.v,
            Projection::OProj => &mut self.o,
            Projection::GateProj => &mut self.gate,
            Projection::UpProj => &mut self.up,
            Projection::DownProj => &mut self.down,
        }
    }
}

impl Llama {
    /// Largest rank of the attached adapters; `None` without one.
    pub fn lora_rank(&self) -> Option<usize> {
        let projections = self.blocks.iter().flat_map(|block| Projection::ALL.map(|p| block.projection(p)));
        projections.filter_map(|linear| linear.lora.as_ref()).map(|lora| lora.rank()).max()
    }

    /// Attaches an adapter to a projection of a block, replacing the one that was there.
    pub fn attach_lora(&mut self, block: usize, projection: Projection, lora: Lora) {
        self.blocks[block].projection_mut(projection).lora = Some(Arc::new(lora));
    }
}
