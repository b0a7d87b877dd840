use super::*;
use crate::admin::Author;
use crate::ids::{LocationName, NodeName};
use crate::relay_pair::TunnelRow;
use crate::state::EventKind;
use crate::verdict::{ProbeClass, Verdict};
use crate::wire::FrameError;

fn node(name: &str) -> NodeName {
    name.parse().unwrap()
}

fn cloud() -> LocationName {
    "cloud".parse().unwrap()
}

fn row() -> EvidenceRow {
    EvidenceRow {
        class: ProbeClass::NewFlow,
        target: None,
        address: None,
        port: None,
        sent: 9,
        lost: 3,
        time_exceeded: 0,
    }
}

fn slot(slot: u8) -> SlotReport {
    SlotReport {
        rtt: Some(Duration::from_millis(20)),
        loss: 0.25,
        services: (1, 2),
        evidence: vec![row()],
        ..SlotReport::new(Slot(slot), Verdict::Forwarding, WallTime(1))
    }
}

fn report(slots: Vec<SlotReport>) -> Frame {
    Frame::Report(Report {
        observer: node("home-0"),
        location: cloud(),
        seq: 1,
        epoch: Epoch(3),
        abstains: false,
        full_rate: true,
        slots,
    })
}

fn decision(leaders: Vec<Slot>) -> Decision {
    Decision {
        location: cloud(),
        epoch: Epoch(3),
        leaders,
        cause: crate::fault::MoveReason::Initial,
        at: WallTime(1),
    }
}

fn hello() -> Hello {
    Hello {
        node: node("cloud-0"),
        capabilities: Default::default(),
        generation: Default::default(),
        mesh_hash: [0; 8],
        proof: Default::default(),
        decision: Some(decision(vec![Slot(0)])),
        raft_leader: None,
        broken: None,
        reaches: vec![Slot(0), Slot(14)],
        digest: Vec::new(),
        remote: vec![decision(vec![Slot(1), Slot(0)])],
    }
}

pub(crate) fn event() -> Event {
    Event {
        seq: 1,
        summary: "x".into(),
        evidence: [(node("home-0"), vec![slot(0)])].into(),
        ..Event::new(cloud(), EventKind::Notice, Epoch(3))
    }
}

/// The check of a report whose second slot was changed.
fn with(change: impl Fn(&mut SlotReport)) -> Check {
    let mut changed = slot(1);
    change(&mut changed);
    let frame = report(vec![slot(0), changed]);
    // What is refused is refused alone and relayed.
    let relayed = Frame::Relayed { from: node("home-0"), frame: Box::new(frame.clone()) };
    assert_eq!(relayed.check(), frame.check());
    frame.check()
}

#[test]
fn a_report_with_a_value_that_cannot_be_is_refused() {
    assert_eq!(with(|_| {}), Ok(()));
    assert_eq!(with(|s| s.rtt = Some(MAX_RTT)), Ok(()));
    for rtt in [MAX_RTT + Duration::from_nanos(1), Duration::MAX] {
        assert_eq!(with(|s| s.rtt = Some(rtt)), Err(Nonsense::RoundTrip));
    }
    for loss in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.1, 1.1] {
        assert_eq!(with(|s| s.loss = loss), Err(Nonsense::Loss), "{loss}");
    }
    let beyond = WallTime(MAX_TIME.0 + 1);
    assert_eq!(with(|s| s.since = MAX_TIME), Ok(()));
    assert_eq!(with(|s| s.since = beyond), Err(Nonsense::Time));
    assert_eq!(with(|s| s.first_loss = Some(beyond)), Err(Nonsense::Time));
    assert_eq!(with(|s| s.suspected = Some(beyond)), Err(Nonsense::Time));
    assert_eq!(with(|s| s.services = (3, 2)), Err(Nonsense::Counts));
    assert_eq!(with(|s| s.evidence[0].sent = u32::MAX), Err(Nonsense::Counts));
    assert_eq!(with(|s| s.evidence[0].lost = 10), Err(Nonsense::Counts));
    assert_eq!(with(|s| s.slot = Slot(0)), Err(Nonsense::Slot), "twice");
    for slot in [Slot::OVERLAY, Slot(16), Slot(255)] {
        assert_eq!(with(|s| s.slot = slot), Err(Nonsense::Slot));
    }
    assert_eq!(with(|s| s.evidence = vec![row(); MAX_ROWS]), Ok(()));
    assert_eq!(with(|s| s.evidence = vec![row(); MAX_ROWS + 1]), Err(Nonsense::Length));
    let many: Vec<SlotReport> =
        (0..3).map(|n| SlotReport { evidence: vec![row(); MAX_ROWS], ..slot(n) }).collect();
    assert_eq!(report(many).check(), Err(Nonsense::Length));
    let Frame::Report(mut late) = report(vec![]) else { unreachable!() };
    late.epoch = Epoch(u64::MAX);
    assert_eq!(Frame::Report(late).check(), Err(Nonsense::Number));
}

