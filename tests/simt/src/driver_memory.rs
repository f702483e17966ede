//! Driver functions: allocation, copies, fills. A range that leaves its buffer is refused.

use crate::driver::{INVALID_VALUE, OUT_OF_MEMORY, SUCCESS, Status, give};
use crate::memory::{MEMORY, Memory};
use crate::{calls, graph};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::{c_uchar, c_uint, c_void};
use std::ptr;
use std::sync::{LazyLock, Mutex};

/// Host memory that `cuMemHostAlloc` gave: address and bytes.
static HOST: LazyLock<Mutex<HashMap<usize, usize>>> = LazyLock::new(Mutex::default);

fn host_layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes.max(1), 4096).expect("a host buffer is smaller than isize::MAX")
}

thread_local! {
    /// Bytes that this thread allocated less those that it freed, and the most of them since they were asked for.
    static ALLOCATED: Cell<(i64, i64)> = const { Cell::new((0, 0)) };
}

fn allocated(bytes: i64) {
    let (now, most) = ALLOCATED.get();
    ALLOCATED.set((now + bytes, most.max(now + bytes)));
}

/// Most bytes of device memory that this thread had at a time since it last asked, for tests: not a function of NVIDIA's driver.
#[unsafe(no_mangle)]
pub extern "C" fn simt_most_memory() -> i64 {
    let (now, most) = ALLOCATED.get();
    ALLOCATED.set((now, now));
    most
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemAlloc_v2(address: *mut u64, bytes: usize) -> Status {
    calls::count("cuMemAlloc_v2");
    match graph::refused("an allocation") {
        SUCCESS if bytes == 0 => INVALID_VALUE,
        SUCCESS => match MEMORY.allocate(bytes) {
            Some(start) => {
                allocated(bytes as i64);
                give!(address, start as u64)
            }
            None => OUT_OF_MEMORY,
        },
        refused => refused,
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemAllocAsync(address: *mut u64, bytes: usize, _stream: *mut c_void) -> Status {
    cuMemAlloc_v2(address, bytes)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFree_v2(address: u64) -> Status {
    calls::count("cuMemFree_v2");
    match graph::refused("giving memory back") {
        SUCCESS if address == 0 => SUCCESS,
        SUCCESS => match MEMORY.free(address as usize) {
            Some(bytes) => {
                allocated(-(bytes as i64));
                SUCCESS
            }
            None => INVALID_VALUE,
        },
        refused => refused,
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFreeAsync(address: u64, _stream: *mut c_void) -> Status {
    cuMemFree_v2(address)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> Status {
    give!(free, MEMORY.free_bytes());
    give!(total, Memory::total())
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemHostAlloc(address: *mut *mut c_void, bytes: usize, _flags: c_uint) -> Status {
    // SAFETY: a layout of at least one byte.
    let start = unsafe { alloc_zeroed(host_layout(bytes)) };
    if start.is_null() {
        return OUT_OF_MEMORY;
    }
    HOST.lock().expect("no panic while held").insert(start as usize, bytes);
    give!(address, start.cast())
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFreeHost(address: *mut c_void) -> Status {
    let Some(bytes) = HOST.lock().expect("no panic while held").remove(&(address as usize)) else {
        return INVALID_VALUE;
    };
    // SAFETY: allocated above with this layout.
    unsafe { dealloc(address.cast(), host_layout(bytes)) };
    SUCCESS
}

/// Whether all ranges lie in device buffers; says so on stderr when not.
fn held(what: &str, ranges: &[(u64, usize)]) -> bool {
    let bad = ranges.iter().find(|&&(address, bytes)| bytes > 0 && !MEMORY.holds(address as usize, bytes));
    if let Some((address, bytes)) = bad {
        eprintln!("simt: {what}: {bytes} bytes at {address:#x} leave their buffer");
    }
    bad.is_none()
}

/// Copies bytes where `device` names the range or ranges that lie in device memory.
fn copy(what: &str, device: &[(u64, usize)], to: *mut u8, from: *const u8, bytes: usize) -> Status {
    match graph::refused("a copy") {
        SUCCESS if held(what, device) => {
            // SAFETY: device ranges were checked; those on the host are the caller's.
            unsafe { ptr::copy(from, to, bytes) };
            SUCCESS
        }
        SUCCESS => INVALID_VALUE,
        refused => refused,
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyHtoD_v2(to: u64, from: *const c_void, bytes: usize) -> Status {
    copy("copy to the device", &[(to, bytes)], to as *mut u8, from.cast(), bytes)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, _stream: *mut c_void) -> Status {
    cuMemcpyHtoD_v2(to, from, bytes)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoH_v2(to: *mut c_void, from: u64, bytes: usize) -> Status {
    copy("copy from the device", &[(from, bytes)], to.cast(), from as *const u8, bytes)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, bytes: usize, _stream: *mut c_void) -> Status {
    cuMemcpyDtoH_v2(to, from, bytes)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize) -> Status {
    copy("copy on the device", &[(to, bytes), (from, bytes)], to as *mut u8, from as *const u8, bytes)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, _stream: *mut c_void) -> Status {
    cuMemcpyDtoD_v2(to, from, bytes)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD8_v2(to: u64, value: c_uchar, bytes: usize) -> Status {
    if graph::note_fill(to, value, bytes) { SUCCESS } else { fill(to, value, bytes) }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD8Async(to: u64, value: c_uchar, bytes: usize, _stream: *mut c_void) -> Status {
    cuMemsetD8_v2(to, value, bytes)
}

/// Sets bytes of a buffer.
pub(crate) fn fill(to: u64, value: u8, bytes: usize) -> Status {
    if !held("fill", &[(to, bytes)]) {
        return INVALID_VALUE;
    }
    // SAFETY: the range was checked.
    unsafe { ptr::write_bytes(to as *mut u8, value, bytes) };
    SUCCESS
}
