//! `--plan`: the memory that a run takes, before anything is loaded.

use super::Context;
use ratoon::Result;
use ratoon::device::Device;
use ratoon::model::InferencePlan;
use ratoon::recipe::StagePlan;
use serde_json::{Map, Value, json};

/// What to change where weights and buffers do not fit.
const INSTEAD: &str = "use fewer tokens or sequences at once (--plan shows what takes how much), cut more blocks, or use another --device";

/// `--plan`.
#[derive(clap::Args)]
pub(super) struct PlanArgs {
    /// Print the memory that the run takes at most, and stop.
    #[arg(long)]
    plan: bool,
}

impl PlanArgs {
    /// Checks that the run fits the device ([`ratoon::Error::Budget`] says what to change); true where the plan was all that was
    /// asked for, and is printed.
    pub(super) fn only(&self, context: &Context, dev: &Device, plan: &InferencePlan) -> Result<bool> {
        if self.plan {
            print(context, dev, &[("", plan.parts().to_vec())]);
        }
        plan.check(dev, "the run", INSTEAD)?;
        Ok(self.plan)
    }

    /// Whether nothing but a plan is asked for.
    pub(super) fn asked(&self) -> bool {
        self.plan
    }
}

/// Prints what each stage of a command takes, and what is free.
pub(super) fn print(context: &Context, dev: &Device, stages: &[StagePlan]) {
    let (available, total) = (dev.free_memory(), |parts: &[(&str, u64)]| parts.iter().map(|(_, n)| n).sum::<u64>());
    if context.json {
        let plan = |(_, parts): &StagePlan| -> Value {
            let mut map: Map<String, Value> =
                parts.iter().map(|&(name, bytes)| (name.to_string(), bytes.into())).collect();
            map.insert("total".into(), total(parts).into());
            map.into()
        };
        let memory = match stages {
            [only] => plan(only),
            _ => stages.iter().map(|stage| (stage.0.to_string(), plan(stage))).collect::<Map<String, Value>>().into(),
        };
        println!("{:#}", json!({ "memory": memory, "available": available }));
        return;
    }
    let megabytes = |bytes: u64| format!("{:.1} MB", bytes as f64 / 1e6);
    for (stage, parts) in stages {
        for &(name, bytes) in parts.iter().chain(&[("total", total(parts))]) {
            println!("{stage:10} {name:12} {}", megabytes(bytes));
        }
    }
    println!("{:10} {:12} {}", "", "available", available.map_or("unknown".into(), megabytes));
}
