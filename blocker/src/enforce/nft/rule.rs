//! Rules as messages: what `nftnl` cannot say, or says with more words.
//!
//! An expression is a name and its attributes (`linux/netfilter/nf_tables.h`); values travel through register 1.
#![forbid(unsafe_code)]

use super::{element::counter, layout::TABLE, message::Message, shard::Shards};

const REGISTER: u32 = libc::NFT_REG_1 as u32;
const REGISTER_VERDICT: u32 = libc::NFT_REG_VERDICT as u32;
/// `NFT_META_L4PROTO`.
const META_L4PROTO: u32 = 16;
/// The fragment header of IPv6.
const FRAGMENT: u8 = 44;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;

/// Where a packet goes that a rule is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Verdict<'a> {
    Accept,
    Drop,
    /// Into a chain, and back when it says nothing.
    Jump(&'a str),
    /// Into a chain for good.
    Goto(&'a str),
}

impl Verdict<'_> {
    /// As the value of an attribute: NFTA_DATA_VERDICT with NFTA_VERDICT_CODE and NFTA_VERDICT_CHAIN.
    pub(super) fn write(self, message: &mut Message) {
        let (code, chain) = match self {
            Self::Accept => (libc::NF_ACCEPT, None),
            Self::Drop => (libc::NF_DROP, None),
            Self::Jump(chain) => (libc::NFT_JUMP, Some(chain)),
            Self::Goto(chain) => (libc::NFT_GOTO, Some(chain)),
        };
        message.nest(2, |m| {
            m.u32(1, code.cast_unsigned());
            if let Some(chain) = chain {
                m.text(2, chain);
            }
        });
    }
}

/// A rule that is appended to a chain.
#[derive(Debug)]
pub(super) struct Rule {
    chain: String,
    expressions: Message,
}

impl Rule {
    /// One without expressions, which matches every packet.
    pub(super) fn of(chain: &str) -> Self {
        Self { chain: chain.to_owned(), expressions: Message::part() }
    }

    fn expression(mut self, name: &str, fill: impl FnOnce(&mut Message)) -> Self {
        // NFTA_LIST_ELEM, NFTA_EXPR_NAME, NFTA_EXPR_DATA.
        self.expressions.nest(1, |m| {
            m.text(1, name).nest(2, fill);
        });
        self
    }

    /// For packets of one family. The chain has judged that already; said again, `nft list` shows addresses.
    pub(super) fn family(self, v6: bool) -> Self {
        // NFTA_META_DREG, NFTA_META_KEY.
        let loaded = self.expression("meta", |m| {
            m.u32(1, REGISTER).u32(2, libc::NFT_META_NFPROTO as u32);
        });
        loaded.compared(libc::NFT_CMP_EQ, &[if v6 { NFPROTO_IPV6 } else { NFPROTO_IPV4 }])
    }

    /// For all fragments but the first. Whether the kernel takes what stands in one for a transport header depends on
    /// how it loads that.
    pub(super) fn later_fragment(self, v6: bool) -> Self {
        let loaded = if v6 {
            // NFTA_EXTHDR_DREG, _TYPE, _OFFSET, _LEN: of packets without the header the rule is none.
            self.expression("exthdr", |m| {
                m.u32(1, REGISTER).bytes(2, &[FRAGMENT]).u32(3, 2).u32(4, 2);
            })
        } else {
            self.expression("payload", |m| {
                m.u32(1, REGISTER).u32(2, libc::NFT_PAYLOAD_NETWORK_HEADER as u32).u32(3, 6).u32(4, 2);
            })
        };
        // The offset, in units of 8 bytes (RFC 791 3.1, RFC 8200 4.5).
        let offset = if v6 { 0xfff8_u16 } else { 0x1fff };
        loaded.masked(&offset.to_be_bytes()).compared(libc::NFT_CMP_NEQ, &[0, 0])
    }

    /// For packets of a protocol to one of these ports.
    pub(super) fn destined(self, protocol: u8, first: u16, last: u16) -> Self {
        let loaded = self.expression("meta", |m| {
            m.u32(1, REGISTER).u32(2, META_L4PROTO);
        });
        let loaded = loaded.compared(libc::NFT_CMP_EQ, &[protocol]).expression("payload", |m| {
            m.u32(1, REGISTER).u32(2, libc::NFT_PAYLOAD_TRANSPORT_HEADER as u32).u32(3, 2).u32(4, 2);
        });
        if first == last {
            return loaded.compared(libc::NFT_CMP_EQ, &first.to_be_bytes());
        }
        loaded
            .compared(libc::NFT_CMP_GTE, &first.to_be_bytes())
            .compared(libc::NFT_CMP_LTE, &last.to_be_bytes())
    }

