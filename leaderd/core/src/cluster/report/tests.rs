use proptest::prelude::*;

use super::*;
use crate::admin::AdminRequest;
use crate::cluster::fixture::*;
use crate::cluster::{Action, Steering, Task, names, render, tasks};
use crate::ids::{Epoch, NodeName};
use crate::mesh::Mesh;
use crate::state::{Event, EventTimes};
use crate::status::Status;
use crate::verdict::Cause;

const NOW: WallTime = WallTime(1_790_000_000_000_000);

fn later(secs: u64) -> WallTime {
    WallTime(NOW.0 + secs * 1_000_000)
}

/// A cluster, and what its daemons know.
#[derive(Clone)]
struct World {
    view: ClusterView,
    mesh: Mesh,
    status: Status,
    events: Vec<Event>,
    hears: bool,
}

impl World {
    /// home: home-1 leads, home-0 is the raft leader.
    fn new() -> Self {
        let mut view = two_locations();
        settle(&mut view);
        let mesh = render(&view, SETTINGS).mesh.unwrap();
        let status = mesh_status(&mesh, "home-0");
        let mut w = Self { view, mesh, status, events: Vec::new(), hears: true };
        w.happens(EventKind::Move, Cause::Initial, &[], &["home-1"], 1);
        w
    }

    fn home(&mut self) -> &mut LocationStatus {
        self.status.locations.iter_mut().find(|l| l.name.as_str() == "home").unwrap()
    }

    fn candidate(&mut self, name: &str) -> &mut CandidateStatus {
        self.home().candidates.iter_mut().find(|c| c.name.as_str() == name).unwrap()
    }

    fn happens(
        &mut self,
        kind: EventKind,
        cause: Cause,
        before: &[&str],
        after: &[&str],
        epoch: u64,
    ) {
        let list = |n: &[&str]| n.iter().map(|n| n.parse().unwrap()).collect::<Vec<NodeName>>();
        let seq = self.events.len() as u64 + 1;
        self.events.push(Event {
            seq,
            location: "home".parse().unwrap(),
            kind,
            epoch: Epoch(epoch),
            cause: Some(cause),
            direction: None,
            leaders_before: list(before),
            leaders_after: list(after),
            summary: format!("what happened, number {seq}"),
            times: EventTimes { committed: Some(later(epoch)), ..EventTimes::default() },
            blackout: None,
            blocked_by: BTreeMap::new(),
            evidence: BTreeMap::new(),
            author: None,
        });
    }

    /// home-1 drops new flows, home-0 leads now, and home-2, a member, is the raft leader.
    fn fail_over(&mut self) {
        self.happens(EventKind::Failover, Cause::NewFlow, &["home-1"], &["home-0"], 2);
        let degraded = Verdict::Degraded { cause: Cause::NewFlow, direction: None };
        self.candidate("home-1").verdict = degraded;
        self.candidate("home-1").leading = false;
        self.candidate("home-1").blocked_by = vec!["not seen forwarding by most observers".into()];
        self.candidate("home-0").leading = true;
        let home = self.home();
        home.leaders = vec!["home-0".parse().unwrap()];
        (home.epoch, home.cause, home.since) = (Epoch(2), Some(Cause::NewFlow), Some(later(2)));
        home.raft_leader = Some("home-1".parse().unwrap());
    }

    fn status_at(&self, now: WallTime) -> PoolStatus {
        let rendered = render(&self.view, SETTINGS);
        let running = Running {
            mesh: &self.mesh,
            status: &self.status,
            events: &self.events,
            hears: self.hears,
        };
        pool_statuses(&self.view, &rendered, Some(running), now).remove("home").unwrap()
    }

    fn write(&mut self, now: WallTime) -> PoolStatus {
        let status = self.status_at(now);
        self.view.pools.get_mut("home").unwrap().status =
            Some(serde_json::to_value(&status).unwrap());
        status
    }

