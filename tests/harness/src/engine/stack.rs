//! Small stacks for flushes, guard pages, and the signal handler that reports an overflow.
//!
//! The host runs every flush on a coroutine's stack of 24 KiB (64 KiB since 5.1) without a guard page: a plugin that
//! needs more corrupts memory. Here there is a guard page, and an overflow ends the run with a message. A proxy's flush
//! never yields, so that its stack is free when the call returns, and each thread needs only one.

use std::io;
use std::mem::MaybeUninit;
use std::num::NonZeroUsize;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use corosensei::stack::{STACK_ALIGNMENT, Stack, StackPointer};

/// The exit status if a flush overflows its stack.
pub const EXIT_STACK_OVERFLOW: i32 = 86;
/// The exit status if a library accesses more than the 32 bytes of its registration.
pub const EXIT_DEF_OVERRUN: i32 = 85;
/// The exit status if a thread is still running code of a library that was unloaded.
pub const EXIT_RAN_AFTER_UNLOAD: i32 = 87;

/// The unmapped address space below a stack, since a C frame may skip a single page.
const STACK_GUARD: usize = 1 << 20;
const PAINT: u64 = 0xf3f3_f3f3_f3f3_f3f3;
/// The most stacks and registrations that are guarded at the same time: every worker of every output has one.
const GUARDS: usize = 512;

/// An address range known to the signal handler, which may read it at any time from any thread; hence atomics.
struct Guard {
    start: AtomicUsize,
    end: AtomicUsize,
    message: AtomicUsize,
    message_len: AtomicUsize,
    exit: AtomicUsize,
}

static REGISTRY: [Guard; GUARDS] = [const {
    Guard {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        message: AtomicUsize::new(0),
        message_len: AtomicUsize::new(0),
        exit: AtomicUsize::new(0),
    }
}; GUARDS];

static UNLOADED: AtomicBool = AtomicBool::new(false);

/// Attributes faults at unknown addresses to unloaded code from now on. To be called before a library is unloaded.
pub(crate) fn libraries_are_unloaded() {
    UNLOADED.store(true, Ordering::Relaxed);
}

/// Memory with an inaccessible part, whose faults are identified.
pub(crate) struct Guarded {
    map: *mut u8,
    len: usize,
    /// The offset and length of the accessible part.
    open: (usize, usize),
    entry: &'static Guard,
}

// SAFETY: the mapping is owned, has no thread affinity, and `Guard` is all atomics.
unsafe impl Send for Guarded {}

impl Guarded {
    /// Maps `below` inaccessible bytes, `size` zeroed ones and `above` inaccessible ones, all multiples of the page
    /// size. A fault in the inaccessible parts prints `message` and exits.
    fn map(
        below: usize,
        size: usize,
        above: usize,
        message: String,
        exit: i32,
    ) -> io::Result<Self> {
        install_handler();
        let len = below + size + above;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new anonymous mapping touches no existing memory.
        let map = unsafe { libc::mmap(ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0) };
        if map == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let map = map.cast::<u8>();
        let open = map.wrapping_add(below);
        // SAFETY: `open` and `size` lie inside the mapping made above.
        if unsafe { libc::mprotect(open.cast(), size, libc::PROT_READ | libc::PROT_WRITE) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let entry = REGISTRY
            .iter()
            .find(|guard| {
                let free = guard
                    .end
                    .compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed);
                free.is_ok()
            })
            .ok_or_else(|| io::Error::other(format!("more than {GUARDS} guarded stacks")))?;
        // The handler may still read the text when this entry is released, so it is never freed.
        let message: &'static str = message.leak();
        entry
            .message
            .store(message.as_ptr() as usize, Ordering::Relaxed);
        entry.message_len.store(message.len(), Ordering::Relaxed);
        entry.exit.store(exit as usize, Ordering::Relaxed);
        entry.start.store(map as usize, Ordering::Relaxed);
        entry.end.store(map as usize + len, Ordering::Release);
        Ok(Self {
            map,
            len,
            open: (below, size),
            entry,
        })
    }

    /// Returns `size` bytes that end at an inaccessible page.
    pub(crate) fn before_a_guard(size: usize, message: String) -> io::Result<Self> {
        let page = page_size();
        Self::map(
            0,
            size.next_multiple_of(page),
            page,
            message,
            EXIT_DEF_OVERRUN,
        )
    }

    /// Returns the last `size` accessible bytes, which are zeroed when mapped.
    pub(crate) fn last_bytes(&self, size: usize) -> *mut u8 {
        self.map.wrapping_add(self.open.0 + self.open.1 - size)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.entry.start.store(0, Ordering::Relaxed);
        self.entry.end.store(0, Ordering::Release);
        // SAFETY: the mapping is ours alone and nothing refers to it any more.
        unsafe { libc::munmap(self.map.cast(), self.len) };
    }
}

/// The stack for a thread's flushes.
pub(crate) struct FlushStack {
    memory: Guarded,
    size: usize,
}

