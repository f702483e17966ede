//! The threads of one block: coroutines of one OS thread, switched at barriers and warp collectives, in an order drawn from a
//! seed.

mod collectives;

pub use collectives::{barrier, barrier_arrive, gather, release};

use crate::asan;
use crate::cluster::{self, Peers};
use crate::dependent::Gate;
use crate::kernels::{Index, Kernel, Lane};
use crate::mbarrier::Mbarriers;
use crate::shared::Shared;
use crate::warpgroup::{Gathering as WholeGroup, WARPGROUP};
use corosensei::stack::{DefaultStack, Stack};
use corosensei::{Coroutine, CoroutineResult, Yielder};
use std::cell::Cell;
use std::ffi::{CStr, c_char, c_void};
use std::ptr;

/// Bytes of one thread's stack: registers that the compiler spilled, local arrays, emulation.
const STACK: usize = 256 << 10;
/// Most threads of a block.
pub const MAX_THREADS: usize = 1024;
const WARP: usize = 32;
/// Barriers of a block: `bar.sync 0` to `15`.
const BARRIERS: usize = 16;

thread_local! {
    /// The block that this OS thread runs.
    static CURRENT: Cell<*mut Block> = const { Cell::new(ptr::null_mut()) };
}

/// Lanes of a warp that wait for each other.
struct Gathering {
    kind: u32,
    mask: u32,
    arrived: u32,
    arguments: [*mut c_void; WARP],
}

#[derive(Default)]
struct Warp {
    /// Lanes that can run.
    ready: u32,
    gatherings: Vec<Gathering>,
    /// The one whose last lane is at work.
    complete: Option<Box<Gathering>>,
}

#[derive(Default)]
struct Barrier {
    waiting: Vec<usize>,
    /// Threads that count as there and went on.
    passed: u32,
    expected: u32,
}

struct Thread {
    lane: Box<Lane>,
    coroutine: Option<Coroutine<(), (), (), DefaultStack>>,
    stack: Option<DefaultStack>,
    yielder: *const Yielder<(), ()>,
}

/// What a launch is made of.
#[derive(Clone, Copy)]
pub struct Launch {
    pub kernel: Kernel,
    pub parameters: *const c_void,
    pub grid: Index,
    pub block: Index,
    /// Blocks of a cluster, neighbours in x.
    pub cluster: usize,
    pub shared_bytes: usize,
    /// Whether it may start before the kernels in front of it have ended.
    pub dependent: bool,
    pub seed: u64,
}

impl Launch {
    /// How many clusters it has.
    pub fn clusters(&self) -> u64 {
        self.grid.count() / self.cluster as u64
    }

    /// How many threads.
    pub fn threads(&self) -> u64 {
        self.grid.count() * self.block.count()
    }
}

// SAFETY: the parameters are only read while the launch runs.
unsafe impl Sync for Launch {}
// SAFETY: as above.
unsafe impl Send for Launch {}

/// A block with its memory, used again for the next one.
pub struct Block {
    threads: Vec<Thread>,
    warps: Vec<Warp>,
    barriers: [Barrier; BARRIERS],
    pub warpgroups: Vec<WholeGroup>,
    pub mbarriers: Mbarriers,
    pub shared: Shared,
    pub peers: Peers,
    pub gate: Gate,
    /// Threads that run when no other can.
    deferred: Vec<usize>,
    live: usize,
    running: usize,
    random: u64,
    error: Option<String>,
}

impl Block {
    pub fn new() -> Block {
        Block {
            threads: Vec::new(),
            warps: Vec::new(),
            barriers: Default::default(),
            warpgroups: Vec::new(),
            mbarriers: Mbarriers::default(),
            shared: Shared::new(),
            peers: Peers::default(),
            gate: Gate::default(),
            deferred: Vec::new(),
            live: 0,
            running: 0,
            random: 0,
            error: None,
        }
    }

    /// Whether a thread did something wrong.
    pub fn failed(&self) -> bool {
        self.error.is_some()
    }

    /// Threads that have not ended.
    pub fn live(&self) -> usize {
        self.live
    }

    /// Lets the threads of one warp that can, if there is one, run until they wait or end; whether there was.
    ///
    /// SAFETY: a block that was started, with no reference to it alive.
    pub unsafe fn step(block: *mut Block, slot: *mut *mut Lane) -> bool {
        CURRENT.set(block);
        // SAFETY: no other reference, by the contract.
        let this = unsafe { &mut *block };
        let warp = this.next_warp();
        if let Some(warp) = warp {
            this.run_warp(warp, slot);
        }
        CURRENT.set(ptr::null_mut());
        warp.is_some()
    }

