//! How libxdp's dispatcher is told what to call: the constants in its object, of both versions there are.
#![forbid(unsafe_code)]

/// Programs in a dispatcher at most.
pub(super) const SLOTS: usize = 10;
/// `BPF_F_XDP_HAS_FRAGS`, as a program's flag.
pub(super) const HAS_FRAGS: u32 = 1 << 5;
/// On XDP_PASS and on the value of an empty slot, the next program has its say.
pub(super) const PASS_ON: u32 = 1 << 2 | 1 << 31;
/// Bytes of the constants: a count and two arrays, and since version 2 a third.
pub(super) const V1_BYTES: u32 = 4 + 2 * ARRAY_BYTES;
pub(super) const V2_BYTES: u32 = 4 + 3 * ARRAY_BYTES;

const ARRAY_BYTES: u32 = SLOTS as u32 * 4;
const MAGIC: u8 = 236;
const VERSION: u8 = 2;

/// `struct xdp_dispatcher_config`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Config {
    /// Version 1 knows of no frames over several buffers.
    pub(super) is_v1: bool,
    /// All that are in it can take frames over several buffers.
    pub(super) frags: bool,
    pub(super) slots: Vec<Slot>,
}

/// How one program is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    /// Bits of those answers after which the next program is called.
    pub(super) actions: u32,
    /// The lowest is called first.
    pub(super) priority: u32,
    pub(super) flags: u32,
}

impl Config {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let (head, arrays) = bytes.split_first_chunk::<4>().ok_or("it has no head")?;
        let is_v1 = bytes.len() == V1_BYTES as usize;
        let count = match *head {
            [count, ..] if is_v1 => count,
            [MAGIC, VERSION, count, _] if bytes.len() == V2_BYTES as usize => count,
            [magic, version, ..] => return Err(format!("it says {magic}, {version}")),
        };
        if usize::from(count) > SLOTS {
            return Err(format!("it says that {count} programs are in it"));
        }
        let word = |array: usize, slot: usize| {
            let at = (array * SLOTS + slot) * 4;
            arrays.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |word| u32::from_ne_bytes(*word))
        };
        let slot = |slot: usize| Slot {
            actions: word(0, slot),
            priority: word(1, slot),
            flags: if is_v1 { 0 } else { word(2, slot) },
        };
        Ok(Self { is_v1, frags: !is_v1 && head[3] != 0, slots: (0..usize::from(count)).map(slot).collect() })
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let count = self.slots.len().min(SLOTS) as u8;
        let mut bytes = match self.is_v1 {
            true => vec![count, 0, 0, 0],
            false => vec![MAGIC, VERSION, count, self.frags.into()],
        };
        let fields: [fn(&Slot) -> u32; 3] = [|slot| slot.actions, |slot| slot.priority, |slot| slot.flags];
        for field in fields.iter().take(if self.is_v1 { 2 } else { 3 }) {
            let words = self.slots.iter().map(field).chain(std::iter::repeat(0)).take(SLOTS);
            bytes.extend(words.flat_map(u32::to_ne_bytes));
        }
        bytes
    }
}

