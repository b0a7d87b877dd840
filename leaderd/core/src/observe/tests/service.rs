//! A leader that alone fails a service is degraded, whatever else passes, and none is for a service that is down.

use super::*;
use crate::mesh::{HttpRequest, Service};

const FAULT: Duration = Duration::from_secs(20);
const WEB: &str = "10.42.5.10:80";
const DATABASE: &str = "10.42.6.10:5432";

/// `CLOUD_AND_MEMBERS`, with a web server behind cloud-3 and a database behind cloud-4.
fn with_services(body: Option<u32>) -> Mesh {
    let mut mesh = mesh(CLOUD_AND_MEMBERS);
    let http = body.map(|body| HttpRequest { path: "/".into(), body });
    let services = vec![
        Service { address: WEB.parse().unwrap(), http },
        Service { address: DATABASE.parse().unwrap(), http: None },
    ];
    mesh.edit().locations.get_mut(&"cloud".parse::<LocationName>().unwrap()).unwrap().services =
        services;
    mesh
}

fn is_service(p: &Seen<'_>, address: &str) -> bool {
    p.class == ProbeClass::Service && p.address == address.parse().unwrap()
}

/// The world after the fault has had some time, on a path of about 20 ms.
fn world<'n>(mesh: Mesh, seed: u64, fault: impl Fn(&Seen<'_>) -> Option<Fate> + 'n) -> World<'n> {
    World::new(mesh, seed, move |p: &Seen<'_>| {
        let rtt = Duration::from_micros(20_000 + (p.random * 1000.0) as u64);
        let hit = if p.at >= FAULT { fault(p) } else { None };
        hit.unwrap_or(Fate::Back(rtt))
    })
}

#[test]
fn a_leader_that_alone_drops_a_service_is_degraded() {
    let mut times = Vec::new();
    for seed in 0..21 {
        let drop = |p: &Seen<'_>| (p.via == Some(0) && is_service(p, WEB)).then_some(Fate::Lost);
        let mut world = world(with_services(None), seed, drop);
        world.run_until(FAULT);
        world.no_candidate_is_degraded();
        world.run_until(FAULT + Duration::from_secs(8));
        let (at, cause, _) = world.first_degraded(0).expect("the leader is degraded");
        assert_eq!(cause, Fault::Partial, "seed {seed}");
        assert_eq!((world.first_degraded(1), world.first_degraded(2)), (None, None), "seed {seed}");
        times.push(at - FAULT);
        let view = world.observer.view(world.clock(), &"cloud".parse().unwrap()).unwrap();
        let services: Vec<_> = view.slots.iter().map(|s| s.services).collect();
        assert_eq!(services, [(1, 2), (2, 2), (2, 2)]);
        let rows = &view.slots[0].evidence;
        let row = rows.iter().find(|r| r.class == ProbeClass::Service && r.port == Some(80));
        let row = row.expect("evidence names the service");
        assert_eq!(row.target, Some("cloud-3".parse().unwrap()));
        assert!(row.lost >= 7 && row.lost == row.sent, "{row:?}");
        let packets = rows.iter().filter(|r| r.class != ProbeClass::Service);
        assert_eq!(packets.map(|r| r.lost).sum::<u32>(), 0, "{rows:?}");
        assert!(!rows.iter().any(|r| r.port == Some(5432)), "that one passed: {rows:?}");
    }
    times.sort();
    // A turn a second, a timeout of a quarter of one, and two more for two bursts.
    assert!(times[10] <= ms(1_500), "{times:?}");
}

#[test]
fn a_candidate_degraded_by_a_service_stays_degraded_under_a_new_mesh() {
    let mended = FAULT + Duration::from_secs(60);
    let drop = move |p: &Seen<'_>| {
        (p.at < mended && p.via == Some(0) && is_service(p, WEB)).then_some(Fate::Lost)
    };
    let mut world = world(with_services(None), 1, drop);
    world.run_until(FAULT + Duration::from_secs(10));
    assert!(world.verdict("cloud", 0).is_degraded());
    world.observer.set_mesh(world.clock(), Arc::new(with_services(None)));
    let reports = world.reports.len();
    world.run_until(mended);
    let recovered =
        world.reports[reports..].iter().find(|(_, r)| !r.slots[0].verdict.is_degraded());
    assert_eq!(recovered, None);
    world.run_until(mended + Duration::from_secs(20));
    assert_eq!(world.verdict("cloud", 0), Verdict::Forwarding);
}

#[test]
fn a_service_that_is_down_degrades_no_candidate_and_is_logged_as_down() {
    for seed in 0..4 {
        for refused in [false, true] {
            let down = |p: &Seen<'_>| {
                let error = ProbeError::Unreachable { from: None };
                let fate = if refused { Fate::Fails(error, ms(20)) } else { Fate::Lost };
                is_service(p, WEB).then_some(fate)
            };
            let mut world = world(with_services(Some(0)), seed, down);
            world.run_until(FAULT + Duration::from_secs(30));
            world.no_candidate_is_degraded();
            let view = world.observer.view(world.clock(), &"cloud".parse().unwrap()).unwrap();
            assert!(view.slots.iter().all(|s| s.services == (1, 2)), "{view:?}");
            let told = world.logs.iter().filter(|m| m.contains("through no candidate"));
            assert_eq!(told.count(), 1, "{:?}", world.logs);
        }
    }
}

