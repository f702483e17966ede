//! The stages' results as one report.

use super::chain::machine;
use super::settings::Recipe;
use crate::device::peak::{Peak, fma_peak};
use crate::device::{Compute, Weights};
use crate::error::{Error, Result};
use crate::report::{LossCurve, ModelRow, OperationRow, Report, StageRow};
use std::collections::BTreeMap;

/// Puts the report together; fills in each model's recovery.
pub(super) fn report(
    recipe: &Recipe,
    mut models: Vec<ModelRow>,
    dropped_blocks: Vec<usize>,
    losses: Vec<LossCurve>,
    distilled: Vec<(String, u64)>,
    stages: Vec<(StageRow, Vec<OperationRow>)>,
) -> Result<Report> {
    let base = mean_score(&models[0]);
    for model in &mut models[1..] {
        model.recovery = mean_score(model).zip(base).filter(|(_, base)| *base > 0.0).map(|(own, base)| own / base);
    }
    let heatmap = recipe.output.join("scores.svg");
    let heatmap_svg = std::fs::read_to_string(&heatmap).map_err(Error::io(&heatmap, "read"))?;
    let settings = toml::to_string_pretty(recipe)
        .map_err(|e| Error::format(&recipe.output, "recipe", "settings that TOML can hold", e.to_string()))?;
    let peak = Peak::measure(Compute::Bf16, Weights::Stored);
    Ok(Report {
        title: recipe.title.clone(),
        ratoon_version: env!("CARGO_PKG_VERSION").to_string(),
        machine: machine(),
        peak_flops: peak.flops_per_second,
        peak_f32_flops: fma_peak(),
        peak_bandwidth: peak.bytes_per_second,
        seq_len: recipe.eval.seq_len,
        models,
        dropped_blocks,
        heatmap_svg,
        losses,
        distilled,
        operations: total(stages.iter().flat_map(|(_, operations)| operations)),
        stages: stages.into_iter().map(|(row, _)| row).collect(),
        settings,
    })
}

fn mean_score(model: &ModelRow) -> Option<f64> {
    let scores = model.tasks.iter().map(|task| task.value);
    (!model.tasks.is_empty()).then(|| scores.sum::<f64>() / model.tasks.len() as f64)
}

/// Work by operation over all stages, the most time first.
fn total<'a>(rows: impl Iterator<Item = &'a OperationRow>) -> Vec<OperationRow> {
    let mut sums: BTreeMap<&str, OperationRow> = BTreeMap::new();
    for row in rows {
        let sum = sums.entry(&row.name).or_insert_with(|| OperationRow {
            name: row.name.clone(),
            calls: 0,
            flops: 0,
            bytes: 0,
            seconds: 0.0,
        });
        sum.calls += row.calls;
        sum.flops += row.flops;
        sum.bytes += row.bytes;
        sum.seconds += row.seconds;
    }
    let mut sums: Vec<OperationRow> = sums.into_values().collect();
    sums.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    sums
}
