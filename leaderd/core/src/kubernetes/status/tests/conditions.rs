use super::*;
use crate::fault::Fault;
use crate::ids::Epoch;
use crate::kubernetes::pool_status::Condition;
use crate::kubernetes::{Steering, names};
use crate::status::RelayPairStatus;

fn condition<'s>(status: &'s PoolStatus, kind: &str) -> &'s Condition {
    status.conditions.iter().find(|c| c.kind == kind).unwrap()
}

fn brief(status: &PoolStatus) -> String {
    status.conditions.iter().map(|c| format!("{}={} {}\n", c.kind, c.status, c.reason)).collect()
}

#[test]
fn transition_times_change_only_with_the_status() {
    let mut w = World::new();
    let first = w.write(NOW);
    assert_eq!(
        brief(&first),
        "Ready=True Leading\nSteered=True Native\nQuorum=True Reached\nDegraded=False Healthy\nCutOff=False Reached\nLongDetour=False NoLongDetour\n"
    );
    w.fail_over();
    let second = w.write(later(60));
    assert_eq!(
        brief(&second),
        "Ready=True Leading\nSteered=True Native\nQuorum=True Reached\nDegraded=True StandbyDegraded\nCutOff=False Reached\nLongDetour=False NoLongDetour\n"
    );
    assert_eq!(
        condition(&second, "Ready").last_transition_time,
        condition(&first, "Ready").last_transition_time
    );
    assert_eq!(condition(&second, "Degraded").last_transition_time, "2026-09-21T14:14:20Z");
    assert!(condition(&second, "Ready").message.contains("home-0"));
}

#[test]
fn conditions_say_what_is_wrong() {
    let degraded = || Verdict::Degraded { cause: Fault::Loss, direction: None };
    let of = |change: &dyn Fn(&mut World)| {
        let mut w = World::new();
        change(&mut w);
        brief(&w.status_at(NOW))
    };
    let all = |w: &mut World| w.home().candidates.iter_mut().for_each(|c| c.verdict = degraded());
    assert!(of(&|w| w.candidate("home-1").verdict = degraded()).contains("Ready=False LeaderDegraded\nSteered=True Native\nQuorum=True Reached\nDegraded=True LeaderDegraded"));
    assert!(of(&all).contains("Degraded=True FailStatic"));
    assert!(
        of(&|w| w.candidate("home-0").verdict = Verdict::Unknown)
            .contains("Degraded=True NoStandby")
    );
    assert!(
        of(&|w| w.candidate("home-0").blocked_by = vec!["drained".into()])
            .contains("Degraded=True NoStandby")
    );
    assert!(of(&|w| w.home().quorum = Some(false)).contains("Quorum=False Lost"));
    assert!(of(&|w| w.home().fallback = true).contains("Quorum=False Lost"));
    assert!(of(&|w| w.home().quorum = None).contains("Quorum=Unknown NotYetKnown"));
    assert!(
        of(&|w| {
            w.home().leaders.clear();
            w.home().epoch = Epoch(0)
        })
        .contains("Ready=False NoLeader")
    );
    let other = |w: &mut World| w.view.pools.get_mut("home").unwrap().spec.location = "hoem".into();
    let refused = of(&other);
    assert!(refused.contains("Ready=False Refused") && refused.contains("Stalled=True Refused"));
    assert!(!of(&|_| ()).contains("Stalled"), "it is there only where it says so");
}

#[test]
fn condition_steered_says_whether_kilo_is_annotated_and_what_prevents_it() {
    let mut w = World::new();
    w.view.pools.get_mut("home").unwrap().spec.steering = Steering::Kilo;
    let reason = |w: &World| condition(&w.status_at(NOW), "Steered").reason.clone();
    assert_eq!(reason(&w), "Pending");
    let node = w.view.nodes.get_mut("home-1").unwrap();
    annotate(node, names::KILO_LEADER, "leaderd");
    annotate(node, names::EPOCH, "1");
    assert_eq!(reason(&w), "Annotated");
    annotate(w.view.nodes.get_mut("home-2").unwrap(), names::KILO_LEADER, "");
    let status = w.status_at(NOW);
    let steered = condition(&status, "Steered");
    assert_eq!((steered.status.as_str(), steered.reason.as_str()), ("False", "AnnotatedByHand"));
    assert!(steered.message.contains("home-2"), "{}", steered.message);
    w.view.nodes.get_mut("home-2").unwrap().annotations.remove(names::KILO_LEADER);
    annotate(w.view.nodes.get_mut("home-1").unwrap(), names::EPOCH, "9");
    let status = w.status_at(NOW);
    let steered = condition(&status, "Steered");
    assert_eq!(steered.reason, "NewerEpoch");
    let cure = "set annotation leaderd.io/epoch of home-1 to 0";
    assert!(steered.message.contains(cure), "{}", steered.message);
}

