//! Seconds of operations, by events in the stream. Only while profiling: an event costs about as much as a small kernel.

use super::Cuda;
use crate::device::{Ledger, Op};
use crate::error::Result;
use cudarc::driver::CudaEvent;
use cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Intervals that were measured and not booked yet.
#[derive(Default)]
pub(super) struct Timing {
    on: AtomicBool,
    measured: Mutex<Vec<(Op, CudaEvent, CudaEvent)>>,
}

/// An operation's time on the card; ends when dropped.
pub(crate) struct Interval<'a> {
    cuda: &'a Cuda,
    op: Op,
    start: Option<CudaEvent>,
}

impl Cuda {
    /// Measures every operation from now on.
    pub fn profile(&self) {
        self.timing.on.store(true, Relaxed);
    }

    /// Whether it measures.
    pub fn profiles(&self) -> bool {
        self.timing.on.load(Relaxed)
    }

    /// Starts an operation's time; `None` unless profiling (or where the driver refuses an event: then time is not booked).
    pub fn interval(&self, op: Op) -> Option<Interval<'_>> {
        if !self.profiles() {
            return None;
        }
        Some(Interval { cuda: self, op, start: Some(self.event()?) })
    }

    fn event(&self) -> Option<CudaEvent> {
        self.bind().ok()?;
        self.stream.record_event(Some(CU_EVENT_DEFAULT)).ok()
    }

    /// Waits for the card and books what was measured.
    pub fn book_times(&self, ledger: &Ledger) -> Result<()> {
        self.synchronize()?;
        let measured = std::mem::take(&mut *self.timing.measured.lock().unwrap_or_else(PoisonError::into_inner));
        for (op, start, end) in measured {
            let milliseconds = start.elapsed_ms(&end).map_err(|e| self.error("read an event", e))?;
            ledger.add_time(op, Duration::from_secs_f64(f64::from(milliseconds.max(0.0)) * 1e-3));
        }
        Ok(())
    }
}

impl Drop for Interval<'_> {
    fn drop(&mut self) {
        if let (Some(start), Some(end)) = (self.start.take(), self.cuda.event()) {
            self.cuda.timing.measured.lock().unwrap_or_else(PoisonError::into_inner).push((self.op, start, end));
        }
    }
}
