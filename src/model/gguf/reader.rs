//! The GGUF container, versions 2 and 3: header, metadata, tensor directory, tensor data.

use super::cursor::Cursor;
use super::dequantise::GgmlType;
use super::metadata::{Metadata, read_value};
use crate::error::{Error, Result};
use crate::input::refuse_lfs_pointer;
use crate::model::mapped::map_file;
use memmap2::Mmap;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// One entry of the tensor directory.
#[derive(Clone, Debug, PartialEq)]
pub struct GgufTensor {
    /// Element format.
    pub kind: GgmlType,
    /// Dimensions, slowest first (`[out, in]`): the reverse of the file's order.
    pub shape: Vec<usize>,
    /// Byte offset in the file.
    pub start: usize,
    /// Bytes.
    pub len: usize,
}

/// A memory-mapped GGUF file whose directory has been checked.
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    map: Arc<Mmap>,
    /// Format version, 2 or 3.
    pub version: u32,
    /// The key-value pairs.
    pub metadata: Metadata,
    /// Tensors by name.
    pub tensors: BTreeMap<String, GgufTensor>,
}

impl GgufFile {
    /// Maps `path` and checks everything but the numbers: magic, version, lengths, types, and that every tensor lies inside the
    /// file, aligned, overlapping no other. Bytes that belong to nothing are allowed, as the format pads.
    pub fn open(path: &Path) -> Result<GgufFile> {
        let map = map_file(path)?;
        let (version, metadata, tensors) = parse(path, &map)?;
        Ok(GgufFile { path: path.to_path_buf(), map, version, metadata, tensors })
    }

    /// Where it was read.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The raw bytes of one of [`GgufFile::tensors`].
    pub fn bytes(&self, tensor: &GgufTensor) -> &[u8] {
        &self.map[tensor.start..tensor.start + tensor.len]
    }
}

type Parsed = (u32, Metadata, BTreeMap<String, GgufTensor>);

fn parse(path: &Path, bytes: &[u8]) -> Result<Parsed> {
    refuse_lfs_pointer(path, bytes)?;
    let mut cursor = Cursor::new(path, bytes);
    let magic = cursor.array::<4>("magic")?;
    if &magic != b"GGUF" {
        return Err(Error::format(
            path,
            "byte 0 (magic)",
            "\"GGUF\"",
            format!("{:?}", magic.escape_ascii().to_string()),
        ));
    }
    let version = cursor.u32("version")?;
    match version {
        2 | 3 => {}
        _ if matches!(version.swap_bytes(), 1..=3) => {
            return Err(Error::unsupported(path, "big-endian GGUF", "little-endian is"));
        }
        1 => return Err(Error::unsupported(path, "GGUF version 1", "versions 2 and 3 are")),
        other => return Err(Error::format(path, "byte 4 (version)", "2 or 3", other.to_string())),
    }
    let n_tensors = cursor.u64("tensor count")?;
    let n_pairs = cursor.u64("metadata count")?;
    let mut metadata = Metadata { values: BTreeMap::new(), path: path.to_path_buf() };
    // Counts are not trusted: nothing is reserved for them, and a count that is too large runs into the end of the file.
    for i in 0..n_pairs {
        let key = cursor.string(&format!("metadata key {i} of {n_pairs}"))?;
        let value = read_value(&mut cursor, &format!("metadata {key}"))?;
        if metadata.values.insert(key.to_string(), value).is_some() {
            return Err(Error::format(path, format!("metadata {key}"), "each key once", "it twice"));
        }
    }
    let alignment = metadata.unsigned("general.alignment")?.unwrap_or(32);
    if !alignment.is_power_of_two() || alignment > 1 << 20 {
        let place = "metadata general.alignment";
        return Err(Error::format(path, place, "a power of two up to 1048576", alignment.to_string()));
    }
    let mut tensors = BTreeMap::new();
    for i in 0..n_tensors {
        let (name, tensor) = read_tensor(path, &mut cursor, &format!("tensor {i} of {n_tensors}"), alignment)?;
        if tensors.insert(name.to_string(), tensor).is_some() {
            return Err(Error::format(path, name, "each tensor name once", "it twice"));
        }
    }
    let base = (cursor.position() as u64).next_multiple_of(alignment);
    place_tensors(path, &mut tensors, base, bytes.len() as u64)?;
    Ok((version, metadata, tensors))
}

