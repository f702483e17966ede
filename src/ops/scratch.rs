//! Per-thread buffers that are used again by the next call.

use crate::device::buffer::HostBuffer;
use std::cell::RefCell;

thread_local! {
    static FREE: RefCell<Vec<HostBuffer>> = const { RefCell::new(Vec::new()) };
}

/// Floats aligned to a cache line, with whatever an earlier use left in them; given back to the thread when dropped.
pub(crate) struct Scratch {
    buffer: Option<HostBuffer>,
    len: usize,
}

impl Scratch {
    /// Room for `len` floats.
    pub(crate) fn new(len: usize) -> Scratch {
        let fitting = FREE.with_borrow_mut(|free| {
            // The most recent first: it is the likeliest to be in cache.
            let at = free.iter().rposition(|buffer| buffer.bytes().len() >= 4 * len)?;
            Some(free.remove(at))
        });
        Scratch { buffer: Some(fitting.unwrap_or_else(|| HostBuffer::zeroed(4 * len))), len }
    }

    /// The floats.
    pub(crate) fn floats(&mut self) -> &mut [f32] {
        match &mut self.buffer {
            Some(buffer) => &mut bytemuck::cast_slice_mut(buffer.bytes_mut())[..self.len],
            None => &mut [],
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            // A smaller buffer that is free makes room for this one, so that a thread keeps a handful.
            let _ = FREE.try_with(|free| {
                let mut free = free.borrow_mut();
                if free.len() >= 8 {
                    free.remove(0);
                }
                free.push(buffer);
            });
        }
    }
}
