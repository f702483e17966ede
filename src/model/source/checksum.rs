//! SHA-256 of files.

use crate::error::{Error, Result};
use crate::interrupt;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

/// Lower-case hex of a digest.
fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SHA-256 of bytes, as lower-case hex.
pub(super) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// SHA-256 of a file, as lower-case hex.
pub(super) fn sha256_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(Error::io(path, "open"))?;
    copy_and_sum(&mut file, &mut std::io::sink(), path)
}

/// Copies `from` to `to` and gives the SHA-256 of what went by; `path` is named in errors.
pub(super) fn copy_and_sum(from: &mut dyn Read, to: &mut dyn Write, path: &Path) -> Result<String> {
    let mut sum = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        interrupt::check()?;
        let n = match from.read(&mut buffer) {
            Ok(0) => return Ok(hex(&sum.finalize())),
            Ok(n) => n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(Error::io(path, "read")(e)),
        };
        sum.update(&buffer[..n]);
        to.write_all(&buffer[..n]).map_err(Error::io(path, "write"))?;
    }
}
