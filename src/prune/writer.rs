//! The model directory without the blocks of a plan: streamed, whole or not at all.
//!
//! The shards stay as the source has them: each output file holds what is left of one source file, in its order, so that
//! the kept bytes form long ranges; a file of which nothing is left is not written. Names are the standard ones,
//! `model.safetensors` or `model-0000K-of-0000N.safetensors` with an index.

use super::shard::{KeptTensor, write_shard};
use super::{Plan, Score, mergekit, plan};
use crate::error::{Error, Result};
use crate::model::Config;
use crate::model::safetensors::WeightFiles;
use crate::model::weight_header::header_bytes;
use crate::output::{StagedDir, refuse_inputs};
use crate::progress::Progress;
use serde::Serialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};

/// Name of the record of what was cut from what.
pub const PROVENANCE: &str = "ratoon_prune.json";
const LAYER_PREFIX: &str = "model.layers.";
/// Weights in other formats: they hold the uncut model.
const OTHER_WEIGHTS: [&str; 10] = ["bin", "pt", "pth", "gguf", "ggml", "h5", "msgpack", "onnx", "ot", "safetensors"];

/// What a cut removed and wrote.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct PruneReport {
    /// The output directory.
    pub output: PathBuf,
    /// Blocks that were cut, in order.
    pub dropped: Vec<usize>,
    /// Blocks before and after.
    pub num_hidden_layers: [usize; 2],
    /// Parameters (tied ones once) before and after.
    pub parameters: [u64; 2],
    /// Bytes of the weights before and after.
    pub weight_bytes: [u64; 2],
    /// Files and directories of the source that were left behind, because they belong to the uncut model or to no model.
    pub not_copied: Vec<String>,
    /// Seconds from the first read to the directory's final name.
    pub seconds: f64,
}

/// Writes `source` without the plan's blocks to `out`. Nothing is left behind when it fails; the kept tensors are copied by the
/// system and never pass through memory.
pub fn prune(source: &Path, plan: &Plan, out: &Path, overwrite: bool) -> Result<PruneReport> {
    let start = std::time::Instant::now();
    let config = Config::load(source)?;
    let layers = config.num_hidden_layers;
    if plan.num_hidden_layers() != layers {
        let expected = format!("a plan for {layers} blocks");
        return Err(Error::usage("plan", expected, format!("one for {}", plan.num_hidden_layers())));
    }
    refuse_inputs(out, [source])?;
    let files = WeightFiles::open(source)?;
    let kept = plan.kept();
    let shards = kept_tensors(&files, &kept, layers)?;
    let staged = StagedDir::create(out, overwrite)?;
    let mut report = PruneReport {
        output: out.to_path_buf(),
        dropped: plan.dropped().to_vec(),
        num_hidden_layers: [layers, kept.len()],
        parameters: [
            files.tensors.values().map(|t| t.shape.iter().product::<usize>() as u64).sum(),
            shards.iter().flat_map(|s| &s.tensors).map(|t| t.shape.iter().product::<usize>() as u64).sum(),
        ],
        weight_bytes: [
            files.tensors.values().map(|t| t.len as u64).sum(),
            shards.iter().flat_map(|s| &s.tensors).map(|t| t.len).sum(),
        ],
        not_copied: Vec::new(),
        seconds: 0.0,
    };
    write_weights(&files, &shards, staged.path(), report.weight_bytes[1])?;
    report.not_copied = copy_others(source, staged.path(), out)?;
    write_json(&staged.path().join("config.json"), &Value::Object(config.with_layers(&kept)))?;
    let yaml = mergekit::write_kept(&source.to_string_lossy(), &kept, mergekit::dtype(&config));
    write_text(&staged.path().join("mergekit.yml"), &yaml)?;
    let record = provenance(source, &files, plan, &report)?;
    write_json(&staged.path().join(PROVENANCE), &record)?;
    staged.commit()?;
    report.seconds = start.elapsed().as_secs_f64();
    Ok(report)
}

/// What is left of one source file.
struct Shard {
    /// Index into [`WeightFiles::shards`].
    source: usize,
    /// In order of place.
    tensors: Vec<KeptTensor>,
}

