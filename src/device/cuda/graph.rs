//! Launches that steps repeat, as CUDA graphs: the driver starts hundreds of kernels in one call.
//!
//! A step is walked through first: its operations check their arguments and book their costs as ever, but what they would launch
//! is noted. A step that was noted before, to the last parameter, is replayed; any other is launched kernel by kernel, and
//! captured when it comes again. So a graph cannot hold something stale: what changes between steps either lies in
//! memory that kernels read, or makes another graph.
//!
//! On paper, unmeasured on a card: a launch takes the driver some 2.5 us, a walk 0.3 us a launch (measured on an EPYC Zen 5 core), a
//! graph some 0.1 ms at most. A decoding step of up to 256 tokens has 14 launches a block, 11 on compute capability 9.0:
//!
//! | 9.0 | launches | one by one | walk | weights at 4.3 TB/s |
//! |-|-|-|-|-|
//! | SmolLM2-135M | 332 | 0.83 ms | 0.10 ms | 0.06 ms |
//! | Llama-3.2-1B | 178 | 0.45 ms | 0.05 ms | 0.57 ms |
//! | Llama-3.1-8B | 354 | 0.89 ms | 0.11 ms | 3.7 ms |
//!
//! So it is worth most for small models. At 8B kernels take longer than their launches, which they hide; the walk is not hidden.
//!
//! From one kernel's end to the next one's first bytes pass some 2 us, 0.8 ms a step of 8B. Dependent launches (`launch.rs`) let a
//! product bring weights meanwhile, as many as the ring of `kernels/matmul_sm90.cu` holds. On paper, unmeasured, us of a block of 8B, one
//! sequence at a context of 1,024:
//!
//! | from, to: what lies between | in order | dependent | weights meanwhile |
//! |-|-|-|-|
//! | down, qkv: norm | 4 | 2 | 4.8 |
//! | qkv, o: two rotations, store, attention (2.5), its splits | 14.5 | 7.5 | 4.6 |
//! | o, gate and up: norm | 4 | 2 | 5.3 |
//! | gate and up, down: activation | 4 | 2 | 4.6 |
//!
//! So 26.5 us become 2.9, and 0.5 for the last blocks of each product: a step takes 3.9 ms for 3.7 of weights where it took 4.6.

use super::memory::Pool;
use super::{Cuda, Grid};
use crate::error::{Error, Result};
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaGraph, DeviceRepr};
use std::any::Any;
use std::cell::RefCell;
use std::sync::Arc;

/// Steps that are remembered: the sizes of batch and context that a decoding loop goes back and forth between.
const KEPT: usize = 16;

thread_local! {
    /// What the step that this thread walks through would do.
    static NOTES: RefCell<Option<Notes>> = const { RefCell::new(None) };
}

/// A step as noted so far, and the memory that it uses.
pub(super) struct Notes {
    actions: Vec<Action>,
    /// Buffers of these graphs that the step does not hold.
    pub(super) free: Pool,
    /// Addresses of buffers that it holds.
    pub(super) held: Vec<u64>,
    /// Those of buffers that it writes, in their order.
    written: Vec<u64>,
}

/// What the card is to do.
enum Action {
    /// Run a kernel.
    Launch {
        /// Its name.
        kernel: &'static str,
        /// Its grid.
        grid: Grid,
        /// Its parameters.
        params: Box<dyn Params>,
        /// Whether it may start before those in front of it have ended.
        dependent: bool,
    },
    /// Set bytes to zero.
    Zero {
        /// Where.
        address: u64,
        /// How many.
        bytes: usize,
    },
}

/// Parameters of some kernel.
pub(super) trait Params: Any {
    /// Launches the kernel with them.
    fn launch(&self, cuda: &Cuda, kernel: &'static str, grid: Grid, dependent: bool) -> Result<()>;

    /// Whether these are those of another launch.
    fn equals(&self, other: &dyn Any) -> bool;
}

impl<P: DeviceRepr + PartialEq + 'static> Params for P {
    fn launch(&self, cuda: &Cuda, kernel: &'static str, grid: Grid, dependent: bool) -> Result<()> {
        cuda.launch_now(kernel, grid, self, dependent)
    }

    fn equals(&self, other: &dyn Any) -> bool {
        other.downcast_ref() == Some(self)
    }
}

impl PartialEq for Action {
    fn eq(&self, other: &Action) -> bool {
        match (self, other) {
            (
                Action::Launch { kernel, grid, params, dependent },
                Action::Launch { kernel: name, grid: size, params: others, dependent: as_well },
            ) => (kernel, grid, dependent) == (name, size, as_well) && params.equals(&**others),
            (Action::Zero { address, bytes }, Action::Zero { address: to, bytes: size }) => {
                (address, bytes) == (to, size)
            }
            _ => false,
        }
    }
}

/// Steps that came before, the newest first.
#[derive(Default)]
pub(crate) struct Graphs {
    kept: Vec<Kept>,
    /// Memory that only these steps use, one after the other.
    scratch: Pool,
    /// The card of both.
    cuda: Option<Arc<Cuda>>,
}

