//! What a voter weighs reaches its group: rows of its location's candidates, and who relays elsewhere.

use super::*;
use crate::relay_pair::{TunnelRow, TunnelState};

fn home() -> LocationName {
    "home".parse().unwrap()
}

/// A voter of the cloud of each kind. `home-0` is a witness.
fn voters() -> [Bench; 3] {
    ["cloud-1", "member-0", "home-0"].map(|me| {
        let (members, witnesses) = if me == "home-0" { (0, 1) } else { (1, 0) };
        let bench = Bench::of(me, mesh(2, members, witnesses));
        assert!(bench.node.groups.contains_key(&"cloud".parse().unwrap()), "{me} votes");
        bench
    })
}

/// The voter hears that this candidate leads home, in the way in which one of its kind does.
fn home_is_led_by(bench: &mut Bench, epoch: u64, slot: u8) {
    let decision = Decision {
        location: home(),
        epoch: Epoch(epoch),
        leaders: vec![Slot(slot)],
        cause: MoveReason::Initial,
        at: WallTime(0),
    };
    let Frame::Hello(mut gossip) = hello("cloud-0", None) else { unreachable!() };
    gossip.remote = vec![decision.clone()];
    bench.frame("cloud-0", Frame::Hello(gossip));
    bench.frame("home-1", Frame::Announce { decision, proof: Default::default(), event: None });
}

/// An observer's word about the cloud's two candidates.
fn says(bench: &mut Bench, observer: &str, verdicts: [Verdict; 2]) {
    let Frame::Report(of_home_1) = report(&verdicts) else { unreachable!() };
    let frame = Frame::Report(Report { observer: name(observer), ..of_home_1 });
    bench.frame("cloud-0", Frame::Relayed { from: name(observer), frame: Box::new(frame) });
}

/// The slots of the cloud's candidates that most locations do not see forwarding.
fn not_seen(bench: &Bench) -> Vec<u8> {
    let cloud = "cloud".parse().unwrap();
    let all = bench.node.groups[&cloud].candidates_status(bench.now);
    let unseen = |c: &crate::status::CandidateStatus| {
        c.blocked_by.iter().any(|why| why == "not seen forwarding by most locations")
    };
    all.iter().filter(|c| unseen(c)).map(|c| c.slot.0).collect()
}

#[test]
fn a_candidates_own_word_about_its_tunnels_reaches_every_kind_of_voter() {
    for mut bench in voters() {
        home_is_led_by(&mut bench, 3, 1);
        says(&mut bench, "home-1", [Verdict::Forwarding, Verdict::Forwarding]);
        assert_eq!(not_seen(&bench), [0; 0], "{:?}", bench.node);
        let row = TunnelRow::UNKNOWN.with(Slot(1), TunnelState::Bad);
        bench.frame("cloud-0", Frame::Tunnels { location: home(), row, heard: Vec::new() });
        assert_eq!(not_seen(&bench), [0], "{:?}", bench.node);
        assert_eq!(bench.counted("ignored.tunnels-of-no-candidate"), 0);
        let row = TunnelRow::UNKNOWN;
        bench.frame("cloud-0", Frame::Tunnels { location: home(), row, heard: Vec::new() });
        assert_eq!(not_seen(&bench), [0; 0], "{:?}", bench.node);
    }
}

#[test]
fn every_kind_of_voter_knows_who_relays_at_another_location() {
    let fault = Verdict::Degraded { cause: Fault::TunnelDown, direction: None };
    for mut bench in voters() {
        home_is_led_by(&mut bench, 3, 2);
        says(&mut bench, "home-1", [Verdict::Forwarding, Verdict::Forwarding]);
        says(&mut bench, "home-2", [fault.clone(), Verdict::Forwarding]);
        assert_eq!(not_seen(&bench), [0], "{:?}", bench.node);
        home_is_led_by(&mut bench, 4, 1);
        assert_eq!(not_seen(&bench), [0; 0], "{:?}", bench.node);
    }
}

#[test]
fn a_row_of_no_candidate_or_about_the_own_location_reaches_no_group() {
    let [mut bench, ..] = voters();
    says(&mut bench, "home-1", [Verdict::Forwarding, Verdict::Forwarding]);
    let row = (0..3).fold(TunnelRow::UNKNOWN, |row, slot| row.with(Slot(slot), TunnelState::Bad));
    for (from, location) in [("member-0", "home"), ("cloud-0", "cloud"), ("cloud-0", "nowhere")] {
        let location = location.parse().unwrap();
        bench.frame(from, Frame::Tunnels { location, row, heard: Vec::new() });
        assert_eq!(not_seen(&bench), [0; 0], "{from}");
    }
    assert_eq!(bench.counted("ignored.tunnels-of-no-candidate"), 3);
}
