//! Driver functions: device, context, modules, streams, events. Signatures are those of `cuda.h`; work is done
//! before a call returns, so streams and events have nothing to wait for.

use crate::graph;
use crate::kernels::{Kernel, Kernels};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Instant;

/// `CUresult`.
pub type Status = c_int;
pub const SUCCESS: Status = 0;
pub const INVALID_VALUE: Status = 1;
pub const OUT_OF_MEMORY: Status = 2;
const NOT_FOUND: Status = 500;
pub const LAUNCH_FAILED: Status = 719;

/// Dynamic shared memory that a launch gets without asking for more.
const SHARED_DEFAULT: u32 = 48 << 10;

/// Most shared memory of a block: of the cards of a path, the smallest (7.5: 64 KiB; 8.6 and 8.9: 99 KiB; 9.0: 227 KiB).
fn shared_limit() -> u32 {
    match Kernels::get().compute_capability {
        75 => 64 << 10,
        80 => 99 << 10,
        _ => 227 << 10,
    }
}

/// A `CUfunction`.
pub(crate) struct Function {
    pub(crate) kernel: Kernel,
    pub(crate) name: String,
    pub(crate) cluster: usize,
    pub(crate) dynamic_shared: AtomicU32,
}

/// A `CUevent`.
struct Event {
    recorded: Option<Instant>,
}

/// Writes a result through a pointer that the caller gave.
macro_rules! give {
    ($to:expr, $value:expr) => {{
        let to = $to;
        if to.is_null() {
            return INVALID_VALUE;
        }
        // SAFETY: not null, and by the driver's contract a place for this type.
        unsafe { *to = $value };
        SUCCESS
    }};
}
pub(crate) use give;

