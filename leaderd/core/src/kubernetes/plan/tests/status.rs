use super::*;
use crate::fault::Fault;
use crate::kubernetes::fixture::world::{NOW, World, later};
use crate::verdict::Verdict;

#[test]
fn the_raft_leader_writes_and_others_only_if_the_status_lags() {
    let mut w = World::new();
    w.write(NOW);
    w.candidate("home-1").verdict = Verdict::Degraded { cause: Fault::Loss, direction: None };
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
fn condition_relay_forwarding_is_what_the_raft_leader_sees() {
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
    w.candidate("home-1").verdict = Verdict::Degraded { cause: Fault::NewFlow, direction: None };
    w.candidate("home-0").verdict = Verdict::Unknown;
    assert_eq!(relay(&w, "home-0"), ["home-1 False NewFlow", "home-0 Unknown NotObserved"]);
    // A node that is no candidate has no such condition.
    w.view.nodes.get_mut("home-2").unwrap().relay_forwarding =
        Some(("True".into(), "Forwarding".into()));
    assert!(relay(&w, "cloud-2").contains(&"home-2 -".to_owned()));
}

/// Once for each reason, by whoever's turn it is; and taken back.
#[test]
fn a_refused_change_becomes_a_condition_of_its_node() {
    let mut w = World::new();
    annotate(w.view.nodes.get_mut("home-2").unwrap(), names::KILO_FORCE_INTERNAL_IP, "10.0.4.1/24");
    let refusals = |w: &World| {
        let mut all = Vec::new();
        for me in ["home-0", "home-1", "cloud-0", "cloud-1"] {
            let running = Running {
                mesh: &w.mesh,
                status: &w.status,
                events: &w.events,
                connected: w.connected,
            };
            let (_, tasks) = plan(&w.view, SETTINGS, &me.parse().unwrap(), Some(running), NOW);
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
    let all = refusals(&w);
    assert_eq!(all.len(), 4);
    assert!(all.windows(2).all(|w| w[0].0 < w[1].0 && w[0].1 == w[1].1), "by turns: {all:?}");
    let (node, Some(refused), true) = &all[0].1 else { panic!("{all:?}") };
    assert_eq!((node.as_str(), refused.reason), ("home-2", "Held"));
    assert!(refused.message.contains("10.0.4.1"), "{}", refused.message);
    // Told, and once.
    let was = Some((refused.reason.to_owned(), refused.message.clone()));
    w.view.nodes.get_mut("home-2").unwrap().change_refused = was;
    assert_eq!(refusals(&w), []);
    w.view.nodes.get_mut("home-2").unwrap().annotations.remove(names::KILO_FORCE_INTERNAL_IP);
    let all = refusals(&w);
    assert_eq!(all[0].1, ("home-2".to_owned(), None, false));
}

/// A daemon without peers may itself be isolated: it writes nothing about locations that it does not hear.
#[test]
fn a_daemon_without_peers_writes_about_its_own_location_only() {
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
    w.connected = false;
    assert!(!writes(&w, "cloud-0"), "or this daemon is deaf");
    w.status.location = "home".parse().unwrap();
    assert!(writes(&w, "home-1"), "its own quorum is its own to miss");
}
