//! What threads of a block do together: barriers, and collectives of a warp.

use super::{BARRIERS, Block, CURRENT, Gathering, WARP};
use std::ffi::c_void;
use std::ptr;

impl Block {
    /// Lets the threads at a barrier go when all that it waits for are there.
    pub(super) fn open(&mut self, id: usize) {
        let barrier = &mut self.barriers[id];
        let expected = if barrier.expected == 0 { self.live } else { barrier.expected as usize };
        if !barrier.waiting.is_empty() && barrier.waiting.len() + barrier.passed as usize >= expected {
            barrier.passed = 0;
            for index in std::mem::take(&mut barrier.waiting) {
                self.warps[index / WARP].ready |= 1 << (index % WARP);
            }
        }
    }
}

/// Waits for the lanes of `mask`; see `include/runtime.h`.
pub extern "C" fn gather(kind: u32, mask: u32, arguments: *mut c_void) -> *mut *mut c_void {
    let block = CURRENT.get();
    {
        // SAFETY: a kernel runs, so the block is set; no other reference to it is alive on this OS thread.
        let this = unsafe { &mut *block };
        let (warp, lane) = (this.running / WARP, this.running % WARP);
        let gatherings = &mut this.warps[warp].gatherings;
        if mask >> lane & 1 == 0 {
            this.error.get_or_insert_with(|| format!("lane {lane} is not in the mask {mask:08x} of its collective"));
        } else if let Some(other) = gatherings.iter().find(|g| g.mask & mask != 0 && (g.mask, g.kind) != (mask, kind)) {
            let (a, b) = (other.kind, other.mask);
            this.error.get_or_insert_with(|| {
                format!("warp {warp}: lane {lane} is at collective {kind} of {mask:08x}, others at {a} of {b:08x}")
            });
        } else {
            let at = gatherings.iter().position(|g| g.mask == mask).unwrap_or_else(|| {
                gatherings.push(Gathering { kind, mask, arrived: 0, arguments: [ptr::null_mut(); WARP] });
                gatherings.len() - 1
            });
            let gathering = &mut gatherings[at];
            gathering.arrived |= 1 << lane;
            gathering.arguments[lane] = arguments;
            if gathering.arrived == mask {
                let complete = Box::new(gatherings.swap_remove(at));
                return this.warps[warp].complete.insert(complete).arguments.as_mut_ptr();
            }
        }
    }
    // SAFETY: on the coroutine's stack; the reference above is gone.
    unsafe { Block::wait(block) };
    ptr::null_mut()
}

/// Lets the other lanes of the collective go.
pub extern "C" fn release() {
    // SAFETY: as in `gather`.
    let this = unsafe { &mut *CURRENT.get() };
    let (warp, lane) = (this.running / WARP, this.running % WARP);
    let complete = this.warps[warp].complete.take().expect("the last lane of a collective calls this");
    this.warps[warp].ready |= complete.mask & !(1 << lane);
}

/// Waits at a barrier; see `include/runtime.h`.
pub extern "C" fn barrier(id: u32, threads: u32) {
    let block = CURRENT.get();
    {
        // SAFETY: as in `gather`.
        let this = unsafe { &mut *block };
        let index = this.running;
        let barrier = &mut this.barriers[id as usize % BARRIERS];
        barrier.expected = threads;
        barrier.waiting.push(index);
        this.open(id as usize % BARRIERS);
        if this.is_ready(index) {
            return this.rest(index);
        }
    }
    // SAFETY: on the coroutine's stack; the reference above is gone.
    unsafe { Block::wait(block) };
}

/// Counts at a barrier and goes on; see `include/runtime.h`.
pub extern "C" fn barrier_arrive(id: u32, threads: u32) {
    // SAFETY: as in `gather`.
    let this = unsafe { &mut *CURRENT.get() };
    let barrier = &mut this.barriers[id as usize % BARRIERS];
    (barrier.expected, barrier.passed) = (threads, barrier.passed + 1);
    this.open(id as usize % BARRIERS);
}
