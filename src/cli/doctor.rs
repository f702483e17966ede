//! `ratoon doctor`.

use super::Context;
use ratoon::Result;
use ratoon::doctor::{Report, examine};

/// Show what this machine and this build can do.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  ratoon doctor --json")]
pub struct Args {}

/// Runs the verb.
pub fn run(_args: Args, context: &Context) -> Result<()> {
    let report = examine()?;
    if context.json {
        println!("{}", serde_json::json!(report));
    } else {
        print(&report);
    }
    Ok(())
}

fn gigabytes(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "unknown".to_string(), |bytes| format!("{:.1} GB", bytes as f64 / 1e9))
}

fn number(n: Option<usize>) -> String {
    n.map_or_else(|| "?".to_string(), |n| n.to_string())
}

fn present(features: &[(&str, bool)], with: bool) -> String {
    let names: Vec<&str> = features.iter().filter(|(_, on)| *on == with).map(|(name, _)| *name).collect();
    if names.is_empty() { "none".to_string() } else { names.join(" ") }
}

fn print(report: &Report) {
    let line = |name: &str, value: String| println!("{name:<12}{value}");
    let (cpu, memory, gpu) = (&report.cpu, &report.memory, &report.gpu);
    let (with, without) = (present(&report.features, true), present(&report.features, false));
    line("ratoon", format!("{}, features: {with} (not built in: {without})", report.version));
    line("processor", cpu.name.clone());
    line("", format!("has {}; lacks {}", present(&cpu.features, true), present(&cpu.features, false)));
    let (cores, threads) = (number(cpu.cores), number(cpu.hardware_threads));
    line("threads", format!("{} usable of {threads} on {cores} cores", cpu.usable_threads));
    let limit = memory.limit.map_or(String::new(), |limit| format!(", limited to {}", gigabytes(Some(limit))));
    line("memory", format!("{} available of {}{limit}", gigabytes(memory.available), gigabytes(memory.total)));
    for disk in &report.disks {
        line("disk", format!("{} free for the {} ({})", gigabytes(disk.free), disk.use_for, disk.path.display()));
    }
    line("driver", gpu.driver.clone().unwrap_or_else(|| "no NVIDIA driver found".to_string()));
    if let Some(libcuda) = &gpu.libcuda {
        line("", libcuda.display().to_string());
    }
    line("GPU", if gpu.devices.is_empty() { "none found".to_string() } else { gpu.devices.join(", ") });
    gpu.usable.iter().for_each(|card| line("", card.clone()));
    let missing = || format!("{} with pip not found: pypi: sources will not work", report.python.program);
    line("python", report.python.pip.clone().unwrap_or_else(missing));
    line("cache", report.cache.display().to_string());
    for model in &report.cached_models {
        let state = if model.intact { "" } else { ", damaged: the next use builds it again" };
        line("", format!("{} ({}{state})", model.source, gigabytes(Some(model.bytes))));
    }
}
