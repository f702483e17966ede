//! Host memory behind a tensor: owned and cache-line aligned, or a window of a memory-mapped file.

use memmap2::{Mmap, UncheckedAdvice};
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::Arc;

/// Alignment of owned buffers: one cache line, and one AVX-512 register.
pub const ALIGNMENT: usize = 64;

/// Zeroed bytes aligned to [`ALIGNMENT`]. Pages are touched only when written, so a large buffer costs nothing until used.
pub struct HostBuffer {
    data: NonNull<u8>,
    len: usize,
}

// SAFETY: the buffer owns its allocation and gives access only through `&self` / `&mut self`.
unsafe impl Send for HostBuffer {}
// SAFETY: as above; shared access is read-only.
unsafe impl Sync for HostBuffer {}

impl HostBuffer {
    /// Allocates `len` zero bytes.
    pub fn zeroed(len: usize) -> HostBuffer {
        let layout = Self::layout(len);
        // SAFETY: `layout` has a size of at least ALIGNMENT.
        let data = unsafe { alloc_zeroed(layout) };
        HostBuffer { data: NonNull::new(data).unwrap_or_else(|| handle_alloc_error(layout)), len }
    }

    fn layout(len: usize) -> Layout {
        Layout::from_size_align(len.max(ALIGNMENT), ALIGNMENT).expect("a buffer is smaller than isize::MAX")
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `data` points to `len` initialised (zeroed) bytes that `self` owns.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.len) }
    }

    /// The bytes, writable.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `&mut self` makes the access unique.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr(), self.len) }
    }
}

impl Drop for HostBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with the same layout.
        unsafe { dealloc(self.data.as_ptr(), Self::layout(self.len)) }
    }
}

/// A window of a memory-mapped file.
#[derive(Clone)]
pub struct MappedSlice {
    map: Arc<Mmap>,
    start: usize,
    len: usize,
}

impl MappedSlice {
    /// The window `start .. start + len`, or `None` when it leaves the map.
    pub fn new(map: Arc<Mmap>, start: usize, len: usize) -> Option<MappedSlice> {
        (start.checked_add(len)? <= map.len()).then_some(MappedSlice { map, start, len })
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.map[self.start..self.start + self.len]
    }

    /// Lets the system take back the memory of what was read; another look reads the file again.
    pub fn release(&self) {
        // SAFETY: the map is of a file and read-only, so its pages hold nothing that the file does not.
        let released = unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, self.start, self.len) };
        // Refused only where the system has no such call: the memory then stays in use.
        released.unwrap_or_default();
    }
}
