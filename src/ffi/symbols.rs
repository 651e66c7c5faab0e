//! Looks up the host's exports by name.

use std::ffi::{CStr, c_void};

/// The address of the process's symbol of this name, or null.
pub(super) fn symbol(name: &CStr) -> *mut c_void {
    // SAFETY: a C string, and the handle for the exports of the executable and its libraries.
    unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) }
}

/// The process's function of this name, as type `F`.
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
