//! Every kernel on the host against f64, on shapes that hit its edges. Each launch runs in several schedules, which must not
//! show in a single bit. `RATOON_SIMT_ARCH=75` takes the path of cards without bf16 matrix products.

#[allow(dead_code)] // constants that launch code alone reads
#[path = "../../../../src/device/cuda/abi.rs"]
mod abi;
#[allow(dead_code)] // its own tests use all of it
#[path = "../../../../src/ops/philox.rs"]
mod philox;

mod attention_setup;
mod exact_attention;
mod gpu;
mod numbers;
mod products;

mod attention;
mod attention_backward;
mod embedding;
mod gradients;
mod logits;
mod matmul;
mod optimizer;
mod rmsnorm;
mod rope;
mod rows;
mod sample;
mod scale;
mod swiglu;
