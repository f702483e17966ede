//! Where numbers live and work is counted: [`Device`], [`Tensor`], [`DType`] and the [`Ledger`]. Knows nothing of Llama.
//!
//! | file | subject |
//! |-|-|
//! | `name.rs` | devices as `--device` names them |
//! | `buffer.rs` | aligned host memory, windows of memory-mapped files |
//! | `tensor.rs` | dense row-major arrays over either, or over a card's memory |
//! | `dtype.rs` | element types |
//! | `compute.rs` | precision of products |
//! | `ledger.rs` | FLOPs, bytes, calls and seconds of every operation |
//! | `peak.rs` | measured ceilings of the processor, peak memory of the process |
//! | `repeat.rs` | steps that are done again and again with other data |
//! | `cuda/` | the CUDA device (feature `cuda`) |

pub mod buffer;
mod compute;
#[cfg(feature = "cuda")]
pub mod cuda;
mod dtype;
mod ledger;
mod name;
pub mod peak;
mod repeat;
mod tensor;

pub use compute::{Compute, Weights};
pub use dtype::DType;
pub use ledger::{Cost, Entry, Ledger, Op, Phase, PhaseWork, Span};
pub use name::DeviceName;
pub use repeat::Repeated;
pub use tensor::{OnHost, Tensor};

use crate::error::{Error, Result};
use std::sync::Arc;

/// What runs the operations. Cloning is cheap; clones share one ledger.
#[derive(Clone)]
pub struct Device {
    ledger: Arc<Ledger>,
    compute: Compute,
    weights: Weights,
    backend: Backend,
}

/// How an operation is run: every room in `ops/` matches on it.
#[derive(Clone)]
pub(crate) enum Backend {
    Cpu,
    #[cfg(feature = "cuda")]
    Cuda(Arc<cuda::Cuda>),
}

impl Device {
    /// The CPU: all cores that rayon's global pool has.
    pub fn cpu() -> Device {
        Device::new(Compute::F32, Backend::Cpu)
    }

    fn new(compute: Compute, backend: Backend) -> Device {
        Device { ledger: Arc::default(), compute, weights: Weights::Stored, backend }
    }

    /// The same device, with products computed this way; the ledger stays shared. [`Error::Usage`] for another than
    /// [`Compute::Bf16`] on a card.
    pub fn with_compute(self, compute: Compute) -> Result<Device> {
        if !self.is_cpu() && compute != Compute::Bf16 {
            return Err(Error::usage("--compute", "bf16 on a card", compute.to_string()));
        }
        Ok(Device { compute, ..self })
    }

    /// The same device, with weights packed this way for inference. [`Error::Usage`] for another than [`Weights::Stored`] on
    /// a card.
    pub fn with_weights(self, weights: Weights) -> Result<Device> {
        if !self.is_cpu() && weights != Weights::Stored {
            return Err(Error::usage("--weights", "stored on a card", "int8"));
        }
        Ok(Device { weights, ..self })
    }

    /// How weights are packed; [`Weights::Stored`] unless [`Device::with_weights`] said otherwise.
    pub fn weights(&self) -> Weights {
        self.weights
    }

    /// How products are computed: on the CPU [`Compute::F32`] unless [`Device::with_compute`] said otherwise.
    pub fn compute(&self) -> Compute {
        self.compute
    }

    /// The named device. [`Error::Device`] says what is wrong with a driver or card, or that this build knows only the CPU.
    pub fn open(name: DeviceName) -> Result<Device> {
        match name {
            DeviceName::Cpu => Ok(Device::cpu()),
            #[cfg(feature = "cuda")]
            DeviceName::Cuda(ordinal) => {
                let backend = Backend::Cuda(cuda::Cuda::open(ordinal)?);
                Ok(Device::new(Compute::Bf16, backend))
            }
            #[cfg(not(feature = "cuda"))]
            DeviceName::Cuda(_) => Err(Error::Device {
                device: name.to_string(),
                problem: "this build has no CUDA kernels".into(),
                instead: "build with --features cuda, or use --device cpu".into(),
            }),
        }
    }

    /// How operations run.
    #[cfg(feature = "cuda")]
    pub(crate) fn backend(&self) -> &Backend {
        &self.backend
    }

