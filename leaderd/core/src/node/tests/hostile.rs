//! What an authenticated node sends to do harm: it is counted, named in the log, and has no other effect.

use super::*;
use crate::admin::Author;
use crate::mesh::Commands;
use crate::state::{Event, EventKind, MAX_STATE};
use crate::wire::limits::MAX_TEXT;

/// A report of `home-1` whose first slot was changed.
fn changed(change: impl Fn(&mut SlotReport)) -> Frame {
    let Frame::Report(mut report) = report(&[Verdict::Forwarding, Verdict::Forwarding]) else {
        unreachable!()
    };
    change(&mut report.slots[0]);
    Frame::Report(report)
}

#[test]
fn a_report_with_an_endless_round_trip_does_not_stop_the_daemon() {
    let frame = changed(|s| s.rtt = Some(Duration::MAX));
    let relayed = Frame::Relayed { from: name("home-1"), frame: Box::new(frame.clone()) };
    for (from, frame) in [("home-1", frame), ("cloud-1", relayed)] {
        let mut bench = Bench::of("cloud-0", mesh(2, 0, 1));
        // As it comes from the network.
        let frame = Frame::decode(&frame.encode()).unwrap();
        let effects = bench.frame(from, frame);
        // The raft leader looks at reports; others when they are asked.
        let status = bench.node.status(bench.now);
        assert_eq!(status.locations[0].candidates[0].observers, (0, 0));
        assert_eq!(bench.counted("ignored.nonsense"), 1);
        assert_eq!(bench.counted("nonsense.round-trip"), 1);
        let named = effects.iter().any(|e| {
            matches!(e, Effect::Log { fields, .. } if fields.contains(&("source".into(), from.into())))
        });
        assert!(named, "{effects:?}");
    }
}

#[test]
fn slots_that_a_location_does_not_have_are_left_out_of_a_report() {
    let mut bench = Bench::of("cloud-0", mesh(2, 0, 1));
    let Frame::Report(mut report) = changed(|s| s.slot = Slot(9)) else { unreachable!() };
    report.slots.truncate(1);
    bench.frame("home-1", Frame::Report(report));
    let status = bench.node.status(bench.now);
    let of: Vec<u16> = status.locations[0].candidates.iter().map(|c| c.observers.1).collect();
    assert_eq!((of, bench.counted("ignored.nonsense")), (vec![0, 0], 0), "nobody saw anything");
}

fn event(seq: u64, rows: usize) -> Event {
    let Frame::Report(report) = changed(|s| {
        let row = crate::verdict::EvidenceRow {
            class: crate::verdict::ProbeClass::NewFlow,
            target: Some(name(&"x".repeat(63))),
            address: None,
            port: None,
            sent: 1,
            lost: 1,
            time_exceeded: 0,
        };
        s.evidence = vec![row; rows];
    }) else {
        unreachable!()
    };
    Event {
        seq,
        summary: "x".into(),
        evidence: (0..8).map(|n| (name(&format!("home-{n}")), report.slots.clone())).collect(),
        ..Event::new("cloud".parse().unwrap(), EventKind::Notice, Epoch(3))
    }
}

fn with_event(event: Event) -> Frame {
    let Frame::Announce { decision, .. } = announce(3, 0) else { unreachable!() };
    Frame::Announce { decision, proof: Default::default(), event: Some(Box::new(event)) }
}

#[test]
fn events_of_other_locations_take_bounded_memory() {
    let mut bench = Bench::new();
    let mut sent = 0;
    for seq in 1..2000 {
        let frame = with_event(event(seq, 16));
        sent += frame.encode().len();
        bench.frame("cloud-1", frame);
    }
    let kept = bench.node.events();
    let size: usize = kept.iter().map(Event::size).sum();
    assert!(sent > 8 << 20 && size <= MAX_STATE, "{size} of {sent} bytes");
    assert_eq!(kept.last().map(|e| e.seq), Some(1999), "the newest are kept");
    // What none of ours would send is not kept at all.
    bench.frame("cloud-1", with_event(event(2000, 17)));
    assert_eq!(bench.counted("nonsense.event"), 1);
    assert_eq!(bench.node.events().last().map(|e| e.seq), Some(1999));
}

#[test]
fn an_event_far_beyond_the_newest_does_not_push_out_those_that_come_next() {
    let mut bench = Bench::new();
    bench.frame("cloud-1", with_event(event(7, 1)));
    bench.frame("cloud-1", with_event(event(1 << 40, 1)));
    assert_eq!(bench.counted("ignored.event"), 1);
    // Some were missed.
    bench.frame("cloud-1", with_event(event(900, 1)));
    // Of another epoch than its decision.
    bench.frame("cloud-1", with_event(Event { epoch: Epoch(9), ..event(901, 1) }));
    let seqs: Vec<u64> = bench.node.events().iter().map(|e| e.seq).collect();
    assert_eq!((seqs, bench.counted("ignored.event")), (vec![7, 900], 2));
}

