//! Result files that are appended to in input order and survive a kill.
//!
//! While a run goes on, finished rows are appended to `.NAME.unfinished` beside the output, with the settings in
//! `.NAME.unfinished.json`. A row goes there as soon as all rows before it have: the file is always a beginning of the final one.
//! Until then it is kept in `.NAME.unfinished.ahead`, each line a row's index and the row. The same command run again drops torn
//! last lines and does what is in neither file. At the end the file gets its name and `NAME.manifest.json` is written last: an
//! output with a manifest is complete.

use crate::error::{Error, Result};
use crate::output::{OutputLock, parent, refuse_other_than_file, sync_dir, write_file};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Most time between two fsyncs: what a power cut can cost.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);

/// What [`open`] found.
pub enum Opened {
    /// The output is complete and has the same settings: its manifest.
    Finished(Value),
    /// Rows are to be written (again).
    Unfinished(Unfinished),
}

/// An output that is being written.
pub struct Unfinished {
    target: PathBuf,
    partial: PathBuf,
    out: BufWriter<File>,
    ahead: File,
    settings: Map<String, Value>,
    /// Rows that an earlier run left, by their index.
    earlier: BTreeMap<usize, Value>,
    /// Index of the next row to write.
    next: usize,
    /// Finished rows that wait for one before them.
    pending: BTreeMap<usize, String>,
    synced: Instant,
    _lock: OutputLock,
}

fn beside(target: &Path, prefix: &str, suffix: &str) -> PathBuf {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    parent(target).join(format!("{prefix}{name}{suffix}"))
}

/// Where the manifest of an output stands.
pub fn manifest_path(target: &Path) -> PathBuf {
    beside(target, "", ".manifest.json")
}

fn read_json(path: &Path) -> Result<Value> {
    let text = fs::read(path).map_err(Error::io(path, "read"))?;
    serde_json::from_slice(&text).map_err(|e| Error::format(path, "file", "a JSON object", e.to_string()))
}

/// An error that names the first setting which differs from those of an earlier run; of a group (the model's files), the first
/// of its members.
fn compare(target: &Path, earlier: &Value, settings: &Map<String, Value>) -> Result<()> {
    fn differing(place: String, was: &Value, is: &Value) -> Option<(String, Value, Value)> {
        let (Value::Object(earlier), Value::Object(now)) = (was, is) else {
            return (was != is).then(|| (place, was.clone(), is.clone()));
        };
        now.keys().chain(earlier.keys()).find_map(|key| {
            let value = |map: &Map<String, Value>| map.get(key).cloned().unwrap_or(Value::Null);
            differing(format!("{place} {key}"), &value(earlier), &value(now))
        })
    }
    let Some((place, was, is)) = differing("setting".into(), earlier, &Value::Object(settings.clone())) else {
        return Ok(());
    };
    let expected = format!("{} as in the run that began it (or --overwrite to start again)", shown(&was));
    Err(Error::usage(format!("{}: {place}", target.display()), expected, shown(&is)))
}

/// A setting as the user gave it: one that was kept in 32 bits has the digits of 32 bits.
fn shown(value: &Value) -> String {
    let short = value.as_f64().filter(|_| value.is_f64()).filter(|&x| f64::from(x as f32) == x);
    short.map_or_else(|| value.to_string(), |x| (x as f32).to_string())
}

