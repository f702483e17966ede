//! Blocks that run as a cluster (most launches: one alone): on one OS thread, in turns drawn from the seed. They reach each other's
//! barriers and shared memory.

use crate::block::{Block, Launch, current};
use crate::kernels::Kernels;
use std::ptr;

/// Blocks of a cluster, used again for the next one.
#[derive(Default)]
pub struct Cluster {
    blocks: Vec<Block>,
}

/// The threads of a block that wait for those of the whole cluster, and its blocks.
#[derive(Default)]
pub struct Peers {
    pub blocks: Vec<*mut Block>,
    waiting: Vec<usize>,
}

impl Cluster {
    /// Runs the blocks of a launch from number `first` on to their end.
    pub fn run(&mut self, launch: &Launch, first: u64) -> Result<(), String> {
        while self.blocks.len() < launch.cluster {
            self.blocks.push(Block::new());
        }
        let all: Vec<*mut Block> = self.blocks[..launch.cluster].iter_mut().map(ptr::from_mut).collect();
        // SAFETY: blocks of this cluster; the references are used one at a time, and what runs in a step has pointers of its own.
        let each = || all.iter().map(|&block| unsafe { &mut *block });
        for (rank, block) in each().enumerate() {
            block.start(launch, first + rank as u64, rank);
            block.peers = Peers { blocks: all.clone(), waiting: Vec::new() };
        }
        let slot = Kernels::get().slot();
        while !each().any(|block| block.failed()) {
            let start = each().map(Block::random).next().unwrap_or(0) as usize;
            let turns = || (0..all.len()).map(|i| all[start.wrapping_add(i) % all.len()]);
            // SAFETY: blocks that were started.
            if turns().any(|block| unsafe { Block::step(block, slot) }) || each().any(Block::resume_deferred) {
                continue;
            }
            match each().find(|block| block.live() > 0) {
                Some(block) => block.report_deadlock(),
                None => break,
            }
        }
        // Where one did something wrong, the others have not come to their end.
        let culprit = each().position(|block| block.failed());
        let mut ends: Vec<_> =
            each().enumerate().map(|(rank, block)| block.finish(launch, first + rank as u64)).collect();
        match culprit {
            Some(rank) => ends.swap_remove(rank),
            None => ends.into_iter().collect(),
        }
    }
}

/// Lets all threads of the cluster go when each that has not ended waits.
pub fn open(blocks: &[*mut Block]) {
    // SAFETY: blocks of the cluster that runs on this OS thread; a reference lasts for one call.
    let all = || blocks.iter().map(|&block| unsafe { &mut *block });
    if all().all(|block| block.peers.waiting.len() == block.live()) {
        for block in all() {
            let waiting = std::mem::take(&mut block.peers.waiting);
            waiting.into_iter().for_each(|index| block.wake(index));
        }
    }
}

/// `barrier.cluster.arrive` and `wait`.
pub extern "C" fn wait() {
    let block = current();
    {
        // SAFETY: a kernel runs, so the block is set; no other reference to it is in use on this OS thread.
        let this = unsafe { &mut *block };
        let running = this.running();
        this.peers.waiting.push(running);
        open(&this.peers.blocks.clone());
        if this.is_ready(running) {
            return this.rest(running);
        }
    }
    // SAFETY: on the coroutine's stack; the reference above is gone.
    unsafe { Block::wait(block) };
}
