//! The worst that a node of the mesh may send: every kind of frame, as large as allowed, with something new in each.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use leaderd_core::admin::{AdminRequest, Author};
use leaderd_core::fault::Fault;
use leaderd_core::ids::{Epoch, LocationName, NodeName, Slot};
use leaderd_core::relay_pair::{Detour, TunnelRow, TunnelState};
use leaderd_core::state::{Decision, Event, EventKind};
use leaderd_core::status::CandidateStatus;
use leaderd_core::time::WallTime;
use leaderd_core::verdict::{EvidenceRow, ProbeClass, Report, SlotReport, Verdict};
use leaderd_core::wire::limits::{MAX_DETOURS, MAX_REPORT_ROWS, MAX_TEXT, MAX_TEXTS};
use leaderd_core::wire::{Frame, Hello};

fn name(s: &str) -> NodeName {
    s.parse().expect("a name")
}

fn long(n: usize) -> NodeName {
    name(&format!("{n:0>63}"))
}

/// A hostile node.
#[derive(Debug)]
pub struct WorstPeer {
    pub from: NodeName,
    pub location: LocationName,
    /// Counts what it sent.
    sent: u64,
}

impl WorstPeer {
    pub fn new(from: NodeName, location: LocationName) -> Self {
        Self { from, location, sent: 0 }
    }

    /// All kinds of frames that it may send, each as large as it may be. `known`: what its location has decided.
    pub fn frames(&mut self, known: &Option<Decision>, now: WallTime) -> Vec<Frame> {
        self.sent += 1;
        let cloud: LocationName = "cloud".parse().expect("a name");
        let mut frames = Vec::new();
        for location in [&cloud, &self.location] {
            let report = self.report(&self.from, location);
            frames.push(Frame::Relayed {
                from: long(0),
                frame: Box::new(Frame::Report(self.report(&long(0), location))),
            });
            frames.push(Frame::Report(report));
        }
        if let Some(decision) = known {
            frames.push(Frame::Hello(self.hello(decision)));
            frames.push(self.announcement(decision.clone()));
        }
        frames.push(Frame::Ack { location: cloud.clone(), epoch: Epoch(1), programmed_at: now });
        frames.push(Frame::Verified {
            location: cloud.clone(),
            epoch: Epoch(1),
            at: now,
            blackout_micros: Some(1),
        });
        let address = IpAddr::from([10, 1, 0, 1]);
        frames.push(Frame::Addresses((0..128).map(|n| (long(n), vec![address; 8])).collect()));
        let elsewhere = (0..1000).map(|n| long(n).as_str().parse().expect("a name")).collect();
        frames.push(Frame::Uncarried { mesh_hash: [7; 8], locations: elsewhere });
        // Alternates, so that it is always news.
        let state = if self.sent.is_multiple_of(2) { TunnelState::Bad } else { TunnelState::Good };
        let row = TunnelRow::UNKNOWN.with(Slot(0), state);
        frames.push(Frame::Tunnels {
            location: cloud.clone(),
            row,
            heard: (0..15).map(|n| (Slot(n), row)).collect(),
        });
        let detour = |n: usize| Detour {
            location: long(n).as_str().parse().expect("a name"),
            near: Slot(14),
            far: Slot(14),
        };
        frames.push(Frame::Detours((0..MAX_DETOURS).map(detour).collect()));
        // Refused in words: what it may do with success is to steer its location.
        frames.push(Frame::Forward {
            id: self.sent,
            author: Author::new(self.from.clone(), None),
            request: AdminRequest::Promote { node: name("cloud-3"), force: true },
        });
        frames.push(Frame::Forward {
            id: self.sent,
            author: Author::new(self.from.clone(), None),
            request: AdminRequest::Undrain { node: name("cloud-1") },
        });
        frames.push(Frame::Raft { location: cloud, message: vec![0x62; 300 << 10] });
        for frame in frames.iter().filter(|_| self.sent == 1) {
            // Nothing is refused for its size alone.
            Frame::decode(&frame.encode()).expect("it is read");
        }
        frames
    }

    fn rows(&self, n: usize) -> Vec<EvidenceRow> {
        let row = |n| EvidenceRow {
            class: ProbeClass::NewFlow,
            target: Some(long(n)),
            address: Some(IpAddr::from([0xffff; 8])),
            port: Some(9),
            sent: 1000,
            lost: 1000,
            time_exceeded: 0,
        };
        (0..n).map(row).collect()
    }

    fn slot(&self, world_time: u64, slot: u8, rows: usize) -> SlotReport {
        SlotReport {
            slot: Slot(slot),
            // Alternates, so that it is always news.
            verdict: match (world_time + u64::from(slot)) % 2 {
                0 => Verdict::Forwarding,
                _ => Verdict::Degraded { cause: Fault::Loss, direction: None },
            },
            first_loss: None,
            suspected: None,
            since: Default::default(),
            rtt: Some(Duration::from_secs(60)),
            loss: 1.0,
            path_mtu: Some(1),
            services: (0, 255),
            evidence: self.rows(rows),
        }
    }

    fn report(&self, observer: &NodeName, location: &LocationName) -> Report {
        Report {
            observer: observer.clone(),
            location: location.clone(),
            seq: (1 << 40) + self.sent,
            epoch: Epoch(1),
            abstains: false,
            full_rate: true,
            slots: (0..15).map(|n| self.slot(self.sent, n, MAX_REPORT_ROWS / 15)).collect(),
        }
    }

    fn hello(&self, decision: &Decision) -> Hello {
        let status = |n: usize| CandidateStatus {
            name: long(n),
            slot: Slot(n as u8),
            leading: true,
            verdict: Verdict::Unknown,
            observers: (1, 1),
            rtt_ms: None,
            loss: None,
            path_mtu: None,
            services: None,
            drained: false,
            blocked_by: vec!["x".repeat(MAX_TEXT / 5); MAX_TEXTS],
        };
        Hello {
            proof: Default::default(),
            node: self.from.clone(),
            capabilities: leaderd_core::capability::Capabilities::OURS,
            generation: Default::default(),
            mesh_hash: [7; 8],
            decision: Some(decision.clone()),
            raft_leader: Some(self.from.clone()),
            broken: None,
            reaches: (0..15).map(Slot).collect(),
            digest: (0..15).map(status).collect(),
            remote: vec![decision.clone(); 16],
        }
    }

    fn announcement(&self, decision: Decision) -> Frame {
        let event = Event {
            seq: self.sent,
            location: decision.location.clone(),
            kind: EventKind::Failover,
            epoch: decision.epoch,
            cause: None,
            direction: None,
            leaders_before: (0..15).map(long).collect(),
            leaders_after: (0..15).map(long).collect(),
            summary: "x".repeat(300),
            times: Default::default(),
            blackout: Some(Duration::from_secs(1)),
            blocked_by: BTreeMap::new(),
            evidence: [(long(0), (0..15).map(|n| self.slot(0, n, 14)).collect())].into(),
            author: None,
        };
        assert!(event.is_within_bounds() && event.size() > 20 << 10, "{}", event.size());
        Frame::Announce { decision, proof: Default::default(), event: Some(Box::new(event)) }
    }
}
