//! `ratoon flops`.

use super::Context;
use ratoon::Result;

/// Count FLOPs in three conventions and check them against the ledger.
#[derive(clap::Args)]
pub struct Args {}

/// Runs the verb.
pub fn run(_args: Args, _context: &Context) -> Result<()> {
    Ok(())
}
