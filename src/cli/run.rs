//! `ratoon run`.

use super::{Context, plan};
use comfy_table::{Table, presets::NOTHING};
use ratoon::recipe::{self, Recipe};
use ratoon::report::Report;
use ratoon::{Error, Result};
use std::path::{Path, PathBuf};

/// Run a whole recipe: score, cut, distil, fine-tune, measure, report.
#[derive(clap::Args)]
#[command(
    after_help = "Stages that are done are not done again: the same command goes on where it stopped.\n\nExample:\n  ratoon run recipes/quickstart.toml"
)]
pub struct Args {
    /// Recipe, TOML; its data paths are relative to it.
    recipe: PathBuf,
    /// Directory of everything that is written [default: the recipe's].
    #[arg(short, long)]
    output: Option<PathBuf>,
    /// Seed instead of the recipe's.
    #[arg(long)]
    seed: Option<u64>,
    /// Print the memory that each stage takes at most, and stop.
    #[arg(long)]
    plan: bool,
}

/// Runs the verb.
pub fn run(args: Args, context: &Context) -> Result<()> {
    let mut recipe = Recipe::load(&args.recipe)?;
    if let Some(output) = args.output {
        recipe.output = output;
    }
    recipe.seed = args.seed.unwrap_or(recipe.seed);
    if args.plan {
        plan::print(context, &context.device, &recipe::memory(&context.device, &recipe)?);
        return Ok(());
    }
    let report = recipe::run(&context.device, &recipe)?;
    if context.json {
        let json =
            serde_json::to_string_pretty(&report).map_err(|e| Error::io(Path::new("stdout"), "write")(e.into()))?;
        println!("{json}");
        return Ok(());
    }
    println!("{}", table(&report));
    println!("\nReport: {}", recipe.output.join("report.html").display());
    Ok(())
}

fn table(report: &Report) -> Table {
    let mut table = Table::new();
    table.load_preset(NOTHING);
    table.set_header([
        "model",
        "blocks",
        "FLOPs/token",
        "perplexity",
        "KL to base",
        "agreement",
        "own text",
        "recovery",
    ]);
    let base = &report.models[0];
    for m in &report.models {
        let optional = |value: Option<f64>, digits: usize| value.map_or("-".into(), |v| format!("{v:.digits$}"));
        let percent = |value: Option<f64>| value.map_or("-".into(), |v| format!("{:.1} %", 100.0 * v));
        table.add_row([
            m.name.clone(),
            m.layers.to_string(),
            format!("{:+.2} %", 100.0 * (m.flops_params_2n / base.flops_params_2n - 1.0)),
            format!("{:.2}", m.perplexity),
            optional(m.kl, 4),
            percent(m.top1_agreement),
            optional(m.base_text_nll, 4),
            percent(m.recovery),
        ]);
    }
    table
}
