//! Weights that Python's pickle wrote: refused, because reading one can run code, with the program that converts them.

use crate::error::Error;
use std::path::Path;

/// Endings of such files' names.
const ENDINGS: [&str; 4] = [".bin", ".pt", ".pth", ".ckpt"];

/// Whether a file's name says that it is one.
pub fn is_pickle(name: &str) -> bool {
    ENDINGS.iter().any(|ending| name.ends_with(ending))
}

/// The refusal of a model's weights.
pub fn refuse_model(path: &Path) -> Error {
    let convert = "from transformers import AutoModelForCausalLM as M; \
                   M.from_pretrained('IN').save_pretrained('OUT', safe_serialization=True)";
    refuse(path, convert)
}

/// The refusal of an adapter's weights.
pub fn refuse_adapter(path: &Path) -> Error {
    let convert = "import torch, safetensors.torch as s; \
                   s.save_file(torch.load('adapter_model.bin', weights_only=True), 'adapter_model.safetensors')";
    refuse(path, convert)
}

fn refuse(path: &Path, python: &str) -> Error {
    let instead = format!("it can run code when read. Convert it where you trust it: python3 -c \"{python}\"");
    Error::unsupported(path, "pickle", instead)
}
