//! The bytes of one of each thing that goes over the wire or to disk. What is written by position has no names in it, so a
//! field or a variant that is moved, removed or put between others is read as something else by the version before: here it
//! shows as changed bytes. See `docs/compatibility.md` before accepting any.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::admin::{AdminRequest, AdminResponse, Author};
use crate::capability::{Capabilities, Capability};
use crate::fault::{Fault, MoveReason};
use crate::ids::{Epoch, Generation, LocationName, NodeName, Slot};
use crate::io::{Persist, StoredGroup};
use crate::proof::{Proof, Signed, Signer, Statement, VoterSet};
use crate::relay_pair::{Detour, TunnelRow, TunnelState};
use crate::state::{Command, Decision, Event, EventKind, EventTimes, FreezeEnd, LocationState};
use crate::status::CandidateStatus;
use crate::stored::{SnapshotWrite, Tail};
use crate::time::WallTime;
use crate::verdict::{Direction, EvidenceRow, ProbeClass, Report, SlotReport, Verdict};
use crate::wire::{Frame, Hello};

/// A table of names and bytes.
#[derive(Default)]
struct Golden(String);

impl Golden {
    fn bytes(&mut self, name: impl std::fmt::Display, bytes: &[u8]) {
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        // A line of a table that is read by people.
        writeln!(self.0, "{name}:").unwrap();
        for line in hex.as_bytes().chunks(96) {
            writeln!(self.0, "  {}", std::str::from_utf8(line).unwrap()).unwrap();
        }
    }

    /// Of what is written as it is; it must be read as it was written.
    fn plain<T>(&mut self, name: impl std::fmt::Display, value: &T)
    where
        T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug,
    {
        let bytes = postcard::to_stdvec(value).unwrap();
        assert_eq!(postcard::from_bytes::<T>(&bytes).as_ref(), Ok(value));
        self.bytes(name, &bytes);
    }

    /// All variants, told by `next`: each names the one after it, so a new one does not compile until it is here.
    fn all<T>(&mut self, name: &str, next: impl Fn(Option<&T>) -> Option<T>)
    where
        T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug,
    {
        let mut value = next(None);
        let mut places = 0..;
        while let Some(this) = value {
            let bytes = postcard::to_stdvec(&this).unwrap();
            assert_eq!(Some(bytes[0]), places.next(), "{this:?} is not where it is told");
            self.plain(format_args!("{name} {this:?}"), &this);
            value = next(Some(&this));
        }
    }
}

fn node(name: &str) -> NodeName {
    name.parse().unwrap()
}

fn cloud() -> LocationName {
    "cloud".parse().unwrap()
}

fn next_cause(before: Option<&MoveReason>) -> Option<MoveReason> {
    Some(match before {
        None => MoveReason::Fault(Fault::TunnelDown),
        Some(MoveReason::Fault(Fault::TunnelDown)) => MoveReason::Fault(Fault::NotForwarding),
        Some(MoveReason::Fault(Fault::NotForwarding)) => MoveReason::Fault(Fault::NewFlow),
        Some(MoveReason::Fault(Fault::NewFlow)) => MoveReason::Fault(Fault::Mtu),
        Some(MoveReason::Fault(Fault::Mtu)) => MoveReason::Fault(Fault::Loop),
        Some(MoveReason::Fault(Fault::Loop)) => MoveReason::Fault(Fault::Partial),
        Some(MoveReason::Fault(Fault::Partial)) => MoveReason::Fault(Fault::Loss),
        Some(MoveReason::Fault(Fault::Loss)) => MoveReason::Fault(Fault::SelfReported),
        Some(MoveReason::Fault(Fault::SelfReported)) => MoveReason::Fault(Fault::DaemonDead),
        Some(MoveReason::Fault(Fault::DaemonDead)) => MoveReason::Fault(Fault::Unreachable),
        Some(MoveReason::Fault(Fault::Unreachable)) => MoveReason::Promoted,
        Some(MoveReason::Promoted) => MoveReason::Drained,
        Some(MoveReason::Drained) => MoveReason::FailBack,
        Some(MoveReason::FailBack) => MoveReason::Initial,
        Some(MoveReason::Initial) => MoveReason::Reconfigured,
        Some(MoveReason::Reconfigured) => return None,
    })
}

fn next_direction(before: Option<&Direction>) -> Option<Direction> {
    Some(match before {
        None => Direction::Forward,
        Some(Direction::Forward) => Direction::Return,
        Some(Direction::Return) => return None,
    })
}

