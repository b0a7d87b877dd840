//! A hostile node: it sends any frame, in its own and in others' names, to all nodes, at a bounded rate. It relays packets as it should:
//! no protocol can keep a relay from reading or dropping what it relays.
//!
//! It gives only commands that no node may obey: a location obeys its own nodes and its witnesses.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use leaderd_core::admin::{AdminRequest, AdminResponse, Author};
use leaderd_core::fault::{Fault, MoveReason};
use leaderd_core::ids::{Epoch, Generation, LocationName, NodeName, Slot};
use leaderd_core::io::Input;
use leaderd_core::state::{Command, Decision, LocationState};
use leaderd_core::time::WallTime;
use leaderd_core::verdict::{Direction, EvidenceRow, ProbeClass, Report, SlotReport, Verdict};
use leaderd_core::wire::{Frame, Hello};
use protobuf::{Message as _, ProtobufEnum as _};
use raft::eraftpb::{Entry, EntryType, Message, MessageType};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use super::World;
use super::world::Event;

/// How a hostile node behaves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostileBehaviour {
    pub seed: u32,
    /// Milliseconds between two frames.
    pub every_ms: u32,
    /// Its daemon goes on working.
    pub works: bool,
    /// Raft messages are among its frames. One that votes may then keep its own location from deciding, as any voter of a Raft group
    /// may: see [`KNOWN_LIMIT_HOSTILE_VOTER`](super::model::truth::KNOWN_LIMIT_HOSTILE_VOTER).
    pub raft: bool,
}

/// A hostile node, and its random numbers.
#[derive(Clone, Debug)]
pub struct HostileNode {
    pub behaviour: HostileBehaviour,
    rng: ChaCha8Rng,
}

const REASONS: [MoveReason; 6] = [
    MoveReason::Fault(Fault::TunnelDown),
    MoveReason::Fault(Fault::NotForwarding),
    MoveReason::Promoted,
    MoveReason::Fault(Fault::DaemonDead),
    MoveReason::Initial,
    MoveReason::Reconfigured,
];

impl World {
    pub(super) fn take_over(&mut self, name: &NodeName, behaviour: &HostileBehaviour, on: bool) {
        let rng = ChaCha8Rng::seed_from_u64(behaviour.seed.into());
        let f = self.faults.get_mut(name).expect("a node of the mesh");
        let was = std::mem::replace(
            &mut f.hostile,
            on.then_some(HostileNode { behaviour: behaviour.clone(), rng }),
        );
        if on {
            self.record_commandable(name);
            if !behaviour.works {
                self.kill_daemon(name);
            }
            self.schedule(Duration::ZERO, name, Event::HostileFrame);
        } else if was.is_some() {
            self.kill_daemon(name);
            self.lose_disk(name);
            if !self.faults[name].crashed {
                self.start_daemon(name);
            }
        }
    }

    /// Remembers which locations a hostile node may command, by the newest mesh file: others may have an older one yet.
    fn record_commandable(&mut self, name: &NodeName) {
        let mesh = &self.mesh;
        let locations = mesh
            .locations
            .keys()
            .filter(|l| mesh.nodes[name].location == **l || mesh.voters_of(l).contains(name));
        let locations: Vec<LocationName> = locations.cloned().collect();
        self.commandable.entry(name.clone()).or_default().extend(locations);
    }

    /// Sends one frame that is false.
    pub(super) fn send_hostile_frame(&mut self, name: &NodeName) {
        let Some(mut hostile) = self.faults[name].hostile.clone() else { return };
        self.schedule(
            Duration::from_millis(hostile.behaviour.every_ms.into()),
            name,
            Event::HostileFrame,
        );
        self.record_commandable(name);
        let others: Vec<NodeName> =
            self.mesh.nodes.keys().filter(|n| *n != name).cloned().collect();
        let to = others[pick(&mut hostile.rng, others.len())].clone();
        let forger = FrameForger { world: self, me: name };
        let (frame, forged_decisions) = forger.frame(&mut hostile);
        self.forged_decisions.extend(forged_decisions);
        self.faults.get_mut(name).expect("a node of the mesh").hostile = Some(hostile);
        let connected =
            self.nodes[&to].connections.contains_key(name) && self.control_passes(name, &to);
        // A frame that cannot be decoded does not reach the core.
        if let Ok(frame) = Frame::decode(&frame.encode())
            && connected
        {
            let delay = self.one_way(name, &to);
            let input = Input::Frame { from: name.clone(), frame: Box::new(frame) };
            self.schedule(delay, &to, Event::Input(input));
        }
    }
}

struct FrameForger<'a> {
    world: &'a World,
    me: &'a NodeName,
}

