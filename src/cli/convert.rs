//! `ratoon convert`.

use super::Context;
use clap::ValueEnum;
use ratoon::Result;
use ratoon::device::DType;
use ratoon::model::gguf;
use std::path::PathBuf;

/// Convert a GGUF file into a Hugging Face model directory.
///
/// Reads F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K and Q6_K; writes config.json, model.safetensors, tokenizer.json with its
/// companions and generation_config.json.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  ratoon convert SmolLM2-135M-Instruct.Q4_1.gguf smollm2/ --dtype bf16")]
pub struct Args {
    /// The .gguf file.
    gguf: PathBuf,
    /// Model directory to write.
    out: PathBuf,
    /// Element type of the weights [default: an unquantised file's own, else bf16].
    #[arg(long)]
    dtype: Option<WeightType>,
    /// Replace an existing output directory.
    #[arg(long)]
    overwrite: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum WeightType {
    F32,
    F16,
    Bf16,
}

/// Runs the verb.
pub fn run(args: Args, context: &Context) -> Result<()> {
    let dtype = args.dtype.map(|dtype| match dtype {
        WeightType::F32 => DType::F32,
        WeightType::F16 => DType::F16,
        WeightType::Bf16 => DType::BF16,
    });
    let converted = gguf::convert(&args.gguf, &args.out, dtype, args.overwrite)?;
    if context.json {
        println!("{}", serde_json::json!({"out": args.out, "converted": converted}));
    } else {
        println!(
            "{}: {} blocks, {} tensors, {} parameters, {} bytes of {}{}",
            args.out.display(),
            converted.num_hidden_layers,
            converted.tensors,
            converted.parameters,
            converted.bytes,
            converted.dtype,
            if converted.tie_word_embeddings { ", head tied to the embedding" } else { "" },
        );
    }
    Ok(())
}
