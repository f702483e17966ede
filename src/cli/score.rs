//! `ratoon score`.

use super::Context;
use super::model_args::ModelArgs;
use super::plan::PlanArgs;
use ratoon::Result;
use ratoon::model::Llama;
use ratoon::output::OutputLock;
use ratoon::prune::{self, Calibration, CalibrationOptions, Metric, ScoreOptions, Tokens};
use std::path::PathBuf;

/// Score every run of blocks by how little is lost without it; the lower, the better the cut.
#[derive(clap::Args)]
#[command(
    after_help = "Writes scores.csv (block_start,block_end,average_distance: blocks counted from 0, block_end excluded), and \
                  beside it scores.svg (heat map) and scores.json (settings and best cuts).\n\n\
                  Examples:\n  ratoon score SmolLM2 --data speech.txt --block-size 2,4,6 -o scores.csv\n  \
                  ratoon prune SmolLM2 --scores scores.csv --block-size 6 -o SmolLM2-cut6"
)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Calibration data: .txt (cut into windows), JSONL or Parquet rows. random, first, last and magnitude need none.
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Numbers of blocks to cut.
    #[arg(long, value_delimiter = ',', default_value = "2,4,6,8,10")]
    block_size: Vec<usize>,
    /// How blocks are compared.
    #[arg(long, value_enum, default_value = "angular")]
    metric: Metric,
    /// Tokens that angular and bi look at: the last of each sequence, or the mean over all.
    #[arg(long, value_enum, default_value = "last")]
    tokens: Tokens,
    /// Most sequences to read.
    #[arg(long, default_value_t = 16)]
    samples: usize,
    /// Tokens of a sequence.
    #[arg(long, default_value_t = 256)]
    sample_tokens: usize,
    /// Leading blocks that are never cut.
    #[arg(long, default_value_t = 0)]
    protect_first: usize,
    /// Trailing blocks that are never cut.
    #[arg(long, default_value_t = 0)]
    protect_last: usize,
    /// Seed of the random metric.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The CSV to write.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    plan: PlanArgs,
}

impl Args {
    fn options(&self) -> ScoreOptions {
        ScoreOptions {
            metric: self.metric,
            tokens: self.tokens,
            block_sizes: self.block_size.clone(),
            protect_first: self.protect_first,
            protect_last: self.protect_last,
            seed: self.seed,
        }
    }
}

/// Runs the verb.
pub fn run(args: Args, context: &Context) -> Result<()> {
    let dir = args.model.resolve()?;
    prune::check_output(&args.output, [dir.as_path()].into_iter().chain(args.data.as_deref()))?;
    let plan =
        prune::memory(&context.device, &dir, args.model.adapter.as_deref(), &args.options(), args.sample_tokens)?;
    if args.plan.only(context, &context.device, &plan)? {
        return Ok(());
    }
    let _lock = OutputLock::acquire(&args.output)?;
    let model = Llama::load_adapted(&dir, args.model.adapter.as_deref())?;
    let sampling = CalibrationOptions { samples: args.samples, sample_tokens: args.sample_tokens };
    let calibration = args.data.as_deref().map(|data| Calibration::read(&dir, data, sampling)).transpose()?;
    let scores = prune::score(&context.device, &model, calibration.as_ref(), &args.options())?;
    prune::write_scores(&scores, &args.output)?;
    if context.json {
        println!("{:#}", serde_json::json!(scores));
        return Ok(());
    }
    if let Some(c) = &scores.calibration {
        let (n, tokens, cut, empty) = (c.samples, c.tokens, c.truncated, c.empty);
        println!("{} over {n} sequences, {tokens} tokens ({cut} truncated, {empty} empty)", scores.metric.title());
    }
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING).set_header(["block size", "best cut", "score"]);
    for best in &scores.best {
        table.add_row([best.block_size.to_string(), prune::describe(&best.blocks), format!("{:.6}", best.score)]);
    }
    println!("{table}");
    Ok(())
}
