//! The Llama forward pass (Touvron et al. 2023, arXiv 2302.13971): pre-norm blocks of grouped-query attention with rotary
//! positions and a gated MLP.
//!
//! ```text
//! x = embed[ids]
//! for each block:
//!     x += o( attention( rope(q(norm(x))), rope(k(norm(x))), v(norm(x)) ) )
//!     x += down( silu(gate(norm'(x))) * up(norm'(x)) )
//! hidden = norm(x);  logits = hidden · headᵀ
//! ```

use super::linear::Linear;
use super::lora::Projection;
use super::safetensors::WeightFiles;
use super::{Batch, Config, KvCache};
use crate::device::{DType, Device, Tensor};
use crate::error::Result;
use crate::ops::attention::{PagedBatch, attention, kv_store, paged_attention};
use crate::ops::embedding::embedding;
use crate::ops::log_probs::log_probs;
use crate::ops::matmul::{PackedWeight, Store, Weight, matmul_weight};
use crate::ops::rmsnorm::rmsnorm;
use crate::ops::rope::rope;
use crate::ops::swiglu::swiglu;
use crate::progress;
use std::path::Path;
use std::sync::Arc;

/// Weights of one decoder block. Clones share them.
#[derive(Clone)]
pub struct Block {
    /// `input_layernorm`: float `[hidden]`.
    pub input_norm: Arc<Tensor>,
    /// Query projection.
    pub q: Linear,
    /// Key projection.
    pub k: Linear,
    /// Value projection.
    pub v: Linear,
    /// Output projection of attention.
    pub o: Linear,
    /// `post_attention_layernorm`: float `[hidden]`.
    pub post_norm: Arc<Tensor>,
    /// Gate projection.
    pub gate: Linear,
    /// Up projection.
    pub up: Linear,
    /// Down projection.
    pub down: Linear,
}

/// A Llama model in memory. Clones share the weights.
#[derive(Clone)]
pub struct Llama {
    /// Shape and options.
    pub config: Config,
    /// Float `[vocab, hidden]`.
    pub embed_tokens: Arc<Tensor>,
    /// Decoder blocks in order.
    pub blocks: Vec<Block>,
    /// Final norm: float `[hidden]`.
    pub norm: Arc<Tensor>,
    /// Output head: float `[vocab, hidden]`; `None` when it is the embedding table (see [`Llama::head`]).
    pub lm_head: Option<Arc<Tensor>>,
    packed_head: Option<Arc<PackedWeight>>,
    /// Rotary frequencies: F32 `[head_dim / 2]`.
    pub inv_freq: Arc<Tensor>,
}

impl Llama {
    /// Maps the weights of a model directory.
    pub fn load(dir: &Path) -> Result<Llama> {
        let config = Config::load(dir)?;
        let files = WeightFiles::open(dir)?;
        for remark in files.check(&config)? {
            progress::line(&format!("{}: {remark}", dir.display()));
        }
        let tensor = |name: String| files.tensor(&name).map(Arc::new);
        let linear = |name: String, bias: bool| -> Result<Linear> {
            let weight = tensor(format!("{name}.weight"))?;
            let bias = if bias { Some(tensor(format!("{name}.bias"))?) } else { None };
            Ok(Linear::new(weight, bias))
        };
        let blocks = (0..config.num_hidden_layers).map(|i| {
            let (layer, attention_bias, mlp_bias) =
                (format!("model.layers.{i}"), config.attention_bias, config.mlp_bias);
            Ok(Block {
                input_norm: tensor(format!("{layer}.input_layernorm.weight"))?,
                q: linear(format!("{layer}.self_attn.q_proj"), attention_bias)?,
                k: linear(format!("{layer}.self_attn.k_proj"), attention_bias)?,
                v: linear(format!("{layer}.self_attn.v_proj"), attention_bias)?,
                o: linear(format!("{layer}.self_attn.o_proj"), attention_bias)?,
                post_norm: tensor(format!("{layer}.post_attention_layernorm.weight"))?,
                gate: linear(format!("{layer}.mlp.gate_proj"), mlp_bias)?,
                up: linear(format!("{layer}.mlp.up_proj"), mlp_bias)?,
                down: linear(format!("{layer}.mlp.down_proj"), mlp_bias)?,
            })
        });
        let blocks = blocks.collect::<Result<Vec<Block>>>()?;
        let embed_tokens = tensor("model.embed_tokens.weight".into())?;
        let lm_head = if config.tie_word_embeddings { None } else { Some(tensor("lm_head.weight".into())?) };
        let inv_freq = config.inv_freq();
        Ok(Llama {
            embed_tokens,
            blocks,
            norm: tensor("model.norm.weight".into())?,
            lm_head,
            packed_head: None,
            inv_freq: Arc::new(Tensor::from_f32(&inv_freq, &[inv_freq.len()])),
            config,
        })
    }

