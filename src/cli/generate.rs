//! `ratoon generate`.

use super::Context;
use super::engine::{EngineArgs, SamplingArgs};
use super::model_args::ModelArgs;
use super::plan::PlanArgs;
use ratoon::Result;
use ratoon::generate::{
    self, EngineOptions, GenerateOptions, Logprobs, OnOverflow, Request, Runtime, Shard, generate_file, stream_of,
};
use ratoon::model::Message;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Generate text for a file of prompts, or for one prompt.
#[derive(clap::Args)]
#[command(
    allow_negative_numbers = true,
    after_help = "Examples:\n  ratoon generate SmolLM2 --input prompts.jsonl -o out.jsonl --max-tokens 128\n  \
                        ratoon generate SmolLM2 --message \"What is a ratoon?\"\n\n\
                        Rows: {\"prompt\"}, {\"messages\"} or OpenAI batch lines. Results come in input order; the same command \
                        goes on where a killed one stopped. The tokens do not depend on batch, chunk or page size."
)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    what: What,
    /// The result file to write, with --input.
    #[arg(short, long, value_name = "JSONL", conflicts_with_all = ["prompt", "message"])]
    output: Option<PathBuf>,
    /// Sampling temperature; 0 is greedy.
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Draw from the likeliest ids up to this share of the probability.
    #[arg(long, default_value_t = 1.0)]
    top_p: f32,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Added to the logits of an id, -100 to 100; may be repeated.
    #[arg(long, value_name = "ID=BIAS", value_parser = logit_bias)]
    logit_bias: Vec<(u32, f32)>,
    /// Samples of each prompt, each with random numbers of its own. (llama.cpp's -n is --max-tokens here.)
    #[arg(long, value_name = "SAMPLES", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=128))]
    n: u16,
    /// Most tokens of a completion.
    #[arg(long, default_value_t = 256)]
    max_tokens: usize,
    /// A text that ends a completion; may be repeated.
    #[arg(long)]
    stop: Vec<String>,
    /// Only the first rows.
    #[arg(long, value_name = "ROWS", conflicts_with_all = ["prompt", "message"])]
    limit: Option<usize>,
    /// Only the rows of one part of so many, divided by row id: 0/4 to 3/4. `ratoon join` puts the results together.
    #[arg(long, value_name = "I/N", default_value_t = Shard::ALL, conflicts_with_all = ["prompt", "message"])]
    shard: Shard,
    /// What to do with a prompt that is longer than the model's context.
    #[arg(long, value_enum, default_value = "error")]
    on_overflow: OnOverflow,
    /// Give the ids and log-probabilities of the generated tokens.
    #[arg(long)]
    logprobs: bool,
    /// Give so many likeliest tokens at each generated one's place.
    #[arg(long, value_name = "K", default_value_t = 0, requires = "logprobs")]
    top_logprobs: usize,
    /// Give the log-probabilities of the prompt's tokens but the first.
    #[arg(long)]
    prompt_logprobs: bool,
    /// Replace the output, or start it again.
    #[arg(long, conflicts_with_all = ["prompt", "message"])]
    overwrite: bool,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    plan: PlanArgs,
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

/// Runs the verb.
pub fn run(args: Args, context: &Context) -> Result<()> {
    let model = args.model.resolve()?;
    let adapter = args.model.adapter;
    let device = args.engine.device(context)?;
    let engine = EngineOptions { on_overflow: args.on_overflow, ..args.engine.options() };
    let (draft, n) = (args.engine.draft()?, usize::from(args.n));
    let plan = generate::memory(&device, &engine, &model, adapter.as_deref(), draft.as_deref())?;
    if args.plan.only(context, &device, &plan)? {
        return Ok(());
    }
    let request = Request {
        sampling: args.sampling.with(args.temperature, args.top_p),
        logit_bias: args.logit_bias,
        stop: args.stop,
        logprobs: Logprobs { output: args.logprobs, top: args.top_logprobs, prompt: args.prompt_logprobs },
        name: "the prompt".into(),
        ..Request::new(0, Vec::new(), args.max_tokens)
    };
    if let (Some(input), Some(output)) = (args.what.input, args.output) {
        let (limit, shard, overwrite) = (args.limit, args.shard, args.overwrite);
        let options =
            GenerateOptions { model, adapter, draft, input, output, request, n, limit, shard, engine, overwrite };
        let report = generate_file(&device, &options)?;
        if context.json {
            println!("{:#}", json!(report));
        } else {
            let ends: Vec<String> = report.finish.iter().map(|(name, n)| format!("{n} {name}")).collect();
            println!("{}: {} rows ({})", options.output.display(), report.rows, ends.join(", "));
            if let Some(acceptance) = report.stats.acceptance() {
                println!("  {:.1} % of the draft's tokens kept", 100.0 * acceptance);
            }
        }
        return Ok(());
    }
    let runtime = Runtime::load_adapted(&device, &model, adapter.as_deref())?.with_draft(&device, draft.as_deref())?;
    let prompt = match (&args.what.message, &args.what.prompt) {
        (Some(message), _) => runtime.chat_prompt(&[Message::new("user", message)], "")?,
        (None, text) => runtime.tokenizer.encode(text.as_deref().unwrap_or_default(), true)?,
    };
    let sample = |sample| Request { id: stream_of("0", sample), prompt: prompt.clone(), ..request.clone() };
    let requests: Vec<Request> = (0..n).map(sample).collect();
    let (completions, stats) = runtime.complete(&device, &requests, &engine)?;
    if context.json {
        let samples = completions.iter().map(|c| {
            json!({"completion": c.text, "ids": c.ids, "finish_reason": c.finish.name(), "logprobs": c.logprobs,
                "top_logprobs": c.top_logprobs, "prompt_logprobs": c.prompt_logprobs})
        });
        let mut samples: Vec<Value> = samples.collect();
        let mut out = if n == 1 { samples.remove(0) } else { json!({"completions": samples}) };
        out["stats"] = json!(stats);
        println!("{out:#}");
    } else {
        let texts: Vec<&str> = completions.iter().map(|c| c.text.as_str()).collect();
        println!("{}", texts.join("\n---\n"));
    }
    Ok(())
}

/// `ID=BIAS`.
fn logit_bias(text: &str) -> std::result::Result<(u32, f32), String> {
    let parts = text.split_once('=').and_then(|(id, bias)| Some((id.parse().ok()?, bias.parse().ok()?)));
    parts.ok_or_else(|| "expected ID=BIAS, for instance 42=-100".into())
}
