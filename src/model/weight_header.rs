//! The header of a safetensors file as raw bytes, for copying and hashing; `safetensors.rs` interprets it.

use crate::error::{Error, Result};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Length field and header of a weight file that [`super::safetensors::WeightFiles`] has checked: the bytes before the data.
pub fn header_bytes(path: &Path) -> Result<Vec<u8>> {
    let mut file = File::open(path).map_err(Error::io(path, "open"))?;
    let mut bytes = vec![0; 8];
    file.read_exact(&mut bytes).map_err(Error::io(path, "read"))?;
    let len = bytes.iter().rev().fold(0u64, |n, &byte| n << 8 | u64::from(byte));
    file.take(len).read_to_end(&mut bytes).map_err(Error::io(path, "read"))?;
    Ok(bytes)
}