    /// Goes on where what is loaded compares so.
    fn compared(self, operator: libc::c_int, bytes: &[u8]) -> Self {
        // NFTA_CMP_SREG, NFTA_CMP_OP, NFTA_CMP_DATA.
        self.expression("cmp", |m| {
            m.u32(1, REGISTER).u32(2, operator.cast_unsigned()).nest(3, |m| {
                m.bytes(1, bytes);
            });
        })
    }

    /// Loads the first bytes of the source address.
    pub(super) fn source(self, v6: bool, bytes: u8) -> Self {
        // NFTA_PAYLOAD_DREG, _BASE, _OFFSET, _LEN.
        self.expression("payload", |m| {
            m.u32(1, REGISTER).u32(2, libc::NFT_PAYLOAD_NETWORK_HEADER as u32);
            m.u32(3, if v6 { 8 } else { 12 }).u32(4, bytes.into());
        })
    }

    /// Keeps the bits of `mask`; all of them are no expression.
    pub(super) fn masked(self, mask: &[u8]) -> Self {
        if mask.iter().all(|byte| *byte == 0xff) {
            return self;
        }
        // NFTA_BITWISE_SREG, _DREG, _LEN, _MASK, _XOR.
        self.expression("bitwise", |m| {
            m.u32(1, REGISTER).u32(2, REGISTER).u32(3, u32::try_from(mask.len()).unwrap_or(0));
            m.nest(4, |m| {
                m.bytes(1, mask);
            });
            m.nest(5, |m| {
                m.bytes(1, &vec![0; mask.len()]);
            });
        })
    }

    /// Replaces the loaded bytes by the number of their shard.
    pub(super) fn shard(self, bytes: u8, shards: Shards) -> Self {
        // NFTA_HASH_SREG, _DREG, _LEN, _MODULUS, _SEED.
        self.expression("hash", |m| {
            m.u32(1, REGISTER).u32(2, REGISTER).u32(3, bytes.into());
            m.u32(4, shards.count).u32(5, shards.seed);
        })
    }

    /// Goes on where the set holds what is loaded.
    pub(super) fn if_in(self, set: &str) -> Self {
        // NFTA_LOOKUP_SET, NFTA_LOOKUP_SREG.
        self.expression("lookup", |m| {
            m.text(1, set).u32(2, REGISTER);
        })
    }

    /// Does what the map of this number in the same transaction says for what is loaded.
    pub(super) fn by_map(self, map: &str, id: u32) -> Self {
        // And NFTA_LOOKUP_DREG, NFTA_LOOKUP_SET_ID.
        self.expression("lookup", |m| {
            m.text(1, map).u32(2, REGISTER).u32(3, REGISTER_VERDICT).u32(4, id);
        })
    }

    /// Counts, from these values on; `nftnl` cannot give a counter its first value.
    pub(super) fn counted(mut self, (packets, bytes): (u64, u64)) -> Self {
        self.expressions.nest(1, |m| counter(m, packets, bytes));
        self
    }

    /// Ends with a verdict.
    pub(super) fn verdict(self, verdict: Verdict<'_>) -> Self {
        // NFTA_IMMEDIATE_DREG, NFTA_IMMEDIATE_DATA.
        self.expression("immediate", |m| {
            m.u32(1, REGISTER_VERDICT).nest(2, |m| verdict.write(m));
        })
    }

    /// The message that appends it.
    pub(super) fn message(self, table: &str) -> Message {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_APPEND;
        let mut message = Message::new(libc::NFT_MSG_NEWRULE, flags);
        // NFTA_RULE_TABLE, _CHAIN, _EXPRESSIONS.
        message.text(1, table).text(2, &self.chain).nest(4, |m| {
            m.append(&self.expressions);
        });
        message
    }
}

/// Deletes every rule of a chain: NFTA_RULE_TABLE and NFTA_RULE_CHAIN, and no handle.
pub(super) fn no_rules(chain: &str) -> Message {
    let mut message = Message::new(libc::NFT_MSG_DELRULE, 0);
    message.text(1, TABLE).text(2, chain);
    message
}
