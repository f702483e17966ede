//! `ratoon init`.

use super::Context;
use ratoon::Result;

/// Write random weights in a known shape, for benchmarks.
#[derive(clap::Args)]
pub struct Args {}

/// Runs the verb.
pub fn run(_args: Args, _context: &Context) -> Result<()> {
    Ok(())
}
