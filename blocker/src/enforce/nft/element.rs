//! Elements of a set, written into messages and read out of answers.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use nftnl::{Batch, MsgType};

use super::{
    guard::Guard,
    layout::{SetId, TABLE},
    message::{Attributes, Message, attributes_of},
};
use crate::net::Prefix;

/// A message ends with the element that takes it past this: a list of them must stay below 64 KiB, and the longest
/// element has 84 bytes.
const MESSAGE_BYTES: usize = 60_000;

/// One element as the kernel has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Element {
    pub(super) prefix: Prefix,
    /// Milliseconds that are left; `None` for ever.
    pub(super) left_ms: Option<u64>,
    pub(super) packets: u64,
    pub(super) bytes: u64,
}

/// What becomes of the elements of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// They are added; one that is there already refuses the transaction.
    AddNew,
    /// They are added, or stay.
    Add,
    /// They are deleted; one that is not there refuses the transaction.
    Delete,
}

impl Act {
    fn message(self, set: &str) -> Message {
        let (kind, flags) = match self {
            Self::AddNew => (libc::NFT_MSG_NEWSETELEM, libc::NLM_F_CREATE | libc::NLM_F_EXCL),
            Self::Add => (libc::NFT_MSG_NEWSETELEM, libc::NLM_F_CREATE),
            Self::Delete => (libc::NFT_MSG_DELSETELEM, 0),
        };
        // No NLM_F_ACK: a refusal is told without it.
        let mut message = Message::new(kind, flags);
        message.text(1, TABLE).text(2, set);
        message
    }
}

/// Writes elements of one set, in as many messages as they need. Counters and timeouts are written where they are
/// added.
pub(super) fn write(batch: &mut Batch, act: Act, set: SetId, elements: &[Element]) {
    write_each(batch, act, &set.name(), elements, |m, element| {
        key(m, element.prefix);
        if act == Act::Delete {
            return;
        }
        if let Some(left) = element.left_ms {
            // NFTA_SET_ELEM_TIMEOUT.
            m.u64(4, left.max(1));
        }
        if element.packets > 0 {
            // NFTA_SET_ELEM_EXPR.
            m.nest(7, |m| counter(m, element.packets, element.bytes));
        }
    });
}

/// Writes keys of a guard.
pub(super) fn write_guard(batch: &mut Batch, guard: Guard, keys: &[u32]) {
    let first = 4 - usize::from(guard.key_bytes());
    write_each(batch, Act::Add, guard.name(), keys, |m, key| {
        m.nest(1, |m| {
            m.bytes(1, &key.to_be_bytes()[first..]);
        });
    });
}

fn write_each<T>(batch: &mut Batch, act: Act, set: &str, items: &[T], fill: impl Fn(&mut Message, &T)) {
    let kind = if act == Act::Delete { MsgType::Del } else { MsgType::Add };
    let mut items = items.iter().peekable();
    while items.peek().is_some() {
        let mut message = act.message(set);
        // NFTA_SET_ELEM_LIST_ELEMENTS, NFTA_LIST_ELEM.
        message.nest(3, |m| {
            while m.len() < MESSAGE_BYTES
                && let Some(item) = items.next()
            {
                m.nest(1, |m| fill(m, item));
            }
        });
        batch.add(&message, kind);
    }
}

/// Deletes every element of a set.
pub(super) fn clear(batch: &mut Batch, set: &str) {
    batch.add(&Act::Delete.message(set), MsgType::Del);
}

/// Asks for one element.
pub(super) fn question(set: SetId, prefix: Prefix) -> Message {
    let mut question = Message::new(libc::NFT_MSG_GETSETELEM, 0);
    question.text(1, TABLE).text(2, &set.name()).nest(3, |m| {
        m.nest(1, |m| key(m, prefix));
    });
    question
}

/// NFTA_SET_ELEM_KEY with NFTA_DATA_VALUE.
fn key(message: &mut Message, prefix: Prefix) {
    message.nest(1, |m| {
        match prefix.address() {
            IpAddr::V4(v4) => m.bytes(1, &v4.octets()),
            IpAddr::V6(v6) => m.bytes(1, &v6.octets()),
        };
    });
}

/// The elements of one answer.
pub(super) fn read(set: SetId, body: &[u8]) -> impl Iterator<Item = Element> {
    let list = attributes_of(body).nested(3).into_iter().flat_map(Attributes::iter);
    list.filter_map(move |(_, element)| {
        let element = Attributes(element);
        let prefix = set.prefix(element.nested(1)?.get(1)?)?;
        // NFTA_SET_ELEM_EXPIRATION is what is left; NFTA_SET_ELEM_EXPR, or in a list NFTA_SET_ELEM_EXPRESSIONS.
        let expression = element.nested(7).or_else(|| element.nested(11)?.nested(1));
        let (packets, bytes) = expression.and_then(counted).unwrap_or((0, 0));
        let left_ms = element.get(4).and_then(|_| element.u64(5));
        Some(Element { prefix, left_ms, packets, bytes })
    })
}

/// A counter expression with its first values (NFTA_EXPR_NAME, NFTA_EXPR_DATA, NFTA_COUNTER_BYTES, _PACKETS).
pub(super) fn counter(message: &mut Message, packets: u64, bytes: u64) {
    message.text(1, "counter").nest(2, |m| {
        m.u64(1, bytes).u64(2, packets);
    });
}

/// Packets and bytes, when the expression is a counter.
pub(super) fn counted(expression: Attributes<'_>) -> Option<(u64, u64)> {
    let data = expression.text(1).filter(|name| *name == "counter").and_then(|_| expression.nested(2))?;
    Some((data.u64(2)?, data.u64(1)?))
}