#[test]
fn hellos_decisions_commands_and_answers_are_refused_where_they_cannot_be() {
    let hello = |change: &dyn Fn(&mut Hello)| {
        let mut hello = hello();
        change(&mut hello);
        Frame::Hello(hello).check()
    };
    assert_eq!(hello(&|_| {}), Ok(()));
    assert_eq!(hello(&|h| h.reaches = vec![Slot(1), Slot(1)]), Err(Nonsense::Slot));
    assert_eq!(hello(&|h| h.decision = Some(decision(vec![]))), Err(Nonsense::NoLeader));
    assert_eq!(hello(&|h| h.remote[0].at = WallTime(u64::MAX)), Err(Nonsense::Time));
    assert_eq!(hello(&|h| h.remote[0].epoch = Epoch(MAX_NUMBER)), Err(Nonsense::Number));
    assert_eq!(hello(&|h| h.generation.0 = u64::MAX), Err(Nonsense::Number));
    let many = decision(vec![Slot(0)]);
    assert_eq!(hello(&|h| h.remote = vec![many.clone(); 17]), Err(Nonsense::Length));

    let announce = |event: Event| {
        let decision = decision(vec![Slot(0)]);
        Frame::Announce { decision, proof: Default::default(), event: Some(Box::new(event)) }
            .check()
    };
    assert_eq!(announce(event()), Ok(()));
    assert_eq!(announce(Event { summary: "x".repeat(301), ..event() }), Err(Nonsense::Event));
    let times = EventTimes { verified: Some(WallTime(u64::MAX)), ..Default::default() };
    assert_eq!(announce(Event { times, ..event() }), Err(Nonsense::Time));
    let blackout = Some(Duration::MAX);
    assert_eq!(announce(Event { blackout, ..event() }), Err(Nonsense::Duration));
    assert_eq!(announce(Event { seq: u64::MAX, ..event() }), Err(Nonsense::Number));

    let freeze = |duration| {
        let request = AdminRequest::Freeze { location: cloud(), duration };
        Frame::Forward { id: 1, author: Author::new(node("home-0"), None), request }.check()
    };
    assert_eq!(freeze(None), Ok(()));
    assert_eq!(freeze(Some(MAX_FREEZE)), Ok(()));
    assert_eq!(freeze(Some(Duration::MAX)), Err(Nonsense::Duration));
    let refused = |message: String| {
        let response = AdminResponse::Refused { message };
        Frame::Forwarded { id: 1, response }.check()
    };
    assert_eq!(refused("x".repeat(MAX_TEXT + 1)), Err(Nonsense::Text));
    let long = AdminResponse::Refused { message: "é".repeat(20) + &"x".repeat(9000) };
    let AdminResponse::Refused { message } = long.shortened() else { unreachable!() };
    assert!(message.ends_with('…') && message.chars().count() < MAX_TEXT, "{message}");
    assert_eq!(refused("x".repeat(9000)).err(), Some(Nonsense::Text));
    let ours = AdminResponse::Refused { message: "x".repeat(9000) }.shortened();
    assert_eq!(Frame::Forwarded { id: 1, response: ours }.check(), Ok(()));
}

