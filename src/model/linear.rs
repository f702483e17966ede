//! One projection of a block: weight, bias, adapter.

use super::lora::{DropoutKey, Lora};
use crate::device::{Device, Tensor};
use crate::error::Result;
use crate::ops::matmul::{PackedWeight, Store, Weight, matmul_weight, matmul_weights};
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

    /// Keeps the weight in the order in which the device's forward product reads it, beside the one as stored. The weight must
    /// not change afterwards.
    pub fn pack(&mut self, dev: &Device) -> Result<()> {
        self.packed = Some(Arc::new(PackedWeight::for_device(dev, &self.weight)?));
        self.weight.release_mapped();
        Ok(())
    }

    /// The weight as products take it.
    fn product_weight(&self) -> Weight<'_> {
        self.packed.as_deref().map_or(Weight::Plain(&self.weight), Weight::Packed)
    }

    /// [`Linear::forward`] of several projections of one input, each replacing its output: the same bits, and one end to wait
    /// for.
    pub fn forward_all<const N: usize>(
        dev: &Device,
        x: &Tensor,
        projections: [(&Linear, &mut Tensor); N],
    ) -> Result<()> {
        let loras = projections.each_ref().map(|(linear, _)| linear.lora.as_deref());
        let mut products = projections.map(|(linear, y)| (y, linear.product_weight(), linear.bias.as_deref()));
        matmul_weights(dev, x, &mut products)?;
        let outputs = products.into_iter().zip(loras);
        outputs.filter_map(|((y, ..), lora)| Some((y, lora?))).try_for_each(|(y, lora)| lora.forward(dev, y, x, None))
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
        matmul_weight(dev, y, x, self.product_weight(), self.bias.as_deref(), store)?;
        self.lora.as_ref().map_or(Ok(()), |lora| lora.forward(dev, y, x, key))
    }
}
