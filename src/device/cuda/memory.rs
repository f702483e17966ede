//! Device memory: within a budget, and given back to be used again by the next buffer of about its size.
//!
//! Allocating and freeing stop the card, so neither happens in a steady state: once steps of about a size were there, others find
//! their buffers. Each is an allocation of its own, so that a checker sees an access past its end.

use super::{Cuda, graph};
use crate::error::{Error, Result};
use cudarc::driver::{result, sys};
use std::collections::BTreeMap;
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
    /// Buffers given back.
    free: Pool,
}

/// Most bytes that a buffer may have beyond what was asked for: more would break the plan of a large model.
const SLACK: usize = 16 << 20;

/// Memory that no buffer holds, by its size.
#[derive(Default)]
pub(super) struct Pool(BTreeMap<usize, Vec<sys::CUdeviceptr>>);

impl Pool {
    /// The smallest memory that holds `bytes` bytes, with its size; none four times as large, or larger by more than [`SLACK`].
    pub(super) fn take(&mut self, bytes: usize) -> Option<(sys::CUdeviceptr, usize)> {
        let (&size, list) = self.0.range_mut(bytes..=bytes + SLACK.min(3 * bytes)).next()?;
        let address = list.pop()?;
        if list.is_empty() {
            self.0.remove(&size);
        }
        Some((address, size))
    }

    /// Adds memory that nobody holds any more.
    pub(super) fn give(&mut self, address: sys::CUdeviceptr, bytes: usize) {
        self.0.entry(bytes).or_default().push(address);
    }

    /// Brings memory of one size into an order that does not tell who had it last.
    pub(super) fn sort(&mut self) {
        self.0.values_mut().for_each(|list| list.sort_unstable());
    }

    fn bytes(&self) -> u64 {
        self.0.iter().map(|(bytes, list)| (bytes * list.len()) as u64).sum()
    }
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

    /// Tells the step that is walked through, if there is one, that it writes here.
    pub fn note_write(&self) {
        graph::noting(|notes| notes.writes(self.address));
    }

    /// Sets every byte to zero.
    pub fn zero(&self, bytes: usize) -> Result<()> {
        let (address, bytes) = (self.address, bytes.min(self.bytes));
        match graph::noting(|notes| notes.zero(address, bytes)) {
            Some(()) => Ok(()),
            None => self.cuda.zero_now(address, bytes),
        }
    }

    /// Copies the first `bytes` bytes of a buffer on the same card to `offset` in this one.
    pub fn copy_from(&self, offset: usize, from: &Buffer, bytes: usize) -> Result<()> {
        if offset + bytes > self.bytes || bytes > from.bytes {
            let expected = format!("at most {} bytes", from.bytes.min(self.bytes.saturating_sub(offset)));
            return Err(Error::shape("copy", "bytes", expected, bytes.to_string()));
        }
        self.cuda.check_no_walk("copy")?;
        self.cuda.bind()?;
        let to = self.address + offset as u64;
        // SAFETY: inside both buffers; the stream orders the copy.
        unsafe { result::memcpy_dtod_async(to, from.address, bytes, self.cuda.stream.cu_stream()) }
            .map_err(|e| self.cuda.error("copy memory", e))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let kept = graph::noting(|notes| {
            let at = notes.held.iter().rposition(|&held| held == self.address)?;
            notes.held.swap_remove(at);
            notes.free.give(self.address, self.bytes);
            Some(())
        });
        if kept.flatten().is_none() {
            let mut state = self.cuda.memory.state();
            state.used -= self.bytes as u64;
            state.free.give(self.address, self.bytes);
        }
    }
}

impl Cuda {
    /// Bytes with whatever an earlier use left in them. [`Error::Budget`] when the budget or the card has no room.
    ///
    /// In a step that is walked through, memory that only its like use, so that graphs find it again: in sizes of powers of two,
    /// which few steps outgrow.
    pub fn allocate(self: &Arc<Cuda>, bytes: usize) -> Result<Buffer> {
        // Sixteen-byte loads of a last row may not leave the buffer.
        let bytes = bytes.max(1).next_multiple_of(16);
        let own = graph::noting(|notes| notes.free.take(bytes));
        let (address, bytes) = match own {
            Some(Some(found)) => found,
            Some(None) => self.take(bytes.next_power_of_two())?,
            None => self.take(bytes)?,
        };
        graph::noting(|notes| notes.held.push(address));
        Ok(Buffer { cuda: self.clone(), address, bytes })
    }

    /// Memory of `bytes` bytes or somewhat more, and its size.
    fn take(&self, bytes: usize) -> Result<(sys::CUdeviceptr, usize)> {
        self.bind()?;
        let mut state = self.memory.state();
        let (address, bytes) = match state.free.take(bytes) {
            Some(found) => found,
            None => (self.allocate_new(&mut state, bytes)?, bytes),
        };
        state.used += bytes as u64;
        state.peak = state.peak.max(state.used);
        Ok((address, bytes))
    }

    /// Takes back memory that graphs had to themselves.
    pub(super) fn give_back(&self, pool: Pool) {
        let mut state = self.memory.state();
        state.used -= pool.bytes();
        for (bytes, list) in pool.0 {
            state.free.0.entry(bytes).or_default().extend(list);
        }
    }

    /// Sets bytes of a buffer to zero.
    pub(super) fn zero_now(&self, address: sys::CUdeviceptr, bytes: usize) -> Result<()> {
        self.bind()?;
        // SAFETY: inside a buffer; the stream orders the fill behind earlier uses.
        unsafe { result::memset_d8_async(address, 0, bytes, self.stream.cu_stream()) }
            .map_err(|e| self.error("fill memory", e))
    }

    /// Errors in a step that is walked through: what it launches has not run, so data may not move yet.
    pub(super) fn check_no_walk(&self, action: &'static str) -> Result<()> {
        match graph::noting(|_| ()) {
            None => Ok(()),
            Some(()) => Err(Error::shape(action, "step", "none that is repeated as a graph", "one")),
        }
    }

    fn allocate_new(&self, state: &mut State, bytes: usize) -> Result<sys::CUdeviceptr> {
        if state.used + state.free.bytes() + bytes as u64 > self.memory.budget {
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
        for address in std::mem::take(&mut state.free.0).into_values().flatten() {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_where_little_of_it_is_wasted() {
        let mut pool = Pool::default();
        let sizes = [64usize, 100, 100, 401, SLACK, 2 * SLACK + 1];
        sizes.into_iter().zip(1..).for_each(|(bytes, address)| pool.give(address, bytes));
        assert_eq!(pool.take(65).map(|(_, bytes)| bytes), Some(100));
        assert_eq!(pool.take(100).map(|(_, bytes)| bytes), Some(100));
        assert_eq!(pool.take(100), None, "401 is more than four times as large");
        assert_eq!(pool.take(101), Some((4, 401)));
        assert_eq!(pool.take(SLACK + 1 - SLACK / 4), Some((5, SLACK)));
        assert_eq!(pool.take(SLACK), None, "more than a slack too large");
        assert_eq!(pool.take(SLACK + 1), Some((6, 2 * SLACK + 1)));
        assert_eq!(pool.bytes(), 64);
    }
}
