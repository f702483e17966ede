//! `ratoon generate`.

use super::Context;
use ratoon::Result;

/// Generate text for a file of prompts.
#[derive(clap::Args)]
pub struct Args {}

/// Runs the verb.
pub fn run(_args: Args, _context: &Context) -> Result<()> {
    Ok(())
}