    /// What computes: the processor's or the card's name.
    pub fn description(&self) -> String {
        match &self.backend {
            Backend::Cpu => peak::cpu_name(),
            #[cfg(feature = "cuda")]
            Backend::Cuda(cuda) => cuda.card.name.clone(),
        }
    }

    /// Zeros in the device's memory. [`Error::Budget`] when a card has no room.
    pub fn zeros(&self, shape: &[usize], dtype: DType) -> Result<Tensor> {
        match &self.backend {
            Backend::Cpu => Ok(Tensor::zeros(shape, dtype)),
            #[cfg(feature = "cuda")]
            Backend::Cuda(cuda) => Tensor::zeros_on(cuda, shape, dtype),
        }
    }

    /// A copy of a host tensor in the device's memory, as `dtype`. From floats to floats, rounded to the nearest.
    pub fn upload(&self, tensor: &Tensor, dtype: DType) -> Result<Tensor> {
        let mut copy = self.zeros(tensor.shape(), dtype)?;
        copy.convert_from(tensor)?;
        Ok(copy)
    }

    /// Whether this is the CPU, which reads host tensors and mapped files as they are.
    pub fn is_cpu(&self) -> bool {
        matches!(self.backend, Backend::Cpu)
    }

    /// Element type of activations and their gradients: F32 on the CPU, BF16 on a card.
    pub fn activation(&self) -> DType {
        match &self.backend {
            Backend::Cpu => DType::F32,
            #[cfg(feature = "cuda")]
            Backend::Cuda(_) => DType::BF16,
        }
    }

    /// Bytes that may be used: what a card had free when it was opened; `None` where the operating system decides.
    pub fn memory_budget(&self) -> Option<u64> {
        match &self.backend {
            Backend::Cpu => None,
            #[cfg(feature = "cuda")]
            Backend::Cuda(cuda) => Some(cuda.memory_budget()),
        }
    }

    /// Bytes of a card's memory; `None` on the CPU.
    pub fn memory_size(&self) -> Option<u64> {
        match &self.backend {
            Backend::Cpu => None,
            #[cfg(feature = "cuda")]
            Backend::Cuda(cuda) => Some(cuda.card.total_memory),
        }
    }

    /// Bytes that are free now: of the card's budget on a card, of the machine's memory on the CPU; `None` where the system does
    /// not say.
    pub fn free_memory(&self) -> Option<u64> {
        match &self.backend {
            Backend::Cpu => peak::available_memory(),
            #[cfg(feature = "cuda")]
            Backend::Cuda(cuda) => Some(cuda.free_memory()),
        }
    }

    /// Most bytes in use at a time so far: of the process on the CPU, of the card's memory on a card.
    pub fn peak_memory(&self) -> Option<u64> {
        match &self.backend {
            Backend::Cpu => peak::peak_memory(),
            #[cfg(feature = "cuda")]
            Backend::Cuda(cuda) => Some(cuda.peak_memory()),
        }
    }

    /// Measures the time of every operation from now on. The CPU always does; a card needs two events for each.
    pub fn profile(&self) {
        match &self.backend {
            Backend::Cpu => {}
            #[cfg(feature = "cuda")]
            Backend::Cuda(cuda) => cuda.profile(),
        }
    }

    /// Waits until all operations are done and their times are in the ledger. Errors of kernels show up here.
    pub fn synchronize(&self) -> Result<()> {
        match &self.backend {
            Backend::Cpu => Ok(()),
            #[cfg(feature = "cuda")]
            Backend::Cuda(cuda) => cuda.book_times(&self.ledger),
        }
    }

    /// Element type of cached keys and values: what attention rounds them to anyway.
    pub fn kv_cache(&self) -> DType {
        match self.compute {
            Compute::F32 => self.activation(),
            Compute::Bf16 => DType::BF16,
        }
    }

    /// What this device has done so far.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Books one operation call; the guard ends its time when dropped.
    pub fn span(&self, op: Op, cost: Cost) -> Span<'_> {
        match &self.backend {
            Backend::Cpu => self.ledger.span(op, cost),
            #[cfg(feature = "cuda")]
            Backend::Cuda(cuda) => self.ledger.span_elsewhere(op, cost, cuda.interval(op)),
        }
    }
}
