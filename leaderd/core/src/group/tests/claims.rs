//! What observers claim: a later epoch than the location itself knows (it has lost its stores, or they lie), or to watch at full rate.

use std::collections::BTreeSet;
use std::time::Duration;

use super::cluster::{Cluster, MS, mesh, name};
use crate::election::Reports;
use crate::ids::{Epoch, LocationName, Slot};
use crate::mesh::{Location, Mesh, Node, Overlay};
use crate::state::LocationState;
use crate::time::{Instant, Now, WallTime};
use crate::verdict::{Report, SlotReport, Verdict};

/// `home-0` says that it knows this epoch of the cloud.
fn claim(c: &mut Cluster, epoch: u64) {
    c.claims.insert(name("home-0"), Epoch(epoch));
    c.report_now();
}

#[test]
fn a_location_that_lost_its_stores_raises_its_epoch_above_a_later_claim() {
    let mut c = Cluster::settled(mesh(3, 0, 0), 27);
    claim(&mut c, 7);
    c.until(1000, "told again", |c| c.leaders().values().all(|l| *l == (8, vec![0])));
    assert!(c.event().summary.contains("lost"), "{}", c.event().summary);
    c.run(30_000);
    assert!(c.leaders().values().all(|l| *l == (8, vec![0])), "once is enough");
    claim(&mut c, 12);
    c.until(1000, "another that comes later", |c| c.leaders().values().all(|l| l.0 == 13));
}

#[test]
fn an_observer_that_claims_ever_higher_epochs_causes_few_decisions_and_moves_no_leader() {
    let mut c = Cluster::settled(mesh(3, 0, 0), 28);
    let before = c.groups[&name("cloud-0")].state().last_seq;
    let mut claimed = 0;
    for _ in 0..12 * 60 {
        claimed += 100;
        claim(&mut c, claimed);
        c.run(5000);
    }
    assert!(c.all_follow(0) && c.leaders().values().all(|l| l.0 <= claimed + 1));
    let events = c.groups[&name("cloud-0")].state().last_seq - before;
    assert!((2..=10).contains(&events), "in an hour: {events}");
    // After the longest pause one is outdone again, and nonsense hides no other claim.
    claim(&mut c, u64::MAX);
    c.run(20_000);
    claim(&mut c, claimed * 2);
    c.until(3_700_000, "outdone", |c| c.leaders().values().all(|l| l.0 == claimed * 2 + 1));
}

/// Six locations watch the cloud, three of them at full rate. All of them claim to.
fn watched() -> (Mesh, LocationName, BTreeSet<LocationName>) {
    let mesh = mesh(2, 0, 0).with(|m| {
        for l in 0..5u16 {
            let location: LocationName = format!("l{l}").parse().unwrap();
            let address = "10.0.0.1".parse().unwrap();
            let node = Node::member(name(&format!("l{l}-0")), 60 + l, location.clone(), address);
            m.nodes.insert(node.name.clone(), Node { slot: Some(Slot(0)), ..node });
            m.locations.insert(location.clone(), Location::new(location, Overlay::External));
        }
        m.policy.slow_probe_interval = Duration::from_millis(100);
    });
    let cloud = "cloud".parse().unwrap();
    let fully = crate::observe::full_watchers(&mesh, &cloud).collect();
    (mesh, cloud, fully)
}

fn at(ms: u64) -> Now {
    Now { mono: Instant(ms * MS), wall: WallTime(ms * MS) }
}

#[test]
fn who_watches_at_full_rate_is_computed_and_not_claimed() {
    let (mesh, cloud, fully) = watched();
    let mut reports = Reports::new(at(0).mono);
    reports.set_mesh(&mesh, &cloud);
    let observers = mesh.nodes.values().filter(|n| n.location != cloud && n.slot == Some(Slot(0)));
    for observer in observers {
        let report = Report {
            observer: observer.name.clone(),
            location: cloud.clone(),
            seq: 1,
            epoch: Epoch(0),
            abstains: false,
            full_rate: !fully.contains(&observer.location),
            slots: vec![SlotReport::new(Slot(0), Verdict::Forwarding, WallTime(0))],
        };
        reports.report(at(0).mono, report);
    }
    let state = LocationState::new(cloud.clone());
    let votes = |ms| reports.situation(at(ms), &mesh, &state, &name("cloud-0")).ballots;
    assert_eq!((fully.len(), votes(1000).len()), (3, 6));
    for (location, ballot) in votes(1000) {
        assert_eq!(ballot.fully, fully.contains(&location), "{location}");
    }
    // What slow watchers say may be one of their intervals old already, so it grows old earlier.
    assert_eq!(votes(1600).into_keys().collect::<BTreeSet<_>>(), fully);
    assert_eq!(votes(3100).len(), 0);
}
