//! Whether the bytes of a Raft message are worth parsing.
//!
//! The parser makes an entry of 150 bytes from two on the wire, and keeps each field that it does not know in a table: a frame of
//! 4 MiB could become hundreds. So the fields are walked over first, which takes no memory.

/// Longest message without a snapshot: some of the log, in pieces of 256 KiB, and one more entry.
const MAX_BYTES: usize = 512 << 10;
/// Longest snapshot's metadata: its voters.
const MAX_METADATA: usize = 1 << 10;
/// Fields that are no entry: fifteen, each of which may stand there again.
const MAX_FIELDS: usize = 64;

const ENTRIES: u64 = 7;
const SNAPSHOT: u64 = 9;

/// True if they are a message's fields (eraftpb.proto), with few enough entries, and short but for a snapshot.
pub(super) fn are_plausible(bytes: &[u8], most_entries: usize) -> bool {
    let (mut entries, mut fields, mut snapshots) = (0, 0, 0);
    let walked = walk(bytes, &mut |field, body| match (field, body) {
        (ENTRIES, Some(entry)) => {
            entries += 1;
            entries <= most_entries && has_fields(entry, 6)
        }
        (SNAPSHOT, Some(snapshot)) => {
            snapshots += 1;
            snapshots == 1 && is_snapshot(snapshot)
        }
        (1..=16, _) => {
            fields += 1;
            fields <= MAX_FIELDS
        }
        _ => false,
    });
    walked && (snapshots > 0 || bytes.len() <= MAX_BYTES)
}

fn is_snapshot(bytes: &[u8]) -> bool {
    let mut fields = 0;
    walk(bytes, &mut |field, body| {
        fields += 1;
        let fits = match (field, body) {
            (1, Some(_)) => true,
            // Unknown fields in here are few, as it is short.
            (2, Some(metadata)) => metadata.len() <= MAX_METADATA,
            _ => false,
        };
        fits && fields <= MAX_FIELDS
    })
}

fn has_fields(bytes: &[u8], last: u64) -> bool {
    let mut fields = 0;
    walk(bytes, &mut |field, _| {
        fields += 1;
        (1..=last).contains(&field) && fields <= MAX_FIELDS
    })
}

/// Calls with the number of each field, and the bytes of one that has a length, until that says no. False too for what is no
/// protobuf, or of a kind that these messages do not have.
fn walk(mut bytes: &[u8], field: &mut dyn FnMut(u64, Option<&[u8]>) -> bool) -> bool {
    while !bytes.is_empty() {
        let Some(tag) = varint(&mut bytes) else { return false };
        let body = match tag & 7 {
            0 => varint(&mut bytes).map(|_| None),
            2 => varint(&mut bytes).and_then(|length| {
                let (body, rest) = bytes.split_at_checked(usize::try_from(length).ok()?)?;
                bytes = rest;
                Some(Some(body))
            }),
            _ => None,
        };
        if !body.is_some_and(|body| field(tag >> 3, body)) {
            return false;
        }
    }
    true
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..70).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use protobuf::Message as _;
    use raft::eraftpb::{ConfState, Entry, Message, MessageType, Snapshot};

    use super::*;

    fn bytes(m: &Message) -> Vec<u8> {
        m.write_to_bytes().unwrap()
    }

    #[test]
    fn messages_of_ours_are_parsed_with_entries_and_with_a_snapshot() {
        let mut m = Message { from: 1, to: 2, term: u64::MAX, priority: -1, ..Default::default() };
        m.set_msg_type(MessageType::MsgAppend);
        let entry = Entry { index: 7, data: vec![1; 70_000].into(), ..Default::default() };
        m.set_entries(vec![entry; 4].into());
        m.context = vec![9; 8].into();
        assert!(are_plausible(&bytes(&m), 4));
        assert!(!are_plausible(&bytes(&m), 3), "too many entries");
        let mut m = Message::default();
        m.set_msg_type(MessageType::MsgSnapshot);
        let mut snapshot = Snapshot { data: vec![1; 3 << 20].into(), ..Default::default() };
        let conf = ConfState { voters: (1..=32).collect(), auto_leave: true, ..Default::default() };
        snapshot.mut_metadata().set_conf_state(conf);
        m.set_snapshot(snapshot);
        assert!(are_plausible(&bytes(&m), 0));
    }

    #[test]
    fn what_would_become_many_times_as_large_is_not_parsed() {
        // Empty entries, of two bytes each.
        assert!(!are_plausible(&[0x3a, 0].repeat(5000), 4096));
        // A field that no message has, again and again, in the message and in an entry.
        assert!(!are_plausible(&[0xf8, 0x7f, 1], 4096));
        assert!(!are_plausible(&[0x3a, 3, 0xf8, 0x7f, 1], 4096));
        // Known fields, again and again.
        assert!(!are_plausible(&[0x10, 1].repeat(1000), 4096));
        // A million voters.
        let mut m = Message::default();
        m.mut_snapshot().mut_metadata().mut_conf_state().voters = vec![1; 1 << 20];
        assert!(!are_plausible(&bytes(&m), 4096));
        // Long, and no snapshot.
        let m = Message { context: vec![0; 1 << 20].into(), ..Default::default() };
        assert!(!are_plausible(&bytes(&m), 4096));
        // Cut in the middle, and a number that never ends.
        assert!(!are_plausible(&[0x62, 200, 1, 2], 4096));
        assert!(!are_plausible(&[0xff; 12], 4096));
    }
}
