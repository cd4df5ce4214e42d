//! One and the same verdict at every hook that the kernel offers, over whichever maps.
//!
//! A frame's headers are usually in its linear part; where they are not, as with some drivers' large frames, they are
//! copied from wherever they are. An honest frame of the usual kind costs no helper call.

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action},
    helpers::generated::{bpf_skb_load_bytes_relative, bpf_xdp_get_buff_len},
    programs::{TcContext, XdpContext},
};
use blocker_ebpf::packet::{self, Frame, HEADERS_MAX, Packet, Source};

use crate::linear::Linear;

/// The bans of one layout.
pub(crate) trait Bans {
    /// One of them.
    type Ban: Copy;

    /// The ban that holds for a source, if one does.
    fn find(source: Source) -> Option<Self::Ban>;

    /// Counts a packet that was dropped by it.
    fn count(ban: Self::Ban, bytes: u64);
}

/// Offsets from the network header (`enum bpf_hdr_start_off`).
const BPF_HDR_START_NET: u32 = 1;

/// No single buffer that the kernel hands to XDP holds so much with no tags and the usual MTU: there may be more buffers.
const USUAL_MAX: u64 = 1_522;

/// The verdict for XDP. `SEVERAL`: the kernel hands on frames of several buffers. The headers are in the first one; a frame
/// where they are not passes.
#[inline(always)]
pub(crate) fn xdp<B: Bans, const SEVERAL: bool>(ctx: &XdpContext) -> u32 {
    let frame = Linear { start: ctx.data(), end: ctx.data_end() };
    let Some(packet) = packet::parse(&frame) else { return xdp_action::XDP_PASS };
    let Some(ban) = B::find(packet.source) else { return xdp_action::XDP_PASS };
    if packet::is_link_upkeep(&frame, &packet) {
        return xdp_action::XDP_PASS;
    }
    let mut bytes = (frame.end - frame.start) as u64;
    if SEVERAL && bytes > USUAL_MAX {
        // SAFETY: the context is the one that the kernel gave.
        bytes = unsafe { bpf_xdp_get_buff_len(ctx.ctx) };
    }
    B::count(ban, bytes);
    xdp_action::XDP_DROP
}

/// The verdict for a classifier that sees Ethernet headers. Whatever else is attached sees what is not dropped.
#[inline(always)]
pub(crate) fn tcx<B: Bans>(ctx: &TcContext) -> i32 {
    let mut frame = Linear { start: ctx.data(), end: ctx.data_end() };
    let bytes = ctx.len();
    if frame.end - frame.start < HEADERS_MAX && bytes as usize > frame.end - frame.start {
        // Some drivers leave the headers elsewhere.
        let _or_as_it_is = ctx.pull_data(bytes.min(HEADERS_MAX as u32));
        frame = Linear { start: ctx.data(), end: ctx.data_end() };
    }
    // SAFETY: the context is the one that the kernel gave.
    let is_stripped = unsafe { (*ctx.skb.skb).vlan_present } != 0;
    match packet::parse_stripped(&frame, is_stripped) {
        Some(packet) if drops::<B, _>(&frame, &packet, bytes.into()) => TC_ACT_SHOT,
        _ => TC_ACT_UNSPEC,
    }
}

/// The verdict for a classifier of packets that have no Ethernet header; what they have in its place differs, so they
/// are read from where the stack found the IP header.
#[inline(always)]
pub(crate) fn tcx_bare<B: Bans>(ctx: &TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let mut bytes = Copied::EMPTY;
    // SAFETY: the context is the one that the kernel gave, and the call writes as many bytes as it is told.
    let copy = |into: *mut u8, size| unsafe {
        bpf_skb_load_bytes_relative(skb.cast(), 0, into.cast(), size, BPF_HDR_START_NET) == 0
    };
    if bytes.fill(SIZES_BARE, copy)
        && let Some(packet) = packet::parse_bare(&bytes)
        && drops::<B, _>(&bytes, &packet, ctx.len().into())
    {
        TC_ACT_SHOT
    } else {
        TC_ACT_UNSPEC
    }
}

#[inline(always)]
fn drops<B: Bans, F: Frame>(frame: &F, packet: &Packet, bytes: u64) -> bool {
    let Some(ban) = B::find(packet.source) else { return false };
    if packet::is_link_upkeep(frame, packet) {
        return false;
    }
    B::count(ban, bytes);
    true
}

/// Where a frame may end as far as the parser can tell: behind IPv4, its ports, IPv6, its ports; with no tag, one, two.
const SIZES: [usize; 8] = [66, 62, 58, 54, 46, 42, 38, 34];
/// The same without an Ethernet header.
const SIZES_BARE: [usize; 4] = [44, 40, 24, 20];
const _: () = assert!(SIZES[0] == HEADERS_MAX);

/// The first bytes of a frame.
#[repr(align(8))]
struct Copied {
    bytes: [u8; HEADERS_MAX.next_multiple_of(8)],
    length: usize,
}

impl Copied {
    const EMPTY: Self = Self { bytes: [0; HEADERS_MAX.next_multiple_of(8)], length: 0 };

    /// With as many bytes as there are of these, the greatest number first. Whether any could be had.
    #[inline(always)]
    fn fill<const N: usize>(&mut self, sizes: [usize; N], copy: impl Fn(*mut u8, u32) -> bool) -> bool {
        let mut at = 0;
        while at < N {
            if copy(self.bytes.as_mut_ptr(), sizes[at] as u32) {
                self.length = sizes[at];
                return true;
            }
            at += 1;
        }
        false
    }
}

impl Frame for Copied {
    #[inline(always)]
    fn bytes<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        if offset + N > self.length {
            return None;
        }
        self.bytes.get(offset..)?.first_chunk().copied()
    }
}