#[unsafe(no_mangle)]
pub extern "C" fn cuInit(_flags: c_uint) -> Status {
    crate::segv::report();
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDriverGetVersion(version: *mut c_int) -> Status {
    give!(version, 13000)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGetCount(count: *mut c_int) -> Status {
    give!(count, 1)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGet(device: *mut c_int, ordinal: c_int) -> Status {
    const INVALID_DEVICE: Status = 101;
    if ordinal == 0 { give!(device, 0) } else { INVALID_DEVICE }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGetName(name: *mut c_char, len: c_int, _device: c_int) -> Status {
    let text = b"simt on the host\0";
    if name.is_null() || (len as usize) < text.len() {
        return INVALID_VALUE;
    }
    // SAFETY: `name` has room for `len` bytes.
    unsafe { ptr::copy_nonoverlapping(text.as_ptr(), name.cast(), text.len()) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGetUuid_v2(uuid: *mut [u8; 16], _device: c_int) -> Status {
    give!(uuid, *b"ratoon-simt-host")
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, _device: c_int) -> Status {
    give!(bytes, crate::memory::Memory::total())
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, _device: c_int) -> Status {
    let capability = Kernels::get().compute_capability;
    give!(
        value,
        match attribute {
            1 => crate::block::MAX_THREADS as c_int, // MAX_THREADS_PER_BLOCK
            2..=4 => 1024,                           // MAX_BLOCK_DIM_X, Y, Z
            5 => c_int::MAX,                         // MAX_GRID_DIM_X
            6 | 7 => 65_535,                         // MAX_GRID_DIM_Y, Z
            8 => SHARED_DEFAULT as c_int,            // MAX_SHARED_MEMORY_PER_BLOCK
            10 => 32,                                // WARP_SIZE
            12 => 65_536,                            // MAX_REGISTERS_PER_BLOCK
            13 => 1_000_000,                         // CLOCK_RATE, kHz
            16 => 2,                                 // MULTIPROCESSOR_COUNT
            36 => 1_000_000,                         // MEMORY_CLOCK_RATE, kHz
            37 => 64,                                // GLOBAL_MEMORY_BUS_WIDTH, bits
            38 => 1 << 20,                           // L2_CACHE_SIZE
            39 => 1024,                              // MAX_THREADS_PER_MULTIPROCESSOR
            75 => capability / 10,
            76 => capability % 10,
            81 | 97 => shared_limit() as c_int, // MAX_SHARED_MEMORY_PER_MULTIPROCESSOR, PER_BLOCK_OPTIN
            _ => 0,                             // no other ability
        }
    )
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRetain(context: *mut *mut c_void, _device: c_int) -> Status {
    give!(context, ptr::dangling_mut())
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRelease_v2(_device: c_int) -> Status {
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetCurrent(_context: *mut c_void) -> Status {
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxGetCurrent(context: *mut *mut c_void) -> Status {
    give!(context, ptr::dangling_mut())
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSynchronize() -> Status {
    SUCCESS
}

/// The image is not read: the kernels are those compiled for the host.
#[unsafe(no_mangle)]
pub extern "C" fn cuModuleLoadData(module: *mut *mut c_void, _image: *const c_void) -> Status {
    give!(module, ptr::dangling_mut())
}

#[unsafe(no_mangle)]
pub extern "C" fn cuModuleUnload(_module: *mut c_void) -> Status {
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuModuleGetFunction(function: *mut *mut c_void, _module: *mut c_void, name: *const c_char) -> Status {
    // SAFETY: a C string by the driver's contract.
    let name = unsafe { CStr::from_ptr(name) };
    let Some(kernel) = Kernels::get().kernel(name) else { return NOT_FOUND };
    let (name, cluster) = (name.to_string_lossy().into_owned(), Kernels::get().cluster(name));
    // A function lives as long as its module, which is never unloaded.
    let made = Box::leak(Box::new(Function { kernel, name, cluster, dynamic_shared: AtomicU32::new(SHARED_DEFAULT) }));
    give!(function, ptr::from_mut(made).cast())
}

#[unsafe(no_mangle)]
pub extern "C" fn cuFuncSetAttribute(function: *mut c_void, attribute: c_int, value: c_int) -> Status {
    const MAX_DYNAMIC_SHARED_SIZE_BYTES: c_int = 8;
    if attribute == MAX_DYNAMIC_SHARED_SIZE_BYTES {
        if value < 0 || value as u32 > shared_limit() {
            return INVALID_VALUE;
        }
        // SAFETY: a function that `cuModuleGetFunction` gave.
        unsafe { (*function.cast::<Function>()).dynamic_shared.store(value as u32, Relaxed) };
    }
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuFuncGetAttribute(value: *mut c_int, attribute: c_int, _function: *mut c_void) -> Status {
    give!(
        value,
        match attribute {
            0 => crate::block::MAX_THREADS as c_int, // MAX_THREADS_PER_BLOCK
            5 => Kernels::get().compute_capability,  // PTX_VERSION
            _ => 0,
        }
    )
}

#[unsafe(no_mangle)]
pub extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
    blocks: *mut c_int,
    _function: *mut c_void,
    _threads: c_int,
    _shared_bytes: usize,
) -> Status {
    give!(blocks, 1)
}

/// As if clusters of any size could share the multiprocessors.
#[unsafe(no_mangle)]
pub extern "C" fn cuOccupancyMaxActiveClusters(
    clusters: *mut c_int,
    _function: *mut c_void,
    _config: *const c_void,
) -> Status {
    give!(clusters, 1)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamCreate(stream: *mut *mut c_void, _flags: c_uint) -> Status {
    give!(stream, ptr::dangling_mut())
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamDestroy_v2(_stream: *mut c_void) -> Status {
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamSynchronize(_stream: *mut c_void) -> Status {
    graph::refused("a wait for the stream")
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamWaitEvent(_stream: *mut c_void, _event: *mut c_void, _flags: c_uint) -> Status {
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventCreate(event: *mut *mut c_void, _flags: c_uint) -> Status {
    give!(event, Box::into_raw(Box::new(Event { recorded: None })).cast())
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventDestroy_v2(event: *mut c_void) -> Status {
    // SAFETY: an event that `cuEventCreate` gave, given back once.
    drop(unsafe { Box::from_raw(event.cast::<Event>()) });
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventRecord(event: *mut c_void, _stream: *mut c_void) -> Status {
    // SAFETY: as above.
    unsafe { (*event.cast::<Event>()).recorded = Some(Instant::now()) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventQuery(_event: *mut c_void) -> Status {
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventSynchronize(_event: *mut c_void) -> Status {
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventElapsedTime(milliseconds: *mut f32, start: *mut c_void, end: *mut c_void) -> Status {
    // SAFETY: events that `cuEventCreate` gave.
    let (start, end) = unsafe { ((*start.cast::<Event>()).recorded, (*end.cast::<Event>()).recorded) };
    let (Some(start), Some(end)) = (start, end) else { return INVALID_VALUE };
    give!(milliseconds, end.saturating_duration_since(start).as_secs_f32() * 1e3)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGetErrorName(status: Status, name: *mut *const c_char) -> Status {
    let text = match status {
        SUCCESS => c"CUDA_SUCCESS",
        INVALID_VALUE => c"CUDA_ERROR_INVALID_VALUE",
        OUT_OF_MEMORY => c"CUDA_ERROR_OUT_OF_MEMORY",
        NOT_FOUND => c"CUDA_ERROR_NOT_FOUND",
        LAUNCH_FAILED => c"CUDA_ERROR_LAUNCH_FAILED",
        900 => c"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
        901 => c"CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
        _ => c"CUDA_ERROR_UNKNOWN",
    };
    give!(name, text.as_ptr())
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGetErrorString(status: Status, text: *mut *const c_char) -> Status {
    cuGetErrorName(status, text)
}
