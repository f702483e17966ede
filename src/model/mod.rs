//! The Llama runtime: what a model directory holds and how a forward and a backward pass go through it.
//!
//! | file | subject |
//! |-|-|
//! | `config.rs` | `config.json`: every option of LlamaForCausalLM, or an error that names what is not supported |
//! | `safetensors.rs` | weight files: memory-mapped, checked, single or sharded |
//! | `llama.rs` | weights by role, and the forward pass |
//! | `batch.rs` | packed sequences |
//! | `kv_cache.rs` | keys and values in pages, for generation |

pub mod batch;
pub mod config;
pub mod kv_cache;
pub mod llama;
pub mod safetensors;

pub use batch::Batch;
pub use config::Config;
pub use kv_cache::KvCache;
pub use llama::{Llama, Workspace};
