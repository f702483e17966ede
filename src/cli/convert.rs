//! `ratoon convert`.

use super::Context;
use ratoon::Result;

/// Convert a GGUF file into a Hugging Face model directory.
#[derive(clap::Args)]
pub struct Args {}

/// Runs the verb.
pub fn run(_args: Args, _context: &Context) -> Result<()> {
    Ok(())
}
