//! The reflector is no amplifier: whatever is sent to it, it never gives more than it got, and strangers get nothing.

use proptest::prelude::*;

use super::*;
use crate::ids::NodeIndex;
use crate::probe::Reject;
use crate::probe::stamp::{AUTHENTICATED_LEN, REQUEST_LEN};

/// One datagram to the reflector of cloud-1.
#[derive(Clone, Debug)]
struct Sent {
    from: &'static str,
    packet: SenderPacket,
    /// Signed with the key of home-0 and cloud-1, of other nodes, or not at all.
    key: Key,
    /// It names home-0, cloud-0, or no node of the mesh as its sender; or none, as older releases do.
    named: Option<u16>,
    length: usize,
    /// TLVs, well-formed or not: appended as they are.
    tail: Vec<u8>,
    /// An octet that is changed on the way.
    changed: Option<(usize, u8)>,
    /// Cut off here.
    cut: Option<usize>,
    times: usize,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Key {
    Right,
    OfOthers,
    None,
}

/// The inner address of home-0, its workload's, cloud-0's, and two that no node has.
const SOURCES: [&str; 5] =
    ["100.127.0.1:4000", "10.42.1.1:4000", "10.42.2.1:53", "203.0.113.9:53", "[2001:db8::1]:53"];

prop_compose! {
    fn sent()(
        from in prop::sample::select(SOURCES.to_vec()), seq in prop_oneof![0..6u32, any::<u32>()],
        timestamp in any::<u64>(), ssid in 0..3u16, key in prop::sample::select(vec![Key::Right, Key::Right, Key::OfOthers, Key::None]),
        named in prop_oneof![Just(None), Just(Some(1)), Just(Some(2)), Just(Some(99))],
        length in prop_oneof![Just(0usize), 0..1500usize], tail in prop_oneof![Just(vec![]), prop::collection::vec(any::<u8>(), 0..40)],
        changed in prop::option::weighted(0.2, (0..REQUEST_LEN, 1..=255u8)),
        cut in prop::option::weighted(0.2, 0..1500usize), times in 1..4usize,
    ) -> Sent {
        let packet = SenderPacket { seq, timestamp: crate::probe::stamp::Ntp(timestamp), ssid };
        Sent { from, packet, key, named, length, tail, changed, cut, times }
    }
}

proptest! {
    #[test]
    fn an_answer_is_as_long_as_its_request_and_goes_to_nodes_only(all in prop::collection::vec(sent(), 1..40)) {
        let mesh = Arc::new(mesh(CLOUD));
        let mut keys = ProbeKeys::new([1; 32]);
        let key_of = |keys: &mut ProbeKeys, node: &str| keys.with(&mesh.nodes[&node.parse::<NodeName>().unwrap()].wireguard_key);
        let (right, others) = (key_of(&mut keys, "cloud-1"), key_of(&mut keys, "cloud-2"));
        let mut reflector = Reflector::new(mesh.clone(), "cloud-1".parse().unwrap(), ProbeKeys::new([3; 32]));
        let (mut got, mut given) = (0, 0);
        for sent in all {
            let key = match sent.key { Key::Right => Some(&right), Key::OfOthers => Some(&others), Key::None => None };
            let mut bytes = match (key, sent.named) {
                (Some(key), Some(index)) => sent.packet.encode_from(NodeIndex(index), key, sent.length),
                _ => sent.packet.encode(key, sent.length),
            };
            bytes.extend(&sent.tail);
            // Behind the base packet of one that is not named there is nothing but padding.
            let within = if key.is_some() && sent.named.is_some() { REQUEST_LEN } else { AUTHENTICATED_LEN };
            let changed = sent.changed.map(|(at, with)| (at % within, with)).filter(|(at, _)| *at < bytes.len());
            if let Some((at, with)) = changed {
                bytes[at] ^= with;
            }
            bytes.truncate(sent.cut.unwrap_or(usize::MAX));
            let base = changed.is_none_or(|(at, _)| at >= AUTHENTICATED_LEN) && bytes.len() >= AUTHENTICATED_LEN;
            let known = ["100.127.0.1:4000", "10.42.1.1:4000"].contains(&sent.from);
            // What a named one says of itself counts from wherever it comes; where that was cut off or changed, the source does.
            let may = sent.key == Key::Right && base && (known || sent.named == Some(1));
            let must = may && match sent.named {
                // What is put behind it must not look like an HMAC, or like a name.
                None => !sent.tail.contains(&8) && !sent.tail.contains(&252),
                Some(index) => index == 1 && changed.is_none() && sent.cut.is_none() && sent.tail.is_empty(),
            };
            for time in 0..sent.times {
                let answer = reflector.handle(
                    Now::default(), sent.from.parse().unwrap(), "10.42.3.1:8620".parse().unwrap(), 64, &bytes,
                );
                got += bytes.len();
                match answer {
                    Ok(reply) => {
                        prop_assert!(may && time == 0, "answered: {sent:?}");
                        prop_assert_eq!(reply.len(), bytes.len());
                        given += reply.len();
                    }
                    // The same again, or a number that the session has left behind.
                    Err(Reject::Replayed) => prop_assert!(may),
                    Err(_) => prop_assert!(!must, "{answer:?} for {sent:?}"),
                }
            }
        }
        prop_assert!(given <= got);
    }
}
