//! Reflectors that are not ours: asked without authentication, believed only if they say what was sent to them.

use super::*;
use crate::observe::index::Index;
use crate::probe::{Reflector, Reject};

const ROUTER: &str = "10.42.5.77:862";

/// A reflector in TWAMP Light's way, by the octets of RFC 8762 §4.3.1: stateless, no session id, no TLVs.
pub(super) fn twamp_light(request: &[u8]) -> Vec<u8> {
    let mut reply = vec![0; 44];
    reply[0..4].copy_from_slice(&request[0..4]);
    reply[24..28].copy_from_slice(&request[0..4]);
    reply[28..36].copy_from_slice(&request[4..12]);
    reply[36..38].copy_from_slice(&request[12..14]);
    reply[40] = 63;
    reply
}

fn with_router() -> Mesh {
    let mut mesh = mesh(CLOUD_AND_MEMBERS);
    let cloud: LocationName = "cloud".parse().unwrap();
    mesh.edit().locations.get_mut(&cloud).unwrap().reflectors = vec![ROUTER.parse().unwrap()];
    mesh
}

fn is_router(p: &Seen<'_>) -> bool {
    p.address == ROUTER.parse().unwrap()
}

#[test]
fn a_foreign_reflector_is_one_target_among_the_others() {
    let asked = std::cell::RefCell::new(BTreeMap::new());
    let mut world = World::new(with_router(), 2, |p: &Seen<'_>| {
        if is_router(p) {
            *asked.borrow_mut().entry(p.via).or_insert(0) += 1;
        }
        Fate::Back(ms(20))
    });
    world.run_until(Duration::from_secs(30));
    world.no_candidate_is_degraded();
    assert!((0..3).all(|s| world.verdict("cloud", s) == Verdict::Forwarding));
    let watch = &world.observer.watches[WatchIdx::new(0)];
    let target = watch.targets.position(|t| t.key.is_none()).unwrap();
    assert!(!watch.targets[target].health.is_quarantined(), "its answers are believed");
    assert!(watch.pairs.iter().all(|pairs| pairs[target].delivered().is_some()));
    drop(world);
    let asked = asked.into_inner();
    assert_eq!(asked.len(), 4, "through every slot, and as a workload: {asked:?}");
}

#[test]
fn a_leader_that_alone_loses_what_goes_to_the_router_is_degraded() {
    let fault = Duration::from_secs(20);
    let mut world = World::new(with_router(), 2, |p: &Seen<'_>| {
        let lost = p.at > fault && p.via == Some(0) && is_router(p);
        if lost { Fate::Lost } else { Fate::Back(ms(20)) }
    });
    world.run_until(fault + Duration::from_secs(5));
    assert_eq!(world.first_degraded(0).map(|c| c.1), Some(Fault::Partial));
    let view = world.observer.view(world.clock(), &"cloud".parse().unwrap()).unwrap();
    let named = view.slots[0].evidence.iter().filter_map(|r| r.address).collect::<Vec<_>>();
    assert_eq!(named, [ROUTER.parse::<SocketAddr>().unwrap().ip()]);
}

#[test]
fn an_answer_with_another_number_or_timestamp_is_not_believed() {
    type Forge = fn(&[u8]) -> Vec<u8>;
    let forgeries: [Forge; 4] = [
        |request| {
            let mut reply = twamp_light(request);
            reply[27] ^= 1;
            reply
        },
        |request| {
            let mut reply = twamp_light(request);
            // The last bits of the sender's timestamp: below the microsecond.
            reply[35] ^= 1;
            reply
        },
        |request| twamp_light(request)[..43].to_vec(),
        |_| vec![0; 44],
    ];
    for forge in forgeries {
        let mut world = World::new(with_router(), 2, |_: &Seen<'_>| Fate::Back(ms(20)));
        world.foreign = forge;
        world.run_until(Duration::from_secs(20));
        let watch = &world.observer.watches[WatchIdx::new(0)];
        let target = watch.targets.position(|t| t.key.is_none()).unwrap();
        assert!(watch.pairs.iter().all(|pairs| pairs[target].delivered().is_none()));
        assert!(watch.targets[target].health.is_quarantined(), "silent, as far as we know");
        world.no_candidate_is_degraded();
    }
}

#[test]
fn numbers_begin_anywhere_and_stamps_differ_below_the_microsecond() {
    let stamps = |seed| {
        let mut world = World::new(with_router(), seed, |_: &Seen<'_>| Fate::Back(ms(20)));
        world.run_until(Duration::from_secs(3));
        let watch = &world.observer.watches[WatchIdx::new(0)];
        watch.targets.iter().find(|t| t.key.is_none()).unwrap().seq
    };
    let all: BTreeSet<u32> = (0..8).map(stamps).map(|s| s >> 8).collect();
    assert_eq!(all.len(), 8, "not from zero: {all:?}");
}

#[test]
fn our_own_reflector_answers_nothing_that_is_not_authenticated() {
    let mesh = Arc::new(with_router());
    let mut reflector = Reflector::new(mesh, "cloud-1".parse().unwrap(), ProbeKeys::new([3; 32]));
    let packet = SenderPacket { seq: 1, timestamp: Ntp(5), ssid: 9 };
    for (length, why) in [(0, Reject::Truncated), (112, Reject::BadHmac), (600, Reject::BadHmac)] {
        let from = "100.127.0.1:4000".parse().unwrap();
        let local = "10.42.3.1:8620".parse().unwrap();
        let bytes = packet.encode(None, length);
        assert_eq!(reflector.handle(Now::default(), from, local, 64, &bytes), Err(why));
    }
}