/// Opens an output to write or to go on with. `settings` are what the rows depend on; an earlier run with others is an error
/// that names the first one which differs, unless `overwrite`. [`Error::Locked`] while another process writes.
pub fn open(target: &Path, settings: Map<String, Value>, overwrite: bool) -> Result<Opened> {
    refuse_other_than_file(target)?;
    let lock = OutputLock::acquire(target)?;
    let (partial, begun) = (beside(target, ".", ".unfinished"), beside(target, ".", ".unfinished.json"));
    let ahead = beside(target, ".", ".unfinished.ahead");
    let manifest = manifest_path(target);
    if overwrite {
        // The settings first: rows without them count for nothing, at whatever moment the process is killed.
        for path in [&begun, &partial, &ahead, &manifest] {
            remove(path)?;
        }
    } else if manifest.exists() && target.exists() {
        let manifest = read_json(&manifest)?;
        compare(target, &manifest["settings"], &settings)?;
        // Killed between the manifest and here.
        remove(&ahead)?;
        remove(&begun)?;
        return Ok(Opened::Finished(manifest));
    } else if begun.exists() && !holds_rows(&partial)? && !holds_rows(&ahead)? && !target.exists() {
        // An earlier run that did no row: there is nothing that other settings would contradict.
        remove(&begun)?;
    } else if begun.exists() {
        compare(target, &read_json(&begun)?, &settings)?;
        if target.exists() && !partial.exists() {
            // Killed between giving the file its name and writing the manifest.
            fs::rename(target, &partial).map_err(Error::io(target, "rename"))?;
        }
    } else if target.exists() {
        let expected = "a path that does not exist yet (or --overwrite)";
        return Err(Error::usage(format!("output {}", target.display()), expected, "an existing one"));
    }
    let append = |path: &Path| {
        let file = OpenOptions::new().read(true).append(true).create(true).open(path);
        file.map_err(Error::io(path, "open"))
    };
    let (file, ahead_file) = (append(&partial)?, append(&ahead)?);
    if !begun.exists() {
        // Only now, so that settings beside an output but no file of rows always mean that this file was renamed.
        file.set_len(0).map_err(Error::io(&partial, "cut"))?;
        ahead_file.set_len(0).map_err(Error::io(&ahead, "cut"))?;
        write_file(&begun, |out| serde_json::to_writer_pretty(out, &settings).map_err(Into::into))?;
    }
    let written = whole_lines(&file, &partial)?;
    let next = written.len();
    let mut earlier: BTreeMap<usize, Value> = written.into_iter().enumerate().collect();
    let mut pending = BTreeMap::new();
    for (number, mut line) in whole_lines(&ahead_file, &ahead)?.into_iter().enumerate() {
        let index = line.get(0).and_then(Value::as_u64);
        let (Some(index), Some(row)) = (index, line.get_mut(1).map(Value::take)) else {
            let expected = "a row's index and the row";
            return Err(Error::format(&ahead, format!("line {}", number + 1), expected, line.to_string()));
        };
        if index as usize >= next {
            pending.insert(index as usize, row.to_string());
            earlier.insert(index as usize, row);
        }
    }
    let (target, out) = (target.to_path_buf(), BufWriter::new(file));
    let mut unfinished = Unfinished {
        target,
        partial,
        out,
        ahead: ahead_file,
        settings,
        earlier,
        next,
        pending,
        synced: Instant::now(),
        _lock: lock,
    };
    unfinished.write_pending()?;
    Ok(Opened::Unfinished(unfinished))
}

/// Whether the file of unfinished rows has any.
fn holds_rows(path: &Path) -> Result<bool> {
    match fs::metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        other => Ok(other.map_err(Error::io(path, "read"))?.len() > 0),
    }
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path, "remove")(e)),
        _ => Ok(()),
    }
}

/// The rows of a file; what stands behind the last line break was cut while being written and is removed.
fn whole_lines(file: &File, path: &Path) -> Result<Vec<Value>> {
    let (mut reader, mut line) = (BufReader::new(file), Vec::new());
    let (mut rows, mut bytes) = (Vec::new(), 0);
    loop {
        line.clear();
        reader.read_until(b'\n', &mut line).map_err(Error::io(path, "read"))?;
        if line.last() != Some(&b'\n') {
            file.set_len(bytes).map_err(Error::io(path, "cut"))?;
            return Ok(rows);
        }
        let row = serde_json::from_slice(&line);
        let place = || format!("line {}", rows.len() + 1);
        let row = row.map_err(|e| Error::format(path, place(), "a JSON value", e.to_string()))?;
        rows.push(row);
        bytes += line.len() as u64;
    }
}

impl Unfinished {
    /// The rows that an earlier run left, by their index.
    pub fn earlier(&self) -> &BTreeMap<usize, Value> {
        &self.earlier
    }

    /// Hands over the row of an index. It takes its place once all rows before it have theirs.
    pub fn push(&mut self, index: usize, row: &Value) -> Result<()> {
        self.pending.insert(index, row.to_string());
        let ahead = beside(&self.target, ".", ".unfinished.ahead");
        if index == self.next {
            self.write_pending()?;
        } else {
            // One write a line, so that a killed process loses none.
            self.ahead.write_all(format!("[{index},{row}]\n").as_bytes()).map_err(Error::io(&ahead, "write"))?;
        }
        if self.synced.elapsed() > SYNC_INTERVAL {
            self.out.get_ref().sync_data().map_err(Error::io(&self.partial, "sync"))?;
            self.ahead.sync_data().map_err(Error::io(&ahead, "sync"))?;
            self.synced = Instant::now();
        }
        Ok(())
    }

    /// Writes the rows whose turn it is. They reach the system at once, so that a killed process loses none.
    fn write_pending(&mut self) -> Result<()> {
        while let Some(line) = self.pending.remove(&self.next) {
            writeln!(self.out, "{line}").map_err(Error::io(&self.partial, "write"))?;
            self.next += 1;
        }
        self.out.flush().map_err(Error::io(&self.partial, "write"))
    }

