//! TensorBoard event files: TFRecord framing (length, masked CRC-32C, data, masked CRC-32C) around `Event` protobuf messages.
//!
//! Formats: `tensorflow/core/lib/io/record_writer.h`, `tensorflow/core/util/event.proto`, `summary.proto`.

use crate::error::{Error, Result};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Writes one `events.out.tfevents.*` file.
pub struct EventWriter {
    path: PathBuf,
    file: File,
}

impl EventWriter {
    /// A new file in `dir`; its name has the time, so a resumed run adds one.
    pub fn create(dir: &Path) -> Result<EventWriter> {
        let now = seconds();
        let name = format!("events.out.tfevents.{}.{:09}.ratoon", now as u64, (now.fract() * 1e9) as u64);
        let path = dir.join(name);
        let file = File::create(&path).map_err(Error::io(&path, "create"))?;
        let mut writer = EventWriter { path, file };
        // Event { wall_time = 1: double, file_version = 3: string }
        let mut event = double(1, now);
        event.extend(bytes(3, b"brain.Event:2"));
        writer.record(&event)?;
        Ok(writer)
    }

    /// Adds values at a step.
    pub fn scalars(&mut self, step: u64, values: &[(&str, f32)]) -> Result<()> {
        let event = scalar_event(seconds(), step, values);
        self.record(&event)
    }

    fn record(&mut self, data: &[u8]) -> Result<()> {
        self.file.write_all(&framed(data)).map_err(Error::io(&self.path, "write"))
    }
}

fn seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// `Event { wall_time = 1, step = 2: int64, summary = 5: Summary { value = 1: Value { tag = 1, simple_value = 2: float } } }`
fn scalar_event(wall_time: f64, step: u64, values: &[(&str, f32)]) -> Vec<u8> {
    let mut summary = Vec::new();
    for (tag, value) in values {
        let mut message = bytes(1, tag.as_bytes());
        message.push(2 << 3 | 5);
        message.extend(value.to_le_bytes());
        summary.extend(bytes(1, &message));
    }
    let mut event = double(1, wall_time);
    event.push(2 << 3);
    event.extend(varint(step));
    event.extend(bytes(5, &summary));
    event
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

fn bytes(field: u8, value: &[u8]) -> Vec<u8> {
    let mut out = vec![field << 3 | 2];
    out.extend(varint(value.len() as u64));
    out.extend(value);
    out
}

fn double(field: u8, value: f64) -> Vec<u8> {
    let mut out = vec![field << 3 | 1];
    out.extend(value.to_le_bytes());
    out
}

fn framed(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut out = length.to_vec();
    out.extend(masked_crc(&length).to_le_bytes());
    out.extend(data);
    out.extend(masked_crc(data).to_le_bytes());
    out
}

fn masked_crc(data: &[u8]) -> u32 {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), bit by bit: a few hundred bytes a step.
fn crc32c(data: &[u8]) -> u32 {
    !data.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Test vectors of RFC 3720, appendix B.4.
    #[test]
    fn the_checksum_is_crc32c() {
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    /// Bytes worked out by hand from the protobuf wire format.
    #[test]
    fn a_scalar_is_an_event_message() {
        let event = scalar_event(0.0, 300, &[("a", 1.0)]);
        let mut want = vec![0x09, 0, 0, 0, 0, 0, 0, 0, 0];
        want.extend([0x10, 0xac, 0x02]);
        want.extend([0x2a, 10, 0x0a, 8, 0x0a, 1, b'a', 0x15, 0, 0, 0x80, 0x3f]);
        assert_eq!(event, want);
    }
}
