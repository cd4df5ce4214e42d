//! The linear part of a packet, which holds every header; shared by both programs.

use blocker_ebpf::packet::Frame;

/// From its first byte to the one after its last.
pub(crate) struct Linear {
    pub(crate) start: usize,
    pub(crate) end: usize,
}

impl Frame for Linear {
    #[inline(always)]
    fn bytes<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let at = self.start + offset;
        if at + N > self.end {
            return None;
        }
        // SAFETY: the kernel gave `start..end` as readable, and the range was just found to lie in it; the verifier
        // checks the same.
        Some(unsafe { *(at as *const [u8; N]) })
    }
}
