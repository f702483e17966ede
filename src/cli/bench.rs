//! `ratoon bench`.

use super::Context;
use ratoon::Result;

/// Measure prefill, decode and training speed.
#[derive(clap::Args)]
pub struct Args {}

/// Runs the verb.
pub fn run(_args: Args, _context: &Context) -> Result<()> {
    Ok(())
}
