//! Names of models on the Hugging Face hub.

use crate::error::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// `ORG/NAME[@REVISION]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Repository {
    pub owner: String,
    pub name: String,
    /// Branch, tag or commit; `main` when none is given.
    pub revision: String,
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "hf:{}/{}@{}", self.owner, self.name, self.revision)
    }
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

#[cfg(feature = "hf-hub")]
pub(super) use super::snapshot::resolve;

#[cfg(not(feature = "hf-hub"))]
pub(super) fn resolve(repository: &Repository) -> Result<std::path::PathBuf> {
    let found = format!("{repository} in a build without it; build with `--features hf-hub`");
    Err(Error::usage("model", "a source that this build supports", found))
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
