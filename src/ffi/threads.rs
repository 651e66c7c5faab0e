//! Thread identity and signal masks.

use std::mem::MaybeUninit;

/// The identity of a running thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ThreadId(libc::pthread_t);

/// The calling thread. Uses no thread-local of this library, since the host's threads may outlive it.
pub(super) fn current() -> ThreadId {
    // SAFETY: always succeeds and touches nothing.
    ThreadId(unsafe { libc::pthread_self() })
}

/// Runs `start` with all signals blocked in this thread, so that the threads it creates never run the host's signal handlers
/// (SIGTERM, SIGHUP).
pub(super) fn without_signals<T>(start: impl FnOnce() -> T) -> T {
    struct Restore(libc::sigset_t);
    impl Drop for Restore {
        fn drop(&mut self) {
            // SAFETY: a mask that pthread_sigmask returned; the old one is not requested.
            unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, std::ptr::null_mut()) };
        }
    }
    let mut all = MaybeUninit::uninit();
    // SAFETY: points to a set to be filled.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    let mut before = MaybeUninit::uninit();
    // SAFETY: `all` was filled above; `before` points to a set to be filled.
    let result =
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) };
    // SAFETY: pthread_sigmask filled it, since it succeeded.
    let _restore = (result == 0).then(|| Restore(unsafe { before.assume_init() }));
    start()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocked(signal: libc::c_int) -> bool {
        let mut mask = MaybeUninit::uninit();
        // SAFETY: a null set changes nothing; `mask` points to a set to be filled.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, std::ptr::null(), mask.as_mut_ptr()) };
        // SAFETY: filled above; the signal is a valid one.
        unsafe { libc::sigismember(mask.as_ptr(), signal) == 1 }
    }

    #[test]
    fn threads_created_inside_block_signals_and_this_thread_is_restored() {
        let before = blocked(libc::SIGTERM);
        let inside = without_signals(|| {
            std::thread::spawn(|| blocked(libc::SIGTERM))
                .join()
                .unwrap()
        });
        assert!(inside);
        assert_eq!(blocked(libc::SIGTERM), before);
    }
}
