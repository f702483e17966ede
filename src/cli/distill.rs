//! `ratoon distill`.

use super::Context;
use ratoon::Result;

/// Let the uncut model rewrite the answers of a dataset in its own words.
#[derive(clap::Args)]
pub struct Args {}

/// Runs the verb.
pub fn run(_args: Args, _context: &Context) -> Result<()> {
    Ok(())
}
