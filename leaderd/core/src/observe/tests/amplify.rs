//! The reflector is no amplifier: whatever is sent to it, it never gives more than it got, and strangers get nothing.

use proptest::prelude::*;

use super::*;
use crate::probe::Reject;
use crate::probe::stamp::AUTHENTICATED_LEN;

/// One datagram to the reflector of cloud-1.
#[derive(Clone, Debug)]
struct Sent {
    from: &'static str,
    packet: SenderPacket,
    /// Signed with the key of home-0 and cloud-1, of other nodes, or not at all.
    key: Key,
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

/// The inner address of home-0, its workload's, cloud-0's, and two of nobody.
const SOURCES: [&str; 5] =
    ["100.127.0.1:4000", "10.42.1.1:4000", "10.42.2.1:53", "203.0.113.9:53", "[2001:db8::1]:53"];

prop_compose! {
    fn sent()(
        from in prop::sample::select(SOURCES.to_vec()), seq in prop_oneof![0..6u32, any::<u32>()],
        timestamp in any::<u64>(), ssid in 0..3u16, key in prop::sample::select(vec![Key::Right, Key::Right, Key::OfOthers, Key::None]),
        length in prop_oneof![Just(0usize), 0..1500usize], tail in prop::collection::vec(any::<u8>(), 0..40),
        changed in prop::option::weighted(0.2, (0..AUTHENTICATED_LEN, 1..=255u8)),
        cut in prop::option::weighted(0.2, 0..1500usize), times in 1..4usize,
    ) -> Sent {
        let packet = SenderPacket { seq, timestamp: crate::probe::stamp::Ntp(timestamp), ssid };
        Sent { from, packet, key, length, tail, changed, cut, times }
    }
}

proptest! {
    #[test]
    fn an_answer_is_as_long_as_its_request_and_nobody_else_gets_one(all in prop::collection::vec(sent(), 1..40)) {
        let mesh = Arc::new(mesh(CLOUD));
        let mut keys = ProbeKeys::new([1; 32]);
        let key_of = |keys: &mut ProbeKeys, node: &str| keys.with(&mesh.nodes[&node.parse::<NodeName>().unwrap()].wireguard_key);
        let (right, others) = (key_of(&mut keys, "cloud-1"), key_of(&mut keys, "cloud-2"));
        let mut reflector = Reflector::new(mesh.clone(), "cloud-1".parse().unwrap(), ProbeKeys::new([3; 32]));
        let (mut got, mut given) = (0, 0);
        for sent in all {
            let key = match sent.key { Key::Right => Some(&right), Key::OfOthers => Some(&others), Key::None => None };
            let mut bytes = sent.packet.encode(key, sent.length);
            bytes.extend(&sent.tail);
            if let Some((at, with)) = sent.changed && at < bytes.len() {
                bytes[at] ^= with;
            }
            bytes.truncate(sent.cut.unwrap_or(usize::MAX));
            let untouched = sent.changed.is_none() && bytes.len() >= AUTHENTICATED_LEN;
            let entitled = sent.key == Key::Right && untouched && ["100.127.0.1:4000", "10.42.1.1:4000"].contains(&sent.from);
            for time in 0..sent.times {
                let answer = reflector.handle(
                    Now::default(), sent.from.parse().unwrap(), "10.42.3.1:8620".parse().unwrap(), 64, &bytes,
                );
                got += bytes.len();
                match answer {
                    Ok(reply) => {
                        prop_assert!(entitled && time == 0, "answered: {sent:?}");
                        prop_assert_eq!(reply.len(), bytes.len());
                        given += reply.len();
                    }
                    // The same again, or a number that the session has left behind.
                    Err(Reject::Replayed) => prop_assert!(entitled),
                    Err(_) => prop_assert!(!entitled, "{answer:?} for {sent:?}"),
                }
            }
        }
        prop_assert!(given <= got);
    }
}
