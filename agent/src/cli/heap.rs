//! How the allocator of the C library works for us.
#![expect(unsafe_code, reason = "mallopt(3) has no safe wrapper")]

use std::num::NonZero;
use std::thread::available_parallelism;

/// Processors whose threads share a heap.
const SHARE: usize = 4;

/// Has threads share the heaps that glibc would give each of its own. What the start has taken and
/// given back lies in the heap of the main thread, where the threads that serve connections would
/// never look for it: a tenth of what the agent holds. To be called before there are threads.
pub(super) fn share() {
    let heaps = available_parallelism()
        .map_or(1, NonZero::get)
        .div_ceil(SHARE);
    let heaps = i32::try_from(heaps).unwrap_or(i32::MAX);
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes two numbers, and this is the only thread.
    unsafe {
        // It fails only where the numbers are not known; then each thread has a heap, as before.
        nix::libc::mallopt(nix::libc::M_ARENA_MAX, heaps);
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = heaps;
}
