//! `ratoon run`.

use super::Context;
use ratoon::Result;

/// Run a whole recipe: score, cut, distil, fine-tune, measure, report.
#[derive(clap::Args)]
pub struct Args {}

/// Runs the verb.
pub fn run(_args: Args, _context: &Context) -> Result<()> {
    Ok(())
}