/// Reads a directory entry; `start` is still relative to the data section.
fn read_tensor<'a>(path: &Path, cursor: &mut Cursor<'a>, what: &str, alignment: u64) -> Result<(&'a str, GgufTensor)> {
    let name = cursor.string(what)?;
    let n_dims = cursor.u32(name)?;
    if !(1..=4).contains(&n_dims) {
        return Err(cursor.error(name, "1 to 4 dimensions", n_dims.to_string()));
    }
    let mut sizes = Vec::with_capacity(4);
    for _ in 0..n_dims {
        sizes.push(cursor.u64(name)?);
    }
    let id = cursor.u32(name)?;
    let offset = cursor.u64(name)?;
    let kind = match GgmlType::from_id(id) {
        Some(kind) => kind,
        None if GgmlType::name_of(id).is_some() => {
            let what = format!("{name}: type {}", GgmlType::name_of(id).unwrap_or_default());
            return Err(Error::unsupported(path, what, format!("{} are", GgmlType::SUPPORTED)));
        }
        None => return Err(Error::format(path, name, "a known tensor type", id.to_string())),
    };
    let elements = sizes.iter().try_fold(1u64, |n, &size| n.checked_mul(size)).filter(|n| (1..1 << 48).contains(n));
    let elements = elements.ok_or_else(|| Error::format(path, name, "1 to 2^48 elements", format!("{sizes:?}")))?;
    let (block, block_bytes) = (kind.block_size() as u64, kind.block_bytes() as u64);
    if !sizes[0].is_multiple_of(block) {
        let expected = format!("rows of a multiple of {block} elements ({kind})");
        return Err(Error::format(path, name, expected, sizes[0].to_string()));
    }
    if !offset.is_multiple_of(alignment) {
        return Err(Error::format(path, name, format!("an offset aligned to {alignment}"), offset.to_string()));
    }
    // Below 2^48 elements the byte count cannot overflow.
    let len = elements / block * block_bytes;
    let start = usize::try_from(offset).map_err(|_| Error::format(path, name, "an offset", offset.to_string()))?;
    let shape = sizes.iter().rev().map(|&size| size as usize).collect();
    Ok((name, GgufTensor { kind, shape, start, len: len as usize }))
}

/// Turns relative offsets into offsets in the file and checks that all data is there, each byte owned once.
fn place_tensors(path: &Path, tensors: &mut BTreeMap<String, GgufTensor>, base: u64, file: u64) -> Result<()> {
    for (name, tensor) in tensors.iter_mut() {
        let start = base.checked_add(tensor.start as u64);
        let end = start.and_then(|start| start.checked_add(tensor.len as u64));
        match (start, end) {
            (Some(start), Some(end)) if end <= file => tensor.start = start as usize,
            _ => {
                let found = format!("{} bytes at {base} + {}", tensor.len, tensor.start);
                return Err(Error::format(path, name, format!("data inside the file of {file} bytes"), found));
            }
        }
    }
    let mut order: Vec<(&String, &GgufTensor)> = tensors.iter().collect();
    order.sort_by_key(|(_, tensor)| tensor.start);
    for pair in order.windows(2) {
        let ((first, a), (second, b)) = (pair[0], pair[1]);
        if a.start + a.len > b.start {
            let found = format!("it starts at byte {}, before {first} ends at {}", b.start, a.start + a.len);
            return Err(Error::format(path, second, "data of its own", found));
        }
    }
    Ok(())
}