    /// The end of block `number`, or what it did wrong.
    pub fn finish(&mut self, launch: &Launch, number: u64) -> Result<(), String> {
        let n = launch.block.count() as usize;
        for thread in &mut self.threads[..n] {
            let mut coroutine = thread.coroutine.take().expect("started before");
            let ended = coroutine.done();
            if !ended {
                // SAFETY: the frames left behind are C++ of kernels and emulation, which own nothing.
                unsafe { coroutine.force_reset() };
            }
            let stack = coroutine.into_stack();
            if !ended {
                asan::forget(stack.limit().get()..stack.base().get());
            }
            thread.stack = Some(stack);
        }
        if self.error.is_none() && !self.shared.intact() {
            self.error = Some("a write past the end of a shared object".into());
        }
        let products = self.threads[..n].iter().any(|thread| thread.lane.products > 0);
        if self.error.is_none() && (products || self.mbarriers.unfinished()) {
            self.error = Some("a tensor copy or a wgmma that nobody waited for".into());
        }
        if self.error.is_none() && launch.dependent && !self.gate.reached() {
            self.error = Some("no thread waited for the kernels before".into());
        }
        self.error.take().map_or(Ok(()), |e| Err(format!("block {:?}: {e}", launch.grid.at(number))))
    }

    /// Makes the threads of block `number`, that with `rank` of its cluster.
    pub fn start(&mut self, launch: &Launch, number: u64, rank: usize) {
        let n = launch.block.count() as usize;
        while self.threads.len() < n {
            let stack = DefaultStack::new(STACK).expect("address space for a stack");
            self.threads.push(Thread { lane: Lane::new(), coroutine: None, stack: Some(stack), yielder: ptr::null() });
        }
        self.warps.clear();
        self.warps.resize_with(n.div_ceil(WARP), Warp::default);
        self.barriers = Default::default();
        self.warpgroups.clear();
        self.warpgroups.resize_with(n.div_ceil(WARPGROUP), WholeGroup::default);
        self.mbarriers = Mbarriers::default();
        self.gate = Gate::new(launch.dependent);
        self.deferred.clear();
        self.shared.start_block(launch.shared_bytes);
        (self.live, self.error) = (n, None);
        self.random = (launch.seed ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15)).wrapping_add(0xD1B5_4A32_D192_ED03);
        let Launch { kernel, parameters, .. } = *launch;
        for (i, thread) in self.threads[..n].iter_mut().enumerate() {
            let lane = &mut *thread.lane;
            (lane.thread, lane.block) = (launch.block.at(i as u64), launch.grid.at(number));
            (lane.block_size, lane.grid_size) = (launch.block, launch.grid);
            (lane.cluster_rank, lane.ahead) = (rank as u32, launch.dependent.into());
            (lane.copies, lane.groups) = (0, 0);
            (lane.products, lane.product_groups, lane.fenced) = (0, 0, 0);
            let yielder: *mut *const Yielder<(), ()> = &mut thread.yielder;
            let stack = thread.stack.take().expect("given back by the last block");
            thread.coroutine = Some(Coroutine::with_stack(stack, move |y, ()| {
                // SAFETY: the thread outlives its coroutine and does not move while the block runs; the kernel's type and
                // parameters are the caller's promise.
                unsafe {
                    *yielder = y;
                    kernel(parameters);
                }
            }));
            self.warps[i / WARP].ready |= 1 << (i % WARP);
        }
    }

    /// A random number (xorshift64*).
    pub fn random(&mut self) -> u32 {
        let x = &mut self.random;
        *x ^= *x >> 12;
        *x ^= *x << 25;
        *x ^= *x >> 27;
        (x.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32) as u32
    }

    /// One of the warps that can run.
    fn next_warp(&mut self) -> Option<usize> {
        let (n, first) = (self.warps.len(), self.random() as usize);
        (0..n).map(|i| (first + i) % n).find(|&w| self.warps[w].ready != 0)
    }

    /// Runs the lanes of a warp that can, each until it waits or ends.
    fn run_warp(&mut self, warp: usize, slot: *mut *mut Lane) {
        let (ready, random) = (self.warps[warp].ready, self.random());
        // A permutation of the lanes: any start, any odd step.
        let (start, step) = (random, random >> 8 | 1);
        for i in 0..WARP as u32 {
            let lane = start.wrapping_add(i.wrapping_mul(step)) % WARP as u32;
            if ready >> lane & 1 == 0 || self.error.is_some() {
                continue;
            }
            let index = warp * WARP + lane as usize;
            self.warps[warp].ready &= !(1 << lane);
            self.running = index;
            let thread = &mut self.threads[index];
            // SAFETY: the slot of this OS thread.
            unsafe { *slot = &mut *thread.lane };
            if let CoroutineResult::Return(()) = thread.coroutine.as_mut().expect("started").resume(()) {
                self.live -= 1;
                (0..BARRIERS).for_each(|id| self.open(id));
                cluster::open(&self.peers.blocks.clone());
            }
        }
    }

    /// Gives up the OS thread until this CUDA thread is ready again.
    ///
    /// SAFETY: called on the running coroutine's stack, with no reference into the block alive.
    pub unsafe fn wait(block: *mut Block) {
        // SAFETY: set when the coroutine started; the yielder lives as long as it. The reference ends before the switch.
        unsafe {
            let this = &*block;
            let yielder = this.threads[this.running].yielder;
            (*yielder).suspend(());
        }
    }

    /// Number of the thread that runs.
    pub fn running(&self) -> usize {
        self.running
    }

    /// Whether the thread that runs has not waited for the kernels before.
    pub fn is_ahead(&self) -> bool {
        self.threads[self.running].lane.ahead != 0
    }

    /// Lets the threads go on that wait for the kernels before.
    pub fn open_gate(&mut self) {
        self.gate.open().into_iter().for_each(|index| self.wake(index));
    }

    /// Makes a thread ready again.
    pub fn wake(&mut self, index: usize) {
        self.warps[index / WARP].ready |= 1 << (index % WARP);
    }

    /// Whether a thread is ready.
    pub fn is_ready(&self, index: usize) -> bool {
        self.warps[index / WARP].ready >> (index % WARP) & 1 == 1
    }

    /// Takes back that a thread is ready.
    pub fn rest(&mut self, index: usize) {
        self.warps[index / WARP].ready &= !(1 << (index % WARP));
    }

    /// Lets the thread that runs, and waits next, go on when no other can run.
    pub fn defer(&mut self) {
        self.deferred.push(self.running);
    }

    /// Lets one of the threads that were put off go on, if there is one.
    pub fn resume_deferred(&mut self) -> bool {
        if self.deferred.is_empty() {
            return false;
        }
        let i = self.random() as usize % self.deferred.len();
        let index = self.deferred.swap_remove(i);
        self.wake(index);
        true
    }

    /// Ends the launch with an error, once this thread waits or ends.
    pub fn mistake(&mut self, what: String) {
        let thread = self.threads[self.running].lane.thread;
        self.error.get_or_insert_with(|| format!("thread {thread:?}: {what}"));
    }

    /// Ends the launch: nobody can run.
    pub fn report_deadlock(&mut self) {
        self.error = Some(self.deadlock());
    }

    fn deadlock(&self) -> String {
        let barriers = self.barriers.iter().enumerate().filter(|(_, b)| !b.waiting.is_empty());
        let at_barriers: Vec<String> =
            barriers.map(|(id, b)| format!("{} threads at barrier {id}", b.waiting.len())).collect();
        let gatherings =
            self.warps.iter().enumerate().flat_map(|(w, warp)| warp.gatherings.iter().map(move |g| (w, g)));
        let at_collectives: Vec<String> = gatherings
            .map(|(w, g)| format!("warp {w}: lanes {:08x} of {:08x} at collective {}", g.arrived, g.mask, g.kind))
            .collect();
        let groups = self.warpgroups.iter().enumerate().filter(|(_, group)| group.waiting() > 0);
        let at_groups = groups.map(|(g, group)| format!("warpgroup {g}: {} of 128 threads", group.waiting())).collect();
        let at_mbarriers = self.mbarriers.waiting().collect();
        let all = [at_barriers, at_collectives, at_groups, at_mbarriers].concat();
        format!("deadlock of {} threads: {}", self.live, all.join("; "))
    }
}

