//! The CUDA device, through cudarc; nothing outside this folder names that crate.
//!
//! | file | subject |
//! |-|-|
//! | `open.rs` | which cards there are, and what can be wrong with them |
//! | `memory.rs` | device memory: within a budget, given back to be used again |
//! | `upload.rs` | host to device through pinned buffers, device to host |
//! | `indices.rs` | the card's copy of ids, positions and offsets |
//! | `launch.rs` | kernels by name, their parameters by value |
//! | `graph.rs` | launches that steps repeat, as one graph |
//! | `tensor_map.rs` | tensors as the copy engine of compute capability 9.0 sees them |
//! | `timing.rs` | seconds of operations, by events |
//! | `abi.rs` | parameter structs, generated from `kernels/abi.h` |
//!
//! All work goes into one stream, in the order of the calls. So memory that the host gives back may be handed out again at
//! once: what was launched before still runs before what is launched after.

// All of the header is bound, also what only the kernels use.
#[allow(dead_code)]
pub(crate) mod abi;
mod graph;
mod indices;
mod launch;
mod memory;
mod open;
mod tensor_map;
mod timing;
mod upload;

pub(crate) use graph::Graphs;
pub(crate) use indices::Indices;
pub(crate) use launch::{Element, Grid};
pub(crate) use memory::Buffer;
pub use open::{Card, cards};
pub(crate) use tensor_map::ALIGNMENT as TENSOR_ALIGNMENT;
pub(crate) use timing::Interval;

use crate::error::{Error, Result};
use cudarc::driver::{CudaContext, CudaFunction, CudaModule, CudaStream, DriverError};
use memory::Memory;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use timing::Timing;
use upload::Ring;

/// One card with its kernels, its stream and its memory.
pub(crate) struct Cuda {
    /// What it is.
    pub card: Card,
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    modules: Vec<Arc<CudaModule>>,
    functions: Mutex<HashMap<&'static str, CudaFunction>>,
    /// Clusters of a kernel that run at the same time.
    clusters: Mutex<HashMap<&'static str, usize>>,
    memory: Memory,
    ring: Mutex<Option<Ring>>,
    timing: Timing,
}

impl Cuda {
    /// Makes the card's context current on the calling thread, as every driver call wants it.
    fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(|e| self.error("use the card", e))
    }

    /// Waits until everything that was launched is done. Errors of kernels show up here.
    pub fn synchronize(&self) -> Result<()> {
        self.bind()?;
        self.stream.synchronize().map_err(|e| self.error("run kernels", e))
    }

    /// A dense tensor for the copy engine, see [`tensor_map::encode`].
    pub fn tensor_map<const AXES: usize>(
        &self,
        tensor: *const abi::bf16,
        size: [usize; AXES],
        boxed: [usize; AXES],
    ) -> Result<abi::tensor_map> {
        let map = tensor_map::encode(tensor as u64, size, boxed);
        map.map_err(|e| self.error("describe a tensor to the copy engine", e))
    }

    /// A refusal of the driver.
    fn error(&self, action: &str, error: DriverError) -> Error {
        refused(&self.card.device_name(), action, error)
    }
}

fn refused(device: &str, action: &str, error: DriverError) -> Error {
    Error::Device {
        device: device.to_string(),
        problem: format!("cannot {action}: {error:?}"),
        instead: "see the kernel log (dmesg) for the driver's own words, or use --device cpu".into(),
    }
}