#[test]
fn a_location_that_is_only_observed_is_not_steered() {
    let mut w = World::new();
    let steered = |w: &World| {
        let status = w.status_at(NOW);
        let c = condition(&status, "Steered");
        (c.status.clone(), c.reason.clone())
    };
    let not = ("False".to_owned(), "Observing".to_owned());
    w.view.pools.get_mut("home").unwrap().spec.steering = Steering::Observe;
    assert_eq!(steered(&w), not);
    // Kilo would change traffic with the other as well.
    w.view.pools.get_mut("home").unwrap().spec.steering = Steering::Kilo;
    assert_eq!(steered(&w).1, "Pending");
    w.view.pools.insert("cloud".into(), pool("cloud", "cloud", &[]));
    w.view.pools.get_mut("cloud").unwrap().spec.steering = Steering::Observe;
    assert_eq!(steered(&w), not);
}

/// What home-0 knows of the relays between home and another location.
fn pair(with: &str) -> RelayPairStatus {
    RelayPairStatus {
        location: with.parse().unwrap(),
        near: vec!["home-1".parse().unwrap()],
        far: vec!["cloud-1".parse().unwrap()],
        detour: true,
        long: false,
        cut_off: false,
        since: NOW,
        why: Some("the tunnel home-1–cloud-0 is bad, as home-1 sees it".into()),
        tunnels: vec![],
    }
}

#[test]
fn a_location_that_is_cut_off_or_reached_by_a_long_detour_says_so() {
    let mut w = World::new();
    w.status.relay_pairs = vec![pair("cloud")];
    let status = w.write(NOW);
    assert_eq!(condition(&status, "CutOff").status, "False");
    assert_eq!(condition(&status, "LongDetour").status, "False", "it is a young detour");

    w.status.relay_pairs[0].long = true;
    w.view.pools.get_mut("home").unwrap().generation = 5;
    let status = w.write(later(60));
    let long = condition(&status, "LongDetour");
    assert_eq!((long.status.as_str(), long.reason.as_str()), ("True", "LeadersTunnelFails"));
    assert_eq!(
        long.message,
        "for more than 15 minutes home-1 and cloud-1 carry the traffic with cloud: \
         the tunnel home-1–cloud-0 is bad, as home-1 sees it"
    );
    assert_eq!(
        (long.last_transition_time.as_str(), long.observed_generation),
        ("2026-09-21T14:14:20Z", 5)
    );
    assert_eq!(w.status_at(later(600)), status, "it stays as it is while the detour lasts");

    w.status.relay_pairs[0].cut_off = true;
    let status = w.status_at(later(60));
    let cut_off = condition(&status, "CutOff");
    assert_eq!((cut_off.status.as_str(), cut_off.reason.as_str()), ("True", "NoGoodTunnel"));
    assert_eq!(cut_off.message, "no tunnel between home and cloud is known to be good");
    assert_eq!(cut_off.observed_generation, 5);
}

#[test]
fn a_daemon_that_knows_no_tunnels_leaves_conditions_of_relays_as_they_are() {
    let mut w = World::new();
    w.status.relay_pairs = vec![RelayPairStatus { cut_off: true, ..pair("cloud") }];
    w.write(NOW);
    let cut_off = |w: &World| condition(&w.status_at(NOW), "CutOff").status.clone();
    // A plain member.
    w.status.node = "home-2".parse().unwrap();
    w.status.relay_pairs = vec![];
    assert_eq!(cut_off(&w), "True");
    // A candidate elsewhere knows its own pair, which is all that there is in a mesh of two.
    w.status.location = "cloud".parse().unwrap();
    w.status.node = "cloud-0".parse().unwrap();
    assert_eq!(cut_off(&w), "False");
    w.status.relay_pairs = vec![RelayPairStatus { cut_off: true, ..pair("home") }];
    let status = w.status_at(NOW);
    let message = &condition(&status, "CutOff").message;
    assert_eq!(message, "no tunnel between home and cloud is known to be good");
    // With a third location it does not know all.
    let edge = crate::mesh::Location::new("edge".parse().unwrap(), crate::mesh::Overlay::External);
    w.mesh.edit().locations.insert(edge.name.clone(), edge);
    w.status.relay_pairs = vec![pair("home"), RelayPairStatus { cut_off: true, ..pair("edge") }];
    assert_eq!(cut_off(&w), "True", "kept");
}
