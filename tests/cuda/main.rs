//! The CUDA device against the CPU: whole passes, generation, metrics. Runs on any machine, over the host's stand-in for a driver
//! (`tests/simt`):
//!
//! ```text
//! cargo build --release -p ratoon-simt
//! RATOON_CUDA_ARCHS= cargo test --release --features cuda --test cuda
//! ```
//!
//! With `RATOON_TEST_DRIVER=nvidia`, and a build with kernels, on a card.
#![cfg(feature = "cuda")]

mod dependent;
mod forward;
mod generate;
mod gpu_script;
mod graphs;
mod memory;
mod program;
mod rounding;
mod smollm;
#[path = "../support/mod.rs"]
mod support;
mod train;

use ratoon::device::{DType, Device, DeviceName, Tensor};
use ratoon::model::{Llama, Trainable};
use std::ffi::{CStr, c_char};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Seven shapes of Llama, see `tests/data/README.md`.
const TINY: [&str; 7] = ["biases", "gqa", "linear_rope", "llama3_rope", "mha_tied", "mqa_head_dim", "odd_sizes"];

fn tiny(name: &str) -> PathBuf {
    support::root().join("tests/data/tiny").join(name)
}

/// Where cargo puts the stand-in.
fn simt_library() -> PathBuf {
    let library = std::env::current_exe().unwrap().with_file_name("libratoon_simt.so");
    assert!(library.exists(), "{}: not built: cargo build --release -p ratoon-simt", library.display());
    library
}

/// The stand-in, unless the tests run on a card. Once loaded it answers to the driver's name.
fn simt() -> Option<&'static libloading::Library> {
    static LIBRARY: OnceLock<Option<libloading::Library>> = OnceLock::new();
    let load = || {
        // SAFETY: the library runs nothing when it is loaded.
        std::env::var_os("RATOON_TEST_DRIVER")
            .is_none()
            .then(|| unsafe { libloading::Library::new(simt_library()) }.unwrap())
    };
    LIBRARY.get_or_init(load).as_ref()
}

/// The card. The stand-in is loaded before the driver is asked for.
fn card() -> Device {
    simt();
    Device::open(DeviceName::Cuda(0)).unwrap()
}

/// How often this thread called a function of the driver; `None` on a card.
fn calls(name: &CStr) -> Option<u64> {
    type Calls = unsafe extern "C" fn(*const c_char) -> u64;
    // SAFETY: the function of `tests/simt/src/calls.rs`, with a C string.
    simt().map(|library| unsafe { library.get::<Calls>(b"simt_calls").unwrap()(name.as_ptr()) })
}

/// Most bytes of device memory that this thread had from the driver at a time since it last asked; `None` on a card.
fn most_memory() -> Option<u64> {
    type Most = unsafe extern "C" fn() -> i64;
    // SAFETY: the function of `tests/simt/src/driver_memory.rs`.
    simt().map(|library| unsafe { library.get::<Most>(b"simt_most_memory").unwrap()() } as u64)
}

/// The CPU's model with the weights that a card holds: rounded to BF16.
fn rounded(dir: &Path) -> Llama {
    let mut model = Llama::load(dir).unwrap().into_f32();
    for (_, tensor) in model.parameters_mut(Trainable::All).unwrap() {
        let mut half = Tensor::zeros(tensor.shape(), DType::BF16);
        half.convert_from(tensor).unwrap();
        tensor.convert_from(&half).unwrap();
    }
    model
}

/// Relative standard deviation of a hidden state on a card, and of what is linear in it.
///
/// A rounding to BF16 changes a number by at most `2^-9` of itself, by `2^-9 / sqrt(3)` in the mean square. A block rounds 13
/// times on the way to its output (two norms, q, k, v, two rotations, attention, gate, up, their product, two sums with the
/// residual stream), the embedding not at all, the last norm once. Norms keep the relative size of an error, and independent errors
/// add up in squares.
fn relative_deviation(blocks: usize) -> f64 {
    2f64.powi(-9) / 3f64.sqrt() * ((13 * blocks + 1) as f64).sqrt()
}
