//! The Llama runtime: what a model directory holds and how a forward and a backward pass go through it.
//!
//! | file | subject |
//! |-|-|
//! | `config/` | `config.json`: every option of LlamaForCausalLM, or an error that names what is not supported |
//! | `safetensors/` | weight files: memory-mapped, checked, single or sharded; streamed writing |
//! | `mapped.rs` | mapped files, and what happens when one is cut short |
//! | `json.rs` | JSON files read so that mistakes are named |
//! | `llama.rs` | weights by role, and the forward pass |
//! | `tokenizer.rs`, `chat.rs`, `generation_config.rs` | text to ids, messages to text, where an output ends |
//! | `source.rs` | directories, GGUF files, packages and hub names as one kind of argument |
//! | `batch.rs` | packed sequences |
//! | `kv_cache.rs` | keys and values in pages, for generation |

pub mod batch;
pub mod chat;
pub mod config;
pub mod generation_config;
pub(crate) mod json;
pub mod kv_cache;
pub mod llama;
pub mod mapped;
pub mod safetensors;
pub mod source;
pub mod tokenizer;

pub use batch::Batch;
pub use chat::{ChatTemplate, Message};
pub use config::Config;
pub use generation_config::GenerationConfig;
pub use kv_cache::KvCache;
pub use llama::{Llama, Workspace};
pub use tokenizer::Tokenizer;
