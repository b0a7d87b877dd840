//! Whom a node believes about who leads, and what it refuses whoever says it.

use super::*;
use crate::io::StoredGroup;

fn cloud() -> LocationName {
    "cloud".parse().unwrap()
}

fn decision(epoch: u64, leaders: &[u8]) -> Decision {
    Decision {
        location: cloud(),
        epoch: Epoch(epoch),
        leaders: leaders.iter().map(|s| Slot(*s)).collect(),
        cause: Fault::NewFlow.into(),
        at: WallTime(0),
    }
}

/// Every way in which a node says who leads its location.
fn says(from: &str, decision: &Decision) -> [Frame; 2] {
    let Frame::Hello(mut gossip) = hello(from, None) else { unreachable!() };
    gossip.decision = Some(decision.clone());
    [
        Frame::Announce { decision: decision.clone(), proof: Default::default(), event: None },
        Frame::Hello(gossip),
    ]
}

fn known(bench: &Bench) -> Option<(u64, Vec<u8>)> {
    let known = bench.node.decision(&cloud())?;
    Some((known.epoch.0, known.leaders.iter().map(|s| s.0).collect()))
}

#[test]
fn an_epoch_too_far_ahead_is_refused_in_every_kind_of_frame() {
    let mut bench = Bench::of("home-0", mesh(3, 1, 0));
    bench.frame("cloud-0", announce(5, 0));
    for epoch in [u64::MAX, u64::MAX - 1, 5 + (1 << 32)] {
        for frame in says("cloud-1", &decision(epoch, &[1])) {
            bench.frame("cloud-1", frame);
        }
    }
    assert_eq!(known(&bench), Some((5, vec![0])));
    let refused = bench.counted("ignored.decision-with-an-epoch-too-far-ahead");
    assert_eq!(refused + bench.counted("ignored.nonsense"), 6);
    bench.frame("cloud-0", announce(6, 2));
    assert_eq!(known(&bench), Some((6, vec![2])), "the location counts on");
}

#[test]
fn an_epoch_too_far_ahead_is_not_taken_from_the_store() {
    let stored = |epoch| {
        let bytes = postcard::to_allocvec(&decision(epoch, &[1])).unwrap();
        let restored = StoredGroup { decision: Some(bytes), ..StoredGroup::default() };
        let bench = Bench::with_disk("home-0", mesh(3, 1, 0), [(cloud(), restored)].into());
        known(&bench)
    };
    assert_eq!(stored(7), Some((7, vec![1])));
    assert_eq!(stored(u64::MAX), None);
}

#[test]
fn leaders_that_are_no_candidates_are_refused() {
    let mut bench = Bench::of("home-0", mesh(3, 1, 0));
    bench.frame("cloud-0", announce(5, 0));
    for leaders in [&[][..], &[14], &[0, 14], &[1, 1], &[200]] {
        for frame in says("cloud-1", &decision(6, leaders)) {
            bench.frame("cloud-1", frame);
        }
    }
    assert_eq!(known(&bench), Some((5, vec![0])));
    let refused = bench.counted("ignored.decision-whose-leaders-are-no-candidates");
    assert_eq!(refused + bench.counted("ignored.nonsense"), 10);
}

#[test]
fn a_plain_members_decision_counts_in_its_own_location_only() {
    for (me, epoch) in [("home-0", 5), ("cloud-2", 6)] {
        let mut bench = Bench::of(me, mesh(3, 1, 0));
        bench.frame("cloud-0", announce(5, 0));
        let [told, gossip] = says("member-0", &decision(6, &[1]));
        bench.frame("member-0", told);
        assert_eq!(known(&bench), Some((5, vec![0])), "a member announces to {me}");
        bench.frame("member-0", gossip);
        assert_eq!(known(&bench).unwrap().0, epoch, "a member's hello to {me}");
    }
}

#[test]
fn a_raft_leader_that_a_candidate_names_is_believed_whatever_this_nodes_file_says_of_its_vote() {
    let mut bench = Bench::of("home-0", mesh(3, 1, 0));
    bench.frame("member-0", hello("member-0", Some("member-0")));
    bench.frame("member-0", announce(5, 0));
    assert_eq!(known(&bench), None, "not because it names itself");
    bench.frame("cloud-0", hello("cloud-0", Some("member-0")));
    bench.frame("member-0", announce(5, 0));
    assert_eq!(known(&bench), Some((5, vec![0])));
}

#[test]
fn a_plain_member_takes_decisions_of_other_locations_from_candidates_only_and_checks_them() {
    let mut bench = Bench::of("member-0", mesh(3, 2, 0));
    let shown = |bench: &Bench| {
        let status = bench.node.status(bench.now);
        status.locations.iter().find(|l| l.name.as_str() == "home").unwrap().epoch.0
    };
    for (from, epoch, slot, expected) in [
        ("member-1", 3, 0, 0),
        ("cloud-0", u64::MAX, 0, 0),
        ("cloud-0", 3, 9, 0),
        ("cloud-0", 3, 0, 3),
    ] {
        let Frame::Hello(mut hello) = hello(from, None) else { unreachable!() };
        hello.remote =
            vec![Decision { location: "home".parse().unwrap(), ..decision(epoch, &[slot]) }];
        bench.frame(from, Frame::Hello(hello));
        assert_eq!(shown(&bench), expected, "{from}: epoch {epoch}, slot {slot}");
    }
}

#[test]
fn a_plain_member_cannot_speak_in_an_observers_name() {
    let mut bench = Bench::of("cloud-0", mesh(3, 1, 0));
    bench.later(Duration::from_secs(5));
    let heard = |bench: &Bench| {
        let status = bench.node.status(bench.now);
        status.locations[0].candidates.iter().map(|c| c.observers.1).max()
    };
    let forged = || Frame::Relayed {
        from: name("home-1"),
        frame: Box::new(report(&[Verdict::Forwarding, Verdict::Forwarding])),
    };
    bench.frame("member-0", forged());
    assert_eq!(heard(&bench), Some(0));
    assert_eq!(bench.counted("ignored.relayed-from-elsewhere"), 1);
    bench.frame("cloud-1", forged());
    assert_eq!(heard(&bench), Some(1));
}

#[test]
fn a_plain_member_takes_no_decision_of_another_location() {
    let mut bench = Bench::of("member-0", mesh(3, 1, 0));
    let home = Decision { location: "home".parse().unwrap(), ..decision(7, &[1]) };
    for frame in says("home-0", &home) {
        bench.frame("home-0", frame);
    }
    assert!(bench.node.decision(&home.location).is_none());
    assert_eq!(bench.counted("ignored.decision-for-candidates"), 2);
}
