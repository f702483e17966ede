//! Bytes of a file in order. Every read is checked against the end, so a file cut short anywhere gives a named error.

use crate::error::{Error, Result};
use std::path::Path;

/// A reading position in a memory-mapped file.
pub(super) struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    /// Starts at the first byte.
    pub fn new(path: &'a Path, bytes: &'a [u8]) -> Cursor<'a> {
        Cursor { path, bytes, position: 0 }
    }

    /// Offset of the next byte in the file.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Bytes left.
    pub fn remaining(&self) -> usize {
        self.bytes.len() - self.position
    }

    /// A [`Error::Format`] at the current position; `what` names the thing that is being read.
    pub fn error(&self, what: &str, expected: impl Into<String>, found: impl Into<String>) -> Error {
        Error::format(self.path, format!("byte {} ({what})", self.position), expected, found)
    }

    /// The next `len` bytes.
    pub fn take(&mut self, what: &str, len: u64) -> Result<&'a [u8]> {
        if len > self.remaining() as u64 {
            let found = format!("{} up to the end of the file", self.remaining());
            return Err(self.error(what, format!("{len} bytes"), found));
        }
        let start = self.position;
        self.position += len as usize;
        Ok(&self.bytes[start..self.position])
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(what, N as u64)?);
        Ok(bytes)
    }

    /// A little-endian u32.
    pub fn u32(&mut self, what: &str) -> Result<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    /// A little-endian u64.
    pub fn u64(&mut self, what: &str) -> Result<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A length (u64) and as many bytes of UTF-8.
    pub fn string(&mut self, what: &str) -> Result<&'a str> {
        let len = self.u64(what)?;
        let start = self.position;
        let bytes = self.take(what, len)?;
        std::str::from_utf8(bytes).map_err(|e| {
            Error::format(
                self.path,
                format!("byte {start} ({what})"),
                "UTF-8",
                format!("byte {} is not", e.valid_up_to()),
            )
        })
    }
}
