//! A LoRA adapter merged into its model's weights: `W + scale * B · A`, tensor by tensor.

use super::model_dir::{copy_tokenizer, fingerprint, hex, round_to};
use crate::device::{Cost, DType, Device, Op, Tensor};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::model::adapter::{Adapter, WEIGHTS};
use crate::model::safetensors::{SafetensorsWriter, TensorSpec, WeightFiles};
use crate::model::{Llama, Lora};
use crate::ops::matmul::{Store, matmul_nn};
use crate::output::{StagedDir, refuse_inputs, write_file};
use crate::progress::Progress;
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Name of the record of what was merged into what.
pub const PROVENANCE: &str = "ratoon_merge.json";
const MAX_SHARD: u64 = 5_000_000_000;

/// What a merge did.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct MergeReport {
    /// Output directory.
    pub output: PathBuf,
    /// The model.
    pub model: PathBuf,
    /// Fingerprint of the model.
    pub model_fingerprint: String,
    /// The adapter.
    pub adapter: PathBuf,
    /// SHA-256 of the adapter's weights.
    pub adapter_sha256: String,
    /// Rank of the adapter.
    pub rank: usize,
    /// Factor of the update.
    pub scale: f32,
    /// Tensors that were changed.
    pub merged: usize,
    /// Tensors that were copied as they are.
    pub copied: usize,
}

/// Writes `model_dir` with the adapter in its weights to `out`, in the source's dtypes: computed in F32, rounded once to the
/// nearest. One tensor is in memory at a time; nothing is left behind on failure.
pub fn merge_adapter(
    dev: &Device,
    model_dir: &Path,
    adapter_dir: &Path,
    out: &Path,
    overwrite: bool,
) -> Result<MergeReport> {
    refuse_inputs(out, [model_dir, adapter_dir])?;
    let model = Llama::load(model_dir)?;
    let adapter = Adapter::load(adapter_dir, &model)?;
    let (rank, scale) = (adapter.config.r, adapter.config.scale());
    let updates: BTreeMap<String, &Lora> =
        adapter.loras.iter().map(|(&(l, p), lora)| (format!("model.layers.{l}.{}.weight", p.path()), lora)).collect();
    let files = WeightFiles::open(model_dir)?;
    let specs: Vec<TensorSpec> =
        files.tensors.iter().map(|(name, info)| TensorSpec::new(name, info.dtype, &info.shape)).collect();
    let staged = StagedDir::create(out, overwrite)?;
    let mut writer = SafetensorsWriter::create(staged.path(), specs, Some(MAX_SHARD))?;
    let progress = Progress::start("merge", files.tensors.len() as u64, "tensors");
    for name in files.tensors.keys() {
        interrupt::check()?;
        let tensor = files.tensor(name)?;
        match updates.get(name) {
            Some(lora) => writer.append(&merged(dev, name, &tensor, lora)?)?,
            None => writer.append(tensor.bytes())?,
        }
        progress.add(1);
    }
    writer.finish()?;
    let config = model_dir.join("config.json");
    let bytes = fs::read(&config).map_err(Error::io(&config, "read"))?;
    write_file(&staged.path().join("config.json"), |out| out.write_all(&bytes))?;
    copy_tokenizer(model_dir, staged.path())?;
    let weights = adapter_dir.join(WEIGHTS);
    let adapter_bytes = fs::read(&weights).map_err(Error::io(&weights, "read"))?;
    let report = MergeReport {
        output: out.to_path_buf(),
        model: model_dir.to_path_buf(),
        model_fingerprint: fingerprint(model_dir)?,
        adapter: adapter_dir.to_path_buf(),
        adapter_sha256: hex(&Sha256::digest(adapter_bytes)),
        rank,
        scale,
        merged: updates.len(),
        copied: files.tensors.len() - updates.len(),
    };
    write_file(&staged.path().join(PROVENANCE), |out| Ok(serde_json::to_writer_pretty(out, &report)?))?;
    staged.commit()?;
    Ok(report)
}

fn merged(dev: &Device, name: &str, weight: &Tensor, lora: &Lora) -> Result<Vec<u8>> {
    let mut update = Tensor::zeros(weight.shape(), DType::F32);
    matmul_nn(dev, &mut update, &lora.b, &lora.a, Store::Replace)?;
    let n = weight.elements() as u64;
    let _span = dev.span(Op::Cast, Cost { flops: 2 * n, bytes: 4 * n + 2 * weight.size_bytes() as u64 });
    let mut sum = weight.to_f32();
    sum.f32_mut().iter_mut().zip(update.f32()).for_each(|(w, u)| *w += lora.scale * u);
    round_to(weight.dtype(), name, sum.f32())
}
