//! A mesh file that changes the voters, while one of them is down or the raft leader is one that drops out.

use tests::sim::rollout::Change;

use super::*;

/// A mesh file in which a third candidate takes the vote of the cloud's member comes to all nodes while this one is down (or none).
fn third_candidate(down: Option<&str>) -> Play {
    let sites = [Site::new("cloud", 2, 1), Site::new("home", 3, 0)];
    let mut play = Play::of(&sites, Policy::default(), WorldConfig::default());
    if let Some(down) = down {
        play.fault(down, Fault::NodeCrash, true);
    } else {
        play.fault("cloud-1", Fault::DaemonKill, true);
        play.run(secs(3));
        play.fault("cloud-1", Fault::DaemonKill, false);
    }
    play.run(secs(10));
    assert_eq!(raft_leader(&play), "cloud-2", "the voter that drops out leads Raft");
    let change = Change::AddCandidate("cloud".parse().expect("a name"));
    let mesh = play.world.change_mesh(&change, secs(0)).expect("a change");
    for node in mesh.nodes.keys() {
        play.world.deliver(node, &mesh);
    }
    play
}

/// The cloud's nodes that run have a quorum, in words and in deed, and the new candidate takes over when the leader breaks.
fn goes_on(mut play: Play, new: &str, voters: &[&str]) {
    for voter in voters {
        let status = play.world.core(&name(voter)).expect("it runs").status(play.world.now());
        let cloud = status.locations.iter().find(|l| l.name.as_str() == "cloud").expect("known");
        assert_eq!(
            (cloud.quorum, cloud.fallback),
            (Some(true), false),
            "{voter}: {}",
            play.story()
        );
        let raft_leader = cloud.raft_leader.as_ref().map(NodeName::as_str);
        assert!(
            raft_leader.is_some_and(|l| voters.contains(&l)),
            "{raft_leader:?}: {}",
            play.story()
        );
    }
    assert!(!play.story().contains("no quorum"), "{}", play.story());
    let leader = play.leader_of("cloud");
    play.fault(&leader, Fault::ForwardingOff, true);
    play.run(secs(10));
    assert_eq!(play.leader_of("cloud"), new, "{}", play.story());
    play.fine();
}

#[test]
fn the_voters_change_while_one_of_them_is_down() {
    let mut play = third_candidate(Some("cloud-0"));
    play.run(secs(40));
    goes_on(play, "cloud-3", &["cloud-1", "cloud-3"]);
}

#[test]
fn a_raft_leader_that_loses_its_vote_hands_over() {
    let mut play = third_candidate(None);
    assert_eq!(play.leader_of("cloud"), "cloud-0");
    play.run(secs(40));
    play.fault("cloud-1", Fault::ForwardingOff, true);
    play.run(secs(5));
    goes_on(play, "cloud-3", &["cloud-0", "cloud-1", "cloud-3"]);
}
