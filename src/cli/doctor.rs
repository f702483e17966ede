//! `ratoon doctor`.

use super::Context;
use ratoon::Result;

/// Show what this machine and this build can do.
#[derive(clap::Args)]
pub struct Args {}

/// Runs the verb.
pub fn run(_args: Args, _context: &Context) -> Result<()> {
    Ok(())
}
