//! Gradients, shaped like the model they belong to, and the list of parameters that training changes.

use super::linear::Linear;
use super::llama::{Block, Llama};
use super::lora::Projection;
use crate::device::{DType, Device, Tensor};
use crate::error::{Error, Result};
use crate::ops::copy::zero;
use std::sync::Arc;

/// Which parameters training changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trainable {
    /// Every tensor of the model.
    All,
    /// The factors of the attached adapters; everything else is frozen.
    Lora,
}

/// Gradients of an adapter.
pub struct LoraGradients {
    /// F32 `[rank, in_features]`.
    pub a: Tensor,
    /// F32 `[out_features, rank]`.
    pub b: Tensor,
}

/// Gradients of a projection; `None` where the parameter is frozen or absent.
#[derive(Default)]
pub struct LinearGradients {
    /// F32 `[out_features, in_features]`.
    pub weight: Option<Tensor>,
    /// F32 `[out_features]`.
    pub bias: Option<Tensor>,
    /// Adapter.
    pub lora: Option<LoraGradients>,
}

/// Gradients of a decoder block.
pub struct BlockGradients {
    /// F32 `[hidden]`.
    pub input_norm: Option<Tensor>,
    /// F32 `[hidden]`.
    pub post_norm: Option<Tensor>,
    /// In the order of [`Projection::ALL`].
    pub projections: [LinearGradients; 7],
}

impl BlockGradients {
    /// Gradients of one projection.
    pub fn projection(&mut self, projection: Projection) -> &mut LinearGradients {
        &mut self.projections[projection as usize]
    }
}

/// Gradients of a model. All F32, zero at first; the backward pass adds to them.
pub struct Gradients {
    /// `[vocab, hidden]`; with a tied head the sum of both uses.
    pub embed_tokens: Option<Tensor>,
    /// Per block.
    pub blocks: Vec<BlockGradients>,
    /// Final norm, `[hidden]`.
    pub norm: Option<Tensor>,
    /// `[vocab, hidden]`, untied heads only.
    pub lm_head: Option<Tensor>,
}

impl Gradients {
    /// Zeros for the parameters of `model` that are trained.
    pub fn new(dev: &Device, model: &Llama, trainable: Trainable) -> Result<Gradients> {
        Gradients::made(model, trainable, |tensor| dev.zeros(tensor.shape(), DType::F32))
    }

