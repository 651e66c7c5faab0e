//! Shares a chunk that the host lends for the time of a flush with the runtime's threads, without a copy.

use std::sync::mpsc::{Receiver, Sender, channel};

use bytes::Bytes;

/// The lent bytes. While one exists, [`lend`] has not returned.
struct Loan {
    data: *const u8,
    len: usize,
    /// Never used to send: dropping it signals the end of the loan.
    _returned: Sender<()>,
}

// SAFETY: the bytes are only read, and valid on every thread: `lend` keeps its caller's borrow alive until the loan is
// dropped.
unsafe impl Send for Loan {}

impl AsRef<[u8]> for Loan {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `data` and `len` are of a slice that `lend` borrows until this loan is dropped.
        unsafe { std::slice::from_raw_parts(self.data, self.len) }
    }
}

/// Waits for the end of the loan on drop, so also during a panic.
struct UntilReturned(Receiver<()>);

impl Drop for UntilReturned {
    fn drop(&mut self) {
        // Nothing is ever sent: this returns when the sender is dropped with the loan.
        let _ = self.0.recv();
    }
}

/// Calls `use_it` with `data` as shareable bytes. Returns, or unwinds, only after every clone of those bytes is dropped, on
/// any thread.
pub(super) fn lend<T>(data: &[u8], use_it: impl FnOnce(Bytes) -> T) -> T {
    let (returned, wait) = channel();
    let _until_returned = UntilReturned(wait);
    use_it(Bytes::from_owner(Loan {
        data: data.as_ptr(),
        len: data.len(),
        _returned: returned,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, Barrier};

    #[test]
    fn a_loan_ends_only_when_the_last_clone_is_gone() {
        let data = b"chunk".to_vec();
        let gone = Arc::new(AtomicBool::new(false));
        let thread = lend(&data, |bytes| keep_a_while(&bytes, &gone));
        assert!(
            gone.load(Ordering::SeqCst),
            "lend returned while a clone was in use"
        );
        thread.join().unwrap();
    }

    /// Holds a clone on another thread, and sets `gone` just before dropping it.
    fn keep_a_while(bytes: &Bytes, gone: &Arc<AtomicBool>) -> std::thread::JoinHandle<()> {
        let (clone, gone) = (bytes.clone(), Arc::clone(gone));
        let returned = Arc::new(Barrier::new(2));
        let start = Arc::clone(&returned);
        let thread = std::thread::spawn(move || {
            start.wait();
            assert_eq!(&clone[..], b"chunk");
            gone.store(true, Ordering::SeqCst);
            drop(clone);
        });
        returned.wait();
        thread
    }

    #[test]
    fn a_panic_too_waits_until_the_last_clone_is_gone() {
        let data = b"chunk".to_vec();
        let gone = Arc::new(AtomicBool::new(false));
        let panicked = std::panic::catch_unwind(|| {
            lend(&data, |bytes| {
                keep_a_while(&bytes, &gone);
                panic!("on purpose");
            })
        });
        assert!(panicked.is_err());
        assert!(
            gone.load(Ordering::SeqCst),
            "the panic continued while a clone was in use"
        );
    }
}