/// A step, and its graph once it has come twice.
struct Kept {
    actions: Vec<Action>,
    graph: Option<CudaGraph>,
}

/// Ends the notes of a walk that panics.
struct Walk;

impl Drop for Walk {
    fn drop(&mut self) {
        NOTES.take();
    }
}

/// Hands the notes of this thread's walk to `with`; `None` when it does not walk.
pub(super) fn noting<T>(with: impl FnOnce(&mut Notes) -> T) -> Option<T> {
    NOTES.with_borrow_mut(|notes| notes.as_mut().map(with))
}

impl Notes {
    /// Notes a launch. `ahead`: what it reads before it waits for those in front of it, if it does.
    pub(super) fn launch<P: Params + Copy>(
        &mut self,
        kernel: &'static str,
        grid: Grid,
        params: &P,
        ahead: Option<&[u64]>,
    ) {
        let dependent =
            ahead.is_some_and(|ahead| ahead.iter().all(|address| self.written.binary_search(address).is_err()));
        self.actions.push(Action::Launch { kernel, grid, params: Box::new(*params), dependent });
    }

    /// Notes that what is launched next writes to a buffer.
    pub(super) fn writes(&mut self, address: u64) {
        if let Err(at) = self.written.binary_search(&address) {
            self.written.insert(at, address);
        }
    }

    /// Notes that bytes become zero.
    pub(super) fn zero(&mut self, address: u64, bytes: usize) {
        self.writes(address);
        self.actions.push(Action::Zero { address, bytes });
    }
}

impl Cuda {
    /// Does what `step` launches, as a graph where it came before. `step` may launch, zero and hold memory for its own time;
    /// nothing else, which is an error.
    pub fn repeat(self: &Arc<Cuda>, graphs: &mut Graphs, step: impl FnOnce() -> Result<()>) -> Result<()> {
        let cuda = graphs.cuda.get_or_insert_with(|| self.clone());
        if !Arc::ptr_eq(cuda, self) {
            return Err(Error::shape("repeat", "device", cuda.card.device_name(), "another device"));
        }
        let actions = self.walk(graphs, step)?;
        let Some(at) = graphs.kept.iter().position(|kept| kept.actions == actions) else {
            actions.iter().try_for_each(|action| action.run(self, false))?;
            graphs.kept.truncate(KEPT - 1);
            graphs.kept.insert(0, Kept { actions, graph: None });
            return Ok(());
        };
        graphs.kept[..=at].rotate_right(1);
        let Kept { actions, graph } = &mut graphs.kept[0];
        let graph = match graph {
            Some(graph) => graph,
            none => none.insert(self.capture(actions)?),
        };
        graph.launch().map_err(|e| self.error("launch a graph", e))
    }

    /// What `step` would do.
    fn walk(&self, graphs: &mut Graphs, step: impl FnOnce() -> Result<()>) -> Result<Vec<Action>> {
        let mut free = std::mem::take(&mut graphs.scratch);
        free.sort();
        NOTES.set(Some(Notes { actions: Vec::new(), free, held: Vec::new(), written: Vec::new() }));
        let guard = Walk;
        let done = step();
        let notes = NOTES.take();
        drop(guard);
        let Some(Notes { actions, free, held, .. }) = notes else {
            return Err(Error::shape("repeat", "step", "one at a time", "a step within a step"));
        };
        graphs.scratch = free;
        let outlived = match held.len() {
            0 => Ok(()),
            n => Err(Error::shape("repeat", "step", "memory for its own time", format!("{n} buffers that outlive it"))),
        };
        if let Err(error) = done.and(outlived) {
            graphs.kept.clear(); // They may use what the step still holds.
            return Err(error);
        }
        Ok(actions)
    }

    fn capture(&self, actions: &[Action]) -> Result<CudaGraph> {
        self.bind()?;
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream.begin_capture(mode).map_err(|e| self.error("begin a graph", e))?;
        // A launch that may start early does so behind another launch.
        let behind = |i: usize| i > 0 && matches!(actions[i - 1], Action::Launch { .. });
        let launched = actions.iter().enumerate().try_for_each(|(i, action)| action.run(self, behind(i)));
        // Ends also what failed, or the stream would go on capturing.
        let graph = self.stream.end_capture(CUgraphInstantiate_flags(0)).map_err(|e| self.error("make a graph", e));
        launched?;
        graph?.ok_or_else(|| Error::shape("repeat", "step", "something to launch", "nothing"))
    }
}

impl Action {
    /// `behind`: a launch that may start early may.
    fn run(&self, cuda: &Cuda, behind: bool) -> Result<()> {
        match self {
            Action::Launch { kernel, grid, params, dependent } => {
                params.launch(cuda, kernel, *grid, behind && *dependent)
            }
            Action::Zero { address, bytes } => cuda.zero_now(*address, *bytes),
        }
    }
}

impl Drop for Graphs {
    fn drop(&mut self) {
        // The graphs first: the driver lets what still runs come to its end.
        self.kept.clear();
        if let Some(cuda) = &self.cuda {
            cuda.give_back(std::mem::take(&mut self.scratch));
        }
    }
}
