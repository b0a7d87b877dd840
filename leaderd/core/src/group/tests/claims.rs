//! Observers that know a later epoch than the location itself: it has lost its stores, or they lie.

use super::cluster::{Cluster, mesh, name};
use crate::ids::Epoch;

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