fn forwarded(effects: &[Effect]) -> Option<(NodeName, u64)> {
    effects.iter().find_map(|e| match e {
        Effect::SendFrame { to, frame } => match &**frame {
            Frame::Forward { id, .. } => Some((to.clone(), *id)),
            _ => None,
        },
        _ => None,
    })
}

/// `home-0` asked `cloud-1`; the id that it asked with.
fn asked(bench: &mut Bench) -> u64 {
    for node in ["cloud-0", "cloud-1", "home-1"] {
        bench.feed(Input::PeerUp { node: name(node), rtt_micros: 20_000 });
        bench.frame(node, hello(node, Some("cloud-1")));
    }
    let mut commanded = Mesh::clone(&bench.node.mesh);
    commanded.edit().commands = Commands::All;
    bench.node.mesh = Arc::new(commanded);
    let request = AdminRequest::Drain { node: name("cloud-0") };
    let (to, id) =
        forwarded(&bench.feed(Input::Admin { id: 77, user: None, request })).expect("it is asked");
    assert_eq!(to, name("cloud-1"));
    id
}

#[test]
fn only_a_node_that_was_asked_can_answer_a_command() {
    let mut bench = Bench::new();
    let id = asked(&mut bench);
    let response = AdminResponse::Refused { message: "no".into() };
    for from in ["cloud-0", "home-1"] {
        let effects = bench.frame(from, Frame::Forwarded { id, response: response.clone() });
        assert!(!effects.iter().any(|e| matches!(e, Effect::AdminReply { .. })), "{effects:?}");
    }
    assert_eq!(bench.counted("ignored.answer-not-asked"), 2);
    let effects = bench.frame("cloud-1", Frame::Forwarded { id, response: response.clone() });
    assert!(effects.contains(&Effect::AdminReply { id: 77, response }), "{effects:?}");
}

#[test]
fn a_restarted_daemon_numbers_its_commands_from_another_start() {
    let ids: Vec<u64> = [1, 2]
        .map(|seed| {
            let mut bench = Bench::seeded("home-0", mesh(2, 1, 0), seed);
            asked(&mut bench)
        })
        .into();
    assert!(ids[0].abs_diff(ids[1]) > 1 << 32, "{ids:?}");
}

#[test]
fn a_long_answer_is_shortened_and_a_freeze_of_ages_is_refused() {
    let mut bench = Bench::new();
    let location: LocationName = "cloud".parse().unwrap();
    let duration = Some(Duration::from_secs(9000 * 366 * 86_400));
    let request = AdminRequest::Freeze { location, duration };
    let effects = bench.feed(Input::Admin { id: 3, user: None, request });
    let refused = effects.iter().any(|e| {
        matches!(e, Effect::AdminReply { id: 3, response: AdminResponse::Refused { message } }
            if message.contains("ten years"))
    });
    assert!(refused, "{effects:?}");
    // Names all locations of the mesh, which are many.
    let mut mesh = mesh(2, 1, 0);
    for n in 0..500 {
        let name: LocationName = format!("location-with-a-long-name-{n}").parse().unwrap();
        let overlay = crate::mesh::Overlay::External;
        mesh.edit().locations.insert(name.clone(), crate::mesh::Location::new(name, overlay));
    }
    let mut bench = Bench::of("home-0", mesh);
    let request = AdminRequest::Unfreeze { location: "nowhere".parse().unwrap() };
    let effects = bench.frame(
        "home-1",
        Frame::Forward { id: 1, author: Author::new(name("home-1"), None), request },
    );
    let answer = effects.iter().find_map(|e| match e {
        Effect::SendFrame { frame, .. } => match &**frame {
            Frame::Forwarded { response: AdminResponse::Refused { message }, .. } => Some(message),
            _ => None,
        },
        _ => None,
    });
    let message = answer.expect("it is answered");
    assert!(message.len() <= MAX_TEXT && message.ends_with('…'), "{message}");
}

#[test]
fn only_the_parts_of_a_hello_that_are_used_later_are_kept() {
    let mut bench = Bench::new();
    let Frame::Hello(mut hello) = hello("cloud-0", None) else { unreachable!() };
    let Frame::Announce { decision, .. } = announce(3, 0) else { unreachable!() };
    hello.remote = vec![decision; 16];
    let digest = bench.node.status(bench.now).locations[1].candidates.clone();
    hello.digest = digest;
    assert!(!hello.digest.is_empty());
    bench.frame("cloud-0", Frame::Hello(hello));
    let kept = bench.node.peers.hello(&name("cloud-0")).unwrap();
    assert!(kept.remote.is_empty() && kept.digest.is_empty(), "{kept:?}");
}
