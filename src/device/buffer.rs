//! Host memory behind a tensor: owned and cache-line aligned, or a window of a memory-mapped file.

use memmap2::{Mmap, MmapMut, UncheckedAdvice};
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::Arc;

/// Alignment of owned buffers: one cache line, and one AVX-512 register.
pub const ALIGNMENT: usize = 64;
/// From this size on a buffer is a mapping of its own. Neighbouring mappings make huge pages together, so that this may be less than
/// one of them; smaller buffers come and go too often. Start to first token of SmolLM2-135M on a
/// Zen 5, 2 threads, medians of 5 in turn: 0.25 s without, 0.17 s with it.
const MAPPED_FROM: usize = 512 << 10;

/// Zeroed bytes aligned to [`ALIGNMENT`]. Memory of a large buffer is taken when it is written first, page by page, and given back
/// to the system when it is dropped.
pub struct HostBuffer {
    memory: Memory,
    len: usize,
}

enum Memory {
    Allocated(NonNull<u8>),
    Mapped(MmapMut),
}

// SAFETY: the buffer owns its allocation and gives access only through `&self` / `&mut self`.
unsafe impl Send for HostBuffer {}
// SAFETY: as above; shared access is read-only.
unsafe impl Sync for HostBuffer {}

impl HostBuffer {
    /// Allocates `len` zero bytes.
    pub fn zeroed(len: usize) -> HostBuffer {
        let memory = if len < MAPPED_FROM { None } else { Self::mapped(len) };
        HostBuffer { memory: memory.unwrap_or_else(|| Self::allocated(len)), len }
    }

    /// A mapping in huge pages: 512 times fewer faults, and as many fewer entries that a pass over weights needs of the TLB.
    fn mapped(len: usize) -> Option<Memory> {
        let map = MmapMut::map_anon(len).ok()?;
        #[cfg(target_os = "linux")]
        // Refused by systems that have none: small pages serve too.
        map.advise(memmap2::Advice::HugePage).unwrap_or_default();
        Some(Memory::Mapped(map))
    }

    fn allocated(len: usize) -> Memory {
        let layout = Self::layout(len);
        // SAFETY: `layout` has a size of at least ALIGNMENT.
        let data = unsafe { alloc_zeroed(layout) };
        Memory::Allocated(NonNull::new(data).unwrap_or_else(|| handle_alloc_error(layout)))
    }

    fn layout(len: usize) -> Layout {
        Layout::from_size_align(len.max(ALIGNMENT), ALIGNMENT).expect("a buffer is smaller than isize::MAX")
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.memory {
            // SAFETY: `data` points to `len` initialised (zeroed) bytes that `self` owns.
            Memory::Allocated(data) => unsafe { std::slice::from_raw_parts(data.as_ptr(), self.len) },
            Memory::Mapped(map) => map,
        }
    }

    /// The bytes, writable.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            // SAFETY: as in `bytes`, and `&mut self` makes the access unique.
            Memory::Allocated(data) => unsafe { std::slice::from_raw_parts_mut(data.as_ptr(), self.len) },
            Memory::Mapped(map) => map,
        }
    }
}

impl Drop for HostBuffer {
    fn drop(&mut self) {
        if let Memory::Allocated(data) = self.memory {
            // SAFETY: allocated in `allocated` with the same layout.
            unsafe { dealloc(data.as_ptr(), Self::layout(self.len)) }
        }
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
