//! `ratoon score`.

use super::Context;
use ratoon::Result;

/// Score every run of blocks by how little it changes the residual stream.
#[derive(clap::Args)]
pub struct Args {}

/// Runs the verb.
pub fn run(_args: Args, _context: &Context) -> Result<()> {
    Ok(())
}
