//! Rows of a Parquet file as JSON objects.

use crate::error::{Error, Result};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use serde_json::{Map, Value, json};
use std::fs::File;
use std::path::{Path, PathBuf};

/// Streams the rows of a Parquet file.
pub(super) struct Rows {
    rows: RowIter<'static>,
    path: PathBuf,
    row: usize,
    ended: bool,
}

impl Rows {
    pub(super) fn open(file: File, path: &Path) -> Result<Rows> {
        let broken = |e: parquet::errors::ParquetError| Error::format(path, "file", "a Parquet file", e.to_string());
        let reader = SerializedFileReader::new(file).map_err(broken)?;
        if reader.metadata().file_metadata().num_rows() == 0 {
            return Err(Error::format(path, "file", "at least one row", "no row"));
        }
        Ok(Rows { rows: RowIter::from_file_into(Box::new(reader)), path: path.to_path_buf(), row: 0, ended: false })
    }
}

impl Iterator for Rows {
    type Item = Result<(usize, Map<String, Value>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.rows.next()?;
        self.row += 1;
        self.ended = next.is_err();
        Some(match next {
            Ok(row) => Ok((self.row, object(&row))),
            Err(e) => {
                Err(Error::format(&self.path, format!("row {}", self.row), "a row that can be read", e.to_string()))
            }
        })
    }
}

fn object(row: &Row) -> Map<String, Value> {
    row.get_column_iter().map(|(name, field)| (name.clone(), value(field))).collect()
}

/// A field as JSON. Bytes that are UTF-8 become text (columns written without a logical type), others a list of numbers.
fn value(field: &Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(v) => json!(v),
        Field::Byte(v) => json!(v),
        Field::Short(v) => json!(v),
        Field::Int(v) | Field::Date(v) | Field::TimeMillis(v) => json!(v),
        Field::Long(v) | Field::TimeMicros(v) | Field::TimestampMillis(v) | Field::TimestampMicros(v) => json!(v),
        Field::UByte(v) => json!(v),
        Field::UShort(v) => json!(v),
        Field::UInt(v) => json!(v),
        Field::ULong(v) => json!(v),
        Field::Float16(v) => json!(v.to_f32()),
        Field::Float(v) => json!(v),
        Field::Double(v) => json!(v),
        Field::Decimal(_) => Value::String(field.to_string()),
        Field::Str(v) => json!(v),
        Field::Bytes(v) => match std::str::from_utf8(v.data()) {
            Ok(text) => json!(text),
            Err(_) => json!(v.data()),
        },
        Field::Group(row) => Value::Object(object(row)),
        Field::ListInternal(list) => list.elements().iter().map(value).collect(),
        Field::MapInternal(map) => {
            let entries = map.entries().iter();
            entries.map(|(k, v)| (value(k).as_str().map_or_else(|| k.to_string(), String::from), value(v))).collect()
        }
    }
}
