//! Which model and which data a result came from.

use crate::device::Device;
use crate::error::{Error, Result};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Bytes of one sample of a weight file, and how many are taken, evenly spread: enough to tell two models of one shape apart
/// without reading 16 GB.
const SAMPLE: usize = 64 << 10;
const SAMPLES: u64 = 64;

fn hex(digest: impl AsRef<[u8]>) -> String {
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SHA-256 of a whole file.
pub fn file_sha256(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(Error::io(path, "open"))?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).map_err(Error::io(path, "read"))? {
            0 => return Ok(hex(hash.finalize())),
            n => hash.update(&buffer[..n]),
        }
    }
}

/// What tells a model directory from another: SHA-256 of its small files (config, tokenizer, template), and for each weight
/// file its size with the SHA-256 of 64 samples of 64 KiB. A number or word changed anywhere else in a weight file goes unseen.
pub fn model_fingerprint(dir: &Path) -> Result<Value> {
    let entries = std::fs::read_dir(dir).map_err(Error::io(dir, "list"))?;
    let mut paths =
        entries.map(|e| Ok(e?.path())).collect::<std::io::Result<Vec<PathBuf>>>().map_err(Error::io(dir, "list"))?;
    paths.sort();
    let mut files = Map::new();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with('.') || !path.is_file() {
            continue;
        }
        match path.extension().and_then(|e| e.to_str()) {
            Some("safetensors") => files.insert(name, sampled(&path)?),
            Some("json" | "jinja") => files.insert(name, file_sha256(&path)?.into()),
            _ => None,
        };
    }
    Ok(Value::Object(files))
}

/// What generated tokens depend on besides the data and how they are drawn: device, precision, model, adapter, and the draft with
/// its tokens at a time.
pub fn models(
    dev: &Device,
    model: &Path,
    adapter: Option<&Path>,
    draft: Option<(&Path, usize)>,
) -> Result<Map<String, Value>> {
    let draft = match draft {
        Some((draft, tokens)) => json!({"model": model_fingerprint(draft)?, "tokens": tokens}),
        None => Value::Null,
    };
    Ok(Map::from_iter([
        ("device".to_string(), json!(if dev.is_cpu() { "cpu" } else { "cuda" })),
        ("compute".to_string(), json!(dev.compute())),
        ("weights".to_string(), json!(dev.weights())),
        ("model".to_string(), model_fingerprint(model)?),
        ("adapter".to_string(), json!(adapter.map(model_fingerprint).transpose()?)),
        ("draft".to_string(), draft),
    ]))
}

fn sampled(path: &Path) -> Result<Value> {
    let mut file = File::open(path).map_err(Error::io(path, "open"))?;
    let bytes = file.metadata().map_err(Error::io(path, "read"))?.len();
    let (mut hash, mut buffer) = (Sha256::new(), Vec::with_capacity(SAMPLE));
    let stride = (bytes / SAMPLES).max(SAMPLE as u64);
    for start in (0..bytes).step_by(stride as usize) {
        buffer.clear();
        file.seek(SeekFrom::Start(start)).map_err(Error::io(path, "read"))?;
        Read::by_ref(&mut file).take(SAMPLE as u64).read_to_end(&mut buffer).map_err(Error::io(path, "read"))?;
        hash.update(&buffer);
    }
    Ok(json!({"bytes": bytes, "sampled_sha256": hex(hash.finalize())}))
}
