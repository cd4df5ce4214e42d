//! Gives back what only the start or a reload needed.

/// Returns free pages of the heap to the kernel. Reading a configuration and compiling patterns leaves more than a MiB of
/// them, which an idle agent would hold for ever.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "the C library has no other way to be asked")]
pub(super) fn give_back() {
    // SAFETY: malloc_trim(3) may be called at any time, from any thread.
    let _nothing_to_give = unsafe { libc::malloc_trim(0) };
}

/// Returns free pages of the heap to the kernel, where the C library can be asked to.
#[cfg(not(target_env = "gnu"))]
pub(super) fn give_back() {}
