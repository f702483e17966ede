//! Ratoon cuts whole decoder blocks out of a Llama-family model and grows the lost quality back by self-data distillation,
//! measuring every FLOP, byte and second on the way.
//!
//! Dependencies point one way: `cli` → stages (`prune`, `generate`, `distill`, `train`, `eval`) → `model` → `ops` → `device`.
#![deny(missing_docs)]
#![deny(clippy::todo, clippy::unimplemented, clippy::dbg_macro)]

pub mod data;
pub mod device;
pub mod distill;
pub mod doctor;
pub mod error;
pub mod eval;
pub mod generate;
pub mod input;
pub mod interrupt;
pub mod model;
pub mod ops;
pub mod output;
pub mod progress;
pub mod prune;
pub mod recipe;
pub mod report;
pub mod train;

pub use error::{Error, Result};

/// The README's example, compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
