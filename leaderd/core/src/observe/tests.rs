//! An observer in a small world: real reflectors, virtual time, and a function that decides what becomes of each probe.

use std::collections::BTreeMap;
use std::time::Duration;

use std::net::{IpAddr, SocketAddr};

use super::*;
use crate::fault::Fault;
use crate::io::{Flow, ProbeError, ProbeKind};
use crate::mesh::{Location, MeshSpec, Node, Overlay};
use crate::probe::Reflector;
use crate::probe::stamp::{Ntp, SenderPacket};
use crate::verdict::{Direction, ProbeClass, Verdict};

mod addresses;
mod amplify;
mod calm;
mod detection;
mod families;
mod foreign;
mod forged;
mod service;
mod sources;
mod upkeep;

pub(super) const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

pub(super) const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// What becomes of a probe.
pub(super) enum Fate {
    /// Answered after this round trip.
    Back(Duration),
    Lost,
    /// It arrives, and the answer is lost.
    LostBack,
    Fails(ProbeError, Duration),
    /// A service's TCP connect passes after this time, and nothing after it.
    Connects(Duration),
}

/// A probe as tests see it.
pub(super) struct Seen<'a> {
    pub class: ProbeClass,
    pub via: Option<u8>,
    /// Name of the node that is to answer.
    pub target: &'a str,
    pub address: SocketAddr,
    /// Bytes, headers included.
    pub size: usize,
    pub at: Duration,
    /// Uniform in 0..1.
    pub random: f64,
}

impl Seen<'_> {
    pub(super) fn is_fresh(&self) -> bool {
        self.class.is_new_flow()
    }
    /// Goes through this slot to a node behind it.
    pub(super) fn behind(&self, slot: u8) -> bool {
        self.via == Some(slot) && !self.class.is_of_tunnel()
    }
}

/// What comes back to the observer.
enum Answer {
    Reply(Vec<u8>),
    Error(ProbeError),
    Connected,
    Served(Option<u32>),
}