    /// Gives the output its name and writes the manifest: the settings, then `results`.
    pub fn finish(self, results: Map<String, Value>) -> Result<Value> {
        let Unfinished { target, partial, out, settings, .. } = self;
        let file = out.into_inner().map_err(|e| Error::io(&partial, "write")(e.into_error()))?;
        file.sync_all().map_err(Error::io(&partial, "sync"))?;
        fs::rename(&partial, &target).map_err(Error::io(&target, "rename into place"))?;
        sync_dir(parent(&target))?;
        let mut manifest = json!({"ratoon": env!("CARGO_PKG_VERSION"), "settings": settings});
        if let Some(map) = manifest.as_object_mut() {
            map.extend(results);
        }
        write_file(&manifest_path(&target), |out| serde_json::to_writer_pretty(out, &manifest).map_err(Into::into))?;
        for left in [".unfinished.ahead", ".unfinished.json"].map(|suffix| beside(&target, ".", suffix)) {
            remove(&left)?;
        }
        Ok(manifest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(seed: u64) -> Map<String, Value> {
        Map::from_iter([("model".to_string(), json!("m")), ("seed".to_string(), json!(seed))])
    }

    fn unfinished(target: &Path) -> Unfinished {
        match open(target, settings(0), false).unwrap() {
            Opened::Unfinished(unfinished) => unfinished,
            Opened::Finished(_) => panic!("the output is not complete"),
        }
    }

    #[test]
    fn rows_come_in_input_order_and_a_cut_run_goes_on_behind_the_last_whole_row() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out.jsonl");
        let mut first = unfinished(&target);
        for index in [1, 0, 3] {
            first.push(index, &json!({"row": index})).unwrap();
        }
        drop(first);
        let partial = dir.path().join(".out.jsonl.unfinished");
        assert_eq!(fs::read_to_string(&partial).unwrap(), "{\"row\":0}\n{\"row\":1}\n");
        fs::write(&partial, "{\"row\":0}\n{\"row\":1}\n{\"ro").unwrap();
        let ahead = dir.path().join(".out.jsonl.unfinished.ahead");
        let kept = fs::read_to_string(&ahead).unwrap();
        fs::write(&ahead, kept + "[2,{\"ro").unwrap();
        let mut second = unfinished(&target);
        let indices: Vec<usize> = second.earlier().keys().copied().collect();
        assert_eq!(indices, [0, 1, 3], "a row that waits for one before it is not lost either");
        assert_eq!(second.earlier()[&3], json!({"row": 3}));
        assert!(!target.exists());
        second.push(2, &json!({"row": 2})).unwrap();
        second.finish(Map::new()).unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "{\"row\":0}\n{\"row\":1}\n{\"row\":2}\n{\"row\":3}\n");
        assert!(
            matches!(open(&target, settings(0), false).unwrap(), Opened::Finished(m) if m["settings"]["seed"] == 0)
        );
    }

    #[test]
    fn a_run_killed_before_its_manifest_is_completed() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out.jsonl");
        let mut first = unfinished(&target);
        first.push(0, &json!({})).unwrap();
        drop(first);
        fs::rename(dir.path().join(".out.jsonl.unfinished"), &target).unwrap();
        let again = unfinished(&target);
        assert_eq!(again.earlier().len(), 1);
        again.finish(Map::new()).unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "{}\n");
    }

    #[test]
    fn other_settings_are_an_error_that_names_the_setting_until_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out.jsonl");
        let fails = |target: &Path| {
            let error = open(target, settings(1), false).err().unwrap().to_string();
            assert!(
                error.contains("setting seed") && error.contains("expected 0") && error.ends_with("found 1"),
                "{error}"
            );
        };
        assert!(matches!(open(&target, settings(1), false), Ok(Opened::Unfinished(_))));
        // That run did no row: it stands in nobody's way.
        let mut first = unfinished(&target);
        assert!(matches!(open(&target, settings(0), false), Err(Error::Locked { .. })), "one writer at a time");
        first.push(0, &json!({})).unwrap();
        drop(first);
        fails(&target);
        unfinished(&target).finish(Map::new()).unwrap();
        fails(&target);
        assert!(matches!(open(&target, settings(1), true), Ok(Opened::Unfinished(_))));
    }

    #[test]
    fn a_setting_that_is_a_group_is_named_by_the_member_that_differs() {
        let group = |b: f32| json!({"model": {"a.json": "x", "b.json": b}});
        let error = compare(Path::new("out"), &group(0.9), group(0.5).as_object().unwrap()).unwrap_err().to_string();
        assert!(
            error.starts_with("out: setting model b.json: expected 0.9 as") && error.ends_with("found 0.5"),
            "{error}"
        );
        assert!(compare(Path::new("out"), &group(0.9), group(0.9).as_object().unwrap()).is_ok());
    }

    #[test]
    fn a_file_of_someone_else_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out.jsonl");
        fs::write(&target, "precious").unwrap();
        assert!(open(&target, settings(0), false).is_err());
        assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
    }
}
