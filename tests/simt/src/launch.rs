//! A grid of blocks over the host's cores.

use crate::block::{Launch, MAX_THREADS};
use crate::cluster::Cluster;
use crate::memory::MEMORY;
use rayon::prelude::*;
use std::cell::RefCell;

thread_local! {
    static CLUSTER: RefCell<Cluster> = RefCell::new(Cluster::default());
}

/// An error for a launch of nothing, and for blocks that are too large.
pub fn check_size(launch: &Launch) -> Result<(), String> {
    let (blocks, threads) = (launch.grid.count(), launch.block.count());
    if blocks == 0 || threads == 0 || threads > MAX_THREADS as u64 {
        return Err(format!("a grid of {blocks} blocks of {threads} threads"));
    }
    Ok(())
}

/// Runs a launch to its end. The error says what a kernel did wrong, and where.
pub fn run(launch: &Launch) -> Result<(), String> {
    check_size(launch)?;
    let size = launch.cluster as u64;
    let (clusters, one) =
        (launch.clusters(), |number: u64| CLUSTER.with_borrow_mut(|cluster| cluster.run(launch, number * size)));
    if clusters == 1 {
        one(0)?;
    } else {
        // Clusters in another order for every seed.
        let start = launch.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) % clusters;
        (0..clusters).into_par_iter().try_for_each(|i| one((start + i) % clusters))?;
    }
    check_memory()
}

/// An error when a kernel wrote beside a buffer.
pub fn check_memory() -> Result<(), String> {
    match MEMORY.damaged() {
        Some((address, len)) => Err(format!("a write beside the buffer of {len} bytes at {address:#x}")),
        None => Ok(()),
    }
}