    /// [`Llama::load`], then [`Llama::prepare`].
    pub fn load_packed(dev: &Device, dir: &Path) -> Result<Llama> {
        let mut model = Llama::load(dir)?;
        model.prepare(dev)?;
        Ok(model)
    }

    /// What makes inference fast on `dev`: [`Llama::pack`] for the CPU, [`Llama::place`] for a card.
    pub fn prepare(&mut self, dev: &Device) -> Result<()> {
        if dev.is_cpu() { self.pack(dev) } else { self.place(dev) }
    }

    /// Packs every projection and the output head for inference: faster, above all with few rows; the packed copy takes the place
    /// of the mapped file in memory. Results stay the same to the bit, but for
    /// [`Weights::Int8`](crate::device::Weights::Int8). The model then fits devices of the same
    /// [`Compute`](crate::device::Compute). Training changes weights, so it works on an
    /// unpacked model.
    pub fn pack(&mut self, dev: &Device) -> Result<()> {
        for block in &mut self.blocks {
            for projection in Projection::ALL {
                block.projection_mut(projection).pack(dev)?;
            }
        }
        self.packed_head = Some(Arc::new(PackedWeight::for_device(dev, self.head())?));
        self.head().release_mapped();
        Ok(())
    }

    /// The output head as products take it: packed where [`Llama::pack`] made it so.
    pub fn head_weight(&self) -> Weight<'_> {
        self.packed_head.as_deref().map_or(Weight::Plain(self.head()), Weight::Packed)
    }

    /// `y = hidden · headᵀ`, F32 `[tokens, vocab]`.
    pub fn logits(&self, dev: &Device, y: &mut Tensor, hidden: &Tensor) -> Result<()> {
        matmul_weight(dev, y, hidden, self.head_weight(), None, Store::Replace)
    }

    /// The output head, float `[vocab, hidden]`.
    pub fn head(&self) -> &Tensor {
        self.lm_head.as_deref().unwrap_or(&self.embed_tokens)
    }

    /// `log p(next token)` at every position of the batch, 0 at the last position of each sequence.
    pub fn next_token_log_probs(&self, dev: &Device, batch: &Batch, ws: &mut Workspace) -> Result<Vec<f32>> {
        self.forward(dev, batch, ws, &mut |_, _| Ok(()))?;
        let mut out = dev.zeros(&[batch.tokens()], DType::F32)?;
        log_probs(dev, &mut out, &ws.hidden, self.head_weight(), &batch.next_tokens())?;
        Ok(out.host()?.f32().to_vec())
    }

    /// The same model without the blocks named in `drop` (0-based); weights are shared, nothing is copied.
    pub fn without_blocks(&self, drop: &[usize]) -> Llama {
        let mut cut = self.clone();
        let kept = self.blocks.iter().enumerate().filter(|(i, _)| !drop.contains(i));
        cut.blocks = kept.map(|(_, block)| block.clone()).collect();
        cut.config.num_hidden_layers = cut.blocks.len();
        cut
    }

    /// Forward pass over packed sequences; `ws.hidden` holds the normed hidden states `[tokens, hidden]` afterwards.
    ///
    /// `observe(l, x)` sees the residual stream at the input of block `l`, and after the last block (before the final norm)
    /// with `l` = number of blocks.
    pub fn forward(
        &self,
        dev: &Device,
        batch: &Batch,
        ws: &mut Workspace,
        observe: &mut dyn FnMut(usize, &Tensor) -> Result<()>,
    ) -> Result<()> {
        ws.set_tokens(batch.tokens())?;
        dev.ledger().add_tokens(batch.tokens());
        embedding(dev, &mut ws.x, &self.embed_tokens, &batch.ids)?;
        for (l, block) in self.blocks.iter().enumerate() {
            observe(l, &ws.x)?;
            self.attention_inputs(dev, block, &batch.positions, ws)?;
            attention(dev, &mut ws.attended, &mut ws.lse, &ws.q, &ws.k, &ws.v, &batch.cu_seqlens, self.config.heads)?;
            self.block_outputs(dev, block, ws)?;
        }
        observe(self.blocks.len(), &ws.x)?;
        rmsnorm(dev, &mut ws.hidden, &ws.x, &self.norm, self.config.rms_norm_eps)
    }

    /// Forward pass of new tokens against a paged cache, which receives their keys and values.
    ///
    /// `ids`, `positions`, `slots`: U32 `[tokens]`; `slots` as in [`kv_store`]. `ws.hidden` holds the result as in
    /// [`Llama::forward`].
    #[allow(clippy::too_many_arguments)]
    pub fn forward_paged(
        &self,
        dev: &Device,
        ids: &Tensor,
        positions: &Tensor,
        slots: &Tensor,
        paged: &PagedBatch,
        cache: &mut KvCache,
        ws: &mut Workspace,
    ) -> Result<()> {
        ws.set_tokens(ids.rows())?;
        dev.ledger().add_tokens(ids.rows());
        embedding(dev, &mut ws.x, &self.embed_tokens, ids)?;
        for (block, (k_pages, v_pages)) in self.blocks.iter().zip(&mut cache.layers) {
            self.attention_inputs(dev, block, positions, ws)?;
            kv_store(dev, k_pages, v_pages, &ws.k, &ws.v, slots, self.config.heads)?;
            paged_attention(dev, &mut ws.attended, &ws.q, k_pages, v_pages, paged, self.config.heads)?;
            self.block_outputs(dev, block, ws)?;
        }
        rmsnorm(dev, &mut ws.hidden, &ws.x, &self.norm, self.config.rms_norm_eps)
    }

    /// First third of a block: norm, q, k, v, rotary positions.
    fn attention_inputs(&self, dev: &Device, block: &Block, positions: &Tensor, ws: &mut Workspace) -> Result<()> {
        rmsnorm(dev, &mut ws.hidden, &ws.x, &block.input_norm, self.config.rms_norm_eps)?;
        let projections = [(&block.q, &mut ws.q), (&block.k, &mut ws.k), (&block.v, &mut ws.v)];
        Linear::forward_all(dev, &ws.hidden, projections)?;
        rope(dev, &mut ws.q, positions, &self.inv_freq)?;
        rope(dev, &mut ws.k, positions, &self.inv_freq)
    }

    /// Rest of a block after attention: output projection, residual, norm, gated MLP, residual.
    fn block_outputs(&self, dev: &Device, block: &Block, ws: &mut Workspace) -> Result<()> {
        block.o.forward(dev, &mut ws.x, &ws.attended, Store::Add)?;
        rmsnorm(dev, &mut ws.hidden, &ws.x, &block.post_norm, self.config.rms_norm_eps)?;
        Linear::forward_all(dev, &ws.hidden, [(&block.gate, &mut ws.gate), (&block.up, &mut ws.up)])?;
        swiglu(dev, &mut ws.activated, &ws.gate, &ws.up)?;
        block.down.forward(dev, &mut ws.x, &ws.activated, Store::Add)
    }
}

