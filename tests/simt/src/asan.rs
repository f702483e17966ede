//! AddressSanitizer's shadow of the stacks that threads leave in the middle of a kernel.

use std::ffi::c_void;
use std::ops::Range;
use std::sync::LazyLock;

type Unpoison = unsafe extern "C" fn(*const c_void, usize);

/// The sanitizer's own function, when it is in the process.
static UNPOISON: LazyLock<Option<Unpoison>> = LazyLock::new(|| {
    // SAFETY: a C string; the symbol, where there is one, has this type.
    unsafe {
        let symbol = libc::dlsym(libc::RTLD_DEFAULT, c"__asan_unpoison_memory_region".as_ptr());
        std::mem::transmute::<*mut c_void, Option<Unpoison>>(symbol)
    }
});

/// Forgets what frames that never returned forbade: the next thread, or another mapping, uses these addresses.
pub fn forget(stack: Range<usize>) {
    if let Some(unpoison) = *UNPOISON {
        // SAFETY: changes the sanitizer's shadow alone.
        unsafe { unpoison(stack.start as *const c_void, stack.len()) };
    }
}
