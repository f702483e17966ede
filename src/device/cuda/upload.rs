//! Host to device through pinned buffers, and back.
//!
//! A copy from ordinary memory waits for the driver to stage it, a memory-mapped file besides for the disk. Two pinned buffers in
//! turn let one chunk be read (and converted) while the one before travels.

use super::{Buffer, Cuda};
use crate::device::tensor::convert;
use crate::device::{DType, Tensor};
use crate::error::{Error, Result};
use cudarc::driver::{CudaEvent, DeviceRepr, PinnedHostSlice, result};
use std::sync::{Arc, PoisonError};

/// Bytes of a pinned buffer: long enough that the latency of a copy (some 10 us) is a percent of its time at 25 GB/s.
const CHUNK: usize = 32 << 20;
/// Copies below this go straight from where they are: the driver stages up to 64 KB without waiting.
const SMALL: usize = 64 << 10;

/// A pinned buffer, and when its last copy is done.
struct Slot {
    memory: PinnedHostSlice<u8>,
    sent: Option<CudaEvent>,
}

/// Pinned buffers that are filled in turn.
pub(super) struct Ring {
    slots: [Slot; 2],
    next: usize,
}

impl Cuda {
    /// Fills the start of a buffer with a host tensor's elements as `dtype`.
    pub fn write(&self, to: &Buffer, from: &Tensor, dtype: DType) -> Result<()> {
        if from.elements() * dtype.size() > to.bytes() {
            let found = format!("{} bytes", to.bytes());
            return Err(Error::shape("upload", "to", format!("{} bytes", from.elements() * dtype.size()), found));
        }
        self.bind()?;
        if from.dtype() == dtype && from.size_bytes() <= SMALL {
            return self.send(to.address(), from.bytes());
        }
        let mut guard = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let ring = match &mut *guard {
            Some(ring) => ring,
            none => none.insert(self.ring()?),
        };
        let elements = CHUNK / dtype.size();
        for first in (0..from.elements()).step_by(elements) {
            let count = elements.min(from.elements() - first);
            let slot = &mut ring.slots[ring.next];
            ring.next = (ring.next + 1) % 2;
            if let Some(sent) = slot.sent.take() {
                sent.synchronize().map_err(|e| self.error("copy to the card", e))?;
            }
            let memory = slot.memory.as_mut_slice().map_err(|e| self.error("use pinned memory", e))?;
            let bytes = &mut memory[..count * dtype.size()];
            convert(from, first, dtype, bytes);
            self.send(to.address() + (first * dtype.size()) as u64, bytes)?;
            let sent = self.stream.record_event(None).map_err(|e| self.error("copy to the card", e))?;
            slot.sent = Some(sent);
        }
        Ok(())
    }

    /// Structs that a kernel reads through a pointer, in a buffer of their own with room for `room` of them.
    pub fn upload_structs<T: DeviceRepr>(self: &Arc<Cuda>, structs: &[T], room: usize) -> Result<Buffer> {
        // SAFETY: plain C structs without padding (the bindings check their layout), alive as long as the borrow.
        let bytes = unsafe { std::slice::from_raw_parts(structs.as_ptr().cast::<u8>(), size_of_val(structs)) };
        let buffer = self.allocate(bytes.len().max(room * size_of::<T>()))?;
        self.send(buffer.address(), bytes)?;
        Ok(buffer)
    }

    fn ring(&self) -> Result<Ring> {
        // Flags 0: the usual write-combined kind is slow to convert into.
        // SAFETY: the bytes are written before they are read.
        let slot = || unsafe { self.context.alloc_pinned_with_flags::<u8>(CHUNK, 0) };
        let slot = || slot().map(|memory| Slot { memory, sent: None }).map_err(|e| self.error("pin host memory", e));
        Ok(Ring { slots: [slot()?, slot()?], next: 0 })
    }

    fn send(&self, to: u64, bytes: &[u8]) -> Result<()> {
        self.check_no_walk("upload")?;
        // SAFETY: the destination was checked; the driver has staged ordinary memory when it returns, and a pinned buffer is
        // not written again before its event.
        unsafe { result::memcpy_htod_async(to, bytes, self.stream.cu_stream()) }
            .map_err(|e| self.error("copy to the card", e))
    }

    /// Copies the start of a buffer into `to`, after everything launched so far.
    pub fn read(&self, from: &Buffer, to: &mut [u8]) -> Result<()> {
        if to.len() > from.bytes() {
            let found = format!("{} bytes", from.bytes());
            return Err(Error::shape("download", "from", format!("{} bytes", to.len()), found));
        }
        self.check_no_walk("download")?;
        self.bind()?;
        // SAFETY: inside the buffer; the stream is waited for before `to` is used.
        unsafe { result::memcpy_dtoh_async(to, from.address(), self.stream.cu_stream()) }
            .map_err(|e| self.error("copy from the card", e))?;
        self.synchronize()
    }
}
