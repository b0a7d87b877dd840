//! Frames that an authenticated node may make up: right in most of what they say, so that they get far, and wrong in the rest.

use leaderd_core::admin::{AdminRequest, AdminResponse, Author};
use leaderd_core::capability::Capabilities;
use leaderd_core::fault::{Fault, MoveReason};
use leaderd_core::ids::{Epoch, Generation, LocationName, NodeName, Slot};
use leaderd_core::mesh::Mesh;
use leaderd_core::proof::{Signed, Signer, Statement, VoterSet};
use leaderd_core::relay_pair::{Detour, TunnelRow, TunnelState};
use leaderd_core::state::{
    Command, Decision, Event, EventKind, EventTimes, FreezeEnd, LocationState,
};
use leaderd_core::status::CandidateStatus;
use leaderd_core::time::WallTime;
use leaderd_core::verdict::{Direction, EvidenceRow, ProbeClass, Report, SlotReport, Verdict};
use leaderd_core::wire::{Frame, Hello};
use protobuf::Message as _;
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeType, ConfChangeV2, Entry, EntryType, Message, MessageType,
    Snapshot,
};

use super::source::Source;

/// What a frame is made up from: the choices, and what is true at the moment.
pub(super) struct Maker<'s, 'b, 'm> {
    pub source: &'s mut Source<'b>,
    pub mesh: &'m Mesh,
    pub wall: WallTime,
    pub from: NodeName,
    pub to: NodeName,
    /// With the sender's key.
    pub signer: Signer,
}

const MESSAGES: [MessageType; 12] = [
    MessageType::MsgAppend,
    MessageType::MsgAppend,
    MessageType::MsgHeartbeat,
    MessageType::MsgSnapshot,
    MessageType::MsgRequestVote,
    MessageType::MsgRequestVoteResponse,
    MessageType::MsgRequestPreVote,
    MessageType::MsgRequestPreVoteResponse,
    MessageType::MsgAppendResponse,
    MessageType::MsgHeartbeatResponse,
    MessageType::MsgTimeoutNow,
    MessageType::MsgTransferLeader,
];