fn next_verdict(before: Option<&Verdict>) -> Option<Verdict> {
    Some(match before {
        None => Verdict::Unknown,
        Some(Verdict::Unknown) => Verdict::Forwarding,
        Some(Verdict::Forwarding) => Verdict::Suspected,
        Some(Verdict::Suspected) => {
            Verdict::Degraded { cause: Fault::Mtu, direction: Some(Direction::Return) }
        }
        Some(Verdict::Degraded { .. }) => return None,
    })
}

fn next_class(before: Option<&ProbeClass>) -> Option<ProbeClass> {
    Some(match before {
        None => ProbeClass::Relay,
        Some(ProbeClass::Relay) => ProbeClass::NewFlow,
        Some(ProbeClass::NewFlow) => ProbeClass::PinnedFlow,
        Some(ProbeClass::PinnedFlow) => ProbeClass::FullSize,
        Some(ProbeClass::FullSize) => ProbeClass::AsWorkload,
        Some(ProbeClass::AsWorkload) => ProbeClass::Service,
        Some(ProbeClass::Service) => return None,
    })
}

fn next_kind(before: Option<&EventKind>) -> Option<EventKind> {
    Some(match before {
        None => EventKind::Failover,
        Some(EventKind::Failover) => EventKind::Move,
        Some(EventKind::Move) => EventKind::FailStatic,
        Some(EventKind::FailStatic) => EventKind::Operator,
        Some(EventKind::Operator) => EventKind::Notice,
        Some(EventKind::Notice) => return None,
    })
}

fn next_request(before: Option<&AdminRequest>) -> Option<AdminRequest> {
    Some(match before {
        None => AdminRequest::Promote { node: node("cloud-1"), force: true },
        Some(AdminRequest::Promote { .. }) => AdminRequest::Drain { node: node("cloud-1") },
        Some(AdminRequest::Drain { .. }) => AdminRequest::Undrain { node: node("cloud-1") },
        Some(AdminRequest::Undrain { .. }) => AdminRequest::Freeze {
            location: cloud(),
            duration: Some(Duration::from_millis(90_500)),
        },
        Some(AdminRequest::Freeze { .. }) => AdminRequest::Unfreeze { location: cloud() },
        Some(AdminRequest::Unfreeze { .. }) => return None,
    })
}

fn next_response(before: Option<&AdminResponse>) -> Option<AdminResponse> {
    Some(match before {
        None => {
            AdminResponse::Done { location: cloud(), epoch: Epoch(300), message: "done".to_owned() }
        }
        Some(AdminResponse::Done { .. }) => AdminResponse::Refused { message: "no".to_owned() },
        Some(AdminResponse::Refused { .. }) => return None,
    })
}

fn next_command(before: Option<&Command>) -> Option<Command> {
    Some(match before {
        None => Command::Decide {
            expected_epoch: Epoch(299),
            decision: decision(),
            event: Box::new(event()),
        },
        Some(Command::Decide { .. }) => Command::Drain { node: node("cloud-1") },
        Some(Command::Drain { .. }) => Command::Undrain { node: node("cloud-1") },
        Some(Command::Undrain { .. }) => Command::Freeze { until: Some(freeze_end()) },
        Some(Command::Freeze { .. }) => Command::Unfreeze,
        Some(Command::Unfreeze) => Command::Record { event: Box::new(event()) },
        Some(Command::Record { .. }) => Command::Complete {
            epoch: Epoch(300),
            times: times(),
            blackout: Some(Duration::from_millis(120)),
        },
        Some(Command::Complete { .. }) => return None,
    })
}

fn next_frame(before: Option<&Frame>) -> Option<Frame> {
    Some(match before {
        None => Frame::Raft { location: cloud(), message: vec![1, 2, 3] },
        Some(Frame::Raft { .. }) => Frame::Report(report()),
        Some(Frame::Report(_)) => {
            Frame::Announce { decision: decision(), proof: proof(), event: Some(Box::new(event())) }
        }
        Some(Frame::Announce { .. }) => {
            Frame::Ack { location: cloud(), epoch: Epoch(300), programmed_at: WallTime(301) }
        }
        Some(Frame::Ack { .. }) => Frame::Verified {
            location: cloud(),
            epoch: Epoch(300),
            at: WallTime(301),
            blackout_micros: Some(302),
        },
        Some(Frame::Verified { .. }) => Frame::Hello(hello()),
        Some(Frame::Hello(_)) => {
            Frame::Relayed { from: node("home-1"), frame: Box::new(Frame::Report(report())) }
        }
        Some(Frame::Relayed { .. }) => Frame::Forward {
            id: 300,
            author: author(),
            request: AdminRequest::Unfreeze { location: cloud() },
        },
        Some(Frame::Forward { .. }) => Frame::Forwarded {
            id: 300,
            response: AdminResponse::Refused { message: "no".to_owned() },
        },
        Some(Frame::Forwarded { .. }) => Frame::Addresses(vec![(
            node("home-1"),
            vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        )]),
        Some(Frame::Addresses(_)) => {
            Frame::Uncarried { mesh_hash: [1, 2, 3, 4, 5, 6, 7, 8], locations: vec![cloud()] }
        }
        Some(Frame::Uncarried { .. }) => {
            Frame::Signed { location: cloud(), epoch: Epoch(300), signatures: vec![signed()] }
        }
        Some(Frame::Signed { .. }) => Frame::Tunnels {
            location: cloud(),
            row: tunnel_row().avoiding(true),
            heard: vec![(Slot(2), tunnel_row())],
        },
        Some(Frame::Tunnels { .. }) => {
            Frame::Detours(vec![Detour { location: cloud(), near: Slot(1), far: Slot(2) }])
        }
        Some(Frame::Detours(_)) => return None,
    })
}

