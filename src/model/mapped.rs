//! Memory-mapped files, and a named error instead of a silent death when such a file is cut short while in use.
//!
//! Reading a mapped page that the file no longer has raises SIGBUS. [`install_fault_handler`] looks the address up in a table
//! of mapped ranges, prints which file failed, and ends the process with exit code 3. The table has a fixed size and is made
//! of atomics, because a signal handler may neither allocate nor lock.

use crate::error::{Error, Result};
use memmap2::Mmap;
use std::ffi::{CString, c_char, c_int, c_void};
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering::SeqCst};

/// One mapped range: address, bytes, NUL-terminated path (never freed, since the handler may be reading it).
struct Range {
    start: AtomicUsize,
    len: AtomicUsize,
    path: AtomicPtr<c_char>,
}

/// More maps than this reuse the oldest entries; the files then still work, only the message would name none.
const RANGES: usize = 1024;
static TABLE: [Range; RANGES] =
    [const { Range { start: AtomicUsize::new(0), len: AtomicUsize::new(0), path: AtomicPtr::new(null_mut()) } };
        RANGES];
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// Maps a whole file for reading.
pub fn map_file(path: &Path) -> Result<Arc<Mmap>> {
    let file = File::open(path).map_err(Error::io(path, "open"))?;
    if file.metadata().map_err(Error::io(path, "read"))?.is_dir() {
        return Err(Error::format(path, "file", "a file", "a directory"));
    }
    // SAFETY: the map is read-only. Another process may change the file: changed bytes give other numbers, bytes cut off give
    // SIGBUS, which ends the process with a message that names the file.
    let map = unsafe { Mmap::map(&file) }.map_err(Error::io(path, "map"))?;
    register(&map, path);
    Ok(Arc::new(map))
}

fn register(map: &Mmap, path: &Path) {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return };
    let (start, end) = (map.as_ptr() as usize, map.as_ptr() as usize + map.len());
    // An entry that overlaps is of a file unmapped since.
    for range in &TABLE {
        let old = range.start.load(SeqCst);
        if old < end && start < old.saturating_add(range.len.load(SeqCst)) {
            range.len.store(0, SeqCst);
        }
    }
    let range = &TABLE[NEXT.fetch_add(1, SeqCst) % RANGES];
    range.len.store(0, SeqCst);
    range.path.store(path.into_raw(), SeqCst);
    range.start.store(start, SeqCst);
    range.len.store(map.len(), SeqCst);
}

/// Handles SIGBUS from now on. The program calls this; a library user may, when no other handler of SIGBUS is wanted.
pub fn install_fault_handler() -> std::io::Result<()> {
    let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_sigbus;
    // SAFETY: an all-zero sigaction is valid; the fields that matter are set before it is used.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: `action` is initialised and lives through the call.
    match unsafe { libc::sigaction(libc::SIGBUS, &action, null_mut()) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Only async-signal-safe calls: atomics, `write`, `_exit`, `signal`.
extern "C" fn on_sigbus(signal: c_int, info: *mut libc::siginfo_t, _context: *mut c_void) {
    // SAFETY: the kernel passes a valid siginfo to a handler with SA_SIGINFO; SIGBUS fills si_addr.
    let address = unsafe { (*info).si_addr() } as usize;
    for range in &TABLE {
        let (start, len) = (range.start.load(SeqCst), range.len.load(SeqCst));
        if address >= start && address - start < len {
            let path = range.path.load(SeqCst);
            // SAFETY: `path` is a NUL-terminated string that is never freed.
            let path = unsafe { std::slice::from_raw_parts(path.cast::<u8>(), libc::strlen(path)) };
            let mut digits = [0u8; 20];
            say(b"error: ");
            say(path);
            say(b": byte ");
            say(decimal(address - start, &mut digits));
            say(b": expected the ");
            say(decimal(len, &mut digits));
            say(b" bytes that the file had when it was opened, found it cut short or unreadable\n");
            // SAFETY: ends the process without running anything else.
            unsafe { libc::_exit(3) };
        }
    }
    // SAFETY: not one of our files: the default action takes over when the access is repeated on return.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

fn say(bytes: &[u8]) {
    // SAFETY: `bytes` is a valid buffer; nothing can be done about a failing stderr here.
    unsafe { libc::write(libc::STDERR_FILENO, bytes.as_ptr().cast(), bytes.len()) };
}

fn decimal(mut n: usize, digits: &mut [u8; 20]) -> &[u8] {
    let mut first = digits.len();
    loop {
        first -= 1;
        digits[first] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            return &digits[first..];
        }
    }
}
