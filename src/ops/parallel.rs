//! When to use several threads, and how tasks write to one tensor.

use super::team;
use std::cell::UnsafeCell;
use std::marker::PhantomData;

/// Elements below which a row operation stays on the calling thread: handing work over takes a microsecond, in which one core
/// goes through about as many elements.
const SERIAL: usize = 1 << 13;

/// Rows of one task for `rows` rows of `row_len` elements: all of them when there are few.
pub(crate) fn rows_per_task(rows: usize, row_len: usize) -> usize {
    if rows * row_len <= SERIAL { rows.max(1) } else { (SERIAL / row_len.max(1)).max(1) }
}

/// Runs every task, on this thread when there is only one.
pub(crate) fn for_each<T: Send>(tasks: impl Iterator<Item = T>, run: impl Fn(T) + Sync + Send) {
    let tasks = Tasks(tasks.map(|task| UnsafeCell::new(Some(task))).collect());
    team::run(tasks.0.len(), |i| {
        // SAFETY: the team runs every index once.
        if let Some(task) = unsafe { tasks.take(i) } {
            run(task);
        }
    });
}

/// Tasks, each of which one thread takes.
struct Tasks<T>(Vec<UnsafeCell<Option<T>>>);

// SAFETY: access goes through `take`, whose caller promises that no two threads ask for the same task.
unsafe impl<T: Send> Sync for Tasks<T> {}

impl<T> Tasks<T> {
    /// The task, if it was not taken.
    ///
    /// SAFETY: no two threads ask for the same index.
    unsafe fn take(&self, i: usize) -> Option<T> {
        // SAFETY: by the caller's promise.
        unsafe { (*self.0[i].get()).take() }
    }
}

/// A slice into which tasks write at places that no two of them share, where the places are not contiguous (the heads of
/// a token range, say).
#[derive(Clone, Copy)]
pub(crate) struct Shared<'a> {
    data: *mut f32,
    len: usize,
    slice: PhantomData<&'a mut [f32]>,
}

// SAFETY: access goes through `range`, whose callers promise disjoint ranges.
unsafe impl Send for Shared<'_> {}
// SAFETY: as above.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    /// Shares `slice` for as long as it is borrowed.
    pub(crate) fn new(slice: &'a mut [f32]) -> Shared<'a> {
        Shared { data: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// Elements `start .. start + len`. Panics when they leave the slice.
    ///
    /// SAFETY: no two ranges that are alive at a time overlap.
    #[inline(always)]
    pub(crate) unsafe fn range(self, start: usize, len: usize) -> &'a mut [f32] {
        assert!(start + len <= self.len, "Shared::range");
        // SAFETY: inside the slice; disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(start), len) }
    }
}
