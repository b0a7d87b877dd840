//! One mesh with one failover, as a daemon reports it, for the snapshot tests.

use std::time::Duration;

use leaderd_core::admin::Author;
use leaderd_core::fault::{Fault, MoveReason};
use leaderd_core::ids::{Epoch, Generation, Slot};
use leaderd_core::relay_pair::TunnelState;
use leaderd_core::state::{Event, EventKind, EventTimes};
use leaderd_core::status::{
    CandidateStatus, LocationStatus, NextRelays, RelayChange, RelayChangeKind, RelayChanges,
    RelayExplanation, RelayPairStatus, Status, TunnelStatus,
};
use leaderd_core::time::WallTime;
use leaderd_core::verdict::{Direction, EvidenceRow, ProbeClass, SlotReport, Verdict};

/// 2026-03-01 12:00:00 UTC
pub const NOW: WallTime = WallTime(1_772_366_400_000_000);

fn ago(ms: u64) -> WallTime {
    WallTime(NOW.0 - ms * 1000)
}

const NEW_FLOW: Verdict =
    Verdict::Degraded { cause: Fault::NewFlow, direction: Some(Direction::Forward) };

fn candidate(name: &str, slot: u8, leading: bool, verdict: Verdict) -> CandidateStatus {
    CandidateStatus {
        name: name.parse().unwrap(),
        slot: Slot(slot),
        leading,
        verdict,
        observers: (3, 3),
        rtt_ms: Some(20.14),
        loss: Some(0.0),
        path_mtu: Some(1420),
        services: None,
        drained: false,
        blocked_by: Vec::new(),
    }
}

fn location(name: &str, candidates: Vec<CandidateStatus>) -> LocationStatus {
    LocationStatus {
        name: name.parse().unwrap(),
        lowest_index: None,
        leaders: candidates.iter().filter(|c| c.leading).map(|c| c.name.clone()).collect(),
        epoch: Epoch(1),
        since: Some(ago(7_500_000)),
        cause: Some(MoveReason::Initial),
        frozen: None,
        raft_leader: candidates.iter().find(|c| !c.leading).map(|c| c.name.clone()),
        quorum: Some(true),
        fallback: false,
        disk_stuck: false,
        next: candidates
            .iter()
            .find(|c| !c.leading && c.verdict == Verdict::Forwarding)
            .map(|c| c.name.clone()),
        candidates,
        carried: None,
        hidden_sources: Vec::new(),
        unreached: Vec::new(),
        notes: Vec::new(),
    }
}

pub fn status() -> Status {
    let mut sick = candidate("cloud-0", 0, false, NEW_FLOW);
    (sick.loss, sick.blocked_by) = (Some(0.62), vec!["degraded (new-flow)".into()]);
    let mut drained = candidate("home-2", 2, false, Verdict::Unknown);
    drained.drained = true;
    drained.blocked_by = vec!["drained".into(), "no fresh observer".into()];
    (drained.observers, drained.rtt_ms, drained.path_mtu) = ((0, 0), None, None);
    drained.loss = None;
    let mut cloud = location(
        "cloud",
        vec![
            sick,
            candidate("cloud-1", 1, true, Verdict::Forwarding),
            candidate("cloud-2", 2, false, Verdict::Forwarding),
        ],
    );
    (cloud.epoch, cloud.cause, cloud.since) =
        (Epoch(2), Some(Fault::NewFlow.into()), Some(ago(192_000)));
    for (c, up) in cloud.candidates.iter_mut().zip([1, 2, 2]) {
        c.services = Some((up, 2));
    }
    let home = location(
        "home",
        vec![
            candidate("home-0", 0, true, Verdict::Forwarding),
            candidate("home-1", 1, false, Verdict::Suspected),
            drained,
        ],
    );
    Status {
        mesh: "lab".into(),
        node: "home-1".parse().unwrap(),
        location: "home".parse().unwrap(),
        generation: Generation(1),
        mesh_hash: "3f2a91bc".repeat(8),
        other_generations: Default::default(),
        backend: "userspace".into(),
        probe_addresses: vec![],
        locations: vec![cloud, home],
        relay_pairs: vec![relay_pair()],
    }
}

/// home–cloud: the leaders' tunnel has been bad for 12 s.
pub fn relay_pair() -> RelayPairStatus {
    let tunnel = |near: u8, far: u8, state, seen_by: &str, since| TunnelStatus {
        near: format!("home-{near}").parse().unwrap(),
        far: format!("cloud-{far}").parse().unwrap(),
        state,
        seen_by: Some(seen_by.parse().unwrap()),
        since,
    };
    RelayPairStatus {
        location: "cloud".parse().unwrap(),
        near: vec!["home-0".parse().unwrap()],
        far: vec!["cloud-2".parse().unwrap()],
        detour: true,
        long: false,
        cut_off: false,
        since: ago(12_300),
        why: Some("the tunnel home-0–cloud-1 is bad, as cloud-1 sees it".into()),
        tunnels: vec![
            tunnel(0, 1, TunnelState::Bad, "cloud-1", Some(ago(12_400))),
            tunnel(0, 2, TunnelState::Good, "home-0", Some(ago(192_000))),
            tunnel(1, 1, TunnelState::Lossy, "home-1", None),
            tunnel(1, 2, TunnelState::Unknown, "home-1", None),
        ],
    }
}

