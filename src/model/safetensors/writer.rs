//! Streamed writing of safetensors files: headers first, then the bytes of the tensors in order, in shards of a chosen size.

use super::{INDEX, SINGLE};
use crate::device::DType;
use crate::error::{Error, Result};
use crate::output::write_file;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSpec {
    /// Name.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Dimensions, slowest first.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// A tensor to be written.
    pub fn new(name: impl Into<String>, dtype: DType, shape: &[usize]) -> TensorSpec {
        TensorSpec { name: name.into(), dtype, shape: shape.to_vec() }
    }

    /// Bytes of its elements.
    pub fn size_bytes(&self) -> u64 {
        self.shape.iter().map(|&d| d as u64).product::<u64>() * self.dtype.size() as u64
    }
}

/// The tensors of one file.
#[derive(Clone, Debug)]
struct Shard {
    name: String,
    tensors: Vec<TensorSpec>,
}

/// Writes a model's tensors in the order in which they were announced, holding none of them in memory.
///
/// The directory should be that of a [`StagedDir`](crate::output::StagedDir): the files are synced, but not whole before
/// [`finish`](SafetensorsWriter::finish). One shard is named `model.safetensors`, several get the Hugging Face names and an
/// index.
///
/// ```
/// use ratoon::device::DType;
/// use ratoon::model::safetensors::{SafetensorsWriter, TensorSpec, WeightFiles};
/// let dir = tempfile::tempdir().unwrap();
/// let mut writer = SafetensorsWriter::create(dir.path(), vec![TensorSpec::new("x", DType::F32, &[2])], None)?;
/// writer.append(&1.5f32.to_le_bytes())?;
/// writer.append(&2.5f32.to_le_bytes())?;
/// writer.finish()?;
/// assert_eq!(WeightFiles::open(dir.path())?.tensor("x")?.f32(), [1.5, 2.5]);
/// # Ok::<(), ratoon::Error>(())
/// ```
pub struct SafetensorsWriter {
    dir: PathBuf,
    shards: Vec<Shard>,
    /// Shard and tensor that the next bytes belong to, and how many bytes it still needs.
    shard: usize,
    tensor: usize,
    missing: u64,
    file: Option<File>,
}

impl SafetensorsWriter {
    /// Plans the files. A shard grows to at most `max_shard_size` bytes of tensors (a larger tensor gets a shard of its own);
    /// `None`: one file.
    pub fn create(dir: &Path, tensors: Vec<TensorSpec>, max_shard_size: Option<u64>) -> Result<SafetensorsWriter> {
        let mut groups: Vec<Vec<TensorSpec>> = vec![Vec::new()];
        let mut bytes = 0u64;
        for tensor in tensors {
            let size = tensor.size_bytes();
            if bytes > 0 && max_shard_size.is_some_and(|max| bytes + size > max) {
                groups.push(Vec::new());
                bytes = 0;
            }
            bytes += size;
            // `groups` is never empty.
            if let Some(group) = groups.last_mut() {
                group.push(tensor);
            }
        }
        let n = groups.len();
        let name = |i: usize| if n == 1 { SINGLE.into() } else { format!("model-{:05}-of-{n:05}.safetensors", i + 1) };
        let shards = groups.into_iter().enumerate().map(|(i, tensors)| Shard { name: name(i), tensors }).collect();
        let mut writer =
            SafetensorsWriter { dir: dir.to_path_buf(), shards, shard: 0, tensor: 0, missing: 0, file: None };
        writer.open_shard()?;
        writer.skip_finished()?;
        Ok(writer)
    }

    /// Names of the files that are written, in order.
    pub fn file_names(&self) -> Vec<String> {
        self.shards.iter().map(|shard| shard.name.clone()).collect()
    }

