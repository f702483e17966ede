//! Scores as `block_start,block_end,average_distance`, a JSON record of how they came about and a heat map beside it.
//!
//! `block_start` is the first block of the run, counted from 0; `block_end` is the block after its last, so that
//! `block_end - block_start` blocks are cut. `average_distance` is the metric's value: the lower, the less is lost.

use super::{Score, Scores};
use crate::error::{Error, Result};
use crate::input::read_text;
use crate::output::{refuse_foreign_file, refuse_inputs, refuse_other_than_file, write_file};
use crate::report::heatmap::{self, HeatMap, HeatRow};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

const HEADER: &str = "block_start,block_end,average_distance";

fn csv(rows: &[Score]) -> String {
    let lines = rows.iter().map(|row| format!("{},{},{}\n", row.start, row.end, row.value));
    std::iter::once(format!("{HEADER}\n")).chain(lines).collect()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What is written for `path`: the CSV, and beside it the record (`.json`) and the heat map (`.svg`).
fn files(path: &Path) -> [PathBuf; 3] {
    [path.to_path_buf(), path.with_extension("json"), path.with_extension("svg")]
}

/// Checks, before any work, that [`write_scores`] may write its three files. [`Error::Usage`] for a name that leaves no three,
/// for one of `inputs`, for what is no file, and for a file that it did not write.
pub fn check_output<'a>(path: &Path, inputs: impl Iterator<Item = &'a Path> + Clone) -> Result<()> {
    let files = files(path);
    if files[1..].contains(&files[0]) {
        let expected = "a name for the CSV (.json and .svg are written beside it)";
        return Err(Error::usage("output", expected, path.display().to_string()));
    }
    for file in &files {
        refuse_other_than_file(file)?;
        refuse_inputs(file, inputs.clone())?;
    }
    let [csv, record, map] = &files;
    refuse_foreign_file(csv, |bytes| bytes.starts_with(HEADER.as_bytes()))?;
    refuse_foreign_file(record, |bytes| {
        serde_json::from_slice::<Value>(bytes).is_ok_and(|record| record["csv_sha256"].is_string())
    })?;
    refuse_foreign_file(map, |bytes| String::from_utf8_lossy(bytes).contains(heatmap::LEGEND))
}

/// Writes `path` (CSV), and beside it the same name with `.json` (metric, settings, best cuts) and `.svg` (heat map).
pub fn write_scores(scores: &Scores, path: &Path) -> Result<()> {
    let [path, record_path, map_path] = &files(path);
    let text = csv(&scores.rows);
    let mut record = json!(scores);
    record["csv_sha256"] = Value::from(sha256(text.as_bytes()));
    let record = format!("{record:#}\n");
    write_file(map_path, |out| out.write_all(heat_map(scores).svg().as_bytes()))?;
    write_file(record_path, |out| out.write_all(record.as_bytes()))?;
    write_file(path, |out| out.write_all(text.as_bytes()))
}

/// One row of cells for each block size, the best cut marked.
pub fn heat_map(scores: &Scores) -> HeatMap {
    let ranking = scores.metric.ranks_blocks();
    let rows = scores.best.iter().map(|best| {
        let size = if ranking { 1 } else { best.block_size };
        let mut values = vec![None; scores.num_hidden_layers];
        for row in scores.rows.iter().filter(|row| row.end - row.start == size) {
            values[row.start] = Some(row.value);
        }
        let marked = if ranking { best.blocks.clone() } else { best.blocks.first().copied().into_iter().collect() };
        HeatRow { label: format!("n = {}", best.block_size), values, marked }
    });
    let x_label = if ranking { "block" } else { "first block of the cut" };
    HeatMap { title: format!("{} by block", scores.metric.title()), x_label: x_label.into(), rows: rows.collect() }
}

/// The metric that the JSON record beside a CSV names, if it belongs to this very CSV.
pub(super) fn recorded_metric(path: &Path) -> Option<String> {
    let record: Value = serde_json::from_slice(&std::fs::read(path.with_extension("json")).ok()?).ok()?;
    let same = record["csv_sha256"].as_str()? == sha256(&std::fs::read(path).ok()?);
    same.then(|| record["metric"].as_str().map(str::to_string)).flatten()
}

/// Reads a CSV of scores for a model of `num_hidden_layers` blocks.
pub(super) fn read_scores(path: &Path, num_hidden_layers: usize) -> Result<Vec<Score>> {
    let text = read_text(path)?;
    let mut lines = text.trim_start_matches('\u{feff}').lines().enumerate();
    match lines.next() {
        Some((_, header)) if header.trim() == HEADER => {}
        other => {
            let found = other.map_or("an empty file".to_string(), |(_, line)| format!("{line:?}"));
            return Err(Error::format(path, "line 1", HEADER, found));
        }
    }
    let mut rows = Vec::new();
    for (i, line) in lines.filter(|(_, line)| !line.trim().is_empty()) {
        let broken = |expected: &str| Error::format(path, format!("line {}", i + 1), expected, format!("{line:?}"));
        let mut fields = line.split(',').map(str::trim);
        let (Some(start), Some(end), Some(value), None) = (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            return Err(broken("three fields"));
        };
        let (Ok(start), Ok(end), Ok(value)) = (start.parse::<usize>(), end.parse::<usize>(), value.parse::<f64>())
        else {
            return Err(broken("two block numbers and a distance"));
        };
        if start >= end || end > num_hidden_layers {
            return Err(broken(&format!("block_start before block_end, which is at most {num_hidden_layers}")));
        }
        if !value.is_finite() {
            return Err(broken("a finite distance"));
        }
        rows.push(Score { start, end, value });
    }
    if rows.is_empty() {
        return Err(Error::format(path, "line 2", "at least one row of scores", "none"));
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Score>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("scores.csv");
        std::fs::write(&path, text).unwrap();
        read_scores(&path, 30)
    }

    #[test]
    fn scores_survive_the_file_bit_for_bit() {
        let rows: Vec<Score> = (0..29).map(|i| Score { start: i, end: i + 2, value: 0.1 / (i as f64 + 3.0) }).collect();
        assert_eq!(read(&csv(&rows)).unwrap(), rows);
        assert_eq!(read(&csv(&rows).replace('\n', "\r\n")).unwrap(), rows);
    }

    #[test]
    fn broken_files_name_line_expected_and_found() {
        for (body, word) in [
            ("", "line 1"),
            ("start,end,d\n1,2,0.1\n", "line 1"),
            (&format!("{HEADER}\n"), "at least one row"),
            (&format!("{HEADER}\n1,2\n"), "line 2"),
            (&format!("{HEADER}\n1,2,0.5\n1,x,0.5\n"), "line 3"),
            (&format!("{HEADER}\n5,3,0.5\n"), "block_start before"),
            (&format!("{HEADER}\n25,31,0.5\n"), "at most 30"),
            (&format!("{HEADER}\n1,2,NaN\n"), "finite"),
            (&format!("{HEADER}\n-1,2,0.5\n"), "block numbers"),
        ] {
            let message = read(body).unwrap_err().to_string();
            assert!(message.contains(word) && message.contains("scores.csv"), "{body:?}: {message}");
        }
    }
}
