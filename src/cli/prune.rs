//! `ratoon prune`.

use super::Context;
use ratoon::Result;

/// Cut blocks out of a model.
#[derive(clap::Args)]
pub struct Args {}

/// Runs the verb.
pub fn run(_args: Args, _context: &Context) -> Result<()> {
    Ok(())
}
