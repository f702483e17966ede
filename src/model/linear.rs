//! One projection of a block: weight, bias, adapter.

use super::lora::{DropoutKey, Lora};
use crate::device::{Device, Tensor};
use crate::error::Result;
use crate::ops::matmul::{PackedWeight, Store, Weight, matmul_weight};
use std::sync::Arc;

/// A projection: `y = x · weightᵀ (+ bias) (+ adapter)`. Clones share the weights.
#[derive(Clone)]
pub struct Linear {
    /// Float `[out_features, in_features]`.
    pub weight: Arc<Tensor>,
    /// Float `[out_features]`.
    pub bias: Option<Arc<Tensor>>,
    /// Low-rank adapter beside the weight.
    pub lora: Option<Arc<Lora>>,
    packed: Option<Arc<PackedWeight>>,
}

impl Linear {
    /// A projection without an adapter.
    pub fn new(weight: Arc<Tensor>, bias: Option<Arc<Tensor>>) -> Linear {
        Linear { weight, bias, lora: None, packed: None }
    }

    /// Keeps the weight in the order in which the forward product reads it, beside the one as stored. The weight must not
    /// change afterwards.
    pub fn pack(&mut self) -> Result<()> {
        self.packed = Some(Arc::new(PackedWeight::new(&self.weight)?));
        Ok(())
    }

    /// `y (+)= x · weightᵀ (+ bias) (+ adapter without dropout)`.
    pub fn forward(&self, dev: &Device, y: &mut Tensor, x: &Tensor, store: Store) -> Result<()> {
        self.forward_dropout(dev, y, x, store, None)
    }

    /// [`Linear::forward`] with the adapter's dropout, for training.
    pub fn forward_dropout(
        &self,
        dev: &Device,
        y: &mut Tensor,
        x: &Tensor,
        store: Store,
        key: Option<DropoutKey>,
    ) -> Result<()> {
        let weight = self.packed.as_deref().map_or(Weight::Plain(&self.weight), Weight::Packed);
        matmul_weight(dev, y, x, weight, self.bias.as_deref(), store)?;
        self.lora.as_ref().map_or(Ok(()), |lora| lora.forward(dev, y, x, key))
    }
}
