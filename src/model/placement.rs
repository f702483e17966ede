//! A model's weights in the memory of the device that computes.

use super::lora::{Lora, Projection};
use super::{Config, Llama};
use crate::device::{DType, Device, Tensor};
use crate::error::{Error, Result};
use std::sync::Arc;

impl Llama {
    /// Moves the weights and adapters to the device, in the element type that its operations read: on a card BF16, on the CPU
    /// they stay where and as they are.
    pub fn place(&mut self, dev: &Device) -> Result<()> {
        if dev.is_cpu() {
            return Ok(());
        }
        let to = dev.activation();
        let (needed, available) = (Llama::placed_bytes(&self.config, dev), dev.memory_budget().unwrap_or(u64::MAX));
        if needed > available {
            let what = format!("{}: a model of {} blocks", dev.description(), self.blocks.len());
            let instead = "cut more blocks, use a card with more memory, or --device cpu".into();
            return Err(Error::Budget { what, needed, available, instead });
        }
        let place = |tensor: &mut Arc<Tensor>| -> Result<()> {
            *tensor = Arc::new(dev.upload(tensor, to)?);
            Ok(())
        };
        place(&mut self.embed_tokens)?;
        for block in &mut self.blocks {
            place(&mut block.input_norm)?;
            place(&mut block.post_norm)?;
            for projection in Projection::ALL {
                let linear = block.projection_mut(projection);
                place(&mut linear.weight)?;
                linear.bias.iter_mut().try_for_each(place)?;
                if let Some(lora) = &mut linear.lora {
                    let (a, b) = (dev.upload(&lora.a, to)?, dev.upload(&lora.b, to)?);
                    *lora = Arc::new(Lora { a, b, scale: lora.scale });
                }
            }
        }
        place(&mut self.norm)?;
        self.lm_head.iter_mut().try_for_each(place)?;
        self.inv_freq = Arc::new(dev.upload(&self.inv_freq, DType::F32)?);
        Ok(())
    }

    /// Bytes that the weights of a model take on a card, with its rotary frequencies.
    pub fn placed_bytes(config: &Config, dev: &Device) -> u64 {
        config.parameters() * dev.activation().size() as u64 + 2 * config.heads.head_dim as u64
    }
}
