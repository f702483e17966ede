//! GGUF, the model file of llama.cpp: read, dequantised and rewritten as a Hugging Face model directory.
//!
//! | file | subject |
//! |-|-|
//! | `reader.rs` | the container: header, metadata, tensor directory, all bounds checked before anything is believed |
//! | `cursor.rs` | bytes in order, every read checked against the end of the file |
//! | `metadata.rs` | typed values and how to ask for them |
//! | `dequantise.rs` | block formats to float32 |
//! | `config.rs` | metadata to `config.json` and `generation_config.json` |
//! | `weights.rs` | tensor names, shapes and row order; the weights as safetensors |
//! | `tokenizer.rs` | vocabulary and merges to `tokenizer.json` |
//! | `sentencepiece.rs` | pieces and scores to merges |
//! | `convert.rs` | the whole conversion |
//!
//! The format is specified in `docs/gguf.md` of the ggml repository.

mod config;
mod convert;
mod cursor;
mod dequantise;
mod metadata;
mod reader;
mod sentencepiece;
mod tokenizer;
mod weights;

pub(super) use convert::convert_into;
pub use convert::{CONVERTER_VERSION, Converted, convert};
pub use dequantise::{GgmlType, dequantise};
pub use metadata::{Metadata, Value};
pub use reader::{GgufFile, GgufTensor};
