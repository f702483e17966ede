//! `ratoon distill`.

use super::Context;
use super::engine::{EngineArgs, SamplingArgs};
use super::model_args::ModelArgs;
use super::plan::PlanArgs;
use ratoon::Result;
use ratoon::distill::{DistillOptions, distill};
use ratoon::generate::{self, Shard};
use std::path::PathBuf;

/// Let the uncut model rewrite the answers of a dataset; keep a rewrite only when it is right.
#[derive(clap::Args)]
#[command(
    allow_negative_numbers = true,
    after_help = "Example:\n  ratoon distill SmolLM2 --data train.jsonl --template math -o out.jsonl\n\n\
                        The same command goes on where a killed one stopped. out.jsonl.manifest.json counts why rewrites \
                        were kept or refused. --draft seldom pays here: many rows run side by side."
)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Rows with prompts and answers, JSONL or Parquet.
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// math, general, or a TOML file with the texts user, system and prefill.
    #[arg(long, value_name = "NAME|FILE")]
    template: String,
    /// The result to write, JSONL.
    #[arg(short, long, value_name = "JSONL")]
    output: PathBuf,
    /// Sampling temperature; 0 is greedy.
    #[arg(long, default_value_t = 0.9)]
    temperature: f32,
    /// Draw from the likeliest ids up to this share of the probability.
    #[arg(long, default_value_t = 0.95)]
    top_p: f32,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Most tokens of a rewrite; one that reaches it is refused.
    #[arg(long, default_value_t = 512)]
    max_tokens: usize,
    /// Only the first rows.
    #[arg(long, value_name = "ROWS")]
    limit: Option<usize>,
    /// Only the rows of one part of so many, divided by row id: 0/4 to 3/4. `ratoon join` puts the results together.
    #[arg(long, value_name = "I/N", default_value_t = Shard::ALL)]
    shard: Shard,
    /// Field of the rows that holds their id, instead of id or custom_id.
    #[arg(long, value_name = "KEY")]
    id_field: Option<String>,
    /// Replace the output, or start it again.
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    plan: PlanArgs,
}

/// Runs the verb.
pub fn run(args: Args, context: &Context) -> Result<()> {
    let device = args.engine.device(context)?;
    let options = DistillOptions {
        model: args.model.resolve()?,
        adapter: args.model.adapter,
        draft: args.engine.draft()?,
        data: args.data,
        template: args.template,
        output: args.output,
        sampling: args.sampling.with(args.temperature, args.top_p),
        max_tokens: args.max_tokens,
        limit: args.limit,
        shard: args.shard,
        id_field: args.id_field,
        engine: args.engine.options(),
        overwrite: args.overwrite,
    };
    let (adapter, draft) = (options.adapter.as_deref(), options.draft.as_deref());
    let plan = generate::memory(&device, &options.engine, &options.model, adapter, draft)?;
    if args.plan.only(context, &device, &plan)? {
        return Ok(());
    }
    let report = distill(&device, &options)?;
    if context.json {
        println!("{:#}", serde_json::json!(report));
        return Ok(());
    }
    println!("{}: {} rows, {} rewritten", options.output.display(), report.rows, report.distilled);
    if let Some(acceptance) = report.draft_acceptance {
        println!("  {:.1} % of the draft's tokens kept", 100.0 * acceptance);
    }
    for (reason, count) in report.reasons.iter().filter(|(_, count)| **count > 0) {
        let fate = if reason.kept() { "kept" } else { "original kept" };
        println!("  {count:>7}  {} ({fate})", serde_json::json!(reason).as_str().unwrap_or_default());
    }
    Ok(())
}
