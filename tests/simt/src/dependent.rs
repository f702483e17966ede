//! Dependent launches (programmatic dependent launch), at their worst. A launch of a graph that may start early comes as far as it can
//! before anything of the launches in front of it runs that they have not done yet; then they run to their end, then it does. So what
//! it reads ahead of them is not there yet, and what it writes ahead of them they read, or write over.
//!
//! Its threads all stay on the OS thread that launches the graph: compiled code may keep the address of what belongs to that.

use crate::block::{Block, Launch, current};
use crate::cluster::Cluster;
use crate::driver::{SUCCESS, Status};
use crate::driver_launch::{launch_of, report};
use crate::graph::Started;
use crate::launch;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::ffi::c_void;

/// CUDA threads that may wait at a time, but that three launches always may: each has a stack. A launch of more is run in one go.
const MOST_THREADS: u64 = 4096;

thread_local! {
    /// Clusters to be used again.
    static SPARE: RefCell<Vec<Cluster>> = const { RefCell::new(Vec::new()) };
}

/// Whether the threads of a block may go on where they wait for the kernels before.
#[derive(Default)]
pub struct Gate {
    closed: bool,
    /// Threads that wait.
    waiting: Vec<usize>,
    /// Whether one has come here.
    reached: bool,
}

impl Gate {
    /// The gate of a new block.
    pub fn new(closed: bool) -> Gate {
        Gate { closed, ..Gate::default() }
    }

    /// Whether threads wait here.
    pub fn holds(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether a thread has come here.
    pub fn reached(&self) -> bool {
        self.reached
    }

    /// Lets pass who comes, and gives the threads that waited.
    pub fn open(&mut self) -> Vec<usize> {
        self.closed = false;
        std::mem::take(&mut self.waiting)
    }
}

/// `griddepcontrol.wait`.
pub extern "C" fn wait() {
    let block = current();
    {
        // SAFETY: a kernel runs, so the block is set; no other reference to it is in use on this OS thread.
        let this = unsafe { &mut *block };
        this.gate.reached = true;
        if !this.gate.closed {
            return;
        }
        let running = this.running();
        this.gate.waiting.push(running);
    }
    // SAFETY: on the coroutine's stack; the reference above is gone.
    unsafe { Block::wait(block) };
}

/// A launch that has come as far as it can.
struct Held {
    launch: Launch,
    clusters: Vec<Cluster>,
}

impl Held {
    fn start(launch: Launch) -> Result<Held, String> {
        launch::check_size(&launch)?;
        let mut held = Held { launch, clusters: Vec::new() };
        for number in 0..launch.clusters() {
            let mut cluster = SPARE.with_borrow_mut(Vec::pop).unwrap_or_default();
            cluster.start(&launch, number * launch.cluster as u64);
            cluster.advance();
            held.clusters.push(cluster);
        }
        if held.clusters.iter().any(Cluster::failed) { Err(held.end().expect_err("one failed")) } else { Ok(held) }
    }

    /// Runs it to its end: the kernels before are done.
    fn finish(mut self) -> Result<(), String> {
        for cluster in &mut self.clusters {
            cluster.open_gates();
            cluster.advance();
        }
        self.end()?;
        launch::check_memory()
    }

    /// Gives its threads back; what one did wrong.
    fn end(&mut self) -> Result<(), String> {
        let size = self.launch.cluster as u64;
        // Where one did something wrong, the others have not come to their end.
        let culprit = self.clusters.iter().position(Cluster::failed);
        let mut ends = Vec::new();
        for (number, mut cluster) in (0..).zip(self.clusters.drain(..)) {
            ends.push(cluster.finish(&self.launch, number * size));
            SPARE.with_borrow_mut(|spare| spare.push(cluster));
        }
        match culprit {
            Some(cluster) => ends.swap_remove(cluster),
            None => ends.into_iter().collect(),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.end(); // Of a launch whose graph has failed.
    }
}

enum Pending<'a> {
    /// Nothing of it has run.
    Whole(&'a Started, Launch),
    /// Threads wait for what is in front of it.
    Held(&'a Started, Held),
}

impl Pending<'_> {
    fn finish(self) -> Status {
        match self {
            Pending::Whole(started, launch) => report(started, launch::run(&launch)),
            Pending::Held(started, held) => report(started, held.finish()),
        }
    }

    fn threads(&self) -> u64 {
        match self {
            Pending::Whole(..) => 0,
            Pending::Held(_, held) => held.launch.threads(),
        }
    }
}

/// Launches of a graph that have not come to their end, in their order.
#[derive(Default)]
pub struct InFlight<'a>(VecDeque<Pending<'a>>);

impl<'a> InFlight<'a> {
    /// Takes in the next one. `parameters`: the kernel's struct, alive as long as `started`.
    pub fn launch(&mut self, started: &'a Started, parameters: *const c_void) -> Status {
        let launch = launch_of(started, parameters);
        if !started.dependent || launch.threads() > MOST_THREADS {
            let status = self.finish();
            self.0.push_back(Pending::Whole(started, launch));
            return status;
        }
        while self.0.len() > 2 && self.0.iter().map(Pending::threads).sum::<u64>() + launch.threads() > MOST_THREADS {
            let status = self.0.pop_front().map_or(SUCCESS, Pending::finish);
            if status != SUCCESS {
                return status;
            }
        }
        match Held::start(launch) {
            Ok(held) => self.0.push_back(Pending::Held(started, held)),
            Err(what) => return report(started, Err(what)),
        }
        SUCCESS
    }

    /// Runs all to their end.
    pub fn finish(&mut self) -> Status {
        let statuses = self.0.drain(..).map(Pending::finish);
        statuses.into_iter().find(|&status| status != SUCCESS).unwrap_or(SUCCESS)
    }
}
