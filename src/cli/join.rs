//! `ratoon join`.

use super::Context;
use ratoon::Result;
use ratoon::generate::join;
use std::path::PathBuf;

/// Put the results of all shards of generate or distill together, in the order of the input: the bytes of one run.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  ratoon distill SmolLM2 --data d.jsonl --template math -o 0.jsonl --shard 0/2\n  \
                        ratoon distill SmolLM2 --data d.jsonl --template math -o 1.jsonl --shard 1/2\n  \
                        ratoon join 0.jsonl 1.jsonl --input d.jsonl -o distilled.jsonl")]
pub struct Args {
    /// Results of the shards, all of them, in any order.
    #[arg(required = true, value_name = "SHARD")]
    shards: Vec<PathBuf>,
    /// The prompts or rows that they were made from.
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// The result to write, JSONL.
    #[arg(short, long, value_name = "JSONL")]
    output: PathBuf,
}

/// Runs the verb.
pub fn run(args: Args, context: &Context) -> Result<()> {
    let rows = join(&args.input, &args.shards, &args.output)?;
    if context.json {
        println!("{:#}", serde_json::json!({"rows": rows}));
    } else {
        println!("{}: {rows} rows of {} shards", args.output.display(), args.shards.len());
    }
    Ok(())
}
