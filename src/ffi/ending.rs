//! Detects that the host was asked to end.
//!
//! An ending host waits for its outputs' workers before it calls their exits, without notifying them, so an output that waits
//! for its destination delays it. Only the signal is visible: Fluent Bit's handler for SIGTERM, SIGINT and SIGQUIT writes its
//! number into `exit_signal`, a global in `src/fluent-bit.c` that the executable exports (checked in 1.9.10, 2.0.14, 2.2.3,
//! 3.2.10, 4.2.8 and 5.1.1). A hot reload does not change it. A program that embeds Fluent Bit has no such global, and
//! nothing is detected.

use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Instant;

use super::symbols::symbol;

/// When any output first saw that the host was asked to end.
pub(super) fn asked_at() -> Option<Instant> {
    static SEEN: OnceLock<Instant> = OnceLock::new();
    static SIGNAL: OnceLock<Option<&AtomicI32>> = OnceLock::new();
    let signal = (*SIGNAL.get_or_init(exit_signal))?;
    let asked = signal.load(Ordering::Relaxed) != 0;
    asked.then(|| *SEEN.get_or_init(Instant::now))
}

/// Fluent Bit's `exit_signal`. It must be in the same object as Fluent Bit's own functions, since another library may have a
/// symbol with that name.
fn exit_signal() -> Option<&'static AtomicI32> {
    let signal = NonNull::new(symbol(c"exit_signal"))?.cast::<AtomicI32>();
    let function = NonNull::new(symbol(c"flb_stop"))?;
    if object(signal.cast())? != object(function)? || !signal.is_aligned() {
        return None;
    }
    // SAFETY: a `volatile sig_atomic_t`, an int, of Fluent Bit's executable, which is never unmapped. The handler
    // writes it in one instruction, and nothing else does.
    Some(unsafe { signal.as_ref() })
}

/// The base address of the executable or library that contains an address.
fn object(address: NonNull<c_void>) -> Option<*mut c_void> {
    let mut found = MaybeUninit::<libc::Dl_info>::uninit();
    // SAFETY: looks up an arbitrary address; `found` points to space for the answer.
    let known = unsafe { libc::dladdr(address.as_ptr(), found.as_mut_ptr()) } != 0;
    // SAFETY: dladdr fills it in unless it returns 0.
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
    fn addresses_in_different_objects_are_distinguished() {
        let own = NonNull::from(&asked_at).cast();
        let other = NonNull::new(symbol(c"dlsym")).expect("libc has it");
        assert_eq!(object(own), object(own));
        assert_ne!(object(own), object(other));
        assert_eq!(object(NonNull::dangling()), None);
    }
}