#[test]
fn a_frame_longer_than_its_kind_is_refused_before_it_is_read() {
    let name = node("home-0");
    let frames = [
        (Frame::Raft { location: cloud(), message: vec![1; 9] }, 4 << 20),
        (report(vec![slot(0)]), MAX_MESSAGE),
        (
            Frame::Announce {
                decision: decision(vec![Slot(0)]),
                proof: Default::default(),
                event: None,
            },
            MAX_ANNOUNCE,
        ),
        (
            Frame::Ack { location: cloud(), epoch: Epoch(1), programmed_at: WallTime(1) },
            MAX_MESSAGE,
        ),
        (
            Frame::Verified {
                location: cloud(),
                epoch: Epoch(1),
                at: WallTime(1),
                blackout_micros: None,
            },
            MAX_MESSAGE,
        ),
        (Frame::Hello(hello()), MAX_MESSAGE),
        (
            Frame::Relayed { from: name.clone(), frame: Box::new(report(vec![slot(0)])) },
            MAX_MESSAGE,
        ),
        (
            Frame::Forward {
                id: 1,
                author: Author::new(name.clone(), Some("uid 0".into())),
                request: AdminRequest::Drain { node: name.clone() },
            },
            MAX_COMMAND,
        ),
        (
            Frame::Forwarded { id: 1, response: AdminResponse::Refused { message: "no".into() } },
            MAX_COMMAND,
        ),
        (Frame::Addresses(vec![(name, vec![])]), MAX_MESSAGE),
        (Frame::Uncarried { mesh_hash: [0; 8], locations: vec![cloud()] }, MAX_MESSAGE),
        (Frame::Tunnels { location: cloud(), row: TunnelRow::UNKNOWN, heard: vec![] }, MAX_MESSAGE),
        (Frame::Detours(vec![]), MAX_MESSAGE),
    ];
    for (frame, most) in frames {
        let mut bytes = frame.encode();
        assert_eq!(Frame::limit([bytes[0], bytes[1]]), most, "{}", frame.kind());
        bytes.resize(most, 0);
        assert_eq!(Frame::decode(&bytes), Ok(frame), "with what a newer daemon adds");
        bytes.push(0);
        assert_eq!(Frame::decode(&bytes), Err(FrameError::TooLong(most + 1, most)));
    }
    assert_eq!(Frame::limit([1, 0]), MAX_MESSAGE, "another version");
}

#[test]
fn rows_in_a_frame_beyond_the_most_are_not_read() {
    let rows = |n| report(vec![SlotReport { evidence: vec![row(); n], ..slot(0) }]).encode();
    assert!(Frame::decode(&rows(MAX_ROWS)).is_ok());
    assert_eq!(Frame::decode(&rows(MAX_ROWS + 1)), Err(FrameError::Malformed));
    let slots = |n| report((0..n).map(slot).collect()).encode();
    assert!(Frame::decode(&slots(15)).is_ok());
    assert_eq!(Frame::decode(&slots(16)), Err(FrameError::Malformed));
}

#[test]
fn the_largest_report_that_is_sent_fits_its_frame() {
    let long = node(&"a".repeat(63));
    let address = Some(std::net::IpAddr::from([0xffu16; 8]));
    let row = EvidenceRow { target: Some(long.clone()), address, port: Some(65535), ..row() };
    let evidence = vec![row; MAX_REPORT_ROWS / MAX_SLOTS];
    let slots = (0..15).map(|n| SlotReport { evidence: evidence.clone(), ..slot(n) }).collect();
    let frame = report(slots);
    assert_eq!(frame.check(), Ok(()));
    assert!(frame.encode().len() < MAX_MESSAGE);
}

#[test]
fn commands_that_other_nodes_would_refuse_do_not_enter_a_log() {
    let late = EventTimes { verified: Some(WallTime(u64::MAX)), ..Default::default() };
    let record = |event: Event| Command::Record { event: Box::new(event) }.check();
    assert_eq!(record(event()), Ok(()));
    assert_eq!(record(Event { times: late, ..event() }), Err(Nonsense::Time));
    assert_eq!(record(Event { summary: "x".repeat(301), ..event() }), Err(Nonsense::Event));
    let complete = Command::Complete { epoch: Epoch(1), times: late, blackout: None };
    assert_eq!(complete.check(), Err(Nonsense::Time));
    let freeze = |until, span| {
        let end = FreezeEnd { until: WallTime(until), span };
        Command::Freeze { until: Some(end) }.check()
    };
    assert_eq!(freeze(1, MAX_FREEZE), Ok(()));
    assert_eq!(freeze(u64::MAX, MAX_FREEZE), Err(Nonsense::Time));
    assert_eq!(freeze(1, Duration::MAX), Err(Nonsense::Duration));
    let decide = |leaders| {
        let (decision, event) = (decision(leaders), Box::new(event()));
        Command::Decide { expected_epoch: Epoch(2), decision, event }.check()
    };
    assert_eq!(decide(vec![Slot(1)]), Ok(()));
    assert_eq!(decide(vec![Slot(1), Slot(1)]), Err(Nonsense::Slot));
    let mut state = LocationState::new(cloud());
    state.frozen = Some(Some(FreezeEnd { until: WallTime(u64::MAX), span: MAX_FREEZE }));
    assert_eq!(state.check(), Err(Nonsense::Time));
}