fn tunnel_row() -> TunnelRow {
    let row = TunnelRow::UNKNOWN.with(Slot(0), TunnelState::Good);
    row.with(Slot(1), TunnelState::Lossy).with(Slot(14), TunnelState::Bad).accusing(Slot(14))
}

fn times() -> EventTimes {
    EventTimes {
        first_loss: Some(WallTime(1)),
        suspected: Some(WallTime(2)),
        condemned: Some(WallTime(3)),
        committed: Some(WallTime(4)),
        programmed: Some(WallTime(5)),
        verified: Some(WallTime(6)),
    }
}

fn decision() -> Decision {
    Decision {
        location: cloud(),
        epoch: Epoch(300),
        leaders: vec![Slot(1), Slot(2)],
        cause: Fault::NewFlow.into(),
        at: WallTime(1_700_000_000_000_000),
    }
}

fn slot_report() -> SlotReport {
    SlotReport {
        slot: Slot(1),
        verdict: Verdict::Degraded { cause: Fault::NewFlow, direction: Some(Direction::Forward) },
        first_loss: Some(WallTime(1)),
        suspected: Some(WallTime(2)),
        since: WallTime(3),
        rtt: Some(Duration::from_millis(20)),
        loss: 0.25,
        path_mtu: Some(1420),
        services: (2, 3),
        evidence: vec![EvidenceRow {
            class: ProbeClass::Service,
            target: Some(node("cloud-3")),
            address: Some(IpAddr::from([10, 42, 0, 1])),
            port: Some(443),
            sent: 20,
            lost: 19,
            time_exceeded: 1,
        }],
    }
}

fn report() -> Report {
    Report {
        observer: node("home-1"),
        location: cloud(),
        seq: 300,
        epoch: Epoch(299),
        abstains: true,
        full_rate: false,
        slots: vec![slot_report()],
    }
}

fn event() -> Event {
    Event {
        seq: 7,
        location: cloud(),
        kind: EventKind::Failover,
        epoch: Epoch(300),
        cause: Some(Fault::NewFlow.into()),
        direction: Some(Direction::Forward),
        leaders_before: vec![node("cloud-0")],
        leaders_after: vec![node("cloud-1"), node("cloud-2")],
        summary: "cloud-0 drops new flows".to_owned(),
        times: times(),
        blackout: Some(Duration::from_millis(120)),
        blocked_by: BTreeMap::from([(node("cloud-3"), vec!["drained".to_owned()])]),
        evidence: BTreeMap::from([(node("home-1"), vec![slot_report()])]),
        author: Some(author()),
    }
}

fn signed() -> Signed {
    let mut mesh = crate::group::tests::cluster::mesh(1, 0, 0);
    let signer = Signer::new(&[1; 32]);
    mesh.edit().nodes.get_mut(&node("cloud-0")).unwrap().control_key = signer.public();
    let set = VoterSet::of(&mesh, &cloud());
    let signature = signer.sign(&Statement::decision("mesh", &decision(), &set));
    Signed { voter: node("cloud-0"), set: set.id(), signature }
}

fn proof() -> Proof {
    let mut mesh = crate::group::tests::cluster::mesh(1, 0, 0);
    mesh.edit().nodes.get_mut(&node("cloud-0")).unwrap().control_key =
        Signer::new(&[1; 32]).public();
    let set = VoterSet::of(&mesh, &cloud());
    Proof::of("mesh", &decision(), &[&set], [signed()].iter()).unwrap()
}

fn author() -> Author {
    let told = Author::new(node("home-1"), Some("uid 0".to_owned()));
    Author { through: Some(node("cloud-1")), ..told }
}

