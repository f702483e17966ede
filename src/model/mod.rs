//! The Llama runtime: what a model directory holds and how a forward and a backward pass go through it.
//!
//! | file | subject |
//! |-|-|
//! | `config/` | `config.json`: every option of LlamaForCausalLM, or an error that names what is not supported |
//! | `safetensors/` | weight files: memory-mapped, checked, single or sharded; streamed writing |
//! | `mapped.rs` | mapped files, and what happens when one is cut short |
//! | `json.rs` | JSON files read so that mistakes are named |
//! | `pickle.rs` | weights in Python's pickle: refused, with the way to convert them |
//! | `weight_header.rs` | a weight file's header as raw bytes, for copying |
//! | `linear.rs` | one projection: weight, bias, adapter |
//! | `llama.rs` | weights by role, and the forward pass |
//! | `llama_backward.rs` | the backward pass, its mirror, and what it keeps of the forward pass (`activations.rs`) |
//! | `gradients.rs` | gradients, and the list of parameters that training changes |
//! | `lora.rs`, `adapter.rs` | low-rank adapters, and their PEFT files |
//! | `tokenizer.rs`, `chat.rs`, `generation_config.rs` | text to ids, messages to text, where an output ends |
//! | `source/` | directories, GGUF files, packages and hub names as one kind of argument |
//! | `gguf/` | GGUF files: read, dequantised, written as a model directory |
//! | `inspect.rs` | what a directory holds, for people |
//! | `presets/` | random weights in known shapes |
//! | `placement.rs` | weights in the memory of the device that computes |
//! | `batch.rs` | packed sequences |
//! | `kv_cache.rs`, `paged_step.rs` | keys and values in pages, and passes against them |

pub mod activations;
pub mod adapter;
pub mod batch;
pub mod chat;
pub mod config;
pub mod generation_config;
pub mod gguf;
pub mod gradients;
mod inference_plan;
pub mod inspect;
pub(crate) mod json;
pub mod kv_cache;
pub mod linear;
pub mod llama;
pub mod llama_backward;
pub mod lora;
pub mod mapped;
mod paged_step;
mod pickle;
mod placement;
pub mod presets;
pub mod safetensors;
pub mod source;
pub mod tokenizer;
pub mod weight_header;

pub use activations::{Activations, Recompute};
pub use adapter::Adapter;
pub use batch::Batch;
pub use chat::{ChatTemplate, Message};
pub use config::Config;
pub use generation_config::GenerationConfig;
pub use gradients::{Gradients, Trainable};
pub use inference_plan::InferencePlan;
pub use kv_cache::KvCache;
pub use llama::{Llama, Workspace};
pub use lora::{Lora, Projection};
pub use paged_step::PagedStep;
pub use tokenizer::Tokenizer;