    fn tasks(&self, me: &str, now: WallTime) -> Vec<Task> {
        let running = Running {
            mesh: &self.mesh,
            status: &self.status,
            events: &self.events,
            hears: self.hears,
        };
        tasks(&self.view, SETTINGS, &me.parse().unwrap(), Some(running), now).1
    }

    /// The status that a daemon would write, its wait, and the Events with it.
    fn pool_task(&self, me: &str) -> Option<(Duration, Vec<ClusterEvent>)> {
        self.tasks(me, NOW).into_iter().find_map(|t| match t.action {
            Action::PoolStatus { events, .. } => Some((t.wait, events)),
            _ => None,
        })
    }

    fn commands(&self, me: &str) -> Vec<(Duration, AdminRequest)> {
        let of = |t: Task| match t.action {
            Action::Command(c) => Some((t.wait, c)),
            _ => None,
        };
        self.tasks(me, NOW).into_iter().filter_map(of).collect()
    }
}

fn condition<'s>(status: &'s PoolStatus, kind: &str) -> &'s Condition {
    status.conditions.iter().find(|c| c.kind == kind).unwrap()
}

fn brief(status: &PoolStatus) -> String {
    status.conditions.iter().map(|c| format!("{}={} {}\n", c.kind, c.status, c.reason)).collect()
}