/// The block that this OS thread runs, or null.
pub fn current() -> *mut Block {
    CURRENT.get()
}

/// Block and thread that this OS thread runs, when it runs one.
pub fn place() -> Option<(Index, Index)> {
    // SAFETY: while a kernel runs, the block is alive and at rest but for this thread.
    let this = unsafe { CURRENT.get().as_ref()? };
    let lane = &this.threads.get(this.running)?.lane;
    Some((lane.block, lane.thread))
}

/// The number of a place in shared memory.
pub extern "C" fn shared_address(at: *const c_void) -> u32 {
    // SAFETY: as in `gather`.
    unsafe { (*CURRENT.get()).shared.address(at.cast()) }
}

/// The place in shared memory of that number.
pub extern "C" fn shared_at(address: u32) -> *mut c_void {
    // SAFETY: as in `gather`.
    unsafe { (*CURRENT.get()).shared.at(address).cast() }
}

/// The block's shared object under `key`.
pub extern "C" fn shared(key: *const c_void, bytes: u64) -> *mut c_void {
    // SAFETY: as in `gather`.
    unsafe { (*CURRENT.get()).shared.object(key as usize, bytes as usize).cast() }
}

/// The block's shared memory that the launch asked for.
pub extern "C" fn dynamic_shared() -> *mut c_void {
    // SAFETY: as in `gather`.
    unsafe { (*CURRENT.get()).shared.dynamic().cast() }
}

/// Ends the launch with an error.
pub extern "C" fn fail(what: *const c_char) {
    let block = CURRENT.get();
    {
        // SAFETY: as in `gather`; `what` is a C string.
        let (this, what) = unsafe { (&mut *block, CStr::from_ptr(what)) };
        let thread = this.threads[this.running].lane.thread;
        this.error.get_or_insert_with(|| format!("thread {thread:?}: {}", what.to_string_lossy()));
    }
    // SAFETY: on the coroutine's stack; the reference above is gone.
    unsafe { Block::wait(block) };
}