impl FlushStack {
    /// Creates a painted stack of exactly `size` bytes, rounded down to the ABI's alignment.
    pub(crate) fn new(size: usize, output: &str) -> io::Result<Self> {
        let message = format!("{output}: flush overflowed its {size}-byte coroutine stack\n");
        let open = size.next_multiple_of(page_size());
        let memory = Guarded::map(STACK_GUARD, open, 0, message, EXIT_STACK_OVERFLOW)?;
        let stack = Self {
            memory,
            size: size - size % STACK_ALIGNMENT,
        };
        let words = stack.size / size_of::<u64>();
        let bottom = stack.bottom().cast::<u64>();
        for word in 0..words {
            // SAFETY: `word` is below the number of words in the accessible, page-aligned part.
            unsafe { bottom.wrapping_add(word).write(PAINT) };
        }
        Ok(stack)
    }

    /// Returns the lowest usable byte, right above the guard.
    fn bottom(&self) -> *mut u8 {
        self.memory.map.wrapping_add(self.memory.open.0)
    }

    /// Calls `call` on this stack. A panic in it propagates.
    pub(crate) fn run<R>(&mut self, call: impl FnOnce() -> R) -> R {
        corosensei::on_stack(&mut *self, call)
    }

    /// Returns the most stack used by any call, in bytes: what is no longer painted.
    pub(crate) fn high_water(&self) -> usize {
        let words = self.size / size_of::<u64>();
        let bottom = self.bottom().cast::<u64>();
        // SAFETY: reads stay inside the part that `new` painted; no call is running on the stack.
        let untouched =
            (0..words).take_while(|&word| unsafe { bottom.wrapping_add(word).read() } == PAINT);
        self.size - untouched.count() * size_of::<u64>()
    }
}

// SAFETY: `limit..base` is mapped, `base` is aligned, and `STACK_GUARD` inaccessible bytes lie below.
unsafe impl Stack for FlushStack {
    fn base(&self) -> StackPointer {
        NonZeroUsize::new(self.bottom() as usize + self.size).expect("a mapping is never at 0")
    }

    fn limit(&self) -> StackPointer {
        NonZeroUsize::new(self.memory.map as usize).expect("a mapping is never at 0")
    }
}

/// A stack for the signal handler, which cannot run on a stack that has overflowed.
pub(crate) struct AlternateStack(Vec<u8>);

impl AlternateStack {
    /// Installs one for the calling thread, until dropped.
    pub(crate) fn install() -> Self {
        let mut memory = vec![0_u8; 64 * 1024];
        set_alternate_stack(memory.as_mut_ptr(), memory.len(), 0);
        Self(memory)
    }
}

impl Drop for AlternateStack {
    fn drop(&mut self) {
        set_alternate_stack(self.0.as_mut_ptr(), self.0.len(), libc::SS_DISABLE);
    }
}

fn set_alternate_stack(start: *mut u8, size: usize, flags: i32) {
    let stack = libc::stack_t {
        ss_sp: start.cast(),
        ss_flags: flags,
        ss_size: size,
    };
    // SAFETY: the memory outlives its use: `AlternateStack` takes it back before freeing it.
    unsafe { libc::sigaltstack(&stack, ptr::null_mut()) };
}

fn page_size() -> usize {
    // SAFETY: sysconf has no preconditions.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}

fn install_handler() {
    static INSTALLED: OnceLock<()> = OnceLock::new();
    INSTALLED.get_or_init(|| {
        for signal in [libc::SIGSEGV, libc::SIGBUS] {
            let mut action = MaybeUninit::<libc::sigaction>::zeroed();
            // SAFETY: all zeroes is a valid sigaction: default handler, empty mask, no flags.
            let action = unsafe { action.assume_init_mut() };
            action.sa_sigaction = on_fault as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            // SAFETY: `on_fault` has the signature that SA_SIGINFO asks for and is async-signal-safe.
            unsafe { libc::sigaction(signal, action, ptr::null_mut()) };
        }
    });
}

/// Uses async-signal-safe calls only: atomics, write(2), _exit(2), signal(2).
extern "C" fn on_fault(signal: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo for SIGSEGV and SIGBUS.
    let info = unsafe { &*info };
    // SAFETY: si_addr is the member that these two signals fill.
    let address = unsafe { info.si_addr() } as usize;
    for guard in &REGISTRY {
        let end = guard.end.load(Ordering::Acquire);
        if (guard.start.load(Ordering::Relaxed)..end).contains(&address) && end > 1 {
            let message = guard.message.load(Ordering::Relaxed) as *const u8;
            let len = guard.message_len.load(Ordering::Relaxed);
            die(message, len, guard.exit.load(Ordering::Relaxed) as i32);
        }
    }
    if UNLOADED.load(Ordering::Relaxed) {
        const TEXT: &str = "a thread of the library ran on after the library was unloaded\n";
        die(TEXT.as_ptr(), TEXT.len(), EXIT_RAN_AFTER_UNLOAD);
    }
    // Not one of the known ranges: the instruction faults again, and the default handler ends the process.
    // SAFETY: SIG_DFL is a valid disposition, and signal(2) is async-signal-safe.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

fn die(message: *const u8, len: usize, status: i32) -> ! {
    // SAFETY: `message` and `len` are those of a string that is never freed.
    unsafe { libc::write(libc::STDERR_FILENO, message.cast(), len) };
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(status) }
}