/// The same pair as home-0 explains it.
pub fn explanation() -> RelayExplanation {
    RelayExplanation {
        node: "home-0".parse().unwrap(),
        location: "home".parse().unwrap(),
        pair: relay_pair(),
        near_leaders: vec!["home-0".parse().unwrap()],
        far_leaders: vec!["cloud-1".parse().unwrap()],
        next: Some(NextRelays {
            near: "home-1".parse().unwrap(),
            far: "cloud-1".parse().unwrap(),
            state: TunnelState::Lossy,
        }),
        avoided: Vec::new(),
        accused: Vec::new(),
        carried: None,
        way: Vec::new(),
    }
}

/// The detour began while cloud#7 was on its way, and has ended.
pub fn relay_changes() -> RelayChanges {
    let change = |ms: u64, kind, far: &str, why: Option<&str>| RelayChange {
        at: ago(ms),
        location: "cloud".parse().unwrap(),
        kind,
        near: vec!["home-0".parse().unwrap()],
        far: vec![far.parse().unwrap()],
        why: why.map(ToOwned::to_owned),
    };
    let why = "the tunnel home-0–cloud-0 is bad, as home-0 sees it";
    RelayChanges {
        node: "home-0".parse().unwrap(),
        location: "home".parse().unwrap(),
        changes: vec![
            change(192_080, RelayChangeKind::Detour, "cloud-1", Some(why)),
            change(191_990, RelayChangeKind::DetourEnded, "cloud-1", None),
            change(30_000, RelayChangeKind::CutOff, "cloud-1", None),
        ],
    }
}

fn report(slot: u8, verdict: Verdict, rows: &[(ProbeClass, u32, u32)]) -> SlotReport {
    SlotReport {
        slot: Slot(slot),
        verdict,
        first_loss: None,
        suspected: None,
        since: ago(192_000),
        rtt: Some(Duration::from_micros(20_140)),
        loss: 0.0,
        path_mtu: Some(1420),
        services: (0, 0),
        evidence: rows
            .iter()
            .map(|&(class, sent, lost)| EvidenceRow {
                class,
                target: None,
                address: None,
                port: None,
                sent,
                lost,
                time_exceeded: 0,
            })
            .collect(),
    }
}

/// `cloud#7`: cloud-0 drops new flows (Kilo issue #489) and cloud-1 takes over.
pub fn failover() -> Event {
    use ProbeClass::{NewFlow, PinnedFlow, Relay};
    let healthy = [(Relay, 12, 0), (NewFlow, 24, 0), (PinnedFlow, 12, 0)];
    let seen = |third: Verdict| {
        vec![
            report(0, NEW_FLOW, &[(Relay, 12, 0), (NewFlow, 24, 24), (PinnedFlow, 12, 0)]),
            report(1, Verdict::Forwarding, &healthy),
            report(2, third, &healthy),
        ]
    };
    Event {
        seq: 7,
        location: "cloud".parse().unwrap(),
        kind: EventKind::Failover,
        epoch: Epoch(2),
        cause: Some(Fault::NewFlow.into()),
        direction: Some(Direction::Forward),
        leaders_before: vec!["cloud-0".parse().unwrap()],
        leaders_after: vec!["cloud-1".parse().unwrap()],
        summary: "cloud-0 drops new flows; cloud-1 forwards and leads now".into(),
        times: EventTimes {
            first_loss: Some(ago(192_140)),
            suspected: Some(ago(192_081)),
            condemned: Some(ago(192_017)),
            committed: Some(ago(192_000)),
            programmed: Some(ago(191_978)),
            verified: Some(ago(191_930)),
        },
        blackout: Some(Duration::from_micros(187_400)),
        blocked_by: [(
            "cloud-2".parse().unwrap(),
            vec!["not seen forwarding by most locations".to_owned()],
        )]
        .into(),
        evidence: [
            ("home-0".parse().unwrap(), seen(Verdict::Forwarding)),
            ("home-1".parse().unwrap(), seen(Verdict::Unknown)),
        ]
        .into(),
        author: None,
    }
}

/// `home#3`: an operator drained home-2.
pub fn drained() -> Event {
    Event {
        seq: 3,
        location: "home".parse().unwrap(),
        kind: EventKind::Operator,
        epoch: Epoch(1),
        cause: None,
        direction: None,
        leaders_before: vec!["home-0".parse().unwrap()],
        leaders_after: vec!["home-0".parse().unwrap()],
        summary: "home-2 drained".into(),
        times: EventTimes { committed: Some(ago(60_000)), ..EventTimes::default() },
        blackout: None,
        blocked_by: Default::default(),
        evidence: Default::default(),
        author: Some(Author::new("home-1".parse().unwrap(), Some("uid 0".to_owned()))),
    }
}
