//! Whether the host was asked to end.
//!
//! A host that ends waits for its outputs' workers before it calls their exits, and tells them nothing before, so
//! that an output which waits for its destination holds it up. What can be seen is the signal: Fluent Bit's handler
//! for SIGTERM, SIGINT and SIGQUIT writes its number into `exit_signal`, a global in `src/fluent-bit.c` which the
//! executable exports (read at 1.9.10, 2.0.14, 2.2.3, 3.2.10, 4.2.8 and 5.1.1). A hot reload leaves it alone. In a
//! program that has Fluent Bit within it there is no such thing, and nothing is seen.

use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Instant;

use super::symbols::symbol;

/// When it was first seen, by whichever output, that the host was asked to end.
pub(super) fn asked_at() -> Option<Instant> {
    static SEEN: OnceLock<Instant> = OnceLock::new();
    static SIGNAL: OnceLock<Option<&AtomicI32>> = OnceLock::new();
    let signal = (*SIGNAL.get_or_init(exit_signal))?;
    let asked = signal.load(Ordering::Relaxed) != 0;
    asked.then(|| *SEEN.get_or_init(Instant::now))
}

/// Fluent Bit's `exit_signal`. What another library may have under that name is not taken for it: it has to lie in
/// the same object as Fluent Bit's own functions.
fn exit_signal() -> Option<&'static AtomicI32> {
    let signal = NonNull::new(symbol(c"exit_signal"))?.cast::<AtomicI32>();
    let function = NonNull::new(symbol(c"flb_stop"))?;
    if object(signal.cast())? != object(function)? || !signal.is_aligned() {
        return None;
    }
    // SAFETY: a `volatile sig_atomic_t`, an int, of Fluent Bit's executable, which is never unmapped. The handler
    // writes it in one instruction, and nobody else does.
    Some(unsafe { signal.as_ref() })
}

/// Where the executable or library begins that has something at this address.
fn object(address: NonNull<c_void>) -> Option<*mut c_void> {
    let mut found = MaybeUninit::<libc::Dl_info>::uninit();
    // SAFETY: asks about an address, whatever it is; `found` points to room for the answer.
    let known = unsafe { libc::dladdr(address.as_ptr(), found.as_mut_ptr()) } != 0;
    // SAFETY: dladdr fills it in where it does not give 0.
    known.then(|| unsafe { found.assume_init() }.dli_fbase)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_not_fluent_bit_was_not_asked() {
        assert!(exit_signal().is_none());
        assert_eq!(asked_at(), None);
    }

    #[test]
    fn what_lies_in_one_object_is_told_from_what_lies_in_another() {
        let own = NonNull::from(&asked_at).cast();
        let other = NonNull::new(symbol(c"dlsym")).expect("libc has it");
        assert_eq!(object(own), object(own));
        assert_ne!(object(own), object(other));
        assert_eq!(object(NonNull::dangling()), None);
    }
}
