//! Ratoon cuts whole decoder blocks out of a Llama-family model and grows the lost quality back by self-data distillation,
//! measuring every FLOP, byte and second on the way.
//!
//! Dependencies point one way: `cli` → stages (`prune`, `generate`, `distill`, `train`, `eval`) → `model` → `ops` → `device`.
#![deny(missing_docs)]
#![deny(clippy::todo, clippy::unimplemented, clippy::dbg_macro)]

pub mod device;
pub mod error;
pub mod model;
pub mod ops;

pub use error::{Error, Result};
