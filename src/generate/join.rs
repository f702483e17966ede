//! The results of all shards put together: the bytes that one run gives.

use super::resume::manifest_path;
use super::{Shard, provenance};
use crate::data;
use crate::error::{Error, Result};
use crate::output::{OutputLock, write_file};
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader, Lines};
use std::path::{Path, PathBuf};

/// A finished shard, read line by line.
struct Part {
    path: PathBuf,
    lines: Lines<BufReader<File>>,
}

/// Writes the rows of `shards`, results of `generate` or `distill` over `input`, to `output` in the order of the input, with the
/// manifest that one run would have written but for its statistics. Gives the number of rows.
///
/// Errors: a shard without manifest is not complete; shards of different settings or of another input; one that is missing or
/// given twice; rows that are not the input's; an output that is there already.
pub fn join(input: &Path, shards: &[PathBuf], output: &Path) -> Result<usize> {
    let _lock = OutputLock::acquire(output)?;
    if output.exists() {
        let expected = "a path that does not exist yet";
        return Err(Error::usage(format!("output {}", output.display()), expected, "an existing one"));
    }
    let (mut parts, settings) = open(shards)?;
    let sha256 = provenance::file_sha256(input)?;
    if !["input_sha256", "data_sha256"].iter().any(|name| settings.get(*name) == Some(&json!(sha256))) {
        return Err(Error::usage("--input", "the file that the shards were made from", input.display().to_string()));
    }
    let id_field = settings.get("id_field").and_then(Value::as_str);
    let limit = settings.get("limit").and_then(Value::as_u64).map_or(usize::MAX, |limit| limit as usize);
    let count = parts.len() as u64;
    let (mut number, mut error) = (0, None);
    let mut rows = data::objects(input, false)?;
    let mut next_line = || -> Result<Option<String>> {
        if number == limit {
            return Ok(None);
        }
        let Some(row) = rows.next() else { return Ok(None) };
        let (line, fields) = row?;
        let at = rows.place(line);
        let batch = fields.contains_key("body").then_some("custom_id");
        let id = data::row_id(input, &at, &fields, id_field.or(batch), number)?;
        number += 1;
        let part = (0..count).find(|&index| Shard { index, count }.contains(&id)).unwrap_or(0);
        let Part { path, lines } = &mut parts[part as usize];
        let wrong = |found: &str| Error::format(path, format!("row {id:?}"), "the row's result", found);
        let line = lines.next().ok_or_else(|| wrong("the end of the file"))?.map_err(Error::io(path, "read"))?;
        let found: Value = serde_json::from_str(&line).map_err(|e| wrong(&e.to_string()))?;
        if found["id"].as_str() != Some(&id) {
            return Err(wrong(&found["id"].to_string()));
        }
        Ok(Some(line))
    };
    write_file(output, |out| {
        loop {
            match next_line() {
                Ok(Some(line)) => writeln!(out, "{line}")?,
                Ok(None) => return Ok(()),
                Err(e) => {
                    error = Some(e);
                    return Err(std::io::ErrorKind::InvalidData.into());
                }
            }
        }
    })
    .map_err(|io| error.take().unwrap_or(io))?;
    for Part { path, lines } in &mut parts {
        if lines.next().is_some() {
            return Err(Error::format(path, "end", "no more rows than the input has", "another line"));
        }
    }
    let names: Vec<String> = shards.iter().map(|path| path.display().to_string()).collect();
    let manifest = json!({"ratoon": env!("CARGO_PKG_VERSION"), "settings": settings, "rows": number, "shards": names});
    write_file(&manifest_path(output), |out| serde_json::to_writer_pretty(out, &manifest).map_err(Into::into))?;
    Ok(number)
}

/// The shards in the order of their index, and their common settings, those of the whole.
fn open(shards: &[PathBuf]) -> Result<(Vec<Part>, Map<String, Value>)> {
    let (mut parts, mut common) = (Vec::new(), None);
    parts.resize_with(shards.len(), || None);
    for path in shards {
        let manifest = manifest_path(path);
        let text = std::fs::read(&manifest).map_err(Error::io(&manifest, "read"))?;
        let wrong = |expected: &str, found: String| Error::format(&manifest, "settings", expected, found);
        let manifest: Value = serde_json::from_slice(&text).map_err(|e| wrong("JSON", e.to_string()))?;
        let mut settings = manifest["settings"].as_object().cloned().unwrap_or_default();
        let shard = settings.insert("shard".into(), json!(Shard::ALL.to_string())).unwrap_or_default();
        let shard: Shard = shard.as_str().unwrap_or_default().parse()?;
        if shard.count != shards.len() as u64 {
            return Err(wrong(&format!("one of {} shards", shards.len()), format!("shard {shard}")));
        }
        if let Some(other) = common.replace(settings.clone())
            && let Some(name) = settings.keys().find(|name| settings.get(*name) != other.get(*name))
        {
            let was = other.get(name).unwrap_or(&Value::Null);
            return Err(wrong(&format!("{name} {was} as in the other shards"), settings[name].to_string()));
        }
        let file = File::open(path).map_err(Error::io(path, "open"))?;
        let part = Part { path: path.clone(), lines: BufReader::new(file).lines() };
        if parts[shard.index as usize].replace(part).is_some() {
            return Err(wrong("every shard once", format!("shard {shard} again")));
        }
    }
    // As many places as shards, each filled once.
    Ok((parts.into_iter().flatten().collect(), common.unwrap_or_default()))
}
