//! Models of the Hugging Face hub.

use crate::error::{Error, Result};
use std::path::PathBuf;
use std::str::FromStr;

/// `ORG/NAME[@REVISION]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Repository {
    owner: String,
    name: String,
    /// Branch, tag or commit; `main` when none is given.
    revision: String,
}

impl FromStr for Repository {
    type Err = Error;

    fn from_str(spec: &str) -> Result<Repository> {
        let (path, revision) = spec.split_once('@').unwrap_or((spec, "main"));
        let plain = |text: &str| {
            text.starts_with(|c: char| c.is_ascii_alphanumeric())
                && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        };
        match path.split_once('/') {
            Some((owner, name)) if plain(owner) && plain(name) && revision.split('/').all(plain) => {
                Ok(Repository { owner: owner.to_string(), name: name.to_string(), revision: revision.to_string() })
            }
            _ => Err(Error::usage("model", "hf:ORG/NAME[@REVISION]", format!("hf:{spec}"))),
        }
    }
}

#[cfg(not(feature = "hf-hub"))]
pub(super) fn resolve(repository: &Repository) -> Result<PathBuf> {
    let Repository { owner, name, revision } = repository;
    let found = format!("hf:{owner}/{name}@{revision} in a build without it; build with `--features hf-hub`");
    Err(Error::usage("model", "a source that this build supports", found))
}

/// The files a model directory may need; weights in other formats stay on the hub.
#[cfg(feature = "hf-hub")]
const PATTERNS: [&str; 3] = ["*.json", "*.safetensors", "*.jinja"];

#[cfg(feature = "hf-hub")]
pub(super) fn resolve(repository: &Repository) -> Result<PathBuf> {
    let Repository { owner, name, revision } = repository;
    let failed = |e: hf_hub::HFError| Error::Program {
        program: format!("hf:{owner}/{name}@{revision}"),
        message: e.to_string(),
    };
    let offline = std::env::var("HF_HUB_OFFLINE")
        .is_ok_and(|v| matches!(v.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE"));
    crate::progress::line(&format!(
        "hf:{owner}/{name}@{revision}: {}",
        if offline { "from the cache" } else { "fetching" }
    ));
    let client = hf_hub::HFClientSync::new().map_err(failed)?;
    client
        .model(owner.as_str(), name.as_str())
        .snapshot_download()
        .revision(revision.as_str())
        .allow_patterns(PATTERNS.map(String::from).to_vec())
        .local_files_only(offline)
        .send()
        .map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repository_names_are_checked() {
        let plain: Repository = "meta-llama/Llama-3.1-8B".parse().unwrap();
        assert_eq!((plain.owner.as_str(), plain.revision.as_str()), ("meta-llama", "main"));
        let at: Repository = "a/b@refs/pr/1".parse().unwrap();
        assert_eq!(at.revision, "refs/pr/1");
        for bad in ["", "a", "a/", "/b", "a/b/c", "../b", "a/..", "a/b@", "a/b@../x", "a b/c"] {
            assert_eq!(bad.parse::<Repository>().unwrap_err().exit_code(), 2, "{bad}");
        }
    }
}
