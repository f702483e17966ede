//! What templates written for `transformers` call beyond plain Jinja.

use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, Error, ErrorKind};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter};
use std::io::{self, Write};

/// Adds `raise_exception`, `strftime_now`, the methods of Python's strings and lists, and `tojson` as Python writes it.
pub(super) fn add(env: &mut Environment) {
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, format!("the template says: {message}")))
    });
    env.add_function("strftime_now", strftime_now);
    env.add_filter("tojson", tojson);
}

/// The local time, or that of `SOURCE_DATE_EPOCH` (seconds since 1970, UTC) so that prompts can be repeated on another day.
fn strftime_now(format: String) -> Result<String, Error> {
    let wrong = |e: String| Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {e}"));
    let now = match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(seconds) => {
            let seconds = seconds.parse().map_err(|e| wrong(format!("SOURCE_DATE_EPOCH={seconds}: {e}")))?;
            let time = jiff::Timestamp::from_second(seconds).map_err(|e| wrong(e.to_string()))?;
            time.to_zoned(jiff::tz::TimeZone::UTC)
        }
        Err(_) => jiff::Zoned::now(),
    };
    jiff::fmt::strtime::format(&format, &now).map_err(|e| wrong(e.to_string()))
}

/// `json.dumps(value, ensure_ascii=False, indent=…, sort_keys=…)`: no HTML escapes, a space after each comma and colon.
fn tojson(Serde(value): Serde<serde_json::Value>, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let sort_keys: Option<bool> = options.get("sort_keys")?;
    if options.get::<Option<bool>>("ensure_ascii")? == Some(true) {
        return Err(Error::new(ErrorKind::InvalidOperation, "tojson: ensure_ascii=true is not supported"));
    }
    options.assert_all_used()?;
    let value = if sort_keys == Some(true) { sorted(value) } else { value };
    let text = match indent {
        None => write(&value, PythonFormatter),
        Some(n) => write(&value, PrettyFormatter::with_indent(" ".repeat(n.min(16)).as_bytes())),
    };
    let text = text.map_err(|e| Error::new(ErrorKind::BadSerialization, format!("tojson: {e}")))?;
    Ok(Value::from_safe_string(text))
}

fn write(value: &serde_json::Value, formatter: impl Formatter) -> io::Result<String> {
    let mut out = Vec::new();
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter))?;
    String::from_utf8(out).map_err(io::Error::other)
}

fn sorted(value: serde_json::Value) -> serde_json::Value {
    match value {
        serde_json::Value::Object(map) => {
            let mut entries: Vec<_> = map.into_iter().map(|(key, value)| (key, sorted(value))).collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            serde_json::Value::Object(entries.into_iter().collect())
        }
        serde_json::Value::Array(items) => items.into_iter().map(sorted).collect(),
        other => other,
    }
}

/// Python's separators: `", "` and `": "`.
struct PythonFormatter;

impl Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}
