//! What a command cost: one line on stderr at its end, and with `--profile` a table of every operation.

use comfy_table::{CellAlignment, Table, presets::NOTHING};
use ratoon::device::{Device, Phase, peak};
use std::time::Duration;

/// Commands shorter than this are not compared with the processor's peak, which takes 0.1 s to measure.
const WORTH_MEASURING: Duration = Duration::from_secs(2);

/// FLOPs, FLOP/s, share of the peak, tokens/s, memory and time of a command.
pub fn line(device: &Device, elapsed: Duration) -> String {
    let memory = peak::peak_memory();
    let (ledger, seconds) = (device.ledger(), elapsed.as_secs_f64());
    let mut parts = Vec::new();
    let flops = ledger.flops() as f64;
    if flops > 0.0 {
        parts.push(format!("{}FLOP", quantity(flops)));
        let mut rate = format!("{}FLOP/s", quantity(flops / seconds));
        if elapsed > WORTH_MEASURING && device.is_cpu() {
            let share = 100.0 * flops / seconds / peak::dot_peak();
            rate += &format!(" ({share:.1} % of the measured peak)");
        }
        parts.push(rate);
    }
    if ledger.tokens() > 0 {
        parts.push(format!("{:.1} tokens/s", ledger.tokens() as f64 / seconds));
    }
    for (name, phase) in [("prefill", Phase::Prefill), ("decode", Phase::Decode)] {
        let work = ledger.phase(phase);
        if work.tokens > 0 {
            let (flops, bytes) = (quantity(work.flops as f64), quantity(work.bytes as f64));
            parts.push(format!("{name} {} tokens in {flops}FLOP and {bytes}B", work.tokens));
        }
    }
    if let Some(bytes) = memory {
        parts.push(format!("{}B peak memory", quantity(bytes as f64)));
    }
    if let (false, Some(bytes)) = (device.is_cpu(), device.peak_memory()) {
        parts.push(format!("{}B on the card", quantity(bytes as f64)));
    }
    parts.push(format!("{seconds:.2} s"));
    parts.join(", ")
}

/// Calls, FLOPs, fewest bytes, seconds and rates of every operation that ran, and their sum.
pub fn profile(device: &Device) -> Table {
    let mut table = Table::new();
    table.load_preset(NOTHING);
    table.set_header(["operation", "calls", "GFLOP", "GB", "seconds", "GFLOP/s", "GB/s"]);
    let mut entries = device.ledger().snapshot();
    entries.retain(|(_, entry)| entry.calls > 0);
    entries.sort_by(|a, b| b.1.seconds.total_cmp(&a.1.seconds));
    for (op, entry) in entries {
        let (flops, bytes, seconds) = (entry.flops as f64 * 1e-9, entry.bytes as f64 * 1e-9, entry.seconds);
        table.add_row([
            op.name().to_string(),
            entry.calls.to_string(),
            format!("{flops:.3}"),
            format!("{bytes:.3}"),
            format!("{seconds:.3}"),
            format!("{:.1}", flops / seconds.max(1e-9)),
            format!("{:.1}", bytes / seconds.max(1e-9)),
        ]);
    }
    table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    table
}

/// Three figures and a decimal prefix: `1.23 G`.
fn quantity(value: f64) -> String {
    let (scale, prefix) = match value {
        v if v >= 1e15 => (1e-15, "P"),
        v if v >= 1e12 => (1e-12, "T"),
        v if v >= 1e9 => (1e-9, "G"),
        v if v >= 1e6 => (1e-6, "M"),
        v if v >= 1e3 => (1e-3, "k"),
        _ => (1.0, ""),
    };
    let scaled = value * scale;
    let decimals = if scaled >= 100.0 {
        0
    } else if scaled >= 10.0 {
        1
    } else {
        2
    };
    format!("{scaled:.decimals$} {prefix}")
}
