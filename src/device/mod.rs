//! Where numbers live and work is counted: [`Device`], [`Tensor`], [`DType`] and the [`Ledger`]. Knows nothing of Llama.
//!
//! | file | subject |
//! |-|-|
//! | `buffer.rs` | aligned host memory, windows of memory-mapped files |
//! | `tensor.rs` | dense row-major arrays over either |
//! | `dtype.rs` | element types |
//! | `compute.rs` | precision of products |
//! | `ledger.rs` | FLOPs, bytes, calls and seconds of every operation |
//! | `peak.rs` | measured ceilings of the processor, peak memory of the process |

pub mod buffer;
mod compute;
mod dtype;
mod ledger;
pub mod peak;
mod tensor;

pub use compute::Compute;
pub use dtype::DType;
pub use ledger::{Cost, Entry, Ledger, Op, Span};
pub use tensor::Tensor;

use crate::error::Result;
use std::sync::Arc;

/// The processor that runs the operations. Cloning is cheap; clones share one ledger.
#[derive(Clone)]
pub struct Device {
    ledger: Arc<Ledger>,
    compute: Compute,
}

impl Device {
    /// The CPU: all cores that rayon's global pool has.
    pub fn cpu() -> Device {
        Device { ledger: Arc::new(Ledger::default()), compute: Compute::F32 }
    }

    /// The same device, with products computed this way; the ledger stays shared.
    pub fn with_compute(self, compute: Compute) -> Device {
        Device { compute, ..self }
    }

    /// How products are computed; [`Compute::F32`] unless [`Device::with_compute`] said otherwise.
    pub fn compute(&self) -> Compute {
        self.compute
    }

    /// Zeros in the device's memory.
    pub fn zeros(&self, shape: &[usize], dtype: DType) -> Result<Tensor> {
        Ok(Tensor::zeros(shape, dtype))
    }

    /// Element type of activations, their gradients, keys and values.
    pub fn activation(&self) -> DType {
        DType::F32
    }

    /// What this device has done so far.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Books one operation call; the guard books its time when dropped.
    pub fn span(&self, op: Op, cost: Cost) -> Span<'_> {
        self.ledger.span(op, cost)
    }
}