#[test]
fn a_service_that_fails_at_random_through_every_slot_degrades_no_candidate() {
    for seed in 0..12 {
        let flaky = |p: &Seen<'_>| (is_service(p, WEB) && p.random < 0.5).then_some(Fate::Lost);
        let mut world = world(with_services(None), seed, flaky);
        world.run_until(FAULT + Duration::from_secs(60));
        world.no_candidate_is_degraded();
    }
}

#[test]
fn a_slow_service_and_a_lossy_wan_degrade_no_candidate() {
    for seed in 0..5 {
        let mut world = World::new(with_services(Some(4000)), seed, |p: &Seen<'_>| {
            if p.class != ProbeClass::Service {
                return if p.random < 0.02 { Fate::Lost } else { Fate::Back(ms(20)) };
            }
            // A connect that is lost is tried again by TCP after a second; the server takes up to 300 ms.
            let again = if p.random < 0.04 { 1000 } else { 0 };
            Fate::Back(ms(again + 40 + (p.random * 7919.0 % 1.0 * 300.0) as u64))
        });
        world.run_until(Duration::from_secs(200));
        world.no_candidate_is_degraded();
    }
}

#[test]
fn a_body_that_does_not_arrive_after_the_connect_points_to_the_mtu_if_it_is_large() {
    for (body, answer, cause) in
        [(4000, 200, Fault::Mtu), (0, 9000, Fault::Mtu), (10, 200, Fault::Partial)]
    {
        let hole = |p: &Seen<'_>| {
            (p.via == Some(0) && is_service(p, WEB)).then_some(Fate::Connects(ms(20)))
        };
        let mut world = world(with_services(Some(body)), 3, hole);
        world.answer = answer;
        world.run_until(FAULT + Duration::from_secs(8));
        let found = world.first_degraded(0).map(|c| c.1);
        assert_eq!(found, Some(cause), "{body} bytes asked, {answer} answered");
    }
}

#[test]
fn the_services_of_a_dead_leader_are_left_to_the_packets_to_judge() {
    let dead = |p: &Seen<'_>| (p.via == Some(0)).then_some(Fate::Lost);
    let mut world = world(with_services(None), 5, dead);
    world.run_until(FAULT + Duration::from_secs(8));
    assert_eq!(world.first_degraded(0).map(|c| c.1), Some(Fault::TunnelDown));
}

#[test]
fn a_leader_recovers_once_its_service_passes_again() {
    let until = FAULT + Duration::from_secs(10);
    let drop = move |p: &Seen<'_>| {
        (p.at < until && p.via == Some(0) && is_service(p, DATABASE)).then_some(Fate::Lost)
    };
    let mut world = world(with_services(None), 7, drop);
    world.run_until(until);
    assert_eq!(world.verdict("cloud", 0).fault(), Some(Fault::Partial));
    world.run_until(until + Duration::from_secs(6));
    assert_eq!(world.verdict("cloud", 0), Verdict::Forwarding);
}

#[test]
fn services_are_probed_at_their_own_pace_through_every_slot() {
    let asked = std::cell::RefCell::new(BTreeMap::new());
    let mut world = World::new(with_services(None), 1, |p: &Seen<'_>| {
        if p.class == ProbeClass::Service {
            *asked.borrow_mut().entry((p.address, p.via)).or_insert(0) += 1;
        }
        Fate::Back(ms(20))
    });
    world.run_until(Duration::from_secs(100));
    drop(world);
    let asked = asked.into_inner();
    assert_eq!(asked.len(), 6, "two services, three slots: {asked:?}");
    assert!(asked.values().all(|n| (95..=106).contains(n)), "about one a second: {asked:?}");
}

#[test]
fn a_candidates_own_service_is_not_probed_through_itself() {
    let mut mesh = mesh(CLOUD_AND_MEMBERS);
    let services = vec![Service { address: "10.42.2.10:80".parse().unwrap(), http: None }];
    mesh.edit().locations.get_mut(&"cloud".parse::<LocationName>().unwrap()).unwrap().services =
        services;
    // The link between the location's candidates 0 and 1 is bad: through 1 its service cannot be reached.
    let mut world = world(mesh, 1, |p: &Seen<'_>| {
        assert!(p.class != ProbeClass::Service || p.via != Some(0), "its own");
        (p.class == ProbeClass::Service && p.via == Some(1)).then_some(Fate::Lost)
    });
    world.run_until(FAULT + Duration::from_secs(10));
    assert_eq!(world.first_degraded(0), None);
    assert_eq!(world.first_degraded(1).map(|c| c.1), Some(Fault::Partial));
}
