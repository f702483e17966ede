//! `ratoon flops`.

use super::Context;
use super::train_step::TrainStepArgs;
use comfy_table::{Table, presets::NOTHING};
use ratoon::eval::flops::{Count, Flops, LedgerCheck, check_forward};
use ratoon::eval::training_flops::{StepFlops, check_training_step, describe};
use ratoon::model::{Config, Llama, Recompute, source};
use ratoon::{Error, Result};
use serde_json::{Value, json};

/// Count FLOPs in three conventions and check them against the ledger. A directory with config.json alone will do.
#[derive(clap::Args)]
#[command(
    after_help = "Conventions, per token:\n  params_2N   2 x all parameters, the input embedding counted as if multiplied\n  \
                        matmul      the matrix products really computed, with the output head\n  \
                        total(seq)  matmul plus causal attention, the mean over a sequence\n\n\
                        Examples:\n  ratoon flops SmolLM2 SmolLM2-cut6 --seq-len 2048\n  \
                        ratoon flops SmolLM2 --train --train-tokens 2x128 --full --check"
)]
pub struct Args {
    /// Model: a directory, a .gguf, pypi:NAME==VERSION or hf:ORG/NAME.
    model: String,
    /// A second model, to be compared with the first.
    other: Option<String>,
    /// Tokens of a sequence.
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u64).range(1..=1 << 24))]
    seq_len: u64,
    #[command(flatten)]
    train: TrainStepArgs,
    /// Run a real forward pass over --seq-len tokens, or with --train a training step in both ways of recomputation, and
    /// compare what the ledger counted; exits with 1 when it differs.
    #[arg(long)]
    check: bool,
}

/// FLOPs of one model, by formula and by the ledger.
struct Counted {
    flops: Flops,
    /// With nothing and with blocks recomputed.
    training: Vec<(Recompute, StepFlops)>,
    checks: Vec<LedgerCheck>,
}

fn count(spec: &str, args: &Args, context: &Context) -> Result<Counted> {
    let dir = source::resolve(spec)?;
    let config = Config::load(&dir)?;
    let step = args.train.step();
    let both = [Recompute::None, Recompute::Block];
    let training =
        step.iter().flat_map(|step| both.map(|recompute| (recompute, StepFlops::of(&config, step, recompute))));
    let mut counted =
        Counted { flops: Flops::new(&config, args.seq_len), training: training.collect(), checks: Vec::new() };
    if args.check {
        let (dev, model) = (&context.device, Llama::load(&dir)?);
        counted.checks = match step {
            Some(step) => both
                .into_iter()
                .map(|recompute| check_training_step(dev, &model, &step, recompute))
                .collect::<Result<Vec<LedgerCheck>>>()?,
            None => vec![check_forward(dev, &model, args.seq_len as usize)?],
        };
    }
    Ok(counted)
}

/// Runs the verb.
pub fn run(args: Args, context: &Context) -> Result<()> {
    let specs = std::iter::once(&args.model).chain(&args.other);
    let models = specs.map(|spec| count(spec, &args, context)).collect::<Result<Vec<Counted>>>()?;
    if context.json {
        println!("{:#}", to_json(&models));
    } else {
        println!("{}", table(&args, &models));
    }
    for check in models.iter().flat_map(|m| &m.checks) {
        if let Some(wrong) = check.counts.iter().find(|c| c.counted != c.expected) {
            let flops = |n: u64| format!("{n} FLOPs of {} in {}", wrong.operation, check.pass);
            return Err(Error::shape("flops", "ledger", flops(wrong.expected), flops(wrong.counted)));
        }
    }
    Ok(())
}

fn to_json(models: &[Counted]) -> Value {
    let cut = models.get(1).map(|smaller| models[0].flops.cut(&smaller.flops));
    let training = |m: &Counted| -> Value {
        m.training.iter().map(|(recompute, flops)| json!({"recompute": recompute, "flops": flops})).collect()
    };
    json!({
        "models": models.iter().map(|m| m.flops).collect::<Vec<Flops>>(),
        "cut_percent": cut,
        "training_step": models.iter().map(training).collect::<Vec<Value>>(),
        "ledger": models.iter().map(|m| &m.checks).collect::<Vec<_>>(),
    })
}

fn table(args: &Args, models: &[Counted]) -> Table {
    let mut table = Table::new();
    table.load_preset(NOTHING);
    let compared = args.other.iter().flat_map(|other| [other.clone(), "cut %".into()]);
    table.set_header([String::new(), args.model.clone()].into_iter().chain(compared));
    let cut = models.get(1).map(|smaller| models[0].flops.cut(&smaller.flops));
    let mut row = |name: String, values: Vec<String>, saved: Option<f64>| {
        let saved = saved.map(|percent| format!("{percent:.3}"));
        table.add_row([vec![name], values, saved.into_iter().collect()].concat());
    };
    let each = |f: &dyn Fn(&Flops) -> String| models.iter().map(|m| f(&m.flops)).collect::<Vec<_>>();
    row("blocks".into(), each(&|m| m.num_hidden_layers.to_string()), None);
    row("parameters".into(), each(&|m| m.parameters.to_string()), cut.map(|c| c.params_2n));
    row("params_2N, FLOPs/token".into(), each(&|m| m.params_2n.to_string()), cut.map(|c| c.params_2n));
    row("matmul, FLOPs/token".into(), each(&|m| m.matmul.to_string()), cut.map(|c| c.matmul));
    let total = format!("total({}), FLOPs/token", args.seq_len);
    row(total, each(&|m| format!("{:.1}", m.total())), cut.map(|c| c.total));
    row("total, FLOPs/sequence".into(), each(&|m| m.total_per_sequence.to_string()), cut.map(|c| c.total));
    row("blocks only, FLOPs/token".into(), each(&|m| m.blocks.to_string()), cut.map(|c| c.blocks));
    row("KV cache, bytes/token (16 bits)".into(), each(&|m| m.kv_bytes.to_string()), cut.map(|c| c.kv_bytes));
    if let (Some(first), Some(step)) = (models.first(), args.train.step()) {
        for (i, (recompute, whole)) in first.training.iter().enumerate() {
            let totals: Vec<u64> = models.iter().map(|m| m.training[i].1.total()).collect();
            let saved = totals.get(1).map(|&smaller| 100.0 * (1.0 - smaller as f64 / whole.total() as f64));
            let name = format!("{}, {}, FLOPs/step", step.name(), describe(*recompute));
            row(name, totals.iter().map(u64::to_string).collect(), saved);
        }
    }
    for (i, check) in models.first().iter().flat_map(|m| &m.checks).enumerate() {
        for (j, count) in check.counts.iter().enumerate() {
            let counted = models.iter().map(|m| {
                let Count { counted, expected, .. } = m.checks[i].counts[j];
                if counted == expected {
                    format!("{counted} = formula")
                } else {
                    format!("{counted}, formula {expected}")
                }
            });
            row(format!("ledger: {}, {}", check.pass, count.operation), counted.collect(), None);
        }
    }
    table
}
