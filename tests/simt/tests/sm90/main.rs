//! The kernels of compute capability 9.0 (`kernels/*_sm90.cu`) and the emulation of its instructions, against f64.

#[allow(dead_code)] // constants that launch code alone reads
#[path = "../../../../src/device/cuda/abi.rs"]
mod abi;
#[path = "../kernels/attention_setup.rs"]
mod attention_setup;
#[allow(dead_code)] // what the other tests need
#[path = "../kernels/exact_attention.rs"]
mod exact_attention;
#[allow(dead_code)] // as above
#[path = "../kernels/gpu.rs"]
mod gpu;
#[allow(dead_code)] // as above
#[path = "../kernels/numbers.rs"]
mod numbers;
#[path = "../kernels/products.rs"]
mod products;
#[allow(dead_code)] // the launch code's own constant
#[path = "../../../../src/device/cuda/tensor_map.rs"]
mod tensor_map;

mod attention;
mod attention_backward;
mod dependent;
mod matmul;
mod primitives;

use gpu::{Buffer, Gpu};
use std::sync::Once;

/// The device, as one of compute capability 9.0.
fn gpu() -> &'static Gpu {
    static CHOSEN: Once = Once::new();
    // SAFETY: the first thing that a test does; nobody else in this process changes the environment.
    CHOSEN.call_once(|| unsafe { std::env::set_var("RATOON_SIMT_ARCH", "90") });
    Gpu::get()
}

/// A tensor for the copy engine, the innermost axis first.
fn tensor<const AXES: usize>(buffer: &Buffer<u16>, size: [usize; AXES], boxed: [usize; AXES]) -> abi::tensor_map {
    tensor_map::encode(buffer.ptr::<u16>() as u64, size, boxed).expect("a tensor that the copy engine takes")
}
