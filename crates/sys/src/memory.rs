//! The allocator of a small, long-lived process.

#![expect(unsafe_code, reason = "glibc's tuning calls have no wrapper")]

/// Makes glibc's allocator keep little: one arena, and free memory at the end of the heap goes back at once. Call it
/// before the first large allocation. Without effect on other C libraries.
pub fn keep_little_in_process() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in
        [(libc::M_ARENA_MAX, 1), (libc::M_TRIM_THRESHOLD, 64 * 1024), (libc::M_TOP_PAD, 16 * 1024)]
    {
        // SAFETY: takes two integers; an unknown parameter is refused.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Gives whole free pages back to the kernel, those in the middle of the heap too. Takes some ten microseconds with a
/// heap of one megabyte.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes an integer and touches only free memory.
    unsafe {
        libc::malloc_trim(0);
    }
}
