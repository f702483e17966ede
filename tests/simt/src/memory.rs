//! Device buffers in host memory. A buffer ends at a page that faults when touched (but for the bytes that round it up to
//! 16, which hold a pattern that is checked), begins behind a guard zone, and is full of NaN until written.

use std::collections::BTreeMap;
use std::ptr;
use std::sync::Mutex;

const PAGE: usize = 4096;
/// Alignment of a buffer. A card gives 256; kernels may rely on that of their widest loads only.
const ALIGN: usize = 16;

/// What stands before and behind a buffer.
pub const GUARD: [u8; 64] = [0xA5; 64];

/// Pages of memory with one before and one behind that fault.
pub struct Pages {
    start: *mut u8,
    len: usize,
}

// SAFETY: plain memory that the value owns.
unsafe impl Send for Pages {}

impl Pages {
    /// `len` zero bytes, rounded up to whole pages.
    pub fn new(len: usize) -> Pages {
        let len = len.next_multiple_of(PAGE);
        // SAFETY: a fresh private mapping; the inner pages are made accessible, the outer two stay without access.
        unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            let all = libc::mmap(ptr::null_mut(), len + 2 * PAGE, libc::PROT_NONE, flags, -1, 0);
            assert!(all != libc::MAP_FAILED, "simt: no address space for {len} bytes");
            let start = all.cast::<u8>().add(PAGE);
            let status = libc::mprotect(start.cast(), len, libc::PROT_READ | libc::PROT_WRITE);
            assert!(status == 0, "simt: no memory for {len} bytes");
            Pages { start, len }
        }
    }

    /// All of them.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: `len` accessible bytes that `self` owns.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`.
        unsafe { libc::munmap(self.start.sub(PAGE).cast(), self.len + 2 * PAGE) };
    }
}

struct Buffer {
    pages: Pages,
    len: usize,
}

impl Buffer {
    /// Offset of the first byte in its pages.
    fn offset(&self) -> usize {
        self.pages.len - self.len.next_multiple_of(ALIGN)
    }

    /// Whether the bytes around the buffer are as they were.
    fn intact(&self) -> bool {
        let (start, end) = (self.offset(), self.offset() + self.len);
        // SAFETY: accessible bytes that the buffer owns; kernels write to them between launches' checks only.
        let bytes = unsafe { std::slice::from_raw_parts(self.pages.start, self.pages.len) };
        bytes[start - GUARD.len()..start] == GUARD && bytes[end..].iter().all(|&b| b == GUARD[0])
    }
}

/// All device buffers, by address.
pub struct Memory {
    buffers: Mutex<(BTreeMap<usize, Buffer>, usize)>,
}

/// The device's memory.
pub static MEMORY: Memory = Memory { buffers: Mutex::new((BTreeMap::new(), 0)) };

impl Memory {
    /// Bytes of the device.
    pub fn total() -> usize {
        (crate::setting("RATOON_SIMT_MEMORY", 4096) as usize) << 20
    }

    /// Bytes not yet allocated.
    pub fn free_bytes(&self) -> usize {
        Memory::total() - self.buffers.lock().expect("no panic while held").1
    }

    /// A buffer of `len` bytes of NaN; `None` when the device is full.
    pub fn allocate(&self, len: usize) -> Option<usize> {
        let mut state = self.buffers.lock().expect("no panic while held");
        if state.1.checked_add(len)? > Memory::total() {
            return None;
        }
        state.1 += len;
        let mut buffer = Buffer { pages: Pages::new(len + GUARD.len() + ALIGN), len };
        let offset = buffer.offset();
        let bytes = buffer.pages.bytes();
        bytes[offset - GUARD.len()..offset].copy_from_slice(&GUARD);
        bytes[offset..offset + len].fill(0xFF);
        bytes[offset + len..].fill(GUARD[0]);
        let address = buffer.pages.start as usize + offset;
        state.0.insert(address, buffer);
        Some(address)
    }

    /// Frees the buffer that begins at `address`, and gives its bytes; `None` when there is none.
    pub fn free(&self, address: usize) -> Option<usize> {
        let mut state = self.buffers.lock().expect("no panic while held");
        let len = state.0.remove(&address)?.len;
        state.1 -= len;
        Some(len)
    }

    /// Whether `len` bytes from `address` lie in one buffer.
    pub fn holds(&self, address: usize, len: usize) -> bool {
        let state = self.buffers.lock().expect("no panic while held");
        let found = state.0.range(..=address).next_back();
        found.is_some_and(|(&start, buffer)| address - start + len <= buffer.len)
    }

    /// The first buffer with a damaged surrounding.
    pub fn damaged(&self) -> Option<(usize, usize)> {
        let state = self.buffers.lock().expect("no panic while held");
        state.0.iter().find(|(_, buffer)| !buffer.intact()).map(|(&start, buffer)| (start, buffer.len))
    }
}
