//! `ratoon bench`.

use super::model_args::ModelArgs;
use super::plan::{self, PlanArgs};
use super::train_step::TrainStepArgs;
use super::{Context, Precision, WeightFormat};
use clap::ValueEnum;
use comfy_table::{Table, presets::ASCII_MARKDOWN};
use ratoon::eval::bench::{BenchOptions, BenchRow, bench, memory};
use ratoon::eval::operations::{OperationOptions, OperationSpeed, operations};
use ratoon::model::Config;
use ratoon::model::safetensors::WeightFiles;
use ratoon::{Error, Result};
use serde::Serialize;
use std::io::Write;

/// Measure prefill, decode and training speed.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  ratoon bench ./model -p 512 -n 128 -b 1,8,32 -r 5 -o md\n  ratoon bench ./model --train --lora-r 8 -r 3\n  ratoon bench ./model --operations -p 2048 -b 64 -n 1024"
)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Lengths of prompts to read; 0 (the default with --train) for none.
    #[arg(short = 'p', long, value_delimiter = ',', default_value = "512", default_value_if("train", "true", "0"))]
    n_prompt: Vec<usize>,
    /// Numbers of tokens to generate; 0 (the default with --train) for none.
    #[arg(short = 'n', long, value_delimiter = ',', default_value = "128", default_value_if("train", "true", "0"))]
    n_gen: Vec<usize>,
    /// Sequences that generate side by side.
    #[arg(short = 'b', long, value_delimiter = ',', default_value = "1")]
    batch_size: Vec<usize>,
    /// Measured runs of each test, after one to warm up.
    #[arg(short = 'r', long, default_value_t = 5)]
    repetitions: usize,
    /// Prefill computes the logits of every position, not of the last alone.
    #[arg(long)]
    all_logits: bool,
    /// Each operation alone, in the model's shapes (config.json suffices): a pass over the first -p tokens, a step of the first
    /// -b sequences with -n tokens in the cache. [defaults there: 512, 1, 128]
    #[arg(long, conflicts_with_all = ["train", "adapter", "all_logits", "weights", "plan"])]
    operations: bool,
    #[command(flatten)]
    train: TrainStepArgs,
    /// Inputs of matrix products and attention: bf16 (sums in f32; the fastest), or f32 throughout.
    #[arg(long, value_enum, default_value_t = Precision::Bf16)]
    compute: Precision,
    /// Weights in memory: as stored, or int8 (8.5 bits each, activations quantised too: faster, less exact).
    #[arg(long, value_enum, default_value_t = WeightFormat::Stored)]
    weights: WeightFormat,
    /// Format of the results.
    #[arg(short = 'o', long, value_enum, default_value = "md")]
    output: Format,
    /// The results on stderr too, in another format.
    #[arg(long, value_enum, value_name = "FORMAT")]
    output_err: Option<Format>,
    #[command(flatten)]
    plan: PlanArgs,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Format {
    /// Markdown table.
    Md,
    /// Comma-separated values, all keys.
    Csv,
    /// One JSON array.
    Json,
    /// One JSON object a line.
    Jsonl,
}

/// Runs the verb.
pub fn run(args: Args, context: &Context) -> Result<()> {
    let format = if context.json { Format::Json } else { args.output };
    let formats = [(Some(format), false), (args.output_err, true)];
    if args.operations {
        return print(&formats, &single_operations(&args, context)?, operation_table);
    }
    let step = args.train.step();
    if step.is_some() && args.model.adapter.is_some() {
        return Err(Error::usage(
            "--adapter",
            "prefill and decode, or --train, which makes an adapter of its own",
            "both",
        ));
    }
    let dir = args.model.resolve()?;
    let device = context.device.clone().with_compute(args.compute.into())?.with_weights(args.weights.into())?;
    let options = BenchOptions {
        adapter: args.model.adapter,
        n_prompt: args.n_prompt,
        n_gen: args.n_gen,
        batches: args.batch_size,
        repetitions: args.repetitions,
        all_logits: args.all_logits,
    };
    let inference = memory(&device, &dir, &options)?;
    if let (true, Some(step)) = (args.plan.asked(), &step) {
        let training = step.memory(&device, &Config::load(&dir)?, WeightFiles::open(&dir)?.total_bytes(), None)?;
        let stages = [("inference", inference.parts().to_vec()), ("training", training.parts().to_vec())];
        plan::print(context, &device, &stages);
        return Ok(());
    }
    if args.plan.only(context, &device, &inference)? {
        return Ok(());
    }
    let rows = bench(&device, &dir, &options, step.as_ref())?;
    print(&formats, &rows, table)
}

