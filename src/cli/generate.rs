//! `ratoon generate`.

use super::model_args::ModelArgs;
use super::{Context, Precision, WeightFormat};
use ratoon::Result;
use ratoon::device::Device;
use ratoon::generate::{
    EngineOptions, GenerateOptions, OnOverflow, Order, Request, Runtime, Sampling, generate_file, stream_of,
};
use ratoon::model::Message;
use std::path::PathBuf;

/// Generate text for a file of prompts, or for one prompt.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  ratoon generate SmolLM2 --input prompts.jsonl -o out.jsonl --max-tokens 128\n  \
                        ratoon generate SmolLM2 --message \"What is a ratoon?\"\n\n\
                        Rows: {\"prompt\"}, {\"messages\"} or OpenAI batch lines. Results come in input order; the same command \
                        goes on where a killed one stopped. The tokens do not depend on batch, chunk or page size.")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    what: What,
    /// The result file to write, with --input.
    #[arg(short, long, value_name = "JSONL", requires = "input")]
    output: Option<PathBuf>,
    /// Sampling temperature; 0 is greedy.
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Draw from the likeliest ids up to this share of the probability.
    #[arg(long, default_value_t = 1.0)]
    top_p: f32,
    /// Draw from this many likeliest ids; 0: from all.
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Key of the random numbers.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Most tokens of a completion.
    #[arg(long, default_value_t = 256)]
    max_tokens: usize,
    /// A text that ends a completion; may be repeated.
    #[arg(long)]
    stop: Vec<String>,
    /// Only the first rows.
    #[arg(long, value_name = "ROWS")]
    limit: Option<usize>,
    /// What to do with a prompt that is longer than the model's context.
    #[arg(long, value_enum, default_value = "error")]
    on_overflow: OnOverflow,
    /// Give the ids and log-probabilities of the generated tokens.
    #[arg(long)]
    logprobs: bool,
    /// Replace the output, or start it again.
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    engine: EngineArgs,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct What {
    /// Prompts, JSONL or Parquet.
    #[arg(long, value_name = "FILE", requires = "output")]
    input: Option<PathBuf>,
    /// One prompt, as plain text.
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// One user message, put through the chat template.
    #[arg(long, value_name = "TEXT")]
    message: Option<String>,
}

/// Limits of the engine, for every verb that generates.
#[derive(clap::Args)]
pub(super) struct EngineArgs {
    /// Inputs of matrix products and attention: bf16 (sums in f32; the fastest), or f32 throughout.
    #[arg(long, value_enum, default_value_t = Precision::Bf16)]
    compute: Precision,
    /// Weights in memory: as stored, or int8 (8.5 bits each, activations quantised too: faster, less exact).
    #[arg(long, value_enum, default_value_t = WeightFormat::Stored)]
    weights: WeightFormat,
    /// Most sequences in one step.
    #[arg(long, value_name = "N", default_value_t = 32)]
    max_batch_size: usize,
    /// Most prompt tokens in one step.
    #[arg(long, value_name = "TOKENS", default_value_t = 512)]
    chunk_tokens: usize,
    /// Tokens in one page of the cache.
    #[arg(long, value_name = "TOKENS", default_value_t = 16)]
    page_size: usize,
    /// Memory for keys and values in MiB [default: what --max-batch-size can use, at most 2048].
    #[arg(long, value_name = "MIB")]
    kv_memory: Option<u64>,
    /// Start the longest requests first: fewer half-empty steps, but results wait for those before them.
    #[arg(long)]
    longest_first: bool,
}

impl EngineArgs {
    /// The device with this precision.
    pub(super) fn device(&self, context: &Context) -> Device {
        context.device.clone().with_compute(self.compute.into()).with_weights(self.weights.into())
    }

    /// As the library takes them.
    pub(super) fn options(&self) -> EngineOptions {
        EngineOptions {
            max_batch_size: self.max_batch_size,
            chunk_tokens: self.chunk_tokens,
            page_size: self.page_size,
            kv_memory: self.kv_memory.map(|mib| mib.saturating_mul(1 << 20)),
            order: if self.longest_first { Order::LongestFirst } else { Order::Input },
            ..EngineOptions::default()
        }
    }
}

/// Runs the verb.
pub fn run(args: Args, context: &Context) -> Result<()> {
    let model = args.model.resolve()?;
    let adapter = args.model.adapter;
    let device = args.engine.device(context);
    let Args { temperature, top_k, top_p, seed, max_tokens, stop, .. } = args;
    let sampling = Sampling { temperature, top_k, top_p, seed };
    let engine = EngineOptions { on_overflow: args.on_overflow, logprobs: args.logprobs, ..args.engine.options() };
    if let (Some(input), Some(output)) = (args.what.input, args.output) {
        let (limit, overwrite) = (args.limit, args.overwrite);
        let options =
            GenerateOptions { model, adapter, input, output, sampling, max_tokens, stop, limit, engine, overwrite };
        let report = generate_file(&device, &options)?;
        if context.json {
            println!("{:#}", serde_json::json!(report));
        } else {
            let ends: Vec<String> = report.finish.iter().map(|(name, n)| format!("{n} {name}")).collect();
            println!("{}: {} rows ({})", options.output.display(), report.rows, ends.join(", "));
        }
        return Ok(());
    }
    let runtime = Runtime::load_adapted(&device, &model, adapter.as_deref())?;
    let prompt = match (&args.what.message, &args.what.prompt) {
        (Some(message), _) => runtime.chat_prompt(&[Message::new("user", message)], "")?,
        (None, text) => runtime.tokenizer.encode(text.as_deref().unwrap_or_default(), true)?,
    };
    let request = Request { id: stream_of("0"), prompt, max_tokens, sampling, stop };
    let (completion, stats) = runtime.complete(&device, &request, &engine)?;
    if context.json {
        let finish = completion.finish.name();
        println!(
            "{:#}",
            serde_json::json!({"completion": completion.text, "ids": completion.ids, "finish_reason": finish,
                "logprobs": completion.logprobs, "stats": stats})
        );
    } else {
        println!("{}", completion.text);
    }
    Ok(())
}
