//! Shared memory of one block: NaN at the start of every block, its end against a page that faults.

use crate::memory::{GUARD, Pages};
use std::collections::HashMap;

/// Bytes that a block may have: more than any card has, so that the limit of the card is what is checked.
const CAPACITY: usize = 256 << 10;
/// Alignment of every object.
const ALIGN: usize = 128;

/// One block's shared memory; used again for the next block.
pub struct Shared {
    pages: Pages,
    dynamic: usize,
    /// Static objects by key: offset and size; they lie below the dynamic part, each followed by a guard zone.
    objects: HashMap<usize, (usize, usize)>,
    /// Lowest byte in use.
    below: usize,
}

impl Shared {
    pub fn new() -> Shared {
        Shared { pages: Pages::new(CAPACITY), dynamic: 0, objects: HashMap::new(), below: CAPACITY }
    }

    /// Makes room for a block with `dynamic` bytes, all of it NaN.
    pub fn start_block(&mut self, dynamic: usize) {
        self.dynamic = dynamic.next_multiple_of(16);
        let top = CAPACITY - self.dynamic;
        // What the last block touched, and what this one has.
        let from = self.below.min(top);
        self.pages.bytes()[from..].fill(0xFF);
        self.objects.clear();
        self.below = top;
    }

    /// The dynamic part.
    pub fn dynamic(&mut self) -> *mut u8 {
        let start = CAPACITY - self.dynamic;
        self.pages.bytes()[start..].as_mut_ptr()
    }

    /// The object under `key`, made at first use.
    pub fn object(&mut self, key: usize, size: usize) -> *mut u8 {
        let (start, _) = *self.objects.entry(key).or_insert_with(|| {
            let start = (self.below - size - GUARD.len()) / ALIGN * ALIGN;
            self.below = start;
            let bytes = &mut self.pages.bytes()[start..start + size + GUARD.len()];
            bytes[..size].fill(0xFF);
            bytes[size..].copy_from_slice(&GUARD);
            (start, size)
        });
        self.pages.bytes()[start..].as_mut_ptr()
    }

    /// The number by which instructions of compute capability 9.0 name a place: its offset.
    pub fn address(&mut self, at: *const u8) -> u32 {
        (at as usize).wrapping_sub(self.pages.bytes().as_ptr() as usize) as u32
    }

    /// The place of that number.
    pub fn at(&mut self, address: u32) -> *mut u8 {
        self.pages.bytes()[address as usize % CAPACITY..].as_mut_ptr()
    }

    /// `len` bytes of the dynamic part.
    pub fn range(&mut self, address: u32, len: usize) -> Option<&mut [u8]> {
        let start = address as usize;
        let inside = start >= CAPACITY - self.dynamic && start.checked_add(len)? <= CAPACITY;
        inside.then(|| &mut self.pages.bytes()[start..start + len])
    }

    /// Whether every object's guard zone is whole.
    pub fn intact(&mut self) -> bool {
        let bytes = self.pages.bytes();
        self.objects.values().all(|&(start, size)| bytes[start + size..][..GUARD.len()] == GUARD)
    }
}
