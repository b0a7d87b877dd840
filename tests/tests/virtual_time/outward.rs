//! New flows *out of* a location: what other locations' probes do not see.

use super::*;

const SITES: [fn() -> Vec<Site>; 3] = [
    || vec![Site::new("cloud", 2, 1), Site::new("home", 2, 1)],
    // No plain members: the candidates try each other.
    || vec![Site::new("cloud", 2, 0), Site::new("home", 2, 1)],
    || vec![Site::new("cloud", 3, 2), Site::new("home", 1, 1), Site::new("edge", 2, 0)],
];

fn played(sites: &[Site], faults: &[(&str, Fault)]) -> Play {
    let mut play = Play::of(sites, Policy::default(), WorldConfig::default());
    assert_eq!(play.leader_of("cloud"), "cloud-0");
    for (node, fault) in faults {
        play.fault(node, fault.clone(), true);
    }
    play
}

#[test]
fn a_leader_that_drops_new_flows_out_is_gone_around_and_then_replaced() {
    for sites in SITES {
        let sites = sites();
        let from = if sites[0].members > 0 { "cloud-2" } else { "cloud-1" };
        let mut play = played(&sites, &[("cloud-0", Fault::OutwardNewFlows)]);
        let took = play.blackout(from, "home-1");
        assert!(took < secs(1), "{from}: {took:?}\n{}", play.story());
        play.run(secs(15));
        assert_eq!(play.leader_of("cloud"), "cloud-1", "{}", play.story());
        assert_eq!(play.causes().len(), 1, "one move: {}", play.story());
        assert_eq!(play.model.unkept.through, [] as [String; 0]);
        play.fine();
    }
}

#[test]
fn where_every_candidate_drops_new_flows_out_nothing_moves() {
    let both = ["cloud-0", "cloud-1"].map(|n| (n, Fault::OutwardNewFlows));
    let mut play = played(&SITES[0](), &both);
    play.run(secs(30));
    assert_eq!(play.causes(), []);
    assert!(play.delivers("cloud-0", "home-2"), "its own pass: {}", play.story());
    play.fine();
}

#[test]
fn a_standby_that_drops_new_flows_out_moves_nothing() {
    let mut play = played(&SITES[0](), &[("cloud-1", Fault::OutwardNewFlows)]);
    play.run(secs(30));
    assert_eq!(play.causes(), []);
    assert!(play.delivers("cloud-2", "home-2"));
    play.fine();
}

#[test]
fn a_mended_firewall_is_believed_and_nothing_moves_back() {
    let mut play = played(&SITES[0](), &[("cloud-0", Fault::OutwardNewFlows)]);
    play.run(secs(15));
    play.fault("cloud-0", Fault::OutwardNewFlows, false);
    play.run(secs(15));
    assert_eq!((play.leader_of("cloud").as_str(), play.causes().len()), ("cloud-1", 1));
    // cloud-0 is a standby again that can take over.
    play.fault("cloud-1", Fault::OutwardNewFlows, true);
    let took = play.blackout("cloud-2", "home-2");
    assert!(took < secs(1), "{took:?}\n{}", play.story());
    play.run(secs(30));
    assert!(play.delivers("cloud-2", "home-2"));
    play.fine();
}
