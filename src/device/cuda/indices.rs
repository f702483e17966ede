//! The card's copy of ids, positions and offsets that lie on the host.

use super::{Buffer, Cuda};
use crate::device::{DType, Tensor};
use crate::error::Result;
use std::sync::{Arc, Mutex, PoisonError};

/// A copy of a U32 tensor, written anew when the tensor has changed. It stays at one address, where graphs find it.
#[derive(Default)]
pub(crate) struct Indices(Mutex<Option<Box<OnCard>>>);

struct OnCard {
    buffer: Buffer,
    /// Whether it is what the tensor is now.
    current: bool,
}

impl Indices {
    /// Where kernels read what `tensor`, which has room for `bytes` bytes, holds now.
    pub fn address(&self, cuda: &Arc<Cuda>, tensor: &Tensor, bytes: usize) -> Result<u64> {
        let mut copy = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let copy = match &mut *copy {
            Some(copy) => copy,
            none => none.insert(Box::new(OnCard { buffer: cuda.allocate(bytes)?, current: false })),
        };
        if !copy.current {
            cuda.write(&copy.buffer, tensor, DType::U32)?;
            copy.current = true;
        }
        Ok(copy.buffer.address())
    }

    /// The tensor changes.
    pub fn outdate(&mut self) {
        if let Some(copy) = self.0.get_mut().unwrap_or_else(PoisonError::into_inner) {
            copy.current = false;
        }
    }
}
