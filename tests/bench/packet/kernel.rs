//! What the packet benchmark runs beside the agent's programs: the parser alone, and two that give each packet another
//! source. It is no part of the agent.
//!
//! BPF_PROG_TEST_RUN repeats one frame, so `spray` writes a source drawn at random into it and then jumps into the
//! program that is measured; `flood` does so with frames that are really sent.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod population;

#[cfg(target_arch = "bpf")]
mod program {
    use aya_ebpf::{
        bindings::xdp_action,
        helpers::generated::bpf_redirect,
        macros::{map, xdp},
        maps::{Array, ProgramArray},
        programs::XdpContext,
    };
    use blocker_ebpf::packet::{self, Frame, Source};

    use crate::population;

    /// Where the next number is drawn from: the generator's state, the first number, and how many.
    type Draw = [u64; 3];
    /// Where frames are sent: the interface, and the sums of the IPv4 and the TCP header with a source of 0.
    type Way = [u64; 3];

    #[map]
    static NEXT: ProgramArray = ProgramArray::with_max_entries(1, 0);
    /// The kernel lets programs jump only to their like, and those that take fragments are another kind.
    #[map]
    static NEXT_FRAGS: ProgramArray = ProgramArray::with_max_entries(1, 0);
    #[map]
    static DRAW: Array<Draw> = Array::with_max_entries(1, 0);
    #[map]
    static WAY: Array<Way> = Array::with_max_entries(1, 0);

    struct Linear {
        start: usize,
        end: usize,
    }

    impl Frame for Linear {
        #[inline(always)]
        fn bytes<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
            let at = self.start + offset;
            if at + N > self.end {
                return None;
            }
            // SAFETY: the kernel gave `start..end` as readable, and the range was just found to lie in it.
            Some(unsafe { *(at as *const [u8; N]) })
        }
    }

    impl Linear {
        #[inline(always)]
        fn of(ctx: &XdpContext) -> Self {
            Self { start: ctx.data(), end: ctx.data_end() }
        }

        #[inline(always)]
        fn write<T>(&self, offset: usize, value: T) -> Option<()> {
            let at = self.start + offset;
            if at + size_of::<T>() > self.end {
                return None;
            }
            // SAFETY: as for reading; packets are writable, and need no alignment here.
            unsafe { (at as *mut T).write_unaligned(value) };
            Some(())
        }
    }

    #[xdp]
    pub(crate) fn parse(ctx: XdpContext) -> u32 {
        match packet::parse(&Linear::of(&ctx)).map(|packet| packet.source) {
            None => xdp_action::XDP_ABORTED,
            // The source is looked at, or the compiler would not read it.
            Some(Source::V4([0, 0, 0, 0])) => xdp_action::XDP_ABORTED,
            Some(Source::V6([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])) => xdp_action::XDP_ABORTED,
            Some(_) => xdp_action::XDP_PASS,
        }
    }

    #[xdp]
    pub(crate) fn spray(ctx: XdpContext) -> u32 {
        if draw(&Linear::of(&ctx)).is_some() {
            // SAFETY: the kernel checks that what is in the array can follow this program.
            unsafe { NEXT.tail_call(&ctx, 0) };
        }
        xdp_action::XDP_ABORTED
    }

    #[xdp(frags)]
    pub(crate) fn spray_frags(ctx: XdpContext) -> u32 {
        if draw(&Linear::of(&ctx)).is_some() {
            // SAFETY: the kernel checks that what is in the array can follow this program.
            unsafe { NEXT_FRAGS.tail_call(&ctx, 0) };
        }
        xdp_action::XDP_ABORTED
    }

    /// Sends each frame on its way.
    #[xdp]
    pub(crate) fn flood(ctx: XdpContext) -> u32 {
        match seal(&Linear::of(&ctx)) {
            // SAFETY: the helper takes no pointers.
            Some(interface) => unsafe { bpf_redirect(interface, 0) as u32 },
            None => xdp_action::XDP_ABORTED,
        }
    }

    /// Makes each frame as `flood` does, and drops it: what making them costs.
    #[xdp]
    pub(crate) fn flood_nowhere(ctx: XdpContext) -> u32 {
        if seal(&Linear::of(&ctx)).is_some() { xdp_action::XDP_DROP } else { xdp_action::XDP_ABORTED }
    }

    /// What dropping costs when nothing is looked at.
    #[xdp(frags)]
    pub(crate) fn discard(_ctx: XdpContext) -> u32 {
        xdp_action::XDP_DROP
    }

    /// Writes another source into the frame, and returns its number's address in host order.
    #[inline(always)]
    fn draw(frame: &Linear) -> Option<u32> {
        let state = DRAW.get_ptr_mut(0)?;
        // SAFETY: a value of the map; one CPU at a time runs this.
        let state = unsafe { &mut *state };
        // Knuth's MMIX generator; its upper bits are the good ones.
        state[0] = state[0].wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let number = state[1] + ((state[0] >> 32) * state[2] >> 32);
        let ethertype: [u8; 1] = frame.bytes(12)?;
        if ethertype[0] == 0x08 {
            let address = population::v4(number);
            frame.write(26, address.to_be())?;
            Some(address)
        } else {
            frame.write(22, population::v6(number).to_be())?;
            Some(0)
        }
    }

    /// As [`draw`], with the checksums of a TCP segment over IPv4 made to hold; returns the interface.
    #[inline(always)]
    fn seal(frame: &Linear) -> Option<u32> {
        let address = draw(frame)? as u64;
        let way = WAY.get(0)?;
        let source = (address >> 16) + (address & 0xffff);
        frame.write(24, checksum(way[1] + source).to_be())?;
        frame.write(50, checksum(way[2] + source).to_be())?;
        Some(way[0] as u32)
    }

    /// RFC 1071: the complement of the sum, carries added in.
    #[inline(always)]
    fn checksum(sum: u64) -> u16 {
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        !(sum as u16)
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
