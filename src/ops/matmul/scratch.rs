//! Buffers that a thread keeps from call to call, so that packing allocates nothing after warm-up.

use crate::device::buffer::HostBuffer;
use std::cell::RefCell;

/// Buffers that a thread keeps: the nesting depth of the borrowers (left panels, right panels, task).
const KEPT: usize = 4;

thread_local! {
    static POOL: RefCell<Vec<HostBuffer>> = const { RefCell::new(Vec::new()) };
}

/// Runs `body` with `len` floats of unspecified content, aligned to a cache line.
///
/// The buffer leaves the pool meanwhile, so a product that the thread steals and runs inside `body` takes another one.
pub fn with<R>(len: usize, body: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut buffer = POOL.with_borrow_mut(|pool| take(pool, 4 * len));
    let result = body(&mut bytemuck::cast_slice_mut(buffer.bytes_mut())[..len]);
    POOL.with_borrow_mut(|pool| {
        if pool.len() < KEPT {
            pool.push(buffer);
        }
    });
    result
}

/// The smallest kept buffer of at least `bytes`; where there is none, a new one in place of the largest.
fn take(pool: &mut Vec<HostBuffer>, bytes: usize) -> HostBuffer {
    pool.sort_by_key(|buffer| buffer.bytes().len());
    match pool.iter().position(|buffer| buffer.bytes().len() >= bytes) {
        Some(i) => pool.remove(i),
        None => {
            pool.pop();
            HostBuffer::zeroed(bytes.next_power_of_two().max(64))
        }
    }
}
