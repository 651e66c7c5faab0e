//! A global allocator that guarantees alignment on a malloc that aligns less than Rust expects.
//!
//! The library uses the malloc of the process. Fluent Bit's images and packages have jemalloc in the executable, built with
//! `--with-lg-quantum=3`: it aligns allocations of 17 to 24, 33 to 40 and 49 to 56 bytes to 8. But [`System`] assumes that
//! every malloc aligns to 16; a hash table of four numbers is then misaligned, and reading it faults.

use std::alloc::{GlobalAlloc, Layout, System};

/// The alignment that [`System`] assumes of malloc; it uses `posix_memalign` for more.
const ASSUMED: usize = 16;
/// The alignment that every malloc guarantees, for sizes of at least that.
const GUARANTEED: usize = 8;

struct Aligned;

#[global_allocator]
static ALLOCATOR: Aligned = Aligned;

/// The layout to request from [`System`], so that it makes no assumption that a malloc may not meet. Deterministic.
fn stricter(layout: Layout) -> Layout {
    if layout.align() <= GUARANTEED || layout.align() > ASSUMED {
        return layout;
    }
    layout.align_to(2 * ASSUMED).unwrap_or(layout)
}

/// Counts allocated and freed bytes, in tests.
#[inline(always)]
fn count(_allocated: usize, _freed: usize) {
    #[cfg(test)]
    counted::count(_allocated, _freed);
}

/// The memory that all tests of the process hold.
#[cfg(test)]
pub(crate) mod counted {
    use std::sync::atomic::{AtomicUsize, Ordering};

    static HELD: AtomicUsize = AtomicUsize::new(0);
    static MOST: AtomicUsize = AtomicUsize::new(0);

    pub(super) fn count(allocated: usize, freed: usize) {
        let before = HELD.fetch_add(allocated, Ordering::Relaxed);
        MOST.fetch_max(before + allocated, Ordering::Relaxed);
        HELD.fetch_sub(freed, Ordering::Relaxed);
    }

    /// The number of bytes held.
    pub(crate) fn held() -> usize {
        HELD.load(Ordering::Relaxed)
    }

    /// The maximum number of bytes held since the last call.
    pub(crate) fn most() -> usize {
        MOST.swap(held(), Ordering::Relaxed)
    }
}

// SAFETY: all memory is System's; a layout with a stricter alignment and the same size serves for the given one, and
// memory is freed with the layout that it was requested with.
unsafe impl GlobalAlloc for Aligned {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the size is not zero, by this function's contract.
        unsafe { System.alloc(stricter(layout)) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the size is not zero, by this function's contract.
        unsafe { System.alloc_zeroed(stricter(layout)) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: allocated here with this layout, by this function's contract, and so by System with that one.
        unsafe { System.dealloc(memory, stricter(layout)) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let layout_used = stricter(layout);
        if Layout::from_size_align(size, layout_used.align()).is_err() {
            return std::ptr::null_mut();
        }
        // Large blocks grow in place, or are moved without a copy.
        count(
            size.saturating_sub(layout.size()),
            layout.size().saturating_sub(size),
        );
        // SAFETY: as above, and the new size was checked against the alignment.
        unsafe { System.realloc(memory, layout_used, size) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alignment_that_malloc_may_not_guarantee_is_requested_explicitly() {
        for (size, align, expected) in [
            (1, 1, 1),
            (56, 8, 8),
            (52, 16, 32),
            (4_096, 16, 32),
            (64, 32, 32),
            (64, 4_096, 4_096),
        ] {
            let layout = Layout::from_size_align(size, align).unwrap();
            let requested = stricter(layout);
            assert_eq!((requested.size(), requested.align()), (size, expected));
        }
    }

    #[test]
    fn memory_keeps_its_contents_when_it_grows_and_shrinks() {
        let layout = |size| Layout::from_size_align(size, 16).unwrap();
        // SAFETY: the size is not zero.
        let memory = unsafe { ALLOCATOR.alloc_zeroed(layout(52)) };
        // SAFETY: allocated above with this layout.
        let memory = unsafe { ALLOCATOR.realloc(memory, layout(52), 4_096) };
        assert_eq!(memory as usize % 16, 0);
        // SAFETY: 52 of the 4,096 bytes allocated above, which were zeroed.
        let kept = unsafe { std::slice::from_raw_parts(memory, 52) };
        assert_eq!(kept, [0; 52]);
        // SAFETY: allocated above with this layout.
        let memory = unsafe { ALLOCATOR.realloc(memory, layout(4_096), 24) };
        assert_eq!(memory as usize % 16, 0);
        // SAFETY: allocated above with this layout.
        unsafe { ALLOCATOR.dealloc(memory, layout(24)) };
    }
}
