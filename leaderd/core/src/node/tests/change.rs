//! After a change of the mesh file, and without a vote: what a node shows, and whom it believes.

use super::*;
use crate::state::{Event, EventKind};
use crate::status::LocationStatus;

fn cloud() -> LocationName {
    "cloud".parse().unwrap()
}

fn shown(bench: &Bench) -> LocationStatus {
    let status = bench.node.status(bench.now);
    status.locations.into_iter().find(|l| l.name == cloud()).unwrap()
}

fn change(bench: &mut Bench, mesh: Mesh) {
    bench.feed(Input::MeshChanged(Box::new(mesh)));
}

/// Seconds in which the cloud's nodes say that they have a raft leader.
fn pass(bench: &mut Bench, seconds: u64) {
    for _ in 0..seconds * 2 {
        bench.frame("cloud-0", hello("cloud-0", Some("cloud-1")));
        bench.later(Duration::from_millis(500));
    }
}

fn announce_with_event(epoch: u64, slot: u8, seq: u64) -> Frame {
    let Frame::Announce { decision, .. } = announce(epoch, slot) else { unreachable!() };
    let event = Event {
        seq,
        cause: Some(decision.cause),
        summary: format!("event {seq}"),
        ..Event::new(cloud(), EventKind::Failover, decision.epoch)
    };
    Frame::Announce { decision, proof: Default::default(), event: Some(Box::new(event)) }
}

#[test]
fn a_node_that_no_longer_votes_shows_nothing_of_its_old_group() {
    let mut bench = Bench::of("member-0", mesh(2, 1, 0));
    pass(&mut bench, 5);
    assert!(shown(&bench).quorum.is_some());
    bench.frame("cloud-0", announce_with_event(1, 0, 3));
    assert!(bench.node.events().is_empty(), "a voter has events from its own replica");
    change(&mut bench, mesh(3, 1, 0));
    pass(&mut bench, 5);
    let l = shown(&bench);
    let notes: Vec<&String> = l.notes.iter().filter(|n| !n.contains("not proved")).collect();
    assert_eq!((l.quorum, &notes[..]), (None, &[][..]));
    assert_eq!((l.frozen, l.raft_leader), (None, Some(name("cloud-1"))));
    bench.frame("cloud-0", announce_with_event(2, 1, 4));
    let events: Vec<String> = bench.node.events().into_iter().map(|e| e.summary).collect();
    assert_eq!(events, ["event 4"]);
    // Its commands go to the others at once.
    bench.feed(Input::PeerUp { node: name("cloud-0"), rtt_micros: 500 });
    let request = AdminRequest::Drain { node: name("cloud-0") };
    let effects = bench.feed(admin(1, request));
    let asked = |e: &&Effect| matches!(e, Effect::SendFrame { frame, .. } if matches!(**frame, Frame::Forward { .. }));
    assert_eq!(effects.iter().filter(asked).count(), 1, "{effects:?}");
    // The vote comes back.
    change(&mut bench, mesh(2, 1, 0));
    assert!(shown(&bench).quorum.is_some());
}

#[test]
fn a_voter_whose_file_is_newer_still_hears_those_that_vote_by_the_older_one() {
    let raft = || Frame::Raft { location: cloud(), message: vec![1, 2, 3] };
    let unknown = "ignored.raft-of-another-group";
    let mut bench = Bench::of("cloud-1", mesh(2, 1, 0));
    bench.frame("member-0", raft());
    change(&mut bench, mesh(3, 2, 0));
    bench.frame("member-0", raft());
    assert_eq!(bench.counted(unknown), 0);
    for (nth, never_voted) in ["member-1", "home-0"].into_iter().enumerate() {
        bench.frame(never_voted, raft());
        assert_eq!(bench.counted(unknown), nth as u64 + 1, "{never_voted}");
    }
}

#[test]
fn a_node_that_left_the_mesh_is_no_longer_called_half_rolled_out() {
    let mut bench = Bench::of("cloud-0", mesh(3, 0, 0));
    for node in ["cloud-1", "cloud-2", "home-0"] {
        bench.frame(node, hello(node, Some("cloud-1")));
    }
    let mut smaller = mesh(2, 0, 0);
    smaller.edit().generation = crate::ids::Generation(2);
    smaller.edit().locations.retain(|l, _| *l == cloud());
    smaller.edit().nodes.retain(|_, n| n.location == cloud());
    change(&mut bench, smaller);
    let others = bench.node.status(bench.now).other_generations;
    assert_eq!(others.keys().collect::<Vec<_>>(), [&name("cloud-1")]);
}

#[test]
fn a_freeze_that_has_ended_is_not_shown() {
    // Alone in its location, it decides alone.
    let mut bench = Bench::of("cloud-0", mesh(1, 0, 0));
    let settle = |bench: &mut Bench| {
        for _ in 0..100 {
            bench.now.mono = bench.now.mono + Duration::from_millis(50);
            let effects = bench.feed(Input::Timeout);
            for effect in effects {
                if let Effect::Persist { ticket, .. } = effect {
                    bench.feed(Input::Persisted { ticket });
                }
            }
            // What became durable may have asked for more to be written.
            let last = bench.node.last_ticket;
            bench.feed(Input::Persisted { ticket: Ticket(last) });
        }
    };
    settle(&mut bench);
    assert_eq!(shown(&bench).epoch, Epoch(1));
    let freeze =
        AdminRequest::Freeze { location: cloud(), duration: Some(Duration::from_secs(60)) };
    bench.feed(admin(1, freeze));
    settle(&mut bench);
    let until = shown(&bench).frozen.flatten();
    assert!(until.is_some_and(|until| until > bench.now.wall), "{until:?}");
    // The wall clock stands still all the while.
    bench.now.mono = bench.now.mono + Duration::from_secs(60);
    assert_eq!(shown(&bench).frozen, None);
}

