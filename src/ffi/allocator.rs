//! Memory as Rust counts on it, from a malloc that aligns less.
//!
//! The library's malloc is the process's. Fluent Bit's images and packages have jemalloc in the executable, made
//! with `--with-lg-quantum=3`: what it hands out for 17 to 24, 33 to 40 and 49 to 56 bytes is aligned to 8. But
//! [`System`] takes every malloc to align to 16 and asks for no more than that; a hash table of four numbers then
//! lies wrong, and reading it faults.

use std::alloc::{GlobalAlloc, Layout, System};

/// What [`System`] takes malloc to align to, at most: what needs more it asks for by `posix_memalign`.
const TAKEN_FOR_GRANTED: usize = 16;
/// What every malloc aligns to, where there is room for it.
const GIVEN: usize = 8;

struct Aligned;

#[global_allocator]
static ALLOCATOR: Aligned = Aligned;

/// The layout to ask [`System`] for, so that it takes nothing for granted that a malloc may not give. The same for the
/// same layout.
fn demanded(layout: Layout) -> Layout {
    if layout.align() <= GIVEN || layout.align() > TAKEN_FOR_GRANTED {
        return layout;
    }
    layout.align_to(2 * TAKEN_FOR_GRANTED).unwrap_or(layout)
}

/// Notes that memory was taken, and given back.
#[inline(always)]
fn note(_taken: usize, _given_back: usize) {
    #[cfg(test)]
    counted::note(_taken, _given_back);
}

/// Counts what all tests of the process hold.
#[cfg(test)]
pub(crate) mod counted {
    use std::sync::atomic::{AtomicUsize, Ordering};

    static HELD: AtomicUsize = AtomicUsize::new(0);
    static MOST: AtomicUsize = AtomicUsize::new(0);

    pub(super) fn note(taken: usize, given_back: usize) {
        let before = HELD.fetch_add(taken, Ordering::Relaxed);
        MOST.fetch_max(before + taken, Ordering::Relaxed);
        HELD.fetch_sub(given_back, Ordering::Relaxed);
    }

    /// Bytes that are held.
    pub(crate) fn held() -> usize {
        HELD.load(Ordering::Relaxed)
    }

    /// Bytes that were held at once, at most, since this was asked last.
    pub(crate) fn most() -> usize {
        MOST.swap(held(), Ordering::Relaxed)
    }
}

// SAFETY: all is System's; a layout with a stricter alignment and the same size serves for the given one, and memory
// goes back by the layout that it was asked for with.
unsafe impl GlobalAlloc for Aligned {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size(), 0);
        // SAFETY: the size is not zero, by this function's contract.
        unsafe { System.alloc(demanded(layout)) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size(), 0);
        // SAFETY: the size is not zero, by this function's contract.
        unsafe { System.alloc_zeroed(demanded(layout)) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        note(0, layout.size());
        // SAFETY: allocated here with this layout, by this function's contract, and so by System with that one.
        unsafe { System.dealloc(memory, demanded(layout)) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let demanded = demanded(layout);
        if Layout::from_size_align(size, demanded.align()).is_err() {
            return std::ptr::null_mut();
        }
        // Large blocks grow in place, or are moved without a copy.
        note(
            size.saturating_sub(layout.size()),
            layout.size().saturating_sub(size),
        );
        // SAFETY: as above, and the new size was checked against the alignment.
        unsafe { System.realloc(memory, demanded, size) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_malloc_may_not_align_is_asked_for_explicitly() {
        for (size, align, asked) in [
            (1, 1, 1),
            (56, 8, 8),
            (52, 16, 32),
            (4_096, 16, 32),
            (64, 32, 32),
            (64, 4_096, 4_096),
        ] {
            let layout = Layout::from_size_align(size, align).unwrap();
            let demanded = demanded(layout);
            assert_eq!((demanded.size(), demanded.align()), (size, asked));
        }
    }

    #[test]
    fn memory_keeps_what_is_in_it_when_it_grows_and_shrinks() {
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
