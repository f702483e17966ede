//! One projection of a block: weight, bias, adapter.

use super::lora::{DropoutKey, Lora};
use crate::device::{Device, Tensor};
use crate::error::Result;
use crate::ops::matmul::{PackedWeight, Store, Weight, matmul_weight, matmul_weights};
use crate::ops::scale::add;
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
        if !dev.is_cpu() && projections.iter().any(|(linear, _)| linear.lora.is_some()) {
            return projections.into_iter().try_for_each(|(linear, y)| linear.forward(dev, y, x, Store::Replace));
        }
        let loras = projections.each_ref().map(|(linear, _)| linear.lora.as_deref());
        let mut products = projections.map(|(linear, y)| (y, linear.product_weight(), linear.bias.as_deref()));
        matmul_weights(dev, x, &mut products)?;
        let outputs = products.into_iter().zip(loras);
        let mut adapted = outputs.filter_map(|((y, ..), lora)| Some((y, lora?)));
        adapted.try_for_each(|(y, lora)| lora.forward(dev, y, x, Store::Add, None))
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
        let of_weight =
            |y: &mut Tensor, store| matmul_weight(dev, y, x, self.product_weight(), self.bias.as_deref(), store);
        match &self.lora {
            None => of_weight(y, store),
            Some(lora) => add_up(dev, y, store, of_weight, |y, store| lora.forward(dev, y, x, store, key)),
        }
    }
}

/// `y (+)= of_weight + of_adapter`, two products that each replace or add to what they are given.
///
/// A card rounds what it stores to BF16. Adding to a number that was rounded already takes half a unit in its last place, 2^-9
/// of it, to change anything, and an adapter's product is often smaller than that against its weight's. So the smaller product is
/// stored first, in its own precision, and both are one number before they meet the old value.
pub(super) fn add_up(
    dev: &Device,
    y: &mut Tensor,
    store: Store,
    of_weight: impl FnOnce(&mut Tensor, Store) -> Result<()>,
    of_adapter: impl FnOnce(&mut Tensor, Store) -> Result<()>,
) -> Result<()> {
    match store {
        _ if dev.is_cpu() => {
            of_weight(y, store)?;
            of_adapter(y, Store::Add)
        }
        Store::Replace => {
            of_adapter(y, Store::Replace)?;
            of_weight(y, Store::Add)
        }
        Store::Add => {
            let mut sum = Tensor::zeros_in(dev, y.shape(), y.room(), y.dtype())?;
            of_adapter(&mut sum, Store::Replace)?;
            of_weight(&mut sum, Store::Add)?;
            add(dev, y, &sum)
        }
    }
}
