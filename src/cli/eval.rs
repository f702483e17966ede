//! `ratoon eval`.

use super::Context;
use ratoon::Result;

/// Measure perplexity, distance from a base model, and tasks.
#[derive(clap::Args)]
pub struct Args {}

/// Runs the verb.
pub fn run(_args: Args, _context: &Context) -> Result<()> {
    Ok(())
}
