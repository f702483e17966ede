//! Barriers in shared memory, and the tensor copies that they count.
//!
//! A phase ends when all arrivals and all announced bytes are there. Bytes count from the start of their copy, but a copy is
//! carried out when a thread has waited for the phase, not before: who does not wait reads what was there.

use crate::block::{Block, current};
use crate::tensor_map::{Load, TensorMap};
use std::collections::HashMap;

#[derive(Default)]
struct Mbarrier {
    count: u32,
    /// Arrivals that this phase still waits for.
    pending: u32,
    /// Phases that have ended.
    phases: u32,
    /// Bytes announced, and bytes of copies started, in this phase.
    expected: u64,
    started: u64,
    /// Copies of this phase; of phases that have ended, for which nobody has waited yet.
    current: Vec<Load>,
    ended: Vec<Load>,
    /// Threads that wait for the end of this phase.
    waiting: Vec<usize>,
}

/// The barriers of one block, by address.
#[derive(Default)]
pub struct Mbarriers(HashMap<u32, Mbarrier>);

impl Mbarriers {
    /// What waits, for the report of a deadlock.
    pub fn waiting(&self) -> impl Iterator<Item = String> {
        self.0.iter().filter(|(_, b)| !b.waiting.is_empty()).map(|(address, b)| {
            let Mbarrier { pending, phases, expected, started, .. } = b;
            let waiting = b.waiting.len();
            format!(
                "{waiting} threads at the mbarrier at {address:#x}, phase {phases}: {pending} arrivals missing, {started} of {expected} bytes"
            )
        })
    }

    /// Whether a copy was started for which nobody waited.
    pub fn unfinished(&self) -> bool {
        self.0.values().any(|b| !b.current.is_empty() || !b.ended.is_empty())
    }
}

impl Block {
    fn mbarrier(&mut self, barrier: *mut u64) -> Option<&mut Mbarrier> {
        let address = self.shared.address(barrier.cast());
        if !address.is_multiple_of(8) || !self.mbarriers.0.contains_key(&address) {
            self.mistake(format!("the mbarrier at {address:#x} was not initialised"));
            return None;
        }
        self.mbarriers.0.get_mut(&address)
    }

    fn arrive(&mut self, barrier: *mut u64, bytes: u32) {
        let Some(b) = self.mbarrier(barrier) else { return };
        if b.pending == 0 {
            let phase = b.phases;
            return self.mistake(format!("an arrival too many at an mbarrier, in phase {phase}"));
        }
        b.pending -= 1;
        b.expected += u64::from(bytes);
        self.settle(barrier);
    }

    fn load(&mut self, to: u32, map: &TensorMap, axes: u32, at: [u32; 4], barrier: *mut u64, ahead: bool) {
        match Load::new(map, axes, at, to, ahead, &mut self.shared) {
            Ok(load) => {
                let Some(b) = self.mbarrier(barrier) else { return };
                b.started += load.bytes();
                b.current.push(load);
                self.settle(barrier);
            }
            Err(what) => self.mistake(what.into()),
        }
    }

    /// Ends the phase if all is there.
    fn settle(&mut self, barrier: *mut u64) {
        let Some(b) = self.mbarrier(barrier) else { return };
        if b.pending > 0 || b.expected != b.started {
            return;
        }
        (b.pending, b.expected, b.started) = (b.count, 0, 0);
        b.phases += 1;
        let copies = std::mem::take(&mut b.current);
        b.ended.extend(copies);
        let waiting = std::mem::take(&mut b.waiting);
        if !waiting.is_empty() {
            self.carry_out(barrier);
        }
        waiting.into_iter().for_each(|index| self.wake(index));
    }

    /// Carries out the copies of phases that have ended.
    fn carry_out(&mut self, barrier: *mut u64) {
        let Some(b) = self.mbarrier(barrier) else { return };
        for load in std::mem::take(&mut b.ended) {
            load.carry_out(&mut self.shared);
        }
    }
}

/// The block that runs.
fn block() -> &'static mut Block {
    // SAFETY: a kernel runs, so the block is set; the callers below hold no other reference to it, and drop this one before they
    // give up the OS thread.
    unsafe { &mut *current() }
}

/// `mbarrier.init`.
pub extern "C" fn init(barrier: *mut u64, count: u32) {
    let this = block();
    let address = this.shared.address(barrier.cast());
    let fresh = Mbarrier { count, pending: count, ..Mbarrier::default() };
    this.mbarriers.0.insert(address, fresh);
}

/// `mbarrier.arrive`, with `expect_tx` of some bytes.
pub extern "C" fn arrive(barrier: *mut u64, bytes: u32) {
    block().arrive(barrier, bytes);
}

/// `mapa` and `mbarrier.arrive.shared::cluster`.
pub extern "C" fn arrive_at(barrier: *mut u64, rank: u32) {
    if let Some((there, barrier)) = peer(barrier, rank) {
        there.arrive(barrier, 0);
    }
}

/// Block `rank` of the cluster, with what lies there in the place of `barrier`. A mistake when there is no such block any more.
fn peer(barrier: *mut u64, rank: u32) -> Option<(&'static mut Block, *mut u64)> {
    let this = block();
    let address = this.shared.address(barrier.cast());
    let Some(&there) = this.peers.blocks.get(rank as usize) else {
        this.mistake(format!("block {rank} of a cluster of {}", this.peers.blocks.len()));
        return None;
    };
    // SAFETY: a block of the cluster that runs on this OS thread; `this` is not used any more, should they be the same.
    let there = unsafe { &mut *there };
    if there.live() == 0 {
        there.mistake(format!("block {rank} of the cluster has ended and is reached"));
        return None;
    }
    let barrier = there.shared.at(address).cast();
    Some((there, barrier))
}

/// `mbarrier.try_wait.parity` until it succeeds.
pub extern "C" fn wait(barrier: *mut u64, parity: u32) {
    {
        let this = block();
        let running = this.running();
        let Some(b) = this.mbarrier(barrier) else { return };
        if b.phases & 1 != parity {
            return this.carry_out(barrier);
        }
        b.waiting.push(running);
    }
    // SAFETY: on the coroutine's stack; the reference above is gone.
    unsafe { Block::wait(current()) };
}

/// `cp.async.bulk.tensor` into shared memory.
pub extern "C" fn tensor_load(to: *mut u8, map: *const TensorMap, axes: u32, at: *const [u32; 4], barrier: *mut u64) {
    let this = block();
    let to = this.shared.address(to);
    // SAFETY: the kernel gives a map and four coordinates.
    let (map, at) = unsafe { (&*map, *at) };
    this.load(to, map, axes, at, barrier, this.is_ahead());
}

/// The same with `multicast::cluster`.
pub extern "C" fn tensor_load_to(
    ranks: u32,
    to: *mut u8,
    map: *const TensorMap,
    axes: u32,
    at: *const [u32; 4],
    barrier: *mut u64,
) {
    let this = block();
    let (to, ahead) = (this.shared.address(to), this.is_ahead());
    // SAFETY: as above.
    let (map, at) = unsafe { (&*map, *at) };
    for rank in (0..16).filter(|rank| ranks >> rank & 1 == 1) {
        if let Some((there, barrier)) = peer(barrier, rank) {
            there.load(to, map, axes, at, barrier, ahead);
        }
    }
}