#[test]
fn a_status_says_who_leads_who_could_and_what_happened() {
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
fn a_status_that_cannot_be_read_is_written_anew() {
    let mut w = World::new();
    w.view.pools.get_mut("home").unwrap().status = Some(serde_json::json!({ "epoch": "many" }));
    assert_eq!(w.status_at(NOW).epoch, 1);
    assert!(w.pool_task("home-0").is_some());
}

#[test]
fn times_of_conditions_move_with_their_status_only() {
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
    let degraded = || Verdict::Degraded { cause: Cause::Loss, direction: None };
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
fn standbys_are_those_that_could_take_over_now() {
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
fn of_kilo_it_says_whether_it_was_told_and_who_stands_in_the_way() {
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
fn what_is_only_observed_is_not_called_steered() {
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

#[test]
fn what_is_not_known_now_is_kept() {
    let mut w = World::new();
    w.fail_over();
    let before = w.write(NOW);
    let rendered = render(&w.view, SETTINGS);
    assert_eq!(pool_statuses(&w.view, &rendered, None, later(9))["home"], before);
    // Without a quorum a node has a ranking of its own, which is nobody's decision.
    w.home().fallback = true;
    w.home().leaders = vec!["home-1".parse().unwrap()];
    assert_eq!(w.status_at(NOW).leader.as_deref(), Some("home-0"));
    // Of old events a daemon may have forgotten.
    w.events.clear();
    let after = w.status_at(NOW);
    assert_eq!((after.last_failover, after.last_event), (before.last_failover, before.last_event));
}

#[test]
fn news_is_told_once_and_old_news_never() {
    let mut w = World::new();
    // A pool that is new is told nothing of the past.
    assert_eq!(w.pool_task("home-0").unwrap().1, []);
    w.write(NOW);
    assert_eq!(w.pool_task("home-0"), None);
    w.fail_over();
    let (wait, events) = w.pool_task("home-1").expect("the raft leader writes");
    assert_eq!(wait, Duration::ZERO);
    assert_eq!(
        (events.len(), events[0].reason.as_str(), events[0].warning, events[0].node.as_deref()),
        (1, "Failover", true, Some("home-0"))
    );
    assert_eq!(
        events[0].message,
        "home #2: what happened, number 2 (home-1 → home-0, epoch 2, cause new-flow)"
    );
    w.write(NOW);
    assert_eq!(w.pool_task("home-1"), None);
    // The blackout is measured later.
    w.events.last_mut().unwrap().blackout = Some(Duration::from_millis(512));
    let events = w.pool_task("home-1").unwrap().1;
    assert_eq!((events.len(), events[0].reason.as_str()), (1, "FailoverVerified"));
    assert!(events[0].message.ends_with("blackout 512 ms"), "{}", events[0].message);
    w.write(NOW);
    assert_eq!(w.pool_task("home-1"), None);
    let kinds = [
        (EventKind::Move, Cause::Promoted, "Promotion", false),
        (EventKind::Move, Cause::Drained, "Drain", false),
        (EventKind::FailStatic, Cause::Loss, "FailStatic", true),
        (EventKind::Operator, Cause::Drained, "Operator", false),
    ];
    for (kind, cause, _, _) in kinds {
        w.happens(kind, cause, &["home-0"], &["home-1"], 2);
    }
    let told: Vec<_> =
        w.pool_task("home-1").unwrap().1.into_iter().map(|e| (e.reason, e.warning)).collect();
    assert_eq!(told, kinds.map(|k| (k.2.to_owned(), k.3)));
}

#[test]
fn a_flood_of_news_is_cut_to_the_newest() {
    let mut w = World::new();
    w.write(NOW);
    for _ in 0..40 {
        w.happens(EventKind::Notice, Cause::Loss, &[], &[], 1);
    }
    let events = w.pool_task("home-0").unwrap().1;
    assert_eq!(events.len(), 10);
    assert!(events[9].message.contains("#41"));
}

#[test]
fn the_raft_leader_writes_and_others_only_where_the_status_lags() {
    let mut w = World::new();
    w.write(NOW);
    w.candidate("home-1").verdict = Verdict::Degraded { cause: Cause::Loss, direction: None };
    assert_eq!(w.pool_task("home-0").map(|t| t.0), Some(Duration::ZERO));
    for other in ["home-1", "home-2", "cloud-0", "cloud-1"] {
        assert_eq!(w.pool_task(other), None, "{other}");
    }
    // A later decision, a later spec, and a first status are for everybody; members keep out of it.
    w.fail_over();
    let waits: Vec<_> = ["home-1", "home-0", "cloud-0", "cloud-1"]
        .iter()
        .filter_map(|n| w.pool_task(n))
        .map(|t| t.0)
        .collect();
    assert_eq!(waits.len(), 4);
    assert_eq!(waits[0], Duration::ZERO);
    assert!(
        waits[1..].iter().all(|w| *w >= Duration::from_secs(1) && *w <= Duration::from_secs(4)),
        "{waits:?}"
    );
    assert_eq!(w.pool_task("cloud-2"), None);
    w.write(NOW);
    w.view.pools.get_mut("home").unwrap().generation = 2;
    assert!(w.pool_task("cloud-0").is_some());
    // A pool that is no location's is everybody's.
    w.view.pools.get_mut("home").unwrap().spec.location = "hoem".into();
    assert!(w.pool_task("cloud-2").is_some() && w.pool_task("home-0").is_some());
}

#[test]
fn nodes_show_whether_they_relay_as_the_raft_leader_sees_it() {
    let mut w = World::new();
    let relay = |w: &World, me: &str| -> Vec<String> {
        let all = w.tasks(me, NOW).into_iter().filter_map(|t| match t.action {
            Action::RelayForwarding { node, condition, .. } => Some(format!(
                "{node} {}",
                condition.map_or("-".into(), |c| format!("{} {}", c.status, c.reason))
            )),
            _ => None,
        });
        all.collect()
    };
    assert_eq!(relay(&w, "home-0"), ["home-1 True Forwarding", "home-0 True Forwarding"]);
    assert_eq!(relay(&w, "home-2"), [""; 0]);
    for n in ["home-0", "home-1"] {
        w.view.nodes.get_mut(n).unwrap().relay_forwarding =
            Some(("True".into(), "Forwarding".into()));
    }
    assert_eq!(relay(&w, "home-0"), [""; 0]);
    w.candidate("home-1").verdict = Verdict::Suspected;
    assert_eq!(relay(&w, "home-0"), [""; 0]);
    w.candidate("home-1").verdict = Verdict::Degraded { cause: Cause::NewFlow, direction: None };
    w.candidate("home-0").verdict = Verdict::Unknown;
    assert_eq!(relay(&w, "home-0"), ["home-1 False NewFlow", "home-0 Unknown NotObserved"]);
    // Who is no candidate has no such condition.
    w.view.nodes.get_mut("home-2").unwrap().relay_forwarding =
        Some(("True".into(), "Forwarding".into()));
    assert!(relay(&w, "cloud-2").contains(&"home-2 -".to_owned()));
}

#[test]
fn a_pool_freezes_and_drains_and_undoes_only_what_it_did() {
    let home = || "home".parse().unwrap();
    let mut w = World::new();
    w.write(NOW);
    // What an operator did is left alone.
    w.home().frozen = Some(None);
    w.candidate("home-1").drained = true;
    w.write(NOW);
    assert_eq!(w.commands("home-0"), []);
    w.home().frozen = None;
    w.candidate("home-1").drained = false;
    // What is asked for is written down before it is done.
    let spec = |w: &mut World, freeze: bool, drained: &[&str]| {
        let pool = w.view.pools.get_mut("home").unwrap();
        pool.generation += 1;
        pool.spec.freeze = freeze;
        pool.spec.drained = drained.iter().map(|d| (*d).to_owned()).collect();
    };
    spec(&mut w, true, &["home-1"]);
    assert_eq!(w.commands("home-0"), []);
    w.write(NOW);
    let freeze = AdminRequest::Freeze { location: home(), duration: None };
    let drain = AdminRequest::Drain { node: "home-1".parse().unwrap() };
    let zero = Duration::ZERO;
    assert_eq!(w.commands("home-0"), [(zero, freeze.clone()), (zero, drain.clone())]);
    assert!(w.commands("home-1").iter().all(|(wait, _)| *wait >= Duration::from_secs(1)));
    assert_eq!((w.commands("home-2"), w.commands("cloud-0")), (vec![], vec![]));
    w.home().frozen = Some(None);
    w.candidate("home-1").drained = true;
    w.write(NOW);
    assert_eq!(w.commands("home-0"), []);
    // A freeze with an end is not what was asked for.
    w.home().frozen = Some(Some(later(60)));
    assert_eq!(w.commands("home-0"), [(zero, freeze)]);
    w.home().frozen = Some(None);
    // No longer asked for: undone, and remembered until it is.
    spec(&mut w, false, &[]);
    w.write(NOW);
    let undo = [
        (zero, AdminRequest::Unfreeze { location: home() }),
        (zero, AdminRequest::Undrain { node: "home-1".parse().unwrap() }),
    ];
    assert_eq!(w.commands("home-0"), undo);
    w.write(later(1));
    assert_eq!(w.commands("home-0"), undo);
    // A daemon that cannot know does not forget it.
    let voter = w.clone();
    w.home().quorum = None;
    w.home().frozen = None;
    w.candidate("home-1").drained = false;
    w.write(later(2));
    w.status = voter.status.clone();
    assert_eq!(w.commands("home-0"), undo);
    w.home().frozen = None;
    w.candidate("home-1").drained = false;
    assert_eq!(w.write(later(3)).asked, Asked::default());
    assert_eq!(w.commands("home-0"), []);
    // One that is no candidate for a while, and comes back as it was.
    spec(&mut w, false, &["home-1"]);
    w.write(later(4));
    w.candidate("home-1").drained = true;
    w.write(later(5));
    let with = w.status.clone();
    w.home().candidates.retain(|c| c.name.as_str() != "home-1");
    spec(&mut w, false, &[]);
    w.write(later(6));
    assert_eq!(w.commands("home-0"), []);
    w.status = with;
    w.write(later(7));
    assert_eq!(w.commands("home-0"), undo[1..]);
    w.candidate("home-1").drained = false;
    assert_eq!(w.write(later(8)).asked, Asked::default());
}

#[test]
fn reasons_that_count_seconds_are_told_without() {
    let mut w = World::new();
    w.candidate("home-0").blocked_by =
        vec!["its daemon is silent for 7 s".into(), "drained".into()];
    assert_eq!(w.status_at(NOW).candidates[1].blocked_by, ["its daemon is silent", "drained"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// What only jitters is not written again and again.
    #[test]
    fn a_status_does_not_change_by_itself(
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
    fn what_moved_far_is_shown(from in 0.0..1.0f32, to in 0.0..1.0f32, rtts in (1.0..500.0f64, 1.0..500.0f64)) {
        let shown = i32::from(loss(to, Some(loss(from, None))));
        prop_assert!((shown as f32 - to * 100.0).abs() < 5.01);
        let shown = f64::from(super::rtt(rtts.1, Some(super::rtt(rtts.0, None))));
        prop_assert!((shown - rtts.1).abs() <= (shown / 4.0).max(2.0));
    }
}

#[test]
fn times_are_rfc_3339_whatever_they_are() {
    let shown = [WallTime(0), NOW, WallTime(u64::MAX)].map(rfc3339);
    assert_eq!(shown, ["1970-01-01T00:00:00Z", "2026-09-21T14:13:20Z", "9999-12-31T23:59:59Z"]);
    let mut w = World::new();
    w.fail_over();
    assert_eq!(
        w.status_at(NOW).last_failover.unwrap().at.as_deref(),
        Some("2026-09-21T14:13:22.000Z")
    );
}

#[test]
fn who_hears_late_takes_nothing_back_and_the_raft_leader_may() {
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

/// Once for each reason, by whoever's turn it is; and taken back.
#[test]
fn what_is_not_taken_of_a_node_is_told_at_that_node() {
    let mut w = World::new();
    annotate(w.view.nodes.get_mut("home-2").unwrap(), names::KILO_FORCE_INTERNAL_IP, "10.0.4.1/24");
    let told = |w: &World| {
        let mut all = Vec::new();
        for me in ["home-0", "home-1", "cloud-0", "cloud-1"] {
            let running =
                Running { mesh: &w.mesh, status: &w.status, events: &w.events, hears: w.hears };
            let (_, tasks) = tasks(&w.view, SETTINGS, &me.parse().unwrap(), Some(running), NOW);
            let ours = tasks.into_iter().filter_map(|t| match t.action {
                Action::ChangeRefused { node, refused, event, .. } => {
                    Some((t.wait, (node, refused, event)))
                }
                _ => None,
            });
            all.extend(ours);
        }
        all.sort_by_key(|(wait, _)| *wait);
        all
    };
    let all = told(&w);
    assert_eq!(all.len(), 4);
    assert!(all.windows(2).all(|w| w[0].0 < w[1].0 && w[0].1 == w[1].1), "by turns: {all:?}");
    let (node, Some(refused), true) = &all[0].1 else { panic!("{all:?}") };
    assert_eq!((node.as_str(), refused.reason), ("home-2", "Held"));
    assert!(refused.message.contains("10.0.4.1"), "{}", refused.message);
    // Told, and once.
    let was = Some((refused.reason.to_owned(), refused.message.clone()));
    w.view.nodes.get_mut("home-2").unwrap().change_refused = was;
    assert_eq!(told(&w), []);
    w.view.nodes.get_mut("home-2").unwrap().annotations.remove(names::KILO_FORCE_INTERNAL_IP);
    let all = told(&w);
    assert_eq!(all[0].1, ("home-2".to_owned(), None, false));
}

/// One that is connected to nobody may be the deaf one itself: it says nothing of locations that it does not hear.
#[test]
fn who_is_connected_to_nobody_writes_about_its_own_location_only() {
    let mut w = World::new();
    w.write(NOW);
    let home = w.home();
    (home.raft_leader, home.quorum, home.fallback) = (None, Some(false), true);
    let long_after = later(600);
    let writes = |w: &World, me: &str| {
        w.tasks(me, long_after).iter().any(|t| matches!(t.action, Action::PoolStatus { .. }))
    };
    w.status.location = "cloud".parse().unwrap();
    assert!(writes(&w, "cloud-0"), "the location is dead");
    w.hears = false;
    assert!(!writes(&w, "cloud-0"), "or this daemon is deaf");
    w.status.location = "home".parse().unwrap();
    assert!(writes(&w, "home-1"), "its own quorum is its own to miss");
}
