//! What the process exports: functions of the host's that are found by their names.

use std::ffi::{CStr, c_void};

/// Where the process has something of this name; null where it has not.
pub(super) fn symbol(name: &CStr) -> *mut c_void {
    // SAFETY: a C string, and the handle for what the executable and its libraries export.
    unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) }
}

/// What the process has under this name, as a function of type `F`.
///
/// # Safety
/// `F` is a function pointer type, and the function of that name is of that type.
pub(super) unsafe fn function<F: Copy>(name: &CStr) -> Option<F> {
    const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
    let found = symbol(name);
    if found.is_null() {
        return None;
    }
    // SAFETY: not null, of a function pointer's size, and of this type by this function's contract.
    Some(unsafe { std::mem::transmute_copy(&found) })
}