    /// The next bytes (little-endian) of the tensor that is being written; they may end before the tensor does and go on into
    /// the next one.
    pub fn append(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let path = self.path();
            let Some(file) = self.file.as_mut() else {
                let found = format!("{} more", bytes.len());
                return Err(Error::format(&path, "end", "no bytes after the last tensor", found));
            };
            let (now, later) = bytes.split_at((self.missing as usize).min(bytes.len()));
            file.write_all(now).map_err(Error::io(&path, "write"))?;
            self.missing -= now.len() as u64;
            bytes = later;
            self.skip_finished()?;
        }
        Ok(())
    }

    /// The file that the next bytes go to, for those who copy them there themselves (`copy_file_range`) and then report them
    /// with [`SafetensorsWriter::advance`]. `None` after the last tensor.
    pub fn file(&mut self) -> Option<&mut File> {
        self.file.as_mut()
    }

    /// Counts `bytes` that were written to [`SafetensorsWriter::file`], at most those that the current tensor still needs.
    pub fn advance(&mut self, bytes: u64) -> Result<()> {
        if bytes > self.missing {
            let (expected, found) = (format!("at most {} bytes", self.missing), bytes.to_string());
            return Err(Error::format(&self.path(), "current tensor", expected, found));
        }
        self.missing -= bytes;
        self.skip_finished()
    }

    /// Ends the last file and writes the index when there are several.
    pub fn finish(self) -> Result<()> {
        if let Some(tensor) = self.shards.get(self.shard).and_then(|shard| shard.tensors.get(self.tensor)) {
            let (expected, found) = (format!("{} more bytes", self.missing), "the end");
            return Err(Error::format(&self.path(), format!("tensor {}", tensor.name), expected, found));
        }
        if self.shards.len() == 1 {
            return Ok(());
        }
        let all = || self.shards.iter().flat_map(|shard| shard.tensors.iter().map(move |tensor| (shard, tensor)));
        let total: u64 = all().map(|(_, tensor)| tensor.size_bytes()).sum();
        let mut map: Vec<(&str, &str)> = all().map(|(shard, tensor)| (&*tensor.name, &*shard.name)).collect();
        map.sort_unstable();
        let map: Map<String, Value> = map.into_iter().map(|(tensor, shard)| (tensor.into(), shard.into())).collect();
        let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
        write_file(&self.dir.join(INDEX), |out| {
            serde_json::to_writer_pretty(&mut *out, &index)?;
            writeln!(out)
        })
    }

    fn path(&self) -> PathBuf {
        let shard = &self.shards[self.shard.min(self.shards.len() - 1)];
        self.dir.join(&shard.name)
    }

    fn open_shard(&mut self) -> Result<()> {
        let path = self.path();
        let mut file = File::create(&path).map_err(Error::io(&path, "create"))?;
        file.write_all(&header_bytes(&self.shards[self.shard].tensors)).map_err(Error::io(&path, "write"))?;
        self.missing = self.shards[self.shard].tensors.first().map_or(0, TensorSpec::size_bytes);
        self.file = Some(file);
        Ok(())
    }

    /// Goes on to the next tensor that needs bytes, and to the next file after the last of one.
    fn skip_finished(&mut self) -> Result<()> {
        while self.missing == 0 && self.shard < self.shards.len() {
            self.tensor += 1;
            if let Some(tensor) = self.shards[self.shard].tensors.get(self.tensor) {
                self.missing = tensor.size_bytes();
                continue;
            }
            let path = self.path();
            if let Some(file) = self.file.take() {
                file.sync_all().map_err(Error::io(&path, "sync"))?;
            }
            (self.shard, self.tensor) = (self.shard + 1, 0);
            if self.shard < self.shards.len() {
                self.open_shard()?;
            }
        }
        Ok(())
    }
}

/// A size such as `5GB`, `500MB` or `1GiB`, as `transformers` takes it for `max_shard_size`; plain digits are bytes.
pub fn parse_size(text: &str) -> std::result::Result<u64, String> {
    let units =
        [("KIB", 1 << 10), ("MIB", 1 << 20), ("GIB", 1 << 30), ("KB", 1_000), ("MB", 1_000_000), ("GB", 1_000_000_000)];
    let upper = text.trim().to_ascii_uppercase();
    let unit = units.iter().find_map(|&(unit, bytes)| Some((upper.strip_suffix(unit)?, bytes)));
    let (digits, unit) = unit.unwrap_or((&upper, 1u64));
    let bytes = digits.trim().parse::<u64>().ok().and_then(|n| n.checked_mul(unit)).filter(|&n| n > 0);
    bytes.ok_or_else(|| "expected a size such as 5GB, 500MB or 1GiB".to_string())
}

/// Length and JSON of a file that holds `tensors` in their order, padded with spaces so that the data starts on a multiple of 8.
/// `format: pt` is what `transformers` asks for.
pub fn header_bytes(tensors: &[TensorSpec]) -> Vec<u8> {
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({ "format": "pt" }));
    let mut start = 0;
    for tensor in tensors {
        let end = start + tensor.size_bytes();
        let entry = json!({ "dtype": tensor.dtype.to_string(), "shape": tensor.shape, "data_offsets": [start, end] });
        header.insert(tensor.name.clone(), entry);
        start = end;
    }
    let mut text = Value::Object(header).to_string();
    text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(8) - text.len()));
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}
