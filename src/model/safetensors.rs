//! Weight files of a model directory: `model.safetensors`, or shards with `model.safetensors.index.json`.

use crate::device::buffer::MappedSlice;
use crate::device::{DType, Tensor};
use crate::error::{Error, Result};
use memmap2::Mmap;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
    pub fn open(dir: &Path) -> Result<WeightFiles> {
        let single = dir.join("model.safetensors");
        let shards = if single.exists() {
            vec![single]
        } else {
            let mut shards: Vec<PathBuf> = std::fs::read_dir(dir)
                .map_err(Error::io(dir, "list"))?
                .filter_map(|e| e.ok().map(|e| e.path()))
                .filter(|p| p.extension().is_some_and(|e| e == "safetensors"))
                .collect();
            shards.sort();
            shards
        };
        let mut files = WeightFiles { shards, maps: Vec::new(), tensors: BTreeMap::new() };
        for (shard, path) in files.shards.iter().enumerate() {
            let file = std::fs::File::open(path).map_err(Error::io(path, "open"))?;
            // SAFETY: the file is read only; one that is cut short while mapped ends the process with a named error.
            let map = unsafe { Mmap::map(&file) }.map_err(Error::io(path, "map"))?;
            let (header, metadata) = safetensors::SafeTensors::read_metadata(&map)
                .map_err(|e| Error::format(path, "header", "a safetensors header", e.to_string()))?;
            for (name, info) in metadata.tensors() {
                let dtype = match info.dtype {
                    safetensors::Dtype::F32 => DType::F32,
                    safetensors::Dtype::F16 => DType::F16,
                    safetensors::Dtype::BF16 => DType::BF16,
                    other => {
                        return Err(Error::unsupported(path, format!("{name}: {other:?}"), "F32, F16 and BF16 are"));
                    }
                };
                let (start, end) = info.data_offsets;
                let start_in_file = 8 + header + start;
                let info =
                    TensorInfo { dtype, shape: info.shape.clone(), shard, start: start_in_file, len: end - start };
                files.tensors.insert(name, info);
            }
            files.maps.push(Arc::new(map));
        }
        Ok(files)
    }

    /// A mapped tensor; copied into memory where the file does not align it.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let info = self.tensors.get(name).ok_or_else(|| {
            let dir = self.shards.first().and_then(|s| s.parent()).unwrap_or(Path::new(""));
            Error::format(dir, name, "this tensor", "none of that name")
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
}