pub(super) struct World<'n> {
    pub observer: Observer,
    mesh: Arc<Mesh>,
    reflectors: BTreeMap<NodeName, Reflector>,
    network: Box<dyn FnMut(&Seen<'_>) -> Fate + 'n>,
    events: BTreeMap<(Instant, u64), (ProbeId, Answer)>,
    rng: ChaCha8Rng,
    /// What a reflector that is not ours answers to a request.
    pub foreign: fn(&[u8]) -> Vec<u8>,
    /// A source NAT: where a probe seems to come from, if not from where it does.
    pub nat: fn(&Seen<'_>) -> Option<IpAddr>,
    /// The reflectors are of a release that knows no TLV but padding.
    pub older: bool,
    /// A node on the way kept the answers to probes of ten seconds ago, which had the same numbers.
    pub kept: bool,
    pub now: Instant,
    count: u64,
    pub sent: Vec<Instant>,
    /// Long-lived flows that were used.
    pub flows: BTreeSet<u32>,
    /// Bytes that services answer.
    pub answer: u32,
    pub reports: Vec<(Instant, Report)>,
    pub verified: Vec<(Epoch, Option<Duration>)>,
    pub logs: Vec<String>,
}

/// `nodes`: name, location, slot.
pub(super) fn mesh(nodes: &[(&str, &str, Option<u8>)]) -> Mesh {
    let mut mesh = MeshSpec::named("test");
    for (i, (name, location, slot)) in nodes.iter().enumerate() {
        let i = i as u8 + 1;
        let location: LocationName = location.parse().unwrap();
        let name: NodeName = name.parse().unwrap();
        let new = || Location::new(location.clone(), Overlay::Direct);
        mesh.locations.entry(location.clone()).or_insert_with(new);
        let node = Node {
            slot: slot.map(Slot),
            prefixes: vec![format!("10.42.{i}.0/24").parse().unwrap()],
            probe_addresses: vec![[10, 42, i, 1].into()],
            wireguard_key: ProbeKeys::new([i; 32]).public(),
            ..Node::member(name.clone(), i.into(), location, [192, 168, 0, i].into())
        };
        mesh.nodes.insert(name, node);
    }
    Mesh::unchecked(mesh)
}

pub(super) const CLOUD: &[(&str, &str, Option<u8>)] = &[
    ("home-0", "home", Some(0)),
    ("cloud-0", "cloud", Some(0)),
    ("cloud-1", "cloud", Some(1)),
    ("cloud-2", "cloud", Some(2)),
];
pub(super) const CLOUD_AND_MEMBERS: &[(&str, &str, Option<u8>)] = &[
    ("home-0", "home", Some(0)),
    ("cloud-0", "cloud", Some(0)),
    ("cloud-1", "cloud", Some(1)),
    ("cloud-2", "cloud", Some(2)),
    ("cloud-3", "cloud", None),
    ("cloud-4", "cloud", None),
];

pub(super) const PAIR_AND_MEMBER: &[(&str, &str, Option<u8>)] = &[
    ("home-0", "home", Some(0)),
    ("cloud-0", "cloud", Some(0)),
    ("cloud-1", "cloud", Some(1)),
    ("cloud-2", "cloud", None),
];

/// Workloads have IPv6 addresses as well.
pub(super) fn dual_stack(mut mesh: Mesh) -> Mesh {
    mesh.edit().inner.v6 = Some("fd00:7f::/64".parse().unwrap());
    for node in mesh.edit().nodes.values_mut() {
        let prefix: ipnet::Ipv6Net = format!("fd00:42:{}::/64", node.index.0).parse().unwrap();
        node.prefixes.push(prefix.into());
        node.probe_addresses.push(format!("fd00:42:{}::1", node.index.0).parse().unwrap());
    }
    mesh
}

impl<'n> World<'n> {
    pub(super) fn new(mesh: Mesh, seed: u64, network: impl FnMut(&Seen<'_>) -> Fate + 'n) -> Self {
        let mesh = Arc::new(mesh);
        let me: NodeName = "home-0".parse().unwrap();
        let keys = |n: &NodeName| ProbeKeys::new([mesh.nodes[n].index.0 as u8; 32]);
        let reflectors = mesh
            .nodes
            .keys()
            .map(|n| (n.clone(), Reflector::new(mesh.clone(), n.clone(), keys(n))))
            .collect();
        let now = Now { mono: Instant(0), wall: WallTime(1_700_000_000_000_000) };
        let observer = Observer::new(mesh.clone(), me.clone(), keys(&me), seed, now);
        Self {
            observer,
            mesh,
            reflectors,
            network: Box::new(network),
            events: BTreeMap::new(),
            rng: ChaCha8Rng::seed_from_u64(seed ^ 0xfeed),
            foreign: foreign::twamp_light,
            nat: |_| None,
            older: false,
            kept: false,
            now: Instant(0),
            count: 0,
            sent: vec![],
            flows: BTreeSet::new(),
            answer: 200,
            reports: vec![],
            verified: vec![],
            logs: vec![],
        }
    }

    pub(super) fn clock(&self) -> Now {
        Now { mono: self.now, wall: WallTime(1_700_000_000_000_000 + self.now.0) }
    }

    pub(super) fn run_until(&mut self, end: Duration) {
        let end = Instant(0) + end;
        loop {
            self.drain();
            let next = self
                .events
                .keys()
                .next()
                .map(|k| k.0)
                .into_iter()
                .chain(self.observer.poll_timeout())
                .min();
            let Some(next) = next.filter(|n| *n <= end) else { break };
            self.now = self.now.max(next);
            let now = self.clock();
            match self.events.first_entry().filter(|e| e.key().0 <= next) {
                Some(e) => match e.remove() {
                    (id, Answer::Reply(bytes)) => self.observer.handle_reply(now, id, &bytes),
                    (id, Answer::Error(error)) => self.observer.handle_error(now, id, error),
                    (id, Answer::Served(body)) => self.observer.handle_service_reply(now, id, body),
                    (id, Answer::Connected) => self.observer.handle_service_connected(id),
                },
                None => self.observer.handle_timeout(now),
            }
        }
        self.now = end;
    }

    /// The daemon does not run for this long; its timers and what arrives wait.
    pub(super) fn pause(&mut self, length: Duration) {
        self.now = self.now + length;
    }

    fn drain(&mut self) {
        while let Some(output) = self.observer.poll_output() {
            match output {
                ObserverOutput::Send(p) => self.carry(p),
                ObserverOutput::Report(r) => self.reports.push((self.now, r)),
                ObserverOutput::Verified { epoch, blackout, .. } => {
                    self.verified.push((epoch, blackout))
                }
                ObserverOutput::Log { message, .. } => self.logs.push(message),
                ObserverOutput::Forget(_) | ObserverOutput::TunnelsChanged(_) => {}
            }
        }
    }

    /// It is a reflector that runs no leaderd.
    fn is_foreign(&self, address: SocketAddr) -> bool {
        self.mesh.locations.values().any(|l| l.reflectors.contains(&address))
    }

    /// What was sent ten seconds before with the same numbers.
    fn earlier(&self, target: &NodeName, payload: &[u8]) -> Vec<u8> {
        let me = &self.mesh.nodes[&"home-0".parse::<NodeName>().unwrap()];
        let mut keys = ProbeKeys::new([me.index.0 as u8; 32]);
        let key = keys.with(&self.mesh.nodes[target].wireguard_key);
        let mut packet = SenderPacket::decode(payload, Some(&key)).unwrap();
        packet.timestamp.0 -= 10 << 32;
        packet.encode_from(me.index, &key, payload.len())
    }

    fn carry(&mut self, p: ProbeSend) {
        self.sent.push(self.now);
        if let ProbeKind::Stamp { flow: Flow::Pinned(flow), .. } = p.kind {
            self.flows.insert(flow);
        }
        let cloud = "cloud".parse().unwrap();
        let by_address = self.mesh.node_by_address(p.target.ip()).map(|(n, _)| n);
        let target = by_address.or(self.mesh.node_behind(&cloud, p.target.ip())).unwrap();
        let target = target.name.clone();
        let mut packet = p.packet().unwrap_or_default().to_vec();
        if self.kept {
            packet = self.earlier(&target, &packet);
        }
        let random = f64::from(self.rng.next_u32()) / f64::from(u32::MAX);
        let seen = Seen {
            class: p.class,
            via: p.via.map(|s| s.0),
            target: target.as_str(),
            address: p.target,
            size: packet.len() + 28,
            at: self.now.since(Instant(0)),
            random,
        };
        let fate = (self.network)(&seen);
        let from = SocketAddr::new((self.nat)(&seen).unwrap_or(p.source), 40_000);
        let (after, result) = match fate {
            Fate::Lost => return,
            Fate::Fails(error, after) => (after, Answer::Error(error)),
            Fate::Connects(after) => (after, Answer::Connected),
            Fate::Back(rtt) if p.class.is_service() => (rtt, Answer::Served(Some(self.answer))),
            Fate::LostBack if p.class.is_service() => return,
            Fate::Back(rtt) if self.is_foreign(p.target) => {
                (rtt, Answer::Reply((self.foreign)(&packet)))
            }
            Fate::Back(_) | Fate::LostBack => {
                let now = self.clock();
                let reflector = self.reflectors.get_mut(&target).unwrap();
                let bytes = match self.older {
                    false => reflector.handle(now, from, p.target, 62, &packet),
                    true => sources::older(reflector, now, from, p.target, &packet),
                };
                match fate {
                    Fate::Back(rtt) => (rtt, Answer::Reply(bytes.expect("the reflector answers"))),
                    _ => return,
                }
            }
        };
        self.count += 1;
        self.events.insert((self.now + after, self.count), (p.probe, result));
    }

    pub(super) fn verdict(&self, location: &str, slot: u8) -> Verdict {
        let view = self.observer.view(self.clock(), &location.parse().unwrap()).unwrap();
        view.slots.into_iter().find(|s| s.slot == Slot(slot)).unwrap().verdict
    }

    /// Returns when a slot was first reported degraded, with fault and direction.
    pub(super) fn first_degraded(&self, slot: u8) -> Option<(Duration, Fault, Option<Direction>)> {
        self.reports.iter().find_map(|(at, r)| {
            match r.slots.iter().find(|s| s.slot == Slot(slot))?.verdict {
                Verdict::Degraded { cause, direction } => {
                    Some((at.since(Instant(0)), cause, direction))
                }
                _ => None,
            }
        })
    }

    pub(super) fn no_candidate_is_degraded(&self) {
        for slot in 0..3 {
            assert_eq!(self.first_degraded(slot), None, "slot {slot}");
        }
    }
}
