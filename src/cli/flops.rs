//! `ratoon flops`.

use super::Context;
use ratoon::eval::flops::{Flops, check_forward};
use ratoon::model::{Config, Llama, source};
use ratoon::{Error, Result};
use serde_json::json;

/// Count FLOPs in three conventions and check them against the ledger. A directory with config.json alone will do.
#[derive(clap::Args)]
#[command(
    after_help = "Conventions, per token:\n  params_2N   2 x all parameters, the input embedding counted as if multiplied\n  \
                        matmul      the matrix products really computed, with the output head\n  \
                        total(seq)  matmul plus causal attention, the mean over a sequence\n\n\
                        Example:\n  ratoon flops SmolLM2 SmolLM2-cut6 --seq-len 2048"
)]
pub struct Args {
    /// Model.
    model: String,
    /// A second model, to be compared with the first.
    other: Option<String>,
    /// Tokens of a sequence.
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u64).range(1..=1 << 24))]
    seq_len: u64,
    /// Run a real forward pass of that length and compare what the ledger counted; exits with 1 when it differs.
    #[arg(long)]
    check: bool,
}

/// Runs the verb.
pub fn run(args: Args, context: &Context) -> Result<()> {
    let mut models = Vec::new();
    let mut checks = Vec::new();
    for spec in std::iter::once(&args.model).chain(&args.other) {
        let dir = source::resolve(spec)?;
        models.push(Flops::new(&Config::load(&dir)?, args.seq_len));
        if args.check {
            checks.push(check_forward(&context.device, &Llama::load(&dir)?, args.seq_len as usize)?);
        }
    }
    let cut = models.get(1).map(|smaller| models[0].cut(smaller));
    if context.json {
        println!("{:#}", json!({"models": models, "cut_percent": cut, "ledger": checks}));
    } else {
        let mut table = comfy_table::Table::new();
        table.load_preset(comfy_table::presets::NOTHING);
        let compared = args.other.iter().flat_map(|other| [other.clone(), "cut %".into()]);
        table.set_header([String::new(), args.model.clone()].into_iter().chain(compared));
        let mut row = |name: &str, values: Vec<String>, saved: Option<f64>| {
            let saved = saved.map(|percent| format!("{percent:.3}"));
            table.add_row([vec![name.to_string()], values, saved.into_iter().collect()].concat());
        };
        let each = |f: &dyn Fn(&Flops) -> String| models.iter().map(f).collect::<Vec<_>>();
        row("blocks", each(&|m| m.num_hidden_layers.to_string()), None);
        row("parameters", each(&|m| m.parameters.to_string()), cut.map(|c| c.params_2n));
        row("params_2N, FLOPs/token", each(&|m| m.params_2n.to_string()), cut.map(|c| c.params_2n));
        row("matmul, FLOPs/token", each(&|m| m.matmul.to_string()), cut.map(|c| c.matmul));
        let total = format!("total({}), FLOPs/token", args.seq_len);
        row(&total, each(&|m| format!("{:.1}", m.total())), cut.map(|c| c.total));
        row("total, FLOPs/sequence", each(&|m| m.total_per_sequence.to_string()), cut.map(|c| c.total));
        row("blocks only, FLOPs/token", each(&|m| m.blocks.to_string()), cut.map(|c| c.blocks));
        row("KV cache, bytes/token (16 bits)", each(&|m| m.kv_bytes.to_string()), cut.map(|c| c.kv_bytes));
        for (name, pick) in [("ledger: matmul/sequence", 0), ("ledger: attention/sequence", 1)] {
            if args.check {
                let counted =
                    checks.iter().map(|c| [c.matmul_counted, c.attention_counted][pick].to_string()).collect();
                row(name, counted, None);
            }
        }
        println!("{table}");
    }
    match checks.iter().find(|check| !check.exact()) {
        Some(check) => {
            let of = |matmul: u64, attention: u64| format!("matmul {matmul}, attention {attention} FLOPs");
            let expected = of(check.matmul_expected, check.attention_expected);
            Err(Error::shape("flops", "ledger", expected, of(check.matmul_counted, check.attention_counted)))
        }
        None => Ok(()),
    }
}
