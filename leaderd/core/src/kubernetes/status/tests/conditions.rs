use super::*;
use crate::fault::Fault;
use crate::ids::Epoch;
use crate::kubernetes::pool_status::Condition;
use crate::kubernetes::{Steering, names};

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
        "Ready=True Leading\nSteered=True Native\nQuorum=True Reached\nDegraded=False Healthy\n"
    );
    w.fail_over();
    let second = w.write(later(60));
    assert_eq!(
        brief(&second),
        "Ready=True Leading\nSteered=True Native\nQuorum=True Reached\nDegraded=True StandbyDegraded\n"
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
