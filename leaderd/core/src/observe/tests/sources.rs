//! A source NAT on the way: probes are answered, no candidate is blamed, and it is reported.

use super::*;
use crate::probe::Reject;
use crate::probe::stamp::{AUTHENTICATED_LEN, ReflectorPacket};

/// The answer of a release that knows the sender by the source address and no TLV but padding.
pub(super) fn older(
    reflector: &mut Reflector,
    now: Now,
    from: SocketAddr,
    local: SocketAddr,
    request: &[u8],
) -> Result<Vec<u8>, Reject> {
    let (base, mut rest) = request.split_at(AUTHENTICATED_LEN);
    let mut reply = reflector.handle(now, from, local, 62, base)?;
    while let [_, kind, high, low, ..] = *rest {
        let (tlv, others) = rest.split_at(4 + usize::from(u16::from_be_bytes([high, low])));
        reply.push(if kind == 1 { 0 } else { 0x80 });
        reply.extend(&tlv[1..]);
        rest = others;
    }
    Ok(reply)
}

/// Two relays hide sources as a CNI does: what they take from a tunnel and hand on comes from an address of their own.
fn relays(seen: &Seen<'_>) -> Option<IpAddr> {
    let slot = seen.via.filter(|_| seen.class != ProbeClass::Relay)?;
    Some([10, 42, 2 + slot, 0].into())
}

fn found(world: &World<'_>) -> Vec<String> {
    let found = world.observer.hidden_sources(&"cloud".parse().unwrap());
    found.iter().map(ToString::to_string).collect()
}

#[test]
fn a_relay_that_hides_sources_is_reported_and_not_blamed() {
    let mut world = World::new(mesh(PAIR_AND_MEMBER), 1, |_: &Seen<'_>| Fate::Back(ms(20)));
    world.nat = relays;
    world.run_until(ms(20_000));
    for slot in 0..2 {
        assert_eq!(world.verdict("cloud", slot), Verdict::Forwarding);
    }
    world.no_candidate_is_degraded();
    let found = found(&world);
    assert_eq!(found.len(), 2, "{found:?}");
    for (slot, said) in found.iter().enumerate() {
        let wanted =
            format!("cloud-{slot} hides sources: a probe from 100.127.{}.1 arrived at ", 16 * slot);
        assert!(said.starts_with(&wanted), "{said}");
        assert!(
            said.contains(&format!(" from 10.42.{}.0 (source NAT on the relay)", 2 + slot)),
            "{said}"
        );
    }
    let logged = |words: &str| world.logs.iter().filter(|l| l.contains(words)).count();
    assert_eq!(logged("hides sources"), 2, "once for each: {:?}", world.logs);
    assert!(world.observer.rewritten_sources() > 100);
}

#[test]
fn kilo_489_is_seen_behind_relays_that_hide_sources() {
    let network = |seen: &Seen<'_>| match seen.behind(0) && seen.is_fresh() && seen.at > ms(5_000) {
        true => Fate::Lost,
        false => Fate::Back(ms(20)),
    };
    let mut world = World::new(mesh(PAIR_AND_MEMBER), 1, network);
    world.nat = relays;
    world.run_until(ms(8_000));
    let (at, cause, _) = world.first_degraded(0).expect("the relay is degraded");
    assert!(at < ms(5_500) && cause == Fault::NewFlow, "{at:?} {cause}");
    assert_eq!(world.verdict("cloud", 1), Verdict::Forwarding);
}

#[test]
fn it_is_over_when_sources_arrive_unchanged_again() {
    let mut world = World::new(mesh(PAIR_AND_MEMBER), 1, |_: &Seen<'_>| Fate::Back(ms(20)));
    world.nat = |seen| relays(seen).filter(|_| seen.at < ms(10_000));
    world.run_until(ms(9_000));
    assert_eq!(found(&world).len(), 2);
    world.run_until(ms(14_000));
    assert_eq!(found(&world).len(), 2, "another leader's packets may be rewritten still");
    world.run_until(ms(25_000));
    assert_eq!(found(&world), Vec::<String>::new());
    let over = world.logs.iter().filter(|l| l.contains("arrive unchanged again through cloud-"));
    assert_eq!(over.count(), 2, "{:?}", world.logs);
}

#[test]
fn a_nat_before_the_candidate_is_not_the_candidates() {
    let mut world = World::new(mesh(PAIR_AND_MEMBER), 1, |_: &Seen<'_>| Fate::Back(ms(20)));
    world.nat = |seen| (seen.via == Some(0)).then(|| [192, 0, 2, 9].into());
    world.run_until(ms(10_000));
    let found = found(&world);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("sources are rewritten on the way to cloud-0: "), "{found:?}");
    world.no_candidate_is_degraded();
}

#[test]
fn rewritten_sources_of_workloads_are_reported_too() {
    let mut world = World::new(mesh(PAIR_AND_MEMBER), 1, |_: &Seen<'_>| Fate::Back(ms(20)));
    world.nat = |seen| seen.via.is_none().then(|| [192, 0, 2, 9].into());
    world.run_until(ms(5_000));
    world.observer.decided(world.clock(), &"cloud".parse().unwrap(), Epoch(1), &[Slot(0)]);
    world.run_until(ms(10_000));
    assert_eq!(world.verified.len(), 1, "delivered all the same");
    let found = found(&world);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0]
            .starts_with("sources of workloads are rewritten on the way: a probe from 10.42.1.1")
    );
}