/// The kept tensors by source file, renumbered; files of which nothing is left are not listed.
fn kept_tensors(files: &WeightFiles, kept: &[usize], layers: usize) -> Result<Vec<Shard>> {
    let mut shards: Vec<Shard> = (0..files.shards.len()).map(|source| Shard { source, tensors: Vec::new() }).collect();
    for (name, info) in &files.tensors {
        let name = match name.strip_prefix(LAYER_PREFIX).and_then(|rest| rest.split_once('.')) {
            None => name.clone(),
            Some((number, rest)) => {
                let broken = || {
                    let expected = format!("a block number below {layers}");
                    Error::format(&files.shards[info.shard], name.as_str(), expected, number)
                };
                let block: usize = number.parse().map_err(|_| broken())?;
                if block >= layers {
                    return Err(broken());
                }
                let Ok(new) = kept.binary_search(&block) else { continue };
                format!("{LAYER_PREFIX}{new}.{rest}")
            }
        };
        let (start, len) = (info.start as u64, info.len as u64);
        shards[info.shard].tensors.push(KeptTensor { name, dtype: info.dtype, shape: info.shape.clone(), start, len });
    }
    shards.retain(|shard| !shard.tensors.is_empty());
    shards.iter_mut().for_each(|shard| shard.tensors.sort_by_key(|t| (t.start, t.len)));
    Ok(shards)
}

/// Writes the weight files and, for several, their index.
fn write_weights(files: &WeightFiles, shards: &[Shard], dir: &Path, total: u64) -> Result<()> {
    let progress = Progress::start("prune", total, "bytes");
    let mut weight_map = Map::new();
    for (i, shard) in shards.iter().enumerate() {
        let source = &files.shards[shard.source];
        let name = match shards.len() {
            1 => "model.safetensors".to_string(),
            n => format!("model-{:05}-of-{n:05}.safetensors", i + 1),
        };
        let metadata = header_bytes(source)?;
        let metadata: Value = serde_json::from_slice(&metadata[8..])
            .map_err(|e| Error::format(source, "header", "a JSON object", e.to_string()))?;
        let metadata = metadata.get("__metadata__").cloned().unwrap_or_else(|| json!({"format": "pt"}));
        write_shard(source, &dir.join(&name), &shard.tensors, Some(&metadata), &progress)?;
        for tensor in &shard.tensors {
            weight_map.insert(tensor.name.clone(), Value::from(name.clone()));
        }
    }
    if shards.len() > 1 {
        weight_map.sort_keys();
        let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
        write_json(&dir.join("model.safetensors.index.json"), &index)?;
    }
    Ok(())
}

/// Copies tokenizer, template, generation configuration, licence and the like. Returns what was left behind.
fn copy_others(source: &Path, staging: &Path, out: &Path) -> Result<Vec<String>> {
    let mut left = Vec::new();
    let mut entries: Vec<PathBuf> = fs::read_dir(source)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .map_err(Error::io(source, "list"))?;
    entries.sort();
    for path in entries {
        crate::interrupt::check()?;
        let Some(name) = path.file_name() else { continue };
        let text = name.to_string_lossy().into_owned();
        let rewritten = ["config.json", "mergekit.yml", PROVENANCE].contains(&text.as_str());
        if rewritten || text.ends_with(".safetensors.index.json") {
            continue;
        }
        let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        let foreign = !path.is_file() || text.starts_with('.') || OTHER_WEIGHTS.contains(&extension.as_str());
        if foreign {
            // The weights themselves were written above; everything else that stays behind is told.
            if extension != "safetensors" && path != out {
                left.push(text);
            }
            continue;
        }
        fs::copy(&path, staging.join(name)).map_err(Error::io(&out.join(name), "write"))?;
    }
    Ok(left)
}

/// What was cut from what. Holds no time and no place of its own, so that the same command gives the same bytes.
fn provenance(source: &Path, files: &WeightFiles, plan: &Plan, report: &PruneReport) -> Result<Value> {
    let read = |path: &Path| fs::read(path).map_err(Error::io(path, "read"));
    let weights = files.shards.iter().map(|path| -> Result<Value> {
        let bytes = fs::metadata(path).map_err(Error::io(path, "read"))?.len();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        Ok(json!({"file": name, "bytes": bytes, "header_sha256": sha256(&header_bytes(path)?)}))
    });
    let earlier = fs::read(source.join(PROVENANCE)).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
    let scores: &[Score] = &plan.scores;
    Ok(json!({
        "ratoon_version": env!("CARGO_PKG_VERSION"),
        "source": {
            "path": source.to_string_lossy(),
            "config_sha256": sha256(&read(&source.join("config.json"))?),
            "weights": weights.collect::<Result<Vec<Value>>>()?,
            "note": "weights are identified by size and header; hashing their data would take longer than the cut",
            "ratoon_prune": earlier,
        },
        "blocks_cut": plan.dropped(),
        "blocks": plan::describe(plan.dropped()),
        "metric": plan.metric,
        "scores": scores,
        "num_hidden_layers": report.num_hidden_layers,
        "parameters": report.parameters,
        "weight_bytes": report.weight_bytes,
        "not_copied": report.not_copied,
    }))
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    write_text(path, &format!("{value:#}\n"))
}

fn write_text(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(Error::io(path, "write"))
}
