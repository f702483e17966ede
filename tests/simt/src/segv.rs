//! A kernel that touches a guard page ends the process. This says first which of its threads it was.

use crate::block;
use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::Once;

/// Installs the handler, once.
pub fn report() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // SAFETY: a handler with the three arguments that SA_SIGINFO gives; zeros are valid for the rest.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handle as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_RESETHAND;
            libc::sigaction(libc::SIGSEGV, &action, ptr::null_mut());
        }
    });
}

/// The process ends in any case, so what a handler may not do is done all the same. The default action takes over when the access
/// is tried again.
extern "C" fn handle(_signal: c_int, info: *mut libc::siginfo_t, _context: *mut c_void) {
    if let Some((block, thread)) = block::place() {
        // SAFETY: the kernel gives a valid pointer.
        let address = unsafe { (*info).si_addr() };
        eprintln!("simt: block {block:?}, thread {thread:?}: access out of bounds at {address:p}");
    }
}
