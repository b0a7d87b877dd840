mod conditions;
mod events;

use proptest::prelude::*;

use super::*;
use crate::kubernetes::fixture::world::{NOW, World, later};
use crate::kubernetes::fixture::*;
use crate::kubernetes::render;

#[test]
fn a_status_names_the_leader_the_standbys_and_the_last_failover() {
    let mut w = World::new();
    w.view.pools.get_mut("home").unwrap().spec.candidates.names.push("home-9".into());
    w.write(NOW);
    w.fail_over();
    w.events.last_mut().unwrap().blackout = Some(Duration::from_millis(512));
    let status = w.write(later(5));
    insta::assert_snapshot!("status", serde_json::to_string_pretty(&status).unwrap());
    let read: PoolStatus = serde_json::from_value(serde_json::to_value(&status).unwrap()).unwrap();
    assert_eq!(read, status);
}

#[test]
fn an_unreadable_status_is_replaced() {
    let mut w = World::new();
    w.view.pools.get_mut("home").unwrap().status = Some(serde_json::json!({ "epoch": "many" }));
    assert_eq!(w.status_at(NOW).epoch, 1);
    assert!(w.pool_task("home-0").is_some());
}

#[test]
fn standbys_are_the_candidates_that_could_take_over_now() {
    let of = |change: &dyn Fn(&mut World)| {
        let mut w = World::new();
        change(&mut w);
        w.status_at(NOW).standbys
    };
    assert_eq!(of(&|_| ()), ["home-0"]);
    let none: [&str; 0] = [];
    assert_eq!(of(&|w| w.candidate("home-0").verdict = Verdict::Unknown), none);
    assert_eq!(of(&|w| w.candidate("home-0").drained = true), none);
    assert_eq!(of(&|w| w.candidate("home-0").blocked_by = vec!["drained".into()]), none);
}

#[test]
fn fields_that_are_not_known_now_are_kept() {
    let mut w = World::new();
    w.fail_over();
    let before = w.write(NOW);
    let rendered = render(&w.view, SETTINGS);
    assert_eq!(pool_statuses(&w.view, &rendered, None, later(9))["home"], before);
    // Without a quorum a node follows its own ranking, which is no decision.
    w.home().fallback = true;
    w.home().leaders = vec!["home-1".parse().unwrap()];
    assert_eq!(w.status_at(NOW).leader.as_deref(), Some("home-0"));
    // Of old events a daemon may have forgotten.
    w.events.clear();
    let after = w.status_at(NOW);
    assert_eq!((after.last_failover, after.last_event), (before.last_failover, before.last_event));
}

#[test]
fn only_the_raft_leader_may_lower_the_epoch() {
    let mut w = World::new();
    w.write(NOW);
    let late = (w.status.clone(), w.events.clone());
    w.fail_over();
    let newest = w.write(later(3));
    assert_eq!((newest.epoch, newest.last_event), (2, 2));
    (w.status, w.events) = late;
    w.home().raft_leader = Some("home-1".parse().unwrap());
    let status = w.status_at(later(4));
    assert_eq!((status.epoch, status.last_event), (2, 2));
    assert_eq!(
        (status.leader, status.since, status.cause),
        (newest.leader, newest.since, newest.cause)
    );
    // As after a reset of the location's stores.
    w.home().raft_leader = Some("home-0".parse().unwrap());
    let status = w.status_at(later(4));
    assert_eq!((status.epoch, status.last_event, status.leader.as_deref()), (1, 1, Some("home-1")));
}

#[test]
fn reasons_are_reported_without_their_seconds() {
    let mut w = World::new();
    w.candidate("home-0").blocked_by =
        vec!["its daemon is silent for 7 s".into(), "drained".into()];
    assert_eq!(w.status_at(NOW).candidates[1].blocked_by, ["its daemon is silent", "drained"]);
}

#[test]
fn all_times_are_valid_rfc_3339() {
    let shown = [WallTime(0), NOW, WallTime(u64::MAX)].map(rfc3339);
    assert_eq!(shown, ["1970-01-01T00:00:00Z", "2026-09-21T14:13:20Z", "9999-12-31T23:59:59Z"]);
    let mut w = World::new();
    w.fail_over();
    assert_eq!(
        w.status_at(NOW).last_failover.unwrap().at.as_deref(),
        Some("2026-09-21T14:13:22.000Z")
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Jitter alone does not cause another write.
    #[test]
    fn jitter_does_not_change_a_status(
        rtt in 1.0..500.0f64,
        loss in 0.0..0.9f32,
        jitter in prop::collection::vec((-1.0..1.0f64, any::<bool>(), 0..100u64), 1..20),
    ) {
        let mut w = World::new();
        w.candidate("home-1").rtt_ms = Some(rtt);
        w.candidate("home-1").loss = Some(loss);
        let first = w.write(NOW);
        for (by, suspected, secs) in jitter {
            let c = w.candidate("home-1");
            c.rtt_ms = Some(rtt + by * (rtt * 0.12).max(0.7));
            c.loss = Some((loss + by as f32 * 0.024).max(0.0));
            c.verdict = if suspected { Verdict::Suspected } else { Verdict::Forwarding };
            prop_assert_eq!(&w.status_at(later(secs)), &first);
        }
    }

    #[test]
    fn large_changes_are_reported(from in 0.0..1.0f32, to in 0.0..1.0f32, rtts in (1.0..500.0f64, 1.0..500.0f64)) {
        let shown = i32::from(loss(to, Some(loss(from, None))));
        prop_assert!((shown as f32 - to * 100.0).abs() < 5.01);
        let shown = f64::from(super::rtt(rtts.1, Some(super::rtt(rtts.0, None))));
        prop_assert!((shown - rtts.1).abs() <= (shown / 4.0).max(2.0));
    }
}