#[test]
fn a_member_that_votes_shows_the_raft_leaders_verdicts() {
    let mut bench = Bench::of("member-0", mesh(2, 1, 0));
    // The raft leader reports that cloud-1 does not forward.
    let table = |next: Verdict| {
        let mut of_candidate = bench_candidates();
        of_candidate[0].leading = true;
        of_candidate[1].verdict = next;
        let Frame::Hello(mut hello) = hello("cloud-1", Some("cloud-1")) else { unreachable!() };
        hello.digest = of_candidate;
        Frame::Hello(hello)
    };
    bench.frame("cloud-0", hello("cloud-0", Some("cloud-1")));
    let broken = Verdict::Degraded { cause: Fault::Mtu, direction: None };
    bench.frame("cloud-1", table(broken));
    bench.frame("cloud-0", announce(1, 0));
    let l = shown(&bench);
    assert_eq!(l.next, None, "it is no use to name a broken one");
    assert!(!l.notes.iter().any(|n| n.contains("no observer")), "{:?}", l.notes);
    bench.frame("cloud-1", table(Verdict::Forwarding));
    assert_eq!(shown(&bench).next, Some(name("cloud-1")));
    // A candidate hears observers itself, and misses them.
    let bench = Bench::of("cloud-0", mesh(2, 1, 0));
    assert!(shown(&bench).notes.iter().any(|n| n.contains("no observer")));
}

fn bench_candidates() -> Vec<crate::status::CandidateStatus> {
    let of = |slot| crate::status::CandidateStatus { leading: false, ..candidate(slot) };
    vec![of(0), of(1)]
}

#[test]
fn a_member_that_becomes_a_candidate_observes_with_the_decisions_it_has() {
    let mut bench = Bench::of("home-1", mesh(2, 1, 0));
    bench.frame("cloud-0", announce(5, 1));
    let revision = bench.node.revision;
    bench.feed(Input::Programmed { revision, error: None });
    let mut without_slot = mesh(2, 1, 0);
    without_slot.edit().nodes.get_mut(&name("home-1")).unwrap().slot = None;
    change(&mut bench, without_slot);
    assert!(bench.node.observer.is_none());
    change(&mut bench, mesh(2, 1, 0));
    let view = bench.node.observer.as_ref().and_then(|o| o.view(bench.now, &cloud()));
    assert_eq!(view.map(|r| r.epoch), Some(Epoch(5)));
}

/// What raft-rs of the cloud's `from` asks of `home-0`: its vote in term 7.
fn vote_for(bench: &mut Bench, from: &str) -> bool {
    use protobuf::Message as _;
    use raft::eraftpb::{Message, MessageType};
    let index = |n: &str, bench: &Bench| u64::from(bench.node.mesh.nodes[&name(n)].index.0);
    let (from_id, to) = (index(from, bench), index("home-0", bench));
    let mut m = Message { from: from_id, to, term: 7, index: 1, log_term: 1, ..Message::default() };
    m.set_msg_type(MessageType::MsgRequestVote);
    let message = m.write_to_bytes().unwrap();
    let mut effects = bench.frame(from, Frame::Raft { location: cloud(), message });
    effects.extend(persisted(bench));
    effects.iter().any(|effect| {
        let Effect::SendFrame { to, frame } = effect else { return false };
        let Frame::Raft { message, .. } = &**frame else { return false };
        let answer = Message::parse_from_bytes(message).unwrap();
        *to == name(from)
            && answer.get_msg_type() == MessageType::MsgRequestVoteResponse
            && !answer.reject
    })
}

/// All that was to be written is on disk.
fn persisted(bench: &mut Bench) -> Vec<Effect> {
    let ticket = Ticket(bench.node.last_ticket);
    bench.feed(Input::Persisted { ticket })
}

/// `home-0` is a witness of `cloud`, which has a vote for each of its two candidates.
fn witnessed() -> Mesh {
    mesh(2, 0, 1)
}

fn without_the_cloud() -> Mesh {
    let mut mesh = witnessed();
    mesh.edit().locations.remove(&cloud());
    mesh.edit().nodes.retain(|_, n| n.location != cloud());
    mesh
}

/// `home-0`, which voted in a location where no other node answers.
fn witness() -> Bench {
    let mut bench = Bench::of("home-0", witnessed());
    assert!(wait_and_vote_for(&mut bench, "cloud-0"), "it votes");
    bench
}

/// Long enough for a node with an empty store to vote whatever it may have forgotten.
fn wait_and_vote_for(bench: &mut Bench, from: &str) -> bool {
    (0..80).any(|_| {
        bench.later(Duration::from_millis(500));
        persisted(bench);
        vote_for(bench, from)
    })
}

fn votes_for_one_only(mut bench: Bench) {
    assert!(!wait_and_vote_for(&mut bench, "cloud-1"));
    assert!(vote_for(&mut bench, "cloud-0"), "the vote that it gave");
}

#[test]
fn a_witness_of_a_location_that_left_and_came_back_does_not_vote_twice_in_a_term() {
    let mut bench = witness();
    change(&mut bench, without_the_cloud());
    bench.later(Duration::from_secs(60));
    change(&mut bench, witnessed());
    votes_for_one_only(bench);
}

#[test]
fn a_vote_that_comes_back_to_a_node_that_was_restarted_without_it_is_not_given_twice_in_a_term() {
    let disk = witness().disk;
    let mut bench = Bench::with_disk("home-0", mesh(2, 0, 0), disk);
    change(&mut bench, witnessed());
    votes_for_one_only(bench);
}
