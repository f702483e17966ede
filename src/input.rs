//! What users' files turn out to be before their format counts: text or not, fetched or not.

use crate::error::{Error, Result};
use std::path::Path;

/// First bytes of the text file that Git leaves in place of a large file that was not fetched.
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";

/// [`Error::Format`] when `bytes`, the beginning of a file, are a Git LFS pointer instead of the content.
pub fn refuse_lfs_pointer(path: &Path, bytes: &[u8]) -> Result<()> {
    if !bytes.starts_with(LFS_POINTER) {
        return Ok(());
    }
    let found = "a Git LFS pointer (run `git lfs pull` in its repository, or download the file itself)";
    Err(Error::format(path, "file", "the file's content", found))
}

/// Reads a whole text file. [`Error::Format`] for a Git LFS pointer and for bytes that are no UTF-8, of which the first is
/// named.
pub fn read_text(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
    refuse_lfs_pointer(path, &bytes)?;
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Error::format(path, format!("byte {at}"), "UTF-8 text", format!("byte {:#04x}", e.as_bytes()[at]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_text_is_named_with_its_first_byte() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let read = |bytes: &[u8]| {
            std::fs::write(file.path(), bytes).unwrap();
            read_text(file.path()).map_err(|e| (e.exit_code(), e.to_string()))
        };
        assert_eq!(read("é\r\n".as_bytes()).unwrap(), "é\r\n");
        let (code, message) = read(b"ab\xff").unwrap_err();
        assert!(code == 3 && message.ends_with("byte 2: expected UTF-8 text, found byte 0xff"), "{message}");
        let (code, message) = read(b"version https://git-lfs.github.com/spec/v1\n").unwrap_err();
        assert!(code == 3 && message.contains("git lfs pull"), "{message}");
    }
}