fn hello() -> Hello {
    Hello {
        node: node("cloud-1"),
        capabilities: Capabilities::NONE.with(Capability::Base),
        generation: Generation(300),
        mesh_hash: [1, 2, 3, 4, 5, 6, 7, 8],
        decision: Some(decision()),
        proof: proof(),
        raft_leader: Some(node("cloud-2")),
        broken: Some(Fault::SelfReported),
        reaches: vec![Slot(1), Slot(2)],
        digest: vec![CandidateStatus {
            name: node("cloud-1"),
            slot: Slot(1),
            leading: true,
            verdict: Verdict::Forwarding,
            observers: (2, 3),
            rtt_ms: Some(20.5),
            loss: Some(0.25),
            path_mtu: Some(1420),
            services: Some((2, 3)),
            drained: true,
            blocked_by: vec!["drained".to_owned()],
        }],
        remote: vec![decision()],
    }
}

fn freeze_end() -> FreezeEnd {
    FreezeEnd { until: WallTime(301), span: Duration::from_secs(1) }
}

fn state() -> LocationState {
    LocationState {
        location: cloud(),
        decision: Some(decision()),
        drained: BTreeSet::from([node("cloud-3")]),
        frozen: Some(Some(freeze_end())),
        events: VecDeque::from([event()]),
        last_seq: 7,
        voters_generation: Generation(3),
    }
}

#[test]
fn frames_have_the_bytes_that_they_had() {
    let mut golden = Golden::default();
    let mut frame = next_frame(None);
    while let Some(this) = frame {
        let bytes = this.encode();
        assert_eq!(Frame::decode(&bytes).as_ref(), Ok(&this));
        golden.bytes(format_args!("frame {}", this.kind()), &bytes);
        frame = next_frame(Some(&this));
    }
    golden.all("cause", next_cause);
    golden.all("direction", next_direction);
    golden.all("verdict", next_verdict);
    golden.all("class", next_class);
    golden.all("request", next_request);
    golden.all("response", next_response);
    insta::assert_snapshot!("frames", golden.0);
}

#[test]
fn the_log_the_state_and_the_store_have_the_bytes_that_they_had() {
    let mut golden = Golden::default();
    let mut command = next_command(None);
    while let Some(this) = command {
        let bytes = this.encode(this.needs());
        assert_eq!(Command::decode(&bytes).as_ref(), Ok(&this));
        golden.bytes(format_args!("command {}", name_of(&this)), &bytes);
        command = next_command(Some(&this));
    }
    golden.all("event kind", next_kind);
    golden.plain("event", &event());
    golden.plain("decision, as the store has it", &decision());
    let state = state();
    assert_eq!(LocationState::decode(&state.encode()).as_ref(), Ok(&state));
    golden.bytes("state, as a snapshot has it", &state.encode());
    let persist = Persist {
        hard_state: Some(vec![1]),
        entries: vec![(300, vec![2])],
        snapshot: Some(SnapshotWrite { index: 299, bytes: vec![3], tail: Tail::Dropped }),
        decision: Some(vec![4]),
    };
    golden.plain("write to the store", &persist);
    let stored = StoredGroup {
        hard_state: Some(vec![1]),
        entries: [(300, vec![2])].into(),
        snapshot: Some((299, vec![3])),
        decision: Some(vec![4]),
    };
    golden.plain("read from the store", &stored);
    insta::assert_snapshot!("disk", golden.0);
}

/// The name of a variant.
fn name_of(value: &impl std::fmt::Debug) -> String {
    format!("{value:?}").split([' ', '(', '{']).next().unwrap_or_default().to_owned()
}

/// What programs write and read has names: new fields and kinds may come, those that are there stay.
#[test]
fn what_the_admin_socket_takes_and_gives_reads_as_it_did() {
    let mut lines = String::new();
    let mut request = next_request(None);
    while let Some(this) = request {
        writeln!(lines, "{}", serde_json::to_string(&this).unwrap()).unwrap();
        request = next_request(Some(&this));
    }
    let mut response = next_response(None);
    while let Some(this) = response {
        writeln!(lines, "{}", serde_json::to_string(&this).unwrap()).unwrap();
        response = next_response(Some(&this));
    }
    writeln!(lines, "{}", serde_json::to_string(&event()).unwrap()).unwrap();
    insta::assert_snapshot!("admin", lines);

    let newer = r#"{"done":{"location":"cloud","epoch":3,"message":"done","author":"cloud-9","new":[1,2]}}"#;
    let read: AdminResponse = serde_json::from_str(newer).unwrap();
    assert!(matches!(read, AdminResponse::Done { epoch: Epoch(3), .. }));
    let mut newer = serde_json::to_value(event()).unwrap();
    newer["new"] = serde_json::json!({"a": 1});
    assert_eq!(serde_json::from_value::<Event>(newer).unwrap(), event());
}
