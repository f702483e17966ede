//! Every kernel on the host against f64, on shapes that hit its edges. Each launch runs in several schedules, which must not
//! show in a single bit. `RATOON_SIMT_ARCH=75` takes the path of cards without bf16 matrix products.

#[allow(dead_code)] // constants that launch code alone reads
#[path = "../../../../src/device/cuda/abi.rs"]
mod abi;
mod gpu;
mod numbers;

mod embedding;
mod matmul;
mod rmsnorm;
