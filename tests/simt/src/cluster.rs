//! Blocks that run as a cluster (most launches: one alone): on one OS thread, in turns drawn from the seed. They reach each other's
//! barriers and shared memory.

use crate::block::{Block, Launch, current};
use crate::kernels::Kernels;
use std::ptr;

/// Blocks of a cluster, used again for the next one.
#[derive(Default)]
pub struct Cluster {
    blocks: Vec<Block>,
    /// How many of them run.
    size: usize,
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
        self.start(launch, first);
        self.open_gates();
        self.advance();
        self.finish(launch, first)
    }

    /// Makes the threads of the blocks from number `first` on.
    pub fn start(&mut self, launch: &Launch, first: u64) {
        while self.blocks.len() < launch.cluster {
            self.blocks.push(Block::new());
        }
        self.size = launch.cluster;
        let all: Vec<*mut Block> = self.each().map(ptr::from_mut).collect();
        for (rank, block) in self.each().enumerate() {
            block.start(launch, first + rank as u64, rank);
            block.peers = Peers { blocks: all.clone(), waiting: Vec::new() };
        }
    }

    fn each(&mut self) -> impl Iterator<Item = &mut Block> {
        self.blocks[..self.size].iter_mut()
    }

    /// Whether a thread did something wrong.
    pub fn failed(&self) -> bool {
        self.blocks[..self.size].iter().any(Block::failed)
    }

    /// Lets the threads go on that wait for the kernels before.
    pub fn open_gates(&mut self) {
        self.each().for_each(Block::open_gate);
    }

    /// Lets the threads run until all have ended or wait for the kernels before, or one did something wrong.
    pub fn advance(&mut self) {
        let all: Vec<*mut Block> = self.each().map(ptr::from_mut).collect();
        // SAFETY: blocks of this cluster; the references are used one at a time, and what runs in a step has pointers of its own.
        let each = || all.iter().map(|&block| unsafe { &mut *block });
        let slot = Kernels::get().slot();
        while !each().any(|block| block.failed()) {
            let start = each().map(Block::random).next().unwrap_or(0) as usize;
            let turns = || (0..all.len()).map(|i| all[start.wrapping_add(i) % all.len()]);
            // SAFETY: blocks that were started.
            if turns().any(|block| unsafe { Block::step(block, slot) }) || each().any(Block::resume_deferred) {
                continue;
            }
            match each().find(|block| block.live() > 0) {
                Some(block) if !each().any(|block| block.gate.holds()) => block.report_deadlock(),
                _ => break,
            }
        }
    }

    /// The end of the blocks from number `first` on, or what one did wrong.
    pub fn finish(&mut self, launch: &Launch, first: u64) -> Result<(), String> {
        // Where one did something wrong, the others have not come to their end.
        let culprit = self.each().position(|block| block.failed());
        let mut ends: Vec<_> =
            self.each().enumerate().map(|(rank, block)| block.finish(launch, first + rank as u64)).collect();
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
