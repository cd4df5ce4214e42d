//! The XDP program: drops what a banned source sends, counts it, and passes everything else.
//!
//! Default is to pass: a bug here must not lock the owner out. Built for `bpfel-unknown-none` by `cargo xtask build`;
//! on the host an empty `main`, so that the workspace builds on plain stable.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
// The compiler has no atomic addition for this target, and the kernel has the instruction.
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod hook;
#[cfg(target_arch = "bpf")]
mod linear;

#[cfg(target_arch = "bpf")]
mod program {
    use core::{arch::asm, cell::UnsafeCell};

    use aya_ebpf::{
        bindings::BPF_F_NO_PREALLOC,
        helpers::generated::bpf_ktime_get_boot_ns,
        macros::{classifier, map, xdp},
        maps::{
            Array, HashMap, PerCpuArray,
            lpm_trie::{Key, LpmTrie},
        },
        programs::{TcContext, XdpContext},
    };
    use blocker_ebpf::{
        ALLOW_MAX, BANS_MAX_DEFAULT, NESTED_MAX, PREFIXES_MAX, StateValue, Totals, packet::Source,
    };

    use crate::hook::{self, Bans};

    /// `blocker_ebpf::BanValue` with counters that several CPUs add to.
    #[repr(C)]
    pub(crate) struct Ban {
        until: u64,
        packets: Counter,
        bytes: Counter,
        length: u64,
    }

    #[repr(transparent)]
    struct Counter(UnsafeCell<u64>);

    // SAFETY: it is only ever added to, and atomically.
    unsafe impl Sync for Counter {}

    impl Counter {
        #[inline(always)]
        fn add(&self, number: u64) {
            // SAFETY: the cell is a whole, aligned u64 of a map value; the instruction is BPF's atomic addition
            // (kernel doc, BPF instruction set, "Atomic operations").
            unsafe {
                asm!("lock *(u64 *)({at} + 0) += {number}", at = in(reg) self.0.get(), number = in(reg) number);
            }
        }
    }

    #[map]
    static BANS_V4: HashMap<[u8; 4], Ban> = HashMap::with_max_entries(BANS_MAX_DEFAULT, 0);
    #[map]
    static BANS_V6: HashMap<[u8; 16], Ban> = HashMap::with_max_entries(BANS_MAX_DEFAULT, 0);
    #[map]
    static BANS_V6_64: HashMap<[u8; 8], Ban> = HashMap::with_max_entries(BANS_MAX_DEFAULT, 0);
    #[map]
    static PREFIXES_V4: LpmTrie<[u8; 4], Ban> = LpmTrie::with_max_entries(PREFIXES_MAX, BPF_F_NO_PREALLOC);
    #[map]
    static PREFIXES_V6: LpmTrie<[u8; 16], Ban> = LpmTrie::with_max_entries(PREFIXES_MAX, BPF_F_NO_PREALLOC);
    #[map]
    static ALLOW_V4: LpmTrie<[u8; 4], u32> = LpmTrie::with_max_entries(ALLOW_MAX, BPF_F_NO_PREALLOC);
    #[map]
    static ALLOW_V6: LpmTrie<[u8; 16], u32> = LpmTrie::with_max_entries(ALLOW_MAX, BPF_F_NO_PREALLOC);
    #[map]
    static TOTALS: PerCpuArray<Totals> = PerCpuArray::with_max_entries(1, 0);
    #[map]
    static STATE: Array<StateValue> = Array::with_max_entries(1, 0);

    /// Bans in the hash maps and tries.
    struct InMaps;

    impl Bans for InMaps {
        type Ban = &'static Ban;

        #[inline(always)]
        fn find(source: Source) -> Option<&'static Ban> {
            let (ban, allowed) = match source {
                Source::V4(source) => (find_v4(source)?, ALLOW_V4.get(Key::new(32, source)).is_some()),
                Source::V6(source) => (find_v6(source)?, ALLOW_V6.get(Key::new(128, source)).is_some()),
            };
            if allowed { None } else { Some(ban) }
        }

        #[inline(always)]
        fn count(ban: &'static Ban, bytes: u64) {
            count(ban, bytes);
        }
    }

    #[xdp(frags)]
    pub(crate) fn blocker(ctx: XdpContext) -> u32 {
        hook::xdp::<InMaps, true>(&ctx)
    }

    #[xdp]
    pub(crate) fn blocker_one(ctx: XdpContext) -> u32 {
        hook::xdp::<InMaps, false>(&ctx)
    }

    #[classifier]
    pub(crate) fn blocker_tcx(ctx: TcContext) -> i32 {
        hook::tcx::<InMaps>(&ctx)
    }

    #[classifier]
    pub(crate) fn blocker_bare(ctx: TcContext) -> i32 {
        hook::tcx_bare::<InMaps>(&ctx)
    }

    #[inline(always)]
    fn find_v4(source: [u8; 4]) -> Option<&'static Ban> {
        // SAFETY: entries of a preallocated hash map stay mapped; one that is deleted meanwhile is read once more.
        if let Some(ban) = unsafe { BANS_V4.get(source) }
            && is_live(ban)
        {
            return Some(ban);
        }
        if STATE.get(0)?[0] == 0 {
            return None;
        }
        let mut length = 32;
        for _ in 0..NESTED_MAX {
            let ban = PREFIXES_V4.get(Key::new(length, source))?;
            if is_live(ban) {
                return Some(ban);
            }
            // A narrower ban that is over hides a wider one that is not.
            length = ban.length as u32;
            if length == 0 || length > 32 {
                return None;
            }
            length -= 1;
        }
        None
    }

    #[inline(always)]
    fn find_v6(source: [u8; 16]) -> Option<&'static Ban> {
        let mut network = [0; 8];
        network.copy_from_slice(&source[..8]);
        // SAFETY: as for IPv4.
        if let Some(ban) = unsafe { BANS_V6_64.get(network) }
            && is_live(ban)
        {
            return Some(ban);
        }
        // SAFETY: as for IPv4.
        if let Some(ban) = unsafe { BANS_V6.get(source) }
            && is_live(ban)
        {
            return Some(ban);
        }
        if STATE.get(0)?[1] == 0 {
            return None;
        }
        let mut length = 128;
        for _ in 0..NESTED_MAX {
            let ban = PREFIXES_V6.get(Key::new(length, source))?;
            if is_live(ban) {
                return Some(ban);
            }
            length = ban.length as u32;
            if length == 0 || length > 128 {
                return None;
            }
            length -= 1;
        }
        None
    }

    #[inline(always)]
    fn is_live(ban: &Ban) -> bool {
        // SAFETY: the helper takes no argument and cannot fail.
        ban.until == 0 || ban.until > unsafe { bpf_ktime_get_boot_ns() }
    }

    #[inline(always)]
    fn count(ban: &Ban, bytes: u64) {
        ban.packets.add(1);
        ban.bytes.add(bytes);
        if let Some(totals) = TOTALS.get_ptr_mut(0) {
            // SAFETY: a per-CPU value is written by one CPU at a time, and XDP programs are not interrupted by
            // each other on a CPU.
            let totals = unsafe { &mut *totals };
            totals[0] += 1;
            totals[1] += bytes;
        }
    }

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
        loop {}
    }

    /// GPL, because the kernel lends some helpers to GPL programs only; MIT OR Apache-2.0 is compatible with it.
    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 4] = *b"GPL\0";
}
