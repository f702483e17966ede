//! `ratoon init`.

use super::Context;
use ratoon::Result;
use ratoon::device::DType;
use ratoon::model::presets::{InitOptions, Preset};
use ratoon::model::safetensors::parse_size;
use std::path::PathBuf;

/// Write random weights in a known shape, for benchmarks.
///
/// The tokenizer written beside them has one token per byte.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  ratoon init --preset llama-3.2-1b -o random-1b --max-shard-size 1GB")]
pub struct Args {
    /// llama-3.1-8b, llama-3.2-1b, smollm2-135m or tiny.
    #[arg(long)]
    preset: String,
    /// Directory to write.
    #[arg(long, short)]
    output: PathBuf,
    /// The same seed gives the same bytes.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Element type.
    #[arg(long, value_enum, default_value_t = Dtype::Bf16)]
    dtype: Dtype,
    /// Number of blocks [default: the preset's].
    #[arg(long)]
    layers: Option<usize>,
    /// Largest weight file, such as 5GB.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    max_shard_size: Option<u64>,
    /// Replace an existing directory.
    #[arg(long)]
    overwrite: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Dtype {
    F32,
    F16,
    Bf16,
}

/// Runs the verb.
pub fn run(args: Args, context: &Context) -> Result<()> {
    let Args { seed, layers, max_shard_size, overwrite, .. } = args;
    let dtype = match args.dtype {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::Bf16 => DType::BF16,
    };
    let options = InitOptions { seed, dtype, layers, max_shard_size, overwrite };
    let config = Preset::named(&args.preset)?.init(&args.output, &options)?;
    let (parameters, layers) = (config.parameters(), config.num_hidden_layers);
    if context.json {
        println!(
            "{}",
            serde_json::json!({ "path": args.output, "parameters": parameters, "num_hidden_layers": layers })
        );
    } else {
        println!("{}: {layers} blocks, {parameters} parameters, {dtype}", args.output.display());
    }
    Ok(())
}