impl FrameForger<'_> {
    /// Returns a frame, and the decisions in it.
    fn frame(&self, hostile: &mut HostileNode) -> (Frame, Vec<Decision>) {
        let kinds = if hostile.behaviour.raft { 13 } else { 10 };
        let rng = &mut hostile.rng;
        let mut forged_decisions = Vec::new();
        let frame = match pick(rng, kinds) {
            0 => {
                let decision = self.decision(rng);
                forged_decisions.push(decision.clone());
                Frame::Announce { decision, proof: Default::default(), event: None }
            }
            1 | 2 => Frame::Report(self.report(rng)),
            3 => self.ack(rng),
            4 | 5 => {
                let hello = self.hello(rng);
                forged_decisions.extend(hello.decision.iter().chain(&hello.remote).cloned());
                Frame::Hello(hello)
            }
            6 => {
                let frame = match pick(rng, 2) {
                    0 => Frame::Report(self.report(rng)),
                    _ => self.ack(rng),
                };
                Frame::Relayed { from: self.node(rng), frame: Box::new(frame) }
            }
            7 => self.command(rng),
            8 => {
                let message = "done".to_owned();
                let location = self.location(rng);
                let response = AdminResponse::Done { location, epoch: Epoch(1), message };
                Frame::Forwarded { id: rng.next_u64() % 4, response }
            }
            9 => match pick(rng, 2) {
                0 => {
                    let address = IpAddr::V4(Ipv4Addr::new(10, 1 + pick(rng, 3) as u8, 0, 1));
                    Frame::Addresses(vec![(self.node(rng), vec![address])])
                }
                _ => Frame::Uncarried { mesh_hash: [7; 8], locations: vec![self.location(rng)] },
            },
            _ => Frame::Raft { location: self.location(rng), message: self.raft(rng) },
        };
        (frame, forged_decisions)
    }

    fn node(&self, rng: &mut ChaCha8Rng) -> NodeName {
        let nodes = &self.world.mesh.nodes;
        match pick(rng, 2) {
            0 => self.me.clone(),
            _ => nodes.keys().nth(pick(rng, nodes.len())).expect("one of them").clone(),
        }
    }

    fn location(&self, rng: &mut ChaCha8Rng) -> LocationName {
        let locations = &self.world.mesh.locations;
        match pick(rng, 2) {
            0 => self.world.mesh.nodes[self.me].location.clone(),
            _ => locations.keys().nth(pick(rng, locations.len())).expect("one of them").clone(),
        }
    }

    /// Returns an epoch near the location's, or far away.
    fn epoch(&self, rng: &mut ChaCha8Rng, location: &LocationName) -> Epoch {
        let cores = self.world.nodes.values().filter_map(|n| n.core.as_ref());
        let known = cores.filter_map(|c| c.decision(location)).map(|d| d.epoch.0).max();
        let known = known.unwrap_or(0);
        Epoch(match pick(rng, 8) {
            0 => 0,
            1 => known,
            2..=4 => known + 1,
            5 => known + 2,
            6 => known + (1 << 20),
            _ => u64::MAX - pick(rng, 2) as u64,
        })
    }

    fn time(&self, rng: &mut ChaCha8Rng) -> WallTime {
        let now = self.world.now().wall.0;
        WallTime([now, now - 1_000_000, now + 3_600_000_000, 0, u64::MAX][pick(rng, 5)])
    }

    fn slot(rng: &mut ChaCha8Rng) -> Slot {
        Slot([0, 1, 2, 2, 15][pick(rng, 5)])
    }

    fn decision(&self, rng: &mut ChaCha8Rng) -> Decision {
        let location = self.location(rng);
        Decision {
            epoch: self.epoch(rng, &location),
            location,
            leaders: vec![Self::slot(rng)],
            cause: REASONS[pick(rng, REASONS.len())],
            // No true decision has this time.
            at: WallTime(self.world.now().wall.0 + 1 + u64::from(rng.next_u32() % 1000)),
        }
    }

    fn report(&self, rng: &mut ChaCha8Rng) -> Report {
        let location = self.location(rng);
        let ranking = self.world.mesh.ranking(&location);
        let slots = ranking.into_iter().map(|slot| {
            let cause = REASONS[pick(rng, REASONS.len())].fault().unwrap_or(Fault::Loss);
            let verdict = match pick(rng, 4) {
                0 => Verdict::Forwarding,
                1 => Verdict::Unknown,
                _ => Verdict::Degraded { cause, direction: Some(Direction::Forward) },
            };
            SlotReport {
                slot,
                verdict,
                first_loss: Some(self.time(rng)),
                suspected: Some(self.time(rng)),
                since: self.time(rng),
                rtt: Some([Duration::ZERO, Duration::from_secs(3), Duration::MAX][pick(rng, 3)]),
                loss: [0.0, 1.0, f32::NAN, f32::INFINITY][pick(rng, 4)],
                path_mtu: Some([0, 1420, u16::MAX][pick(rng, 3)]),
                services: (0, 255),
                evidence: vec![EvidenceRow {
                    class: ProbeClass::NewFlow,
                    target: Some(self.node(rng)),
                    address: None,
                    port: None,
                    sent: 4,
                    lost: u32::MAX,
                    time_exceeded: 0,
                }],
            }
        });
        let slots = slots.collect();
        let seq = [1, rng.next_u64() >> 32, u64::MAX][pick(rng, 3)];
        let epoch = self.epoch(rng, &location);
        let observer = self.node(rng);
        Report {
            observer,
            location,
            seq,
            epoch,
            abstains: pick(rng, 8) == 0,
            full_rate: true,
            slots,
        }
    }

    fn ack(&self, rng: &mut ChaCha8Rng) -> Frame {
        let location = self.location(rng);
        let epoch = self.epoch(rng, &location);
        let at = self.time(rng);
        match pick(rng, 2) {
            0 => Frame::Ack { location, epoch, programmed_at: at },
            _ => Frame::Verified { location, epoch, at, blackout_micros: Some(rng.next_u64()) },
        }
    }

    fn hello(&self, rng: &mut ChaCha8Rng) -> Hello {
        let generation = self.world.mesh.generation.0;
        Hello {
            node: self.node(rng),
            capabilities: Default::default(),
            generation: Generation([generation, generation + 1, u64::MAX][pick(rng, 3)]),
            mesh_hash: [7; 8],
            proof: Default::default(),
            decision: Some(self.decision(rng)),
            raft_leader: Some(self.node(rng)),
            broken: [None, Some(Fault::SelfReported)][pick(rng, 2)],
            reaches: [vec![], vec![Slot(0)], vec![Slot(1), Slot(2)]][pick(rng, 3)].clone(),
            digest: Vec::new(),
            remote: vec![self.decision(rng)],
        }
    }

    /// Returns a command for a location that the node may not command; where there is none, a report.
    fn command(&self, rng: &mut ChaCha8Rng) -> Frame {
        let mesh = &self.world.mesh;
        let commandable = &self.world.commandable[self.me];
        let foreign: Vec<_> =
            mesh.nodes.values().filter(|n| !commandable.contains(&n.location)).collect();
        if foreign.is_empty() {
            return Frame::Report(self.report(rng));
        }
        let of = foreign[pick(rng, foreign.len())];
        let (node, location) = (of.name.clone(), of.location.clone());
        let request = match pick(rng, 4) {
            0 => AdminRequest::Promote { node, force: true },
            1 => AdminRequest::Drain { node },
            2 => AdminRequest::Freeze { location, duration: None },
            _ => AdminRequest::Freeze { location, duration: Some(Duration::MAX) },
        };
        let author = Author::new(self.node(rng), None);
        Frame::Forward { id: rng.next_u64(), author, request }
    }

    fn raft(&self, rng: &mut ChaCha8Rng) -> Vec<u8> {
        let index = |name: &NodeName| u64::from(self.world.mesh.nodes[name].index.0);
        let number = |rng: &mut ChaCha8Rng| match pick(rng, 8) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << 40,
            _ => u64::from(rng.next_u32() % 64),
        };
        let mut message = Message::default();
        message.set_msg_type(MessageType::values()[pick(rng, MessageType::values().len())]);
        message.from = index(&self.node(rng));
        message.to = index(&self.node(rng));
        message.term = number(rng);
        message.log_term = number(rng);
        message.index = number(rng);
        message.commit = number(rng);
        message.reject = pick(rng, 2) == 0;
        message.reject_hint = number(rng);
        if pick(rng, 4) == 0 {
            message.context = b"CampaignTransfer".to_vec().into();
        }
        for n in 0..pick(rng, 3) as u64 {
            let mut entry = Entry {
                index: message.index.wrapping_add(n + 1),
                term: message.term,
                ..Default::default()
            };
            entry.set_entry_type(EntryType::values()[pick(rng, 3)]);
            let command = Command::Drain { node: self.node(rng) };
            entry.data = match pick(rng, 3) {
                0 => vec![1, 2, 3].into(),
                _ => command.encode(command.needs()).into(),
            };
            message.entries.push(entry);
        }
        if message.get_msg_type() == MessageType::MsgSnapshot {
            let snapshot = message.mut_snapshot();
            snapshot.data = LocationState::new(self.location(rng)).encode().into();
            let meta = snapshot.mut_metadata();
            (meta.index, meta.term) = (number(rng), number(rng));
            meta.mut_conf_state().voters = vec![index(self.me), number(rng)];
            meta.mut_conf_state().auto_leave = pick(rng, 2) == 0;
        }
        message.write_to_bytes().expect("protobuf writes to memory")
    }
}

fn pick(rng: &mut ChaCha8Rng, of: usize) -> usize {
    rng.next_u32() as usize % of
}
