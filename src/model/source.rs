//! Where a model comes from: a directory, a `.gguf`, `pypi:NAME==VERSION` or `hf:ORG/NAME`.

use crate::error::Result;
use std::path::PathBuf;

/// The local model directory that `spec` names, fetched, checked, converted and cached first where it has to be.
pub fn resolve(spec: &str) -> Result<PathBuf> {
    Ok(PathBuf::from(spec))
}