    /// What `like` makes of each parameter of `model` that is trained.
    pub fn made(model: &Llama, trainable: Trainable, like: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Gradients> {
        let all = trainable == Trainable::All;
        let full = |tensor: &Tensor| all.then(|| like(tensor)).transpose();
        let linear = |linear: &Linear| {
            Ok(LinearGradients {
                weight: full(&linear.weight)?,
                bias: linear.bias.as_deref().map_or(Ok(None), full)?,
                lora: match &linear.lora {
                    Some(lora) if !all => Some(LoraGradients { a: like(&lora.a)?, b: like(&lora.b)? }),
                    _ => None,
                },
            })
        };
        let of_block = |block: &Block| {
            Ok(BlockGradients {
                input_norm: full(&block.input_norm)?,
                post_norm: full(&block.post_norm)?,
                projections: each_projection(|p| linear(block.projection(p)))?,
            })
        };
        Ok(Gradients {
            embed_tokens: full(&model.embed_tokens)?,
            blocks: model.blocks.iter().map(of_block).collect::<Result<_>>()?,
            norm: full(&model.norm)?,
            lm_head: model.lm_head.as_deref().map_or(Ok(None), full)?,
        })
    }

    /// Zeros for the weights of the seven projections of the named blocks; everything else is frozen.
    pub fn of_projections(dev: &Device, model: &Llama, blocks: &[usize]) -> Result<Gradients> {
        let weight = |l: usize, p: Projection| {
            let weight = &model.blocks[l].projection(p).weight;
            blocks.contains(&l).then(|| dev.zeros(weight.shape(), DType::F32)).transpose()
        };
        let of_block = |l: usize| {
            let projections =
                each_projection(|p| Ok(LinearGradients { weight: weight(l, p)?, ..LinearGradients::default() }))?;
            Ok(BlockGradients { input_norm: None, post_norm: None, projections })
        };
        let blocks = (0..model.blocks.len()).map(of_block).collect::<Result<_>>()?;
        Ok(Gradients { embed_tokens: None, blocks, norm: None, lm_head: None })
    }

    /// The lowest block with a trained parameter: backward stops there. 0 when the embedding is trained.
    pub fn lowest_block(&self) -> usize {
        let trains = |b: &BlockGradients| {
            b.input_norm.is_some() || b.projections.iter().any(|p| p.weight.is_some() || p.lora.is_some())
        };
        if self.embed_tokens.is_some() {
            return 0;
        }
        self.blocks.iter().position(trains).unwrap_or(self.blocks.len())
    }

    /// Every gradient, in the order of [`Llama::parameters_mut`].
    pub fn tensors(&self) -> Vec<&Tensor> {
        let mut all: Vec<&Tensor> = Vec::new();
        all.extend(&self.embed_tokens);
        for block in &self.blocks {
            all.extend(&block.input_norm);
            all.extend(&block.post_norm);
            for p in &block.projections {
                all.extend(&p.weight);
                all.extend(&p.bias);
                all.extend(p.lora.iter().flat_map(|l| [&l.a, &l.b]));
            }
        }
        all.extend(&self.norm);
        all.extend(&self.lm_head);
        all
    }

    /// [`Gradients::tensors`], writable.
    pub fn tensors_mut(&mut self) -> Vec<&mut Tensor> {
        let mut all: Vec<&mut Tensor> = Vec::new();
        all.extend(&mut self.embed_tokens);
        for block in &mut self.blocks {
            all.extend(&mut block.input_norm);
            all.extend(&mut block.post_norm);
            for p in &mut block.projections {
                all.extend(&mut p.weight);
                all.extend(&mut p.bias);
                all.extend(p.lora.iter_mut().flat_map(|l| [&mut l.a, &mut l.b]));
            }
        }
        all.extend(&mut self.norm);
        all.extend(&mut self.lm_head);
        all
    }

    /// Sets every gradient to zero.
    pub fn zero(&mut self, dev: &Device) -> Result<()> {
        zero(dev, self.tensors_mut())
    }
}

/// What `of` gives for each of the seven projections, in their order.
fn each_projection(
    mut of: impl FnMut(Projection) -> Result<LinearGradients>,
) -> Result<[LinearGradients; Projection::ALL.len()]> {
    let mut all: [LinearGradients; Projection::ALL.len()] = Default::default();
    for (gradients, projection) in all.iter_mut().zip(Projection::ALL) {
        *gradients = of(projection)?;
    }
    Ok(all)
}

fn unique(tensor: &mut Arc<Tensor>) -> Result<&mut Tensor> {
    Arc::get_mut(tensor)
        .ok_or_else(|| Error::shape("parameters_mut", "model", "weights that no other model shares", "a shared one"))
}

impl Llama {
    /// The same model with every weight an owned F32 copy, which training can change.
    pub fn into_f32(mut self) -> Llama {
        let own = |tensor: &mut Arc<Tensor>| {
            let copy = Arc::new(tensor.to_f32());
            std::mem::replace(tensor, copy).release_mapped();
        };
        own(&mut self.embed_tokens);
        for block in &mut self.blocks {
            own(&mut block.input_norm);
            own(&mut block.post_norm);
            for p in Projection::ALL {
                let linear = block.projection_mut(p);
                own(&mut linear.weight);
                linear.bias.iter_mut().for_each(own);
            }
        }
        own(&mut self.norm);
        self.lm_head.iter_mut().for_each(own);
        self
    }

    /// The trained parameters with their names in files: Hugging Face's, or PEFT's for adapters. Errors when a clone of the
    /// model shares them.
    pub fn parameters_mut(&mut self, trainable: Trainable) -> Result<Vec<(String, &mut Tensor)>> {
        let all = trainable == Trainable::All;
        let mut list = Vec::new();
        if all {
            list.push(("model.embed_tokens.weight".to_string(), unique(&mut self.embed_tokens)?));
        }
        for (i, block) in self.blocks.iter_mut().enumerate() {
            let layer = format!("model.layers.{i}");
            if all {
                list.push((format!("{layer}.input_layernorm.weight"), unique(&mut block.input_norm)?));
                list.push((format!("{layer}.post_attention_layernorm.weight"), unique(&mut block.post_norm)?));
            }
            let linears = [
                &mut block.q,
                &mut block.k,
                &mut block.v,
                &mut block.o,
                &mut block.gate,
                &mut block.up,
                &mut block.down,
            ];
            for (projection, linear) in Projection::ALL.into_iter().zip(linears) {
                let name = format!("{layer}.{}", projection.path());
                if all {
                    list.push((format!("{name}.weight"), unique(&mut linear.weight)?));
                    if let Some(bias) = &mut linear.bias {
                        list.push((format!("{name}.bias"), unique(bias)?));
                    }
                } else if let Some(lora) = &mut linear.lora {
                    let lora = Arc::get_mut(lora).ok_or_else(|| {
                        Error::shape("parameters_mut", "model", "adapters that no other model shares", "a shared one")
                    })?;
                    list.push((format!("base_model.model.{name}.lora_A.weight"), &mut lora.a));
                    list.push((format!("base_model.model.{name}.lora_B.weight"), &mut lora.b));
                }
            }
        }
        if all {
            list.push(("model.norm.weight".to_string(), unique(&mut self.norm)?));
            if let Some(head) = &mut self.lm_head {
                list.push(("lm_head.weight".to_string(), unique(head)?));
            }
        }
        Ok(list)
    }
}
