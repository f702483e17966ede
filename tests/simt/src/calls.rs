//! How often a thread called a driver function, for tests: not a function of NVIDIA's driver.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CStr, c_char};

thread_local! {
    static CALLS: RefCell<HashMap<&'static str, u64>> = RefCell::default();
}

/// Counts a call of this thread.
pub(crate) fn count(name: &'static str) {
    CALLS.with_borrow_mut(|calls| *calls.entry(name).or_default() += 1);
}

/// Calls of the function of that name by this thread.
#[unsafe(no_mangle)]
pub extern "C" fn simt_calls(name: *const c_char) -> u64 {
    // SAFETY: the caller gives a C string.
    let name = unsafe { CStr::from_ptr(name) };
    CALLS.with_borrow(|calls| name.to_str().ok().and_then(|name| calls.get(name).copied()).unwrap_or(0))
}
