//! Collectives of a warpgroup: 128 threads, four warps that begin at a multiple of four.

use crate::block::{Block, current};
use std::ffi::c_void;
use std::ptr;

/// Threads of a warpgroup.
pub const WARPGROUP: usize = 128;

/// Threads of a warpgroup that wait for each other.
pub struct Gathering {
    arrived: u128,
    arguments: [*mut c_void; WARPGROUP],
}

impl Default for Gathering {
    fn default() -> Gathering {
        Gathering { arrived: 0, arguments: [ptr::null_mut(); WARPGROUP] }
    }
}

impl Gathering {
    /// How many wait.
    pub fn waiting(&self) -> u32 {
        self.arrived.count_ones()
    }
}

/// Waits for the whole warpgroup, and the last thread until no other can run: what it carries out has been on its way all that
/// time. See `include/runtime.h`.
pub extern "C" fn gather(arguments: *mut c_void) -> *mut *mut c_void {
    let block = current();
    let (last, all);
    {
        // SAFETY: a kernel runs, so the block is set; no other reference to it is alive on this OS thread.
        let this = unsafe { &mut *block };
        let (group, thread) = (this.running() / WARPGROUP, this.running() % WARPGROUP);
        let gathering = &mut this.warpgroups[group];
        gathering.arrived |= 1 << thread;
        gathering.arguments[thread] = arguments;
        last = gathering.arrived == u128::MAX;
        all = gathering.arguments.as_mut_ptr();
        if last {
            this.defer();
        }
    }
    // SAFETY: on the coroutine's stack; the reference above is gone.
    unsafe { Block::wait(block) };
    if last { all } else { ptr::null_mut() }
}

/// Lets the other threads of the warpgroup go.
pub extern "C" fn release() {
    // SAFETY: as in `gather`.
    let this = unsafe { &mut *current() };
    let (group, last) = (this.running() / WARPGROUP, this.running());
    this.warpgroups[group].arrived = 0;
    (group * WARPGROUP..(group + 1) * WARPGROUP).filter(|&i| i != last).for_each(|i| this.wake(i));
}
