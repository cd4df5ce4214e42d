//! The XDP program over the bucket table: drops what a banned source sends, counts it, and passes everything else.
//!
//! An honest packet costs no helper call: array lookups and the clock are inlined by the kernel. Default is to pass:
//! a bug here must not lock the owner out.
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
        bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, xdp_action},
        helpers::generated::bpf_jiffies64,
        macros::{classifier, map, xdp},
        maps::{Array, LpmTrie, PerCpuArray},
        programs::{TcContext, XdpContext},
    };
    use blocker_ebpf::{
        Totals,
        packet::Source,
        table::{
            self, Address, BUCKET_KEYS, BUCKET_META, BUCKET_SLOTS, JIFFIES, LENGTHS_PER_WORD, ONE_PACKET,
            Params, Place, STATE_WORDS, Said, UNIT_SHIFT,
        },
    };

    use crate::hook::{self, Bans};

    /// A word of a map that user space and other CPUs write meanwhile.
    #[repr(transparent)]
    struct Word(UnsafeCell<u64>);

    // SAFETY: it is read and written whole, by single instructions. The compiler has no atomics for this target.
    unsafe impl Sync for Word {}

    impl Word {
        #[inline(always)]
        fn load(&self) -> u64 {
            // SAFETY: the cell is an aligned u64 of a map value; volatile, so it is read once each time it is asked.
            unsafe { self.0.get().read_volatile() }
        }

        #[inline(always)]
        fn store(&self, value: u64) {
            // SAFETY: as for reading.
            unsafe { self.0.get().write_volatile(value) }
        }
    }

    #[map]
    static SLOTS: Array<[Word; BUCKET_SLOTS]> = Array::with_max_entries(1, BPF_F_MMAPABLE);
    #[map]
    static META: Array<[Word; BUCKET_META]> = Array::with_max_entries(1, BPF_F_MMAPABLE);
    #[map]
    static KEYS: Array<[Word; BUCKET_KEYS]> = Array::with_max_entries(1, BPF_F_MMAPABLE);
    /// The agent's: the program does not look into it.
    #[map]
    static HIGHS: LpmTrie<u64, u64> = LpmTrie::with_max_entries(1, BPF_F_NO_PREALLOC);
    #[map]
    static PREFILTER: Array<Word> = Array::with_max_entries(2 * table::PREFILTER_WORDS, BPF_F_MMAPABLE);
    #[map]
    static TABLE: Array<[Word; STATE_WORDS]> = Array::with_max_entries(1, BPF_F_MMAPABLE);
    #[map]
    static TOTALS: PerCpuArray<Totals> = PerCpuArray::with_max_entries(1, 0);

    /// Written by the loader, before the program is.
    #[unsafe(no_mangle)]
    static SEED: u64 = 0;
    #[unsafe(no_mangle)]
    static BUCKETS: u32 = 1;
    #[unsafe(no_mangle)]
    static EXACT: u32 = 0;

    /// The maps as the reading side wants them.
    struct Maps;

    struct Element<const N: usize>(&'static [Word; N]);

    /// An element of whichever map.
    enum Words {
        Bucket(Element<BUCKET_SLOTS>),
        Meta(Element<BUCKET_META>),
        Keys(Element<BUCKET_KEYS>),
        State(Element<STATE_WORDS>),
    }

    impl table::Words for Words {
        #[inline(always)]
        fn word(&self, index: usize) -> u64 {
            let word = match self {
                Self::Bucket(element) => element.0.get(index),
                Self::Meta(element) => element.0.get(index),
                Self::Keys(element) => element.0.get(index),
                Self::State(element) => element.0.get(index),
            };
            word.map_or(0, |word| word.load())
        }
    }

    impl table::Table for Maps {
        type Words = Words;

        #[inline(always)]
        fn bucket(&self, index: u32) -> Option<Words> {
            SLOTS.get(index).map(|words| Words::Bucket(Element(words)))
        }

        #[inline(always)]
        fn meta(&self, index: u32) -> Option<Words> {
            META.get(index).map(|words| Words::Meta(Element(words)))
        }

        #[inline(always)]
        fn keys(&self, index: u32) -> Option<Words> {
            KEYS.get(index).map(|words| Words::Keys(Element(words)))
        }

        #[inline(always)]
        fn prefilter(&self, index: u32) -> Option<u64> {
            PREFILTER.get(index).map(|word| word.load())
        }

        #[inline(always)]
        fn state(&self) -> Option<Words> {
            TABLE.get(0).map(|words| Words::State(Element(words)))
        }

        #[inline(always)]
        fn now(&self) -> u32 {
            // SAFETY: the helper takes no argument and cannot fail.
            (unsafe { bpf_jiffies64() } >> UNIT_SHIFT) as u32
        }

        #[inline(always)]
        fn search_apart(&self, _params: Params, address: Address, lengths: u64) -> Said {
            decoded(match address {
                Address::V4(address) => blocker_search_v4(address, lengths),
                Address::V6(high, low) => blocker_search_v6(high, low, lengths),
            })
        }
    }

    const NOTHING: u64 = 0;
    const PASSES: u64 = 1;
    const BANNED: u64 = 2;

    /// [`table::search`] as a global function, which the kernel's verifier follows once by itself, with any arguments.
    #[unsafe(no_mangle)]
    #[inline(never)]
    pub(crate) extern "C" fn blocker_search_v4(address: u32, lengths: u64) -> u64 {
        encoded(table::search(&Maps, params(), Address::V4(address), lengths, LENGTHS_PER_WORD))
    }

    /// As [`blocker_search_v4`].
    #[unsafe(no_mangle)]
    #[inline(never)]
    pub(crate) extern "C" fn blocker_search_v6(high: u64, low: u64, lengths: u64) -> u64 {
        encoded(table::search(&Maps, params(), Address::V6(high, low), lengths, LENGTHS_PER_WORD))
    }

    #[inline(always)]
    fn encoded(said: Said) -> u64 {
        match said {
            Said::Nothing => NOTHING,
            Said::Passes => PASSES,
            Said::Banned(place) => {
                (u64::from(place.bucket) * BUCKET_SLOTS as u64 + place.slot as u64) << 2 | BANNED
            }
        }
    }

    #[inline(always)]
    fn decoded(said: u64) -> Said {
        match said & 3 {
            NOTHING => Said::Nothing,
            PASSES => Said::Passes,
            _ => Said::Banned(Place {
                bucket: (said >> 5) as u32,
                slot: (said >> 2) as usize & (BUCKET_SLOTS - 1),
            }),
        }
    }

    /// Bans in the table.
    struct InTable;

    impl Bans for InTable {
        type Ban = Place;

        #[inline(always)]
        fn find(source: Source) -> Option<Place> {
            table::find(&Maps, params(), source)
        }

        #[inline(always)]
        fn count(place: Place, bytes: u64) {
            count(place, bytes);
        }
    }

    #[xdp(frags)]
    pub(crate) fn blocker_table(ctx: XdpContext) -> u32 {
        hook::xdp::<InTable, true>(&ctx)
    }

    #[xdp]
    pub(crate) fn blocker_table_one(ctx: XdpContext) -> u32 {
        hook::xdp::<InTable, false>(&ctx)
    }

    #[classifier]
    pub(crate) fn blocker_table_tcx(ctx: TcContext) -> i32 {
        hook::tcx::<InTable>(&ctx)
    }

    #[classifier]
    pub(crate) fn blocker_table_bare(ctx: TcContext) -> i32 {
        hook::tcx_bare::<InTable>(&ctx)
    }

    /// Tells user space the kernel's clock: run by BPF_PROG_TEST_RUN, never attached.
    #[xdp]
    pub(crate) fn blocker_clock(_ctx: XdpContext) -> u32 {
        if let Some(words) = TABLE.get(0) {
            // SAFETY: the helper takes no argument and cannot fail.
            words[JIFFIES].store(unsafe { bpf_jiffies64() });
        }
        xdp_action::XDP_PASS
    }

    #[inline(always)]
    fn params() -> Params {
        // SAFETY: the statics are initialised and aligned; volatile, because the loader writes them after the compiler
        // has seen their values.
        unsafe {
            Params {
                seed: core::ptr::read_volatile(&raw const SEED),
                buckets: core::ptr::read_volatile(&raw const BUCKETS),
                exact: core::ptr::read_volatile(&raw const EXACT) != 0,
            }
        }
    }

    #[inline(always)]
    fn count(place: Place, bytes: u64) {
        if let Some(word) = META.get(place.bucket).and_then(|words| words.get(place.slot)) {
            // SAFETY: the word is a whole, aligned u64 of a map value; the instruction is BPF's atomic addition
            // (kernel doc, BPF instruction set, "Atomic operations"). The low half does not change.
            unsafe {
                asm!("lock *(u64 *)({at} + 0) += {one}", at = in(reg) word.0.get(), one = in(reg) ONE_PACKET);
            }
        }
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