fn single_operations(args: &Args, context: &Context) -> Result<Vec<OperationSpeed>> {
    let first = |sizes: &[usize]| sizes.first().copied().unwrap_or(0);
    let options = OperationOptions {
        tokens: first(&args.n_prompt),
        batch: first(&args.batch_size),
        context: first(&args.n_gen),
        repetitions: args.repetitions,
    };
    let device = context.device.clone().with_compute(args.compute.into())?;
    operations(&device, &Config::load(&args.model.resolve()?)?, options)
}

/// Prints the rows in each format, to stderr where asked.
fn print<T: Serialize>(formats: &[(Option<Format>, bool)], rows: &[T], table: fn(&[T]) -> Table) -> Result<()> {
    for &(format, to_stderr) in formats {
        let Some(format) = format else { continue };
        let text = render(rows, format, table)?;
        if to_stderr {
            let written = std::io::stderr().write_all(text.as_bytes());
            written.map_err(Error::io(std::path::Path::new("stderr"), "write"))?;
        } else {
            print!("{text}");
        }
    }
    Ok(())
}

fn render<T: Serialize>(rows: &[T], format: Format, table: fn(&[T]) -> Table) -> Result<String> {
    let json = |e: serde_json::Error| Error::io(std::path::Path::new("stdout"), "write")(e.into());
    match format {
        Format::Md => Ok(format!("{}\n", table(rows))),
        Format::Json => Ok(serde_json::to_string_pretty(rows).map_err(json)? + "\n"),
        Format::Jsonl => {
            rows.iter().map(|row| Ok(serde_json::to_string(row).map_err(json)? + "\n")).collect::<Result<String>>()
        }
        Format::Csv => {
            let mut text = String::new();
            for (i, row) in rows.iter().enumerate() {
                let value = serde_json::to_value(row).map_err(json)?;
                let Some(fields) = value.as_object() else { continue };
                if i == 0 {
                    text += &(fields.keys().cloned().collect::<Vec<_>>().join(",") + "\n");
                }
                let quoted = fields.values().map(|v| match v.as_str() {
                    Some(s) => format!("\"{}\"", s.replace('"', "\"\"")),
                    None => format!("\"{v}\""),
                });
                text += &(quoted.collect::<Vec<_>>().join(",") + "\n");
            }
            Ok(text)
        }
    }
}

fn operation_table(rows: &[OperationSpeed]) -> Table {
    let mut table = Table::new();
    table.load_preset(ASCII_MARKDOWN);
    table.set_header(["operation", "shape", "us", "GFLOP/s", "GB/s", "of floor"]);
    for row in rows {
        table.add_row([
            row.operation.clone(),
            row.shape.clone(),
            format!("{:.1}", row.microseconds),
            format!("{:.1}", row.flops_per_second * 1e-9),
            format!("{:.1}", row.bytes_per_second * 1e-9),
            format!("{:.1} %", 100.0 * row.floor_share),
        ]);
    }
    table
}

fn table(rows: &[BenchRow]) -> Table {
    let mut table = Table::new();
    table.load_preset(ASCII_MARKDOWN);
    table.set_header([
        "model",
        "size",
        "params",
        "compute",
        "threads",
        "test",
        "t/s",
        "MFLOP/token",
        "GFLOP/s",
        "MFU",
        "GB/s",
        "bandwidth",
        "of floor",
    ]);
    for row in rows {
        table.add_row([
            row.model_type.clone(),
            format!("{:.2} MiB", row.model_size as f64 / (1 << 20) as f64),
            format!("{:.2} M", row.model_n_params as f64 * 1e-6),
            row.compute.to_string(),
            row.n_threads.to_string(),
            row.test.clone(),
            format!("{:.2} ± {:.2}", row.avg_ts, row.stddev_ts),
            format!("{:.1}", row.flops_per_token * 1e-6),
            format!("{:.1}", row.flops_per_second * 1e-9),
            format!("{:.1} %", 100.0 * row.mfu),
            format!("{:.1}", row.bytes_per_second * 1e-9),
            format!("{:.0} %", 100.0 * row.bandwidth_utilization),
            format!("{:.0} %", 100.0 * row.floor_share),
        ]);
    }
    table
}
