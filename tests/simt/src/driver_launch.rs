//! Driver functions: launches. Outside of a capture a kernel has come to its end when the call returns.

use crate::block::Launch;
use crate::driver::{Function, INVALID_VALUE, LAUNCH_FAILED, SUCCESS, Status};
use crate::graph::{self, Started};
use crate::kernels::{Index, Kernels};
use crate::{calls, launch, setting};
use std::ffi::{c_int, c_uint, c_void};
use std::slice;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

#[unsafe(no_mangle)]
pub extern "C" fn cuLaunchKernel(
    function: *mut c_void,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    shared_bytes: c_uint,
    _stream: *mut c_void,
    parameters: *mut *mut c_void,
    _extra: *mut *mut c_void,
) -> Status {
    calls::count("cuLaunchKernel");
    let grid = [grid_x, grid_y, grid_z];
    start(function, grid, [block_x, block_y, block_z], shared_bytes, parameters, false)
}

/// `CUlaunchAttribute`, of those whose value is a number.
#[repr(C)]
pub struct LaunchAttribute {
    id: c_uint,
    pad: [u8; 4],
    value: c_int,
    rest: [u8; 60],
}

/// `CUlaunchConfig`.
#[repr(C)]
pub struct LaunchConfig {
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared_bytes: c_uint,
    stream: *mut c_void,
    attributes: *const LaunchAttribute,
    attribute_count: c_uint,
}

/// Takes dependent launches (CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION) into graphs alone, where the card has them.
#[unsafe(no_mangle)]
pub extern "C" fn cuLaunchKernelEx(
    config: *const LaunchConfig,
    function: *mut c_void,
    parameters: *mut *mut c_void,
    _extra: *mut *mut c_void,
) -> Status {
    const PROGRAMMATIC_STREAM_SERIALIZATION: c_uint = 6;
    calls::count("cuLaunchKernelEx");
    // SAFETY: a configuration with as many attributes as it says, by the driver's contract.
    let (config, attributes) = unsafe {
        let config = &*config;
        let some = config.attribute_count > 0;
        (config, if some { slice::from_raw_parts(config.attributes, config.attribute_count as usize) } else { &[] })
    };
    let dependent = match attributes {
        [] => false,
        [LaunchAttribute { id: PROGRAMMATIC_STREAM_SERIALIZATION, value: 1, .. }]
            if Kernels::get().compute_capability >= 90 && graph::captures() =>
        {
            true
        }
        _ => {
            eprintln!(
                "simt: another attribute than that of a dependent launch, which is for graphs on compute capability 9.0"
            );
            return INVALID_VALUE;
        }
    };
    start(function, config.grid, config.block, config.shared_bytes, parameters, dependent)
}

fn start(
    function: *mut c_void,
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared_bytes: c_uint,
    parameters: *mut *mut c_void,
    dependent: bool,
) -> Status {
    let [grid_x, grid_y, grid_z] = grid;
    // SAFETY: a function that `cuModuleGetFunction` gave.
    let function = unsafe { &*function.cast::<Function>() };
    let fail = |status: Status, what: String| {
        eprintln!("simt: {}: {what}", function.name);
        status
    };
    let limit = function.dynamic_shared.load(Relaxed);
    if shared_bytes > limit {
        return fail(INVALID_VALUE, format!("{shared_bytes} bytes of shared memory, {limit} allowed"));
    }
    if parameters.is_null() || grid_y > 65_535 || grid_z > 65_535 {
        return fail(INVALID_VALUE, format!("no parameters, or a grid of {grid_x} x {grid_y} x {grid_z}"));
    }
    if !(grid_x as usize).is_multiple_of(function.cluster) {
        return fail(INVALID_VALUE, format!("{grid_x} blocks in clusters of {}", function.cluster));
    }
    let started = Started {
        kernel: function.kernel,
        name: function.name.clone(),
        grid,
        block,
        cluster: function.cluster,
        shared_bytes,
        dependent,
    };
    // SAFETY: every kernel has one parameter, so there is one pointer.
    let parameters = unsafe { *parameters };
    if graph::note_launch(&started, parameters) { SUCCESS } else { run(&started, parameters) }
}

/// Runs a kernel to its end.
pub(crate) fn run(started: &Started, parameters: *const c_void) -> Status {
    report(started, launch::run(&launch_of(started, parameters)))
}

/// The launch of a kernel.
pub(crate) fn launch_of(started: &Started, parameters: *const c_void) -> Launch {
    let index = |[x, y, z]: [c_uint; 3]| Index { x, y, z };
    Launch {
        kernel: started.kernel,
        parameters,
        grid: index(started.grid),
        block: index(started.block),
        cluster: started.cluster,
        shared_bytes: started.shared_bytes as usize,
        dependent: started.dependent,
        seed: next_seed(),
    }
}

/// How a launch came to its end.
pub(crate) fn report(started: &Started, end: Result<(), String>) -> Status {
    match end {
        Ok(()) => SUCCESS,
        Err(what) => {
            eprintln!("simt: {}: {what}", started.name);
            LAUNCH_FAILED
        }
    }
}

/// Another seed for every launch, the same in every run.
fn next_seed() -> u64 {
    static LAUNCHES: AtomicUsize = AtomicUsize::new(0);
    setting("RATOON_SIMT_SEED", 0).wrapping_mul(1_000_003).wrapping_add(LAUNCHES.fetch_add(1, Relaxed) as u64)
}