/// The object with its dispatcher in a section whose name says that frames over several buffers are welcome, which is
/// how the loader is told. `None` where it is not what libxdp ships.
pub(super) fn with_frags(object: &[u8]) -> Option<Vec<u8>> {
    // ELF-64 (elf(5)): where section headers begin, their size and number, and which of them is of their names.
    const HEADER_BYTES: usize = 64;
    let half = |at: usize| Some(usize::from(u16::from_le_bytes(*object.get(at..)?.first_chunk()?)));
    let word = |at: usize| Some(u32::from_le_bytes(*object.get(at..)?.first_chunk()?) as usize);
    let long = |at: usize| usize::try_from(u64::from_le_bytes(*object.get(at..)?.first_chunk()?)).ok();
    if !object.starts_with(b"\x7fELF\x02\x01") || half(58)? != HEADER_BYTES {
        return None;
    }
    let (first, count, names) = (long(40)?, half(60)?, half(62)?);
    let header = |section: usize| first.checked_add(section * HEADER_BYTES);
    let (at, length) = (long(header(names)?.checked_add(24)?)?, long(header(names)?.checked_add(32)?)?);
    let strings = object.get(at..at.checked_add(length)?)?;
    let is_xdp = |section: &usize| {
        let name = header(*section).and_then(word).and_then(|at| strings.get(at..));
        name.is_some_and(|name| name.starts_with(b"xdp\0"))
    };
    let section = header((0..count).find(is_xdp)?)?;
    let mut changed = object.to_vec();
    let moved = changed.len() as u64;
    changed.extend_from_slice(strings);
    changed.extend_from_slice(b"xdp.frags\0");
    let mut put = |at: usize, bytes: &[u8]| {
        changed.get_mut(at..at.checked_add(bytes.len())?)?.copy_from_slice(bytes);
        Some(())
    };
    put(header(names)?.checked_add(24)?, &moved.to_le_bytes())?;
    put(header(names)?.checked_add(32)?, &(length as u64 + 10).to_le_bytes())?;
    put(section, &u32::try_from(length).ok()?.to_le_bytes())?;
    Some(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_is_read_and_what_is_not_known_is_refused() {
        let slot = |priority| Slot { actions: PASS_ON, priority, flags: HAS_FRAGS };
        let v2 = Config { is_v1: false, frags: true, slots: vec![slot(5), slot(50)] };
        let bytes = v2.bytes();
        assert_eq!(bytes.len(), 124);
        assert_eq!(bytes[..4], [236, 2, 2, 1]);
        assert_eq!(bytes[4..8], 0x8000_0004_u32.to_ne_bytes());
        assert_eq!(bytes[44..52], [5_u32.to_ne_bytes(), 50_u32.to_ne_bytes()].concat());
        assert_eq!(bytes[84..92], [32_u32.to_ne_bytes(), 32_u32.to_ne_bytes()].concat());
        assert_eq!(Config::parse(&bytes), Ok(v2));

        let plain = Slot { flags: 0, ..slot(10) };
        let v1 = Config { is_v1: true, frags: false, slots: vec![plain; 3] };
        let bytes = v1.bytes();
        assert_eq!((bytes.len(), bytes[0]), (84, 3));
        assert_eq!(Config::parse(&bytes), Ok(v1));

        let turned = |at: usize, to: u8| {
            let mut bytes = Config { is_v1: false, frags: false, slots: vec![plain] }.bytes();
            bytes[at] = to;
            bytes
        };
        let odd = [turned(0, 0), turned(1, 3), turned(2, 11), vec![236, 2, 1, 0], Vec::new(), vec![0; 128]];
        for bytes in odd {
            assert!(Config::parse(&bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn a_section_is_renamed_and_nothing_is_made_of_what_is_no_object() {
        // A header, the names, and the headers of three sections: none, the names, the program.
        let mut object = vec![0_u8; 64];
        object[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let names = b"\0.strtab\0xdp\0";
        object[40..48].copy_from_slice(&80_u64.to_le_bytes());
        object[58..64].copy_from_slice(&[64, 0, 3, 0, 1, 0]);
        object.extend_from_slice(names);
        object.resize(80 + 3 * 64, 0);
        object[80 + 64..][..4].copy_from_slice(&1_u32.to_le_bytes());
        object[80 + 64 + 24..][..8].copy_from_slice(&64_u64.to_le_bytes());
        object[80 + 64 + 32..][..8].copy_from_slice(&(names.len() as u64).to_le_bytes());
        object[80 + 128..][..4].copy_from_slice(&9_u32.to_le_bytes());

        let changed = with_frags(&object).unwrap();
        assert_eq!(changed.len(), object.len() + names.len() + 10);
        assert!(changed.ends_with(b"\0.strtab\0xdp\0xdp.frags\0"));
        assert_eq!(changed[80 + 64 + 24..][..8], (object.len() as u64).to_le_bytes());
        assert_eq!(changed[80 + 128..][..4], (names.len() as u32).to_le_bytes());
        for length in 0..object.len() {
            let _none = with_frags(&object[..length]);
        }
        for at in 0..object.len() {
            let mut turned = object.clone();
            turned[at] = !turned[at];
            let _any = with_frags(&turned);
        }
    }
}
