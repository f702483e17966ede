//! Device memory: within a budget, and given back to be used again by the next buffer of the same size.
//!
//! Allocating and freeing stop the card, so neither happens in a steady state: the buffers of a step have the sizes of the step
//! before. Each buffer is an allocation of its own, so that a checker sees an access past its end.

use super::Cuda;
use crate::error::{Error, Result};
use cudarc::driver::{result, sys};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What the driver and the kernels' own needs keep of the free memory.
const RESERVE: u64 = 128 << 20;

/// The card's memory that is this process's to use.
pub(super) struct Memory {
    budget: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Bytes of buffers that are alive.
    used: u64,
    peak: u64,
    /// Buffers given back, by their size.
    free: HashMap<usize, Vec<sys::CUdeviceptr>>,
}

impl Memory {
    pub(super) fn new(free: u64) -> Memory {
        Memory { budget: free - RESERVE.min(free / 8), state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The counts are right at every point where a thread can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes in a card's memory; dropping it gives them back.
pub(crate) struct Buffer {
    cuda: Arc<Cuda>,
    address: sys::CUdeviceptr,
    bytes: usize,
}

impl Buffer {
    /// Address for kernels.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Its size.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The card that it is on.
    pub fn cuda(&self) -> &Arc<Cuda> {
        &self.cuda
    }

    /// Sets every byte to zero.
    pub fn zero(&self, bytes: usize) -> Result<()> {
        self.cuda.bind()?;
        // SAFETY: `bytes` is at most the buffer's size; the stream orders the fill behind earlier uses.
        unsafe { result::memset_d8_async(self.address, 0, bytes.min(self.bytes), self.cuda.stream.cu_stream()) }
            .map_err(|e| self.cuda.error("fill memory", e))
    }

    /// Copies the first `bytes` bytes of a buffer on the same card to `offset` in this one.
    pub fn copy_from(&self, offset: usize, from: &Buffer, bytes: usize) -> Result<()> {
        if offset + bytes > self.bytes || bytes > from.bytes {
            let expected = format!("at most {} bytes", from.bytes.min(self.bytes.saturating_sub(offset)));
            return Err(Error::shape("copy", "bytes", expected, bytes.to_string()));
        }
        self.cuda.bind()?;
        let to = self.address + offset as u64;
        // SAFETY: inside both buffers; the stream orders the copy.
        unsafe { result::memcpy_dtod_async(to, from.address, bytes, self.cuda.stream.cu_stream()) }
            .map_err(|e| self.cuda.error("copy memory", e))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut state = self.cuda.memory.state();
        state.used -= self.bytes as u64;
        state.free.entry(self.bytes).or_default().push(self.address);
    }
}

impl Cuda {
    /// Bytes with whatever an earlier use left in them. [`Error::Budget`] when the budget or the card has no room.
    pub fn allocate(self: &Arc<Cuda>, bytes: usize) -> Result<Buffer> {
        // Sixteen-byte loads of a last row may not leave the buffer.
        let bytes = bytes.max(1).next_multiple_of(16);
        self.bind()?;
        let mut state = self.memory.state();
        let reused = state.free.get_mut(&bytes).and_then(Vec::pop);
        let address = match reused {
            Some(address) => address,
            None => self.allocate_new(&mut state, bytes)?,
        };
        state.used += bytes as u64;
        state.peak = state.peak.max(state.used);
        drop(state);
        Ok(Buffer { cuda: self.clone(), address, bytes })
    }

    fn allocate_new(&self, state: &mut State, bytes: usize) -> Result<sys::CUdeviceptr> {
        let idle: u64 = state.free.iter().map(|(bytes, list)| (bytes * list.len()) as u64).sum();
        if state.used + idle + bytes as u64 > self.memory.budget {
            self.release(state)?;
        }
        if state.used + bytes as u64 > self.memory.budget {
            return Err(self.no_room(state, bytes));
        }
        // SAFETY: a size of at least one byte.
        let first = unsafe { result::malloc_sync(bytes) };
        first.or_else(|_| {
            self.release(state)?;
            // SAFETY: as above.
            unsafe { result::malloc_sync(bytes) }.map_err(|_| self.no_room(state, bytes))
        })
    }

    /// Gives buffers that nobody uses back to the driver.
    fn release(&self, state: &mut State) -> Result<()> {
        for address in std::mem::take(&mut state.free).into_values().flatten() {
            // SAFETY: allocated by `malloc_sync` and held by no buffer; the driver waits for kernels that still use it.
            unsafe { result::free_sync(address) }.map_err(|e| self.error("free memory", e))?;
        }
        Ok(())
    }

    fn no_room(&self, state: &State, bytes: usize) -> Error {
        Error::Budget {
            what: format!("{}: a buffer", self.card.device_name()),
            needed: bytes as u64,
            available: self.memory.budget.saturating_sub(state.used),
            instead:
                "use a smaller batch, fewer tokens at once or a smaller --kv-memory (--plan shows what takes how much)"
                    .into(),
        }
    }

    /// Bytes that this process may use: what was free when the card was opened, less a reserve.
    pub fn memory_budget(&self) -> u64 {
        self.memory.budget
    }

    /// Bytes of the budget that no buffer holds.
    pub fn free_memory(&self) -> u64 {
        self.memory.budget - self.memory.state().used
    }

    /// Most bytes in use at a time so far.
    pub fn peak_memory(&self) -> u64 {
        self.memory.state().peak
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // Nothing is left to tell about a failure; the driver frees everything when the process ends.
        let _ = self.bind();
        let mut state = std::mem::take(&mut *self.memory.state());
        let _ = self.release(&mut state);
    }
}
