//! `ratoon merge`.

use super::Context;
use ratoon::Result;

/// Merge a LoRA adapter into its model, or two models by SLERP.
#[derive(clap::Args)]
pub struct Args {}

/// Runs the verb.
pub fn run(_args: Args, _context: &Context) -> Result<()> {
    Ok(())
}