#[test]
fn with_reflectors_of_an_older_release_all_is_well_and_nothing_is_known_of_sources() {
    let mut world = World::new(mesh(PAIR_AND_MEMBER), 1, |_: &Seen<'_>| Fate::Back(ms(20)));
    world.older = true;
    world.run_until(ms(20_000));
    for slot in 0..2 {
        assert_eq!(world.verdict("cloud", slot), Verdict::Forwarding);
    }
    world.no_candidate_is_degraded();
    assert_eq!((found(&world).len(), world.observer.forged_replies()), (0, 0));
}

#[test]
fn a_new_mesh_does_not_forget_what_hides_sources() {
    let mut world = World::new(mesh(PAIR_AND_MEMBER), 1, |_: &Seen<'_>| Fate::Back(ms(20)));
    world.nat = relays;
    world.run_until(ms(10_000));
    let before = found(&world);
    let mut changed = mesh(PAIR_AND_MEMBER);
    changed.edit().generation = crate::ids::Generation(2);
    world.observer.set_mesh(world.clock(), Arc::new(changed));
    assert_eq!(found(&world), before);
}

/// Asks the reflector of cloud-1 as home-0, whose index is 1.
fn ask(reflector: &mut Reflector, from: &str, bytes: &[u8]) -> Result<ReflectorPacket, Reject> {
    let mesh = mesh(CLOUD);
    let key = ProbeKeys::new([1; 32])
        .with(&mesh.nodes[&"cloud-1".parse::<NodeName>().unwrap()].wireguard_key);
    let local = "10.42.3.1:8620".parse().unwrap();
    let reply = reflector.handle(Now::default(), from.parse().unwrap(), local, 64, bytes)?;
    assert_eq!(reply.len(), bytes.len());
    Ok(ReflectorPacket::decode(&reply, Some(&key)).expect("an answer to home-0"))
}

#[test]
fn the_reflector_knows_the_sender_by_the_index_and_by_nothing_else() {
    let mesh = Arc::new(mesh(CLOUD));
    let mut keys = ProbeKeys::new([1; 32]);
    let key = keys.with(&mesh.nodes[&"cloud-1".parse::<NodeName>().unwrap()].wireguard_key);
    let mut reflector =
        Reflector::new(mesh.clone(), "cloud-1".parse().unwrap(), ProbeKeys::new([3; 32]));
    let packet = |seq| SenderPacket { seq, timestamp: Ntp(5), ssid: 9 };
    let index = crate::ids::NodeIndex;
    let named = |seq, who| packet(seq).encode_from(index(who), &key, 300);
    // From a relay's address, from another node's, and from one that no node has.
    for (seq, from) in ["10.42.2.1:53", "10.42.4.1:9", "203.0.113.9:53"].into_iter().enumerate() {
        let told = ask(&mut reflector, from, &named(seq as u32, 1)).unwrap().location.unwrap();
        assert_eq!((told.source, told.port), (from.parse().unwrap(), 8620));
    }
    // A replay is one from wherever it comes.
    for from in ["100.127.0.1:4000", "203.0.113.9:53", "203.0.113.9:54"] {
        assert_eq!(ask(&mut reflector, from, &named(1, 1)), Err(Reject::Replayed));
    }
    // From home-0's own address, with the index of cloud-0, of the reflector's own node, and of no node.
    let from = "100.127.0.1:4000";
    assert_eq!(ask(&mut reflector, from, &named(10, 2)), Err(Reject::BadHmac));
    assert_eq!(ask(&mut reflector, from, &named(10, 3)), Err(Reject::UnknownSender));
    assert_eq!(ask(&mut reflector, from, &named(10, 77)), Err(Reject::UnknownSender));
    // An older release does not name itself: its session is the same, known by the source.
    let old = packet(11).encode(Some(&key), 300);
    assert_eq!(ask(&mut reflector, "10.42.2.1:53", &old), Err(Reject::BadHmac));
    assert_eq!(ask(&mut reflector, "203.0.113.9:53", &old), Err(Reject::UnknownSource));
    let answered = ask(&mut reflector, from, &old).unwrap();
    assert_eq!((answered.seq, answered.location), (3, None));
}
