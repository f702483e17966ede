//! `ratoon eval`.

use super::model_args::ModelArgs;
use super::plan::PlanArgs;
use super::{Context, Precision, WeightFormat};
use comfy_table::{Table, presets::NOTHING};
use ratoon::eval::tasks::TaskOptions;
use ratoon::eval::{self, EvalOptions, EvalReport, OwnTextOptions, default_window, evaluate};
use ratoon::model::{Config, source};
use ratoon::{Error, Result, output};
use std::path::PathBuf;

/// Measure perplexity, distance from a base model, and tasks.
#[derive(clap::Args)]
#[command(
    allow_negative_numbers = true,
    after_help = "Examples:\n  ratoon eval ./cut --base ./model --perplexity heldout.txt -o results.json\n  \
                  ratoon eval ./cut --tasks arc.jsonl --num-fewshot 5"
)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The model it was cut from: adds KL, top-1 agreement, likelihood of the base's own text, recovery.
    #[arg(long)]
    base: Option<String>,
    /// Text files for perplexity, joined by an empty line.
    #[arg(long, num_args = 1.., value_name = "FILE")]
    perplexity: Vec<PathBuf>,
    /// Tokens in a window of the text; the first of each is not scored [default: 1024, or the model's context if that is less].
    #[arg(long)]
    window: Option<usize>,
    /// Use this many tokens of the text, from its start [default: all].
    #[arg(long)]
    limit_tokens: Option<usize>,
    /// Pieces of the text that the base continues, to measure the model on the base's own text; 0 for none.
    #[arg(long, default_value_t = OwnTextOptions::default().prompts)]
    own_text_prompts: usize,
    /// Tokens that the base writes after each piece.
    #[arg(long, default_value_t = OwnTextOptions::default().max_tokens)]
    own_text_tokens: usize,
    /// Temperature at which the base writes; 0 is greedy.
    #[arg(long, default_value_t = OwnTextOptions::default().temperature)]
    temperature: f32,
    /// Seed of the base's samples.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Task files: data (JSONL, Parquet), with a header NAME.toml beside it or in a published format; or the header.
    #[arg(long, num_args = 1.., value_name = "FILE")]
    tasks: Vec<PathBuf>,
    /// Examples before each question [default: the header's number, else 0].
    #[arg(long)]
    num_fewshot: Option<usize>,
    /// At most this many rows of each task.
    #[arg(long)]
    limit: Option<usize>,
    /// Put each question into a user's turn of the model's chat template.
    #[arg(long)]
    apply_chat_template: bool,
    /// Inputs of matrix products and attention: f32 throughout, or bf16 as the other verbs use [default: f32, bf16 on a card].
    #[arg(long, value_enum)]
    compute: Option<Precision>,
    /// Weights in memory: as stored, or int8 (8.5 bits each, activations quantised too).
    #[arg(long, value_enum, default_value_t = WeightFormat::Stored)]
    weights: WeightFormat,
    /// Write the report as JSON.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    plan: PlanArgs,
}

/// Runs the verb.
pub fn run(args: Args, context: &Context) -> Result<()> {
    if let Some(path) = &args.output {
        output::refuse_other_than_file(path)?;
        output::refuse_inputs(path, args.perplexity.iter().chain(&args.tasks).map(PathBuf::as_path))?;
        output::refuse_foreign_file(path, EvalReport::wrote)?;
    }
    let model = args.model.resolve()?;
    let window = match args.window {
        Some(window) => window,
        None => default_window(Config::load(&model)?.max_position_embeddings),
    };
    let options = EvalOptions {
        model,
        adapter: args.model.adapter,
        base: args.base.as_deref().map(source::resolve).transpose()?,
        perplexity: args.perplexity,
        window,
        limit_tokens: args.limit_tokens,
        own_text: OwnTextOptions {
            prompts: args.own_text_prompts,
            max_tokens: args.own_text_tokens,
            temperature: args.temperature,
            seed: args.seed,
            ..OwnTextOptions::default()
        },
        tasks: args.tasks,
        task_options: TaskOptions {
            num_fewshot: args.num_fewshot,
            limit: args.limit,
            apply_chat_template: args.apply_chat_template,
        },
    };
    let mut device = context.device.clone().with_weights(args.weights.into())?;
    if let Some(compute) = args.compute {
        device = device.with_compute(compute.into())?;
    }
    if args.plan.only(context, &device, &eval::memory(&device, &options)?)? {
        return Ok(());
    }
    let _lock = args.output.as_deref().map(output::OutputLock::acquire).transpose()?;
    let report = evaluate(&device, &options)?;
    let stdout = std::path::Path::new("stdout");
    let json = serde_json::to_string_pretty(&report).map_err(|e| Error::io(stdout, "write")(e.into()))? + "\n";
    if let Some(path) = &args.output {
        output::write_file(path, |out| out.write_all(json.as_bytes()))?;
    }
    if context.json {
        print!("{json}")
    } else {
        println!("{}", table(&report))
    }
    Ok(())
}

fn table(report: &EvalReport) -> Table {
    let mut table = Table::new();
    table.load_preset(NOTHING);
    table.set_header(["measure", "model", "base"]);
    let mut row = |name: String, model: String, base: Option<String>| {
        table.add_row([name, model, base.unwrap_or_default()]);
    };
    if let Some(own) = &report.perplexity {
        let base = report.base_perplexity.as_ref();
        let name = format!("perplexity ({} tokens in windows of {})", own.scored, own.window);
        row(name, format!("{:.4}", own.perplexity), base.map(|b| format!("{:.4}", b.perplexity)));
        if let Some(bits) = own.bits_per_byte {
            let base = base.and_then(|b| b.bits_per_byte);
            row("bits per byte".into(), format!("{bits:.4}"), base.map(|b| format!("{b:.4}")));
        }
    }
    if let Some(divergence) = &report.divergence {
        row("KL(base || model), nats".into(), format!("{:.4}", divergence.kl), None);
        row("top-1 agreement".into(), format!("{:.2} %", 100.0 * divergence.top1_agreement), None);
    }
    if let Some(own) = &report.own_text {
        let name = format!("nll of {} tokens that the base wrote", own.tokens);
        row(name, format!("{:.4}", own.nll), Some(format!("{:.4}", own.base_nll)));
    }
    for task in &report.tasks {
        let result = &task.result;
        for (name, metric) in &result.metrics {
            let mark = if *name == result.metric { " *" } else { "" };
            let name_cell =
                format!("{} {name} ({} items, {}-shot){mark}", result.name, result.items, result.num_fewshot);
            let base = task.base_metrics.as_ref().map(|metrics| metrics[name]);
            let cell = |m: &ratoon::eval::tasks::Metric| format!("{:.2} ± {:.2} %", 100.0 * m.value, 100.0 * m.stderr);
            row(name_cell, cell(metric), base.as_ref().map(cell));
        }
        if result.truncated > 0 {
            row(format!("{}: requests cut to the context", result.name), result.truncated.to_string(), None);
        }
    }
    if let Some(mean) = report.mean_percent {
        row("mean of the tasks (*)".into(), format!("{mean:.2} %"), None);
    }
    if let Some(recovery) = report.recovery_percent {
        row("recovery".into(), format!("{recovery:.2} %"), None);
    }
    table
}