/// Activation buffers of a forward pass, planned once for the largest batch: `[tokens, features]` of the device's
/// [activation](Device::activation) type.
pub struct Workspace {
    /// Residual stream.
    pub x: Tensor,
    /// Normed input of a projection; after a pass, the final hidden states.
    pub hidden: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attended: Tensor,
    lse: Tensor,
    gate: Tensor,
    up: Tensor,
    activated: Tensor,
}

impl Workspace {
    /// Buffers for batches of at most `tokens` tokens.
    pub fn new(dev: &Device, config: &Config, tokens: usize) -> Result<Workspace> {
        let buffer = |features: usize| dev.zeros(&[tokens, features], dev.activation());
        let heads = config.heads;
        Ok(Workspace {
            x: buffer(config.hidden_size)?,
            hidden: buffer(config.hidden_size)?,
            q: buffer(heads.n_heads * heads.head_dim)?,
            k: buffer(heads.n_kv_heads * heads.head_dim)?,
            v: buffer(heads.n_kv_heads * heads.head_dim)?,
            attended: buffer(heads.n_heads * heads.head_dim)?,
            lse: dev.zeros(&[tokens, heads.n_heads], DType::F32)?,
            gate: buffer(config.intermediate_size)?,
            up: buffer(config.intermediate_size)?,
            activated: buffer(config.intermediate_size)?,
        })
    }

    /// Bytes of [`Workspace::new`] for `tokens` tokens.
    pub fn plan_bytes(dev: &Device, config: &Config, tokens: usize) -> usize {
        let heads = config.heads;
        let attention = 2 * (heads.n_heads + heads.n_kv_heads) * heads.head_dim;
        let features = 2 * config.hidden_size + attention + 3 * config.intermediate_size;
        tokens * (dev.activation().size() * features + 4 * heads.n_heads)
    }

    fn set_tokens(&mut self, tokens: usize) -> Result<()> {
        let Workspace { x, hidden, q, k, v, attended, lse, gate, up, activated } = self;
        let buffers = [x, hidden, q, k, v, attended, lse, gate, up, activated];
        buffers.into_iter().try_for_each(|buffer| buffer.set_rows(tokens))
    }
}
