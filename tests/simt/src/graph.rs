//! Driver functions: stream capture and graphs. While a thread captures, launches and fills are noted with a copy of their
//! parameters, and whatever a capture does not take is refused.

use crate::dependent::InFlight;
use crate::driver::{INVALID_VALUE, SUCCESS, Status, give};
use crate::driver_memory::fill;
use crate::kernels::{Kernel, Kernels};
use std::cell::RefCell;
use std::ffi::{c_int, c_uint, c_void};
use std::ptr;

const CAPTURE_UNSUPPORTED: Status = 900;
const CAPTURE_INVALIDATED: Status = 901;

/// Bytes with the strictest alignment that a parameter has.
#[repr(C, align(128))]
#[derive(Clone, Copy)]
struct Line([u8; 128]);

/// What a launch is, but for its parameters.
#[derive(Clone)]
pub(crate) struct Started {
    pub(crate) kernel: Kernel,
    pub(crate) name: String,
    pub(crate) grid: [c_uint; 3],
    pub(crate) block: [c_uint; 3],
    pub(crate) cluster: usize,
    pub(crate) shared_bytes: c_uint,
    /// Whether it may start before the launches in front of it have ended.
    pub(crate) dependent: bool,
}

enum Node {
    Launch(Started, Box<[Line]>),
    Fill(u64, u8, usize),
}

/// A `CUgraph`; a `CUgraphExec` is a copy of the nodes.
struct Graph {
    nodes: Vec<Node>,
}

/// What a thread has captured.
struct Capture {
    nodes: Vec<Node>,
    valid: bool,
}

thread_local! {
    static CAPTURE: RefCell<Option<Capture>> = const { RefCell::new(None) };
}

fn add(node: impl FnOnce() -> Node) -> bool {
    CAPTURE.with_borrow_mut(|capture| capture.as_mut().map(|capture| capture.nodes.push(node()))).is_some()
}

/// Whether the thread captures.
pub(crate) fn captures() -> bool {
    CAPTURE.with_borrow(Option::is_some)
}

/// Notes a launch where the thread captures. `parameters`: the kernel's struct.
pub(crate) fn note_launch(started: &Started, parameters: *const c_void) -> bool {
    add(|| {
        let bytes = Kernels::get().parameter_bytes(&started.name);
        let mut copy = vec![Line([0; 128]); bytes.div_ceil(128)].into_boxed_slice();
        // SAFETY: by the driver's contract the pointer is to the kernel's struct, which has this size.
        unsafe { ptr::copy_nonoverlapping(parameters.cast::<u8>(), copy.as_mut_ptr().cast(), bytes) };
        Node::Launch(started.clone(), copy)
    })
}

/// Notes a fill where the thread captures.
pub(crate) fn note_fill(to: u64, value: u8, bytes: usize) -> bool {
    add(|| Node::Fill(to, value, bytes))
}

/// What a call that a capture does not take gives back, `SUCCESS` where the thread does not capture.
pub(crate) fn refused(what: &str) -> Status {
    CAPTURE.with_borrow_mut(|capture| match capture {
        Some(capture) => {
            eprintln!("simt: {what} in a capture");
            capture.valid = false;
            CAPTURE_UNSUPPORTED
        }
        None => SUCCESS,
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamBeginCapture_v2(_stream: *mut c_void, _mode: c_int) -> Status {
    match CAPTURE.replace(Some(Capture { nodes: Vec::new(), valid: true })) {
        None => SUCCESS,
        Some(_) => INVALID_VALUE,
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamEndCapture(_stream: *mut c_void, graph: *mut *mut c_void) -> Status {
    match CAPTURE.take() {
        None => INVALID_VALUE,
        Some(Capture { valid: false, .. }) => CAPTURE_INVALIDATED,
        Some(Capture { nodes, .. }) => give!(graph, Box::into_raw(Box::new(Graph { nodes })).cast()),
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphInstantiateWithFlags(exec: *mut *mut c_void, graph: *mut c_void, _flags: u64) -> Status {
    crate::calls::count("cuGraphInstantiateWithFlags");
    // SAFETY: a graph that `cuStreamEndCapture` gave; what can be launched outlives it, so its nodes move there.
    let nodes = unsafe { std::mem::take(&mut (*graph.cast::<Graph>()).nodes) };
    give!(exec, Box::into_raw(Box::new(Graph { nodes })).cast())
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphLaunch(exec: *mut c_void, _stream: *mut c_void) -> Status {
    crate::calls::count("cuGraphLaunch");
    // SAFETY: `cuGraphInstantiateWithFlags` gave it.
    let nodes = unsafe { &(*exec.cast::<Graph>()).nodes };
    let mut launches = InFlight::default();
    for node in nodes {
        let status = match node {
            Node::Launch(started, parameters) => launches.launch(started, parameters.as_ptr().cast()),
            Node::Fill(to, value, bytes) => match launches.finish() {
                SUCCESS => fill(*to, *value, *bytes),
                failed => failed,
            },
        };
        if status != SUCCESS {
            return status;
        }
    }
    launches.finish()
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphDestroy(graph: *mut c_void) -> Status {
    // SAFETY: a graph of this file, given back once.
    drop(unsafe { Box::from_raw(graph.cast::<Graph>()) });
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphExecDestroy(exec: *mut c_void) -> Status {
    cuGraphDestroy(exec)
}
