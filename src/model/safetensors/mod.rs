//! Weight files of a model directory: `model.safetensors`, or shards with `model.safetensors.index.json`.
//!
//! | file | subject |
//! |-|-|
//! | `mod.rs` | the mapped files of one model, and tensors out of them |
//! | `header.rs` | the header of one file, every mistake in it named |
//! | `index.rs` | the index of shards |
//! | `check.rs` | the tensors against the config; values that are not finite |
//! | `writer.rs` | streamed writing, in shards |

pub mod check;
pub mod header;
mod index;
mod writer;

pub use index::Index;
pub use writer::{SafetensorsWriter, TensorSpec, header_bytes, parse_size};

use super::mapped::map_file;
use super::pickle;
use crate::device::buffer::MappedSlice;
use crate::device::{DType, Tensor};
use crate::error::{Error, Result};
use memmap2::Mmap;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// File name of weights in one file.
pub const SINGLE: &str = "model.safetensors";
/// File name of the index of sharded weights.
pub const INDEX: &str = "model.safetensors.index.json";

/// Where one tensor lies.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    /// Element type.
    pub dtype: DType,
    /// Dimensions, slowest first.
    pub shape: Vec<usize>,
    /// Index into [`WeightFiles::shards`].
    pub shard: usize,
    /// Byte offset in the shard's file.
    pub start: usize,
    /// Bytes.
    pub len: usize,
}

/// The memory-mapped weight files of one model.
pub struct WeightFiles {
    /// Files in order of name.
    pub shards: Vec<PathBuf>,
    maps: Vec<Arc<Mmap>>,
    /// Every tensor by name.
    pub tensors: BTreeMap<String, TensorInfo>,
}

impl WeightFiles {
    /// Maps the weights of a model directory.
    ///
    /// [`Error::Format`] names the file and the tensor for a broken header, an index that contradicts its shards, or missing
    /// weights; [`Error::Unsupported`] tells how to convert weights in another format.
    pub fn open(dir: &Path) -> Result<WeightFiles> {
        let exists = |name: &str| dir.join(name).exists();
        if exists(SINGLE) {
            return WeightFiles::open_files(vec![dir.join(SINGLE)]);
        }
        if !exists(INDEX) {
            return Err(no_weights(dir));
        }
        let path = dir.join(INDEX);
        let index = Index::load(&path)?;
        for name in index.shards() {
            if !exists(name) {
                let tensors = index.weight_map.values().filter(|shard| *shard == name).count();
                let expected = format!("the shard {name}, which holds {tensors} tensors");
                return Err(Error::format(&path, "weight_map", expected, "no such file beside the index"));
            }
        }
        let files = WeightFiles::open_files(index.shards().into_iter().map(|name| dir.join(name)).collect())?;
        files.check_index(&index, &path)?;
        Ok(files)
    }

    /// Maps the given files as one set of tensors; each name must be unique.
    pub fn open_files(shards: Vec<PathBuf>) -> Result<WeightFiles> {
        let mut files = WeightFiles { shards, maps: Vec::new(), tensors: BTreeMap::new() };
        for (shard, path) in files.shards.iter().enumerate() {
            let map = map_file(path)?;
            for header::Entry { name, dtype, shape, start, len } in header::parse(path, &map)?.entries {
                if let Some(other) = files.tensors.get(&name) {
                    let found = format!("it in {} too", file_name(&files.shards[other.shard]));
                    return Err(Error::format(path, format!("tensor {name}"), "each tensor in one shard", found));
                }
                files.tensors.insert(name, TensorInfo { dtype, shape, shard, start, len });
            }
            files.maps.push(map);
        }
        Ok(files)
    }

    /// The index and the shards must name the same tensors in the same places.
    fn check_index(&self, index: &Index, path: &Path) -> Result<()> {
        for (name, shard) in &index.weight_map {
            let held = self.tensors.get(name).map(|info| file_name(&self.shards[info.shard]));
            if held.as_deref() != Some(shard) {
                let found = held.map_or("it in no shard".to_string(), |other| format!("it in {other}"));
                return Err(Error::format(path, format!("weight_map.{name}"), format!("the tensor in {shard}"), found));
            }
        }
        match self.tensors.iter().find(|(name, _)| !index.weight_map.contains_key(*name)) {
            None => Ok(()),
            Some((name, info)) => {
                let found = format!("one in {} that it does not list", file_name(&self.shards[info.shard]));
                Err(Error::format(path, format!("weight_map.{name}"), "every tensor of the shards", found))
            }
        }
    }

    /// A mapped tensor; copied into memory where the file does not align it.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let info = self.tensors.get(name).ok_or_else(|| {
            let dir = self.shards.first().and_then(|s| s.parent()).unwrap_or(Path::new(""));
            Error::format(dir, format!("tensor {name}"), "this tensor", "none of that name")
        })?;
        let path = &self.shards[info.shard];
        let slice = MappedSlice::new(self.maps[info.shard].clone(), info.start, info.len)
            .ok_or_else(|| Error::format(path, name, "data inside the file", "an offset past its end"))?;
        let bytes = slice.clone();
        Ok(Tensor::mapped(slice, &info.shape, info.dtype).unwrap_or_else(|| {
            let mut copy = Tensor::zeros(&info.shape, info.dtype);
            copy.bytes_mut().copy_from_slice(bytes.bytes());
            copy
        }))
    }

    /// Bytes of all tensors.
    pub fn total_bytes(&self) -> u64 {
        self.tensors.values().map(|info| info.len as u64).sum()
    }

    /// The file that holds a tensor.
    pub fn path(&self, info: &TensorInfo) -> &Path {
        &self.shards[info.shard]
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Why a directory has no weights that can be read.
fn no_weights(dir: &Path) -> Error {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) => return Error::io(dir, "list")(e),
    };
    let mut names: Vec<String> = entries.filter_map(|e| Some(file_name(&e.ok()?.path()))).collect();
    names.sort();
    let first = |extension: &str| names.iter().find(|name| name.ends_with(extension));
    let expected = format!("{SINGLE} or {INDEX}");
    if let Some(name) = first(".safetensors") {
        return Error::format(dir, "weights", expected, format!("{name} without an index"));
    }
    if let Some(name) = first(".gguf") {
        let instead = format!("run `ratoon convert {} DIR` and use DIR", dir.join(name).display());
        return Error::unsupported(dir, format!("a directory with {name}"), instead);
    }
    if let Some(name) = names.iter().find(|name| pickle::is_pickle(name)) {
        return pickle::refuse_model(&dir.join(name));
    }
    Error::format(dir, "weights", expected, "neither")
}
