//! `ratoon inspect`.

use super::Context;
use ratoon::Result;

/// Show a model's shapes, parameters, FLOPs and KV bytes per token, and check every tensor.
#[derive(clap::Args)]
pub struct Args {}

/// Runs the verb.
pub fn run(_args: Args, _context: &Context) -> Result<()> {
    Ok(())
}
