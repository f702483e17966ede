//! `ratoon finetune`.

use super::Context;
use ratoon::Result;

/// Fine-tune a model with LoRA or in full.
#[derive(clap::Args)]
pub struct Args {}

/// Runs the verb.
pub fn run(_args: Args, _context: &Context) -> Result<()> {
    Ok(())
}