impl Maker<'_, '_, '_> {
    pub fn frame(&mut self) -> Frame {
        match self.source.byte() % 16 {
            0..=3 => Frame::Report(self.report()),
            4 | 5 => {
                let decision = self.decision();
                let event = self.source.once_in(2).then(|| Box::new(self.event(&decision)));
                Frame::Announce { decision, proof: Default::default(), event }
            }
            6 => self.ack(),
            7 => self.verified(),
            8 | 9 => Frame::Hello(self.hello()),
            10 => {
                let from = self.node();
                let frame = match self.source.byte() % 4 {
                    0 => self.ack(),
                    1 => self.verified(),
                    _ => Frame::Report(Report { observer: from.clone(), ..self.report() }),
                };
                Frame::Relayed { from, frame: Box::new(frame) }
            }
            11 => Frame::Forward {
                id: self.source.number(),
                author: self.author(),
                request: self.request(),
            },
            12 => Frame::Forwarded { id: self.source.number(), response: self.response() },
            13 if self.source.once_in(2) => {
                let mesh_hash = self.hash();
                let locations = (0..self.source.below(3)).map(|_| self.location()).collect();
                Frame::Uncarried { mesh_hash, locations }
            }
            13 => {
                let list = (0..self.source.below(4)).map(|_| (self.node(), self.addresses()));
                Frame::Addresses(list.collect())
            }
            14 if self.source.once_in(2) => self.signed(),
            14 if self.source.once_in(2) => {
                let (location, row) = (self.location(), self.tunnel_row());
                let heard = (0..self.source.below(3)).map(|_| (self.slot(), self.tunnel_row()));
                Frame::Tunnels { location, row, heard: heard.collect() }
            }
            14 => {
                let detour = |this: &mut Self| Detour {
                    location: this.location(),
                    near: this.slot(),
                    far: this.slot(),
                };
                Frame::Detours((0..self.source.below(3)).map(|_| detour(self)).collect())
            }
            _ => {
                let location = self.location();
                let message = self.raft(&location).write_to_bytes().expect("memory takes it");
                Frame::Raft { location, message }
            }
        }
    }

    fn tunnel_row(&mut self) -> TunnelRow {
        const STATES: [TunnelState; 4] =
            [TunnelState::Good, TunnelState::Lossy, TunnelState::Unknown, TunnelState::Bad];
        let row = (0..3)
            .fold(TunnelRow::UNKNOWN, |row, slot| row.with(Slot(slot), self.source.pick(&STATES)));
        row.avoiding(self.source.once_in(8))
    }

    fn author(&mut self) -> Author {
        let node = if self.source.once_in(4) { self.node() } else { self.from.clone() };
        let user = self.source.option(Source::text);
        Author { node, user, through: self.source.once_in(4).then(|| self.node()) }
    }

    /// Signatures with its own key, of what was decided or of what was not.
    fn signed(&mut self) -> Frame {
        let decision = self.decision();
        let set = VoterSet::of(self.mesh, &decision.location);
        let signature = self.signer.sign(&Statement::decision(&self.mesh.name, &decision, &set));
        let voter = if self.source.once_in(8) { self.node() } else { self.from.clone() };
        let signed = Signed { voter, set: set.id(), signature };
        let epoch = if self.source.once_in(8) { self.epoch() } else { decision.epoch };
        let signatures = vec![signed; self.source.below(4)];
        Frame::Signed { location: decision.location, epoch, signatures }
    }

    fn node(&mut self) -> NodeName {
        let names: Vec<NodeName> = self.mesh.nodes.keys().cloned().collect();
        match self.source.byte() % 16 {
            0 => "a-stranger".parse().expect("a name"),
            1 => "x".repeat(63).parse().expect("a name"),
            _ => self.source.pick(&names),
        }
    }

    fn location(&mut self) -> LocationName {
        let names: Vec<LocationName> = self.mesh.locations.keys().cloned().collect();
        if self.source.once_in(16) {
            "elsewhere".parse().expect("a name")
        } else {
            self.source.pick(&names)
        }
    }

    fn slot(&mut self) -> Slot {
        Slot(if self.source.once_in(16) { self.source.byte() } else { self.source.byte() % 3 })
    }

    fn epoch(&mut self) -> Epoch {
        Epoch(if self.source.once_in(2) {
            u64::from(self.source.byte() % 4)
        } else {
            self.source.number()
        })
    }

    fn freeze_end(&mut self) -> FreezeEnd {
        FreezeEnd { until: self.time(), span: self.source.duration() }
    }

    fn time(&mut self) -> WallTime {
        let now = self.wall.0;
        match self.source.byte() % 8 {
            0..=4 => WallTime(now - u64::from(self.source.byte()) * 10_000),
            5 => WallTime(now + u64::from(self.source.byte()) * 1_000_000),
            _ => WallTime(self.source.number()),
        }
    }

    fn hash(&mut self) -> [u8; 8] {
        if self.source.once_in(4) {
            return [self.source.byte(); 8];
        }
        std::array::from_fn(|i| self.mesh.hash[i])
    }

    fn addresses(&mut self) -> Vec<std::net::IpAddr> {
        let nodes: Vec<_> =
            self.mesh.nodes.values().flat_map(|n| n.probe_addresses.clone()).collect();
        self.source.list(3, |s| {
            if s.once_in(4) {
                std::net::IpAddr::from([s.byte(), 0, 0, s.byte()])
            } else {
                s.pick(&nodes)
            }
        })
    }

    fn verdict(&mut self) -> Verdict {
        match self.source.byte() % 8 {
            0 => Verdict::Unknown,
            1 => Verdict::Suspected,
            2..=4 => Verdict::Forwarding,
            _ => Verdict::Degraded {
                cause: fault(self.source),
                direction: self.source.option(|s| s.pick(&[Direction::Forward, Direction::Return])),
            },
        }
    }

    fn report(&mut self) -> Report {
        let observer = if self.source.once_in(16) { self.node() } else { self.from.clone() };
        let location = if self.source.once_in(4) {
            self.location()
        } else {
            self.mesh.nodes[&self.to].location.clone()
        };
        let slots = if self.source.once_in(4) {
            (0..self.source.below(18)).map(|_| self.slot_report()).collect()
        } else {
            (0..3).map(|n| SlotReport { slot: Slot(n), ..self.slot_report() }).collect()
        };
        Report {
            observer,
            location,
            seq: 1_000_u64.wrapping_add(self.source.number()),
            epoch: self.epoch(),
            abstains: self.source.once_in(8),
            full_rate: !self.source.once_in(4),
            slots,
        }
    }

    fn slot_report(&mut self) -> SlotReport {
        let rows = if self.source.once_in(16) { 140 } else { self.source.below(4) };
        let row = self.row();
        SlotReport {
            slot: self.slot(),
            verdict: self.verdict(),
            first_loss: self.source.once_in(2).then(|| self.time()),
            suspected: self.source.once_in(2).then(|| self.time()),
            since: self.time(),
            rtt: self.source.option(Source::duration),
            loss: self.source.share(),
            path_mtu: self.source.option(|s| s.small() as u16),
            services: (self.source.byte() % 4, self.source.byte()),
            evidence: vec![row; rows],
        }
    }

    fn row(&mut self) -> EvidenceRow {
        let sent = self.source.small();
        EvidenceRow {
            class: self.source.pick(&ProbeClass::ALL),
            target: self.source.once_in(2).then(|| self.node()),
            address: self.source.option(|s| std::net::IpAddr::from([10, 1, 0, s.byte()])),
            port: self.source.option(|s| u16::from(s.byte())),
            sent,
            lost: if self.source.once_in(8) { self.source.small() } else { sent },
            time_exceeded: self.source.small().min(sent),
        }
    }

    fn decision(&mut self) -> Decision {
        Decision {
            location: if self.source.once_in(4) {
                self.location()
            } else {
                self.mesh.nodes[&self.from].location.clone()
            },
            epoch: self.epoch(),
            leaders: (0..self.source.below(4)).map(|_| self.slot()).collect(),
            cause: reason(self.source),
            at: self.time(),
        }
    }

    fn event(&mut self, of: &Decision) -> Event {
        let kinds = [
            EventKind::Failover,
            EventKind::Move,
            EventKind::FailStatic,
            EventKind::Operator,
            EventKind::Notice,
        ];
        let observers = if self.source.once_in(16) { 12 } else { self.source.below(3) };
        let evidence = (0..observers)
            .map(|_| (self.node(), (0..self.source.below(4)).map(|_| self.slot_report()).collect()))
            .collect();
        let times = EventTimes {
            first_loss: self.source.once_in(2).then(|| self.time()),
            suspected: self.source.once_in(2).then(|| self.time()),
            condemned: self.source.once_in(2).then(|| self.time()),
            committed: self.source.once_in(2).then(|| self.time()),
            programmed: self.source.once_in(2).then(|| self.time()),
            verified: self.source.once_in(2).then(|| self.time()),
        };
        Event {
            seq: self.source.number(),
            location: if self.source.once_in(8) { self.location() } else { of.location.clone() },
            kind: self.source.pick(&kinds),
            epoch: if self.source.once_in(8) { self.epoch() } else { of.epoch },
            cause: self.source.option(reason),
            direction: None,
            leaders_before: (0..self.source.below(3)).map(|_| self.node()).collect(),
            leaders_after: (0..self.source.below(3)).map(|_| self.node()).collect(),
            summary: self.source.text(),
            times,
            blackout: self.source.option(Source::duration),
            blocked_by: (0..self.source.below(3))
                .map(|_| (self.node(), self.source.list(3, Source::text)))
                .collect(),
            evidence,
            author: self.source.once_in(4).then(|| self.author()),
        }
    }

    fn ack(&mut self) -> Frame {
        let (location, epoch) = (self.location(), self.epoch());
        Frame::Ack { location, epoch, programmed_at: self.time() }
    }

    fn verified(&mut self) -> Frame {
        let (location, epoch, at) = (self.location(), self.epoch(), self.time());
        Frame::Verified { location, epoch, at, blackout_micros: self.source.option(Source::number) }
    }

    fn hello(&mut self) -> Hello {
        Hello {
            node: if self.source.once_in(16) { self.node() } else { self.from.clone() },
            capabilities: Capabilities::OURS,
            generation: Generation(self.source.number()),
            mesh_hash: self.hash(),
            proof: Default::default(),
            decision: self.source.once_in(2).then(|| self.decision()),
            raft_leader: self.source.once_in(2).then(|| self.node()),
            broken: self.source.once_in(4).then(|| fault(self.source)),
            reaches: (0..self.source.below(4)).map(|_| self.slot()).collect(),
            digest: (0..self.source.below(3)).map(|_| self.status()).collect(),
            remote: (0..self.source.below(3)).map(|_| self.decision()).collect(),
        }
    }

    fn status(&mut self) -> CandidateStatus {
        CandidateStatus {
            name: self.node(),
            slot: self.slot(),
            leading: self.source.once_in(2),
            verdict: self.verdict(),
            observers: (self.source.byte().into(), self.source.byte().into()),
            rtt_ms: self.source.option(|s| f64::from(s.share()) * 1e6),
            loss: self.source.option(Source::share),
            path_mtu: None,
            services: self.source.option(|s| (s.byte(), s.byte())),
            drained: self.source.once_in(2),
            blocked_by: self.source.list(3, Source::text),
        }
    }

    pub fn request(&mut self) -> AdminRequest {
        match self.source.byte() % 5 {
            0 => AdminRequest::Promote { node: self.node(), force: self.source.once_in(2) },
            1 => AdminRequest::Drain { node: self.node() },
            2 => AdminRequest::Undrain { node: self.node() },
            3 => AdminRequest::Freeze {
                location: self.location(),
                duration: self.source.option(Source::duration),
            },
            _ => AdminRequest::Unfreeze { location: self.location() },
        }
    }

    fn response(&mut self) -> AdminResponse {
        let message = self.source.text();
        match self.source.byte() % 2 {
            0 => AdminResponse::Refused { message },
            _ => AdminResponse::Done { location: self.location(), epoch: self.epoch(), message },
        }
    }

    fn id(&self, of: &NodeName) -> u64 {
        u64::from(self.mesh.nodes[of].index.0)
    }

    /// Terms and indexes are small, as they are in a young group.
    fn near(&mut self) -> u64 {
        if self.source.once_in(8) {
            self.source.number()
        } else {
            u64::from(self.source.byte() % 12)
        }
    }

    fn raft(&mut self, location: &LocationName) -> Message {
        let mut m = Message::default();
        m.set_msg_type(self.source.pick(&MESSAGES));
        m.from = self.id(&self.from);
        m.to = self.id(&self.to);
        (m.term, m.index, m.log_term, m.commit) =
            (self.near(), self.near(), self.near(), self.near());
        m.reject = self.source.once_in(4);
        m.reject_hint = self.near();
        let entries = match m.get_msg_type() {
            MessageType::MsgAppend => self.source.below(4),
            _ => 0,
        };
        let mut index = m.index;
        for _ in 0..entries {
            index = if self.source.once_in(8) { self.near() } else { index.saturating_add(1) };
            let mut entry = Entry { index, ..Default::default() };
            entry.term = if self.source.once_in(4) { self.near() } else { m.term };
            if self.source.once_in(4) {
                entry.set_entry_type(EntryType::EntryConfChangeV2);
                entry.data = self.change().write_to_bytes().expect("memory takes it").into();
            } else {
                entry.data = self.entry().into();
            }
            m.mut_entries().push(entry);
        }
        if m.get_msg_type() == MessageType::MsgSnapshot {
            let state = self.state(location);
            let mut snapshot = Snapshot { data: state.into(), ..Default::default() };
            let (index, term) = (self.near(), self.near());
            let voters = if self.source.once_in(4) { vec![1, 2] } else { vec![1, 2, 3, 4] };
            let meta = snapshot.mut_metadata();
            (meta.index, meta.term) = (index, term);
            meta.mut_conf_state().voters = voters;
            meta.mut_conf_state().auto_leave = self.source.once_in(8);
            m.set_snapshot(snapshot);
        }
        m
    }

    fn change(&mut self) -> ConfChangeV2 {
        let mut change = ConfChangeV2::default();
        for _ in 0..self.source.below(3) {
            let mut single = ConfChangeSingle { node_id: self.near(), ..Default::default() };
            single.set_change_type(self.source.pick(&[
                ConfChangeType::AddNode,
                ConfChangeType::RemoveNode,
                ConfChangeType::AddLearnerNode,
            ]));
            change.mut_changes().push(single);
        }
        change
    }

    fn entry(&mut self) -> Vec<u8> {
        let decision = self.decision();
        let event = Box::new(self.event(&decision));
        let command = match self.source.byte() % 8 {
            0 => Command::Drain { node: self.node() },
            1 => Command::Freeze { until: self.source.once_in(2).then(|| self.freeze_end()) },
            2 => Command::Record { event },
            3 => Command::Complete {
                epoch: self.epoch(),
                times: event.times,
                blackout: event.blackout,
            },
            4 => return self.source.bytes(20),
            5 => return Vec::new(),
            _ => Command::Decide { expected_epoch: self.epoch(), decision, event },
        };
        command.encode(Capabilities::NONE)
    }

    fn state(&mut self, location: &LocationName) -> Vec<u8> {
        let mut state = LocationState::new(location.clone());
        let decision = self.decision();
        for _ in 0..self.source.below(3) {
            let event = self.event(&decision);
            state.events.push_back(event);
        }
        state.decision = self.source.once_in(2).then_some(decision);
        state.last_seq = self.source.number();
        state.frozen =
            self.source.once_in(4).then(|| self.source.once_in(2).then(|| self.freeze_end()));
        state.encode()
    }
}

fn reason(source: &mut Source<'_>) -> MoveReason {
    source.pick(&MoveReason::ALL)
}

fn fault(source: &mut Source<'_>) -> Fault {
    let faults: Vec<Fault> = MoveReason::ALL.into_iter().filter_map(MoveReason::fault).collect();
    source.pick(&faults)
}
