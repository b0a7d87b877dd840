//! Delivers what nodes send: probes along the nodes' routes, frames over the control channel.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use leaderd_core::ids::{NodeName, Slot};
use leaderd_core::io::{Flow, Input, ProbeError, ProbeKind, ProbeSend};
use leaderd_core::mesh::plane;
use leaderd_core::wire::Frame;

use super::Faults;
use super::kernel::RING;
use super::link::Link;
use super::path::{Fate, PAUSED, Packet};
use super::world::{Event, World};

/// IPv4 and UDP headers.
const HEADERS: usize = 28;
/// The control channel notices this long after a path broke.
const PEER_DOWN_AFTER: Duration = Duration::from_secs(3);
/// Fresh flows come from ports from here on, pinned ones from below.
const FIRST_FRESH_PORT: u16 = 20_000;
/// Requests that wait for an answer; some are never answered. What is forgotten then is a new flow again.
const MAX_REQUESTS: usize = 4096;
/// Times that QUIC sends a frame before it counts as lost here.
const TRIES: u32 = 8;

/// Where a packet arrives, with which hop limit, and after which delays (more than one if it was duplicated).
struct Arrival {
    node: NodeName,
    ttl: u8,
    delays: Vec<Duration>,
    /// The relay that took it from a tunnel and handed it on.
    relay: Option<NodeName>,
    crossed: Vec<NodeName>,
}

/// A packet that waits at a machine that stands still. It is sent again from where it began, with no time passed since: it went on from
/// where it waited, and what changed meanwhile on the way there is left out.
#[derive(Debug)]
pub(super) enum Held {
    Request { from: NodeName, source: SocketAddr, packet: Packet, probe: Box<ProbeSend> },
    Reply { from: NodeName, to: SocketAddr, packet: Packet, bytes: Vec<u8> },
}

/// What becomes of a packet that does not arrive.
enum NoArrival {
    /// ICMP reports it after this time.
    Reported(Duration),
    Lost,
    /// It waits at this machine.
    Waits(NodeName),
}

/// The source port of a pinned flow.
fn pinned_port(flow: u32) -> u16 {
    10_000 + (flow % 8_000) as u16
}

impl World {
    pub(super) fn send_probe(&mut self, name: &NodeName, probe: ProbeSend) {
        let ProbeKind::Stamp { packet: payload, flow, .. } = &probe.kind else { return };
        let id = probe.probe;
        let failed = |error| Event::Input(Input::ProbeError { probe: id, error });
        if probe.via.is_some() && self.faults[name].wireguard_down {
            let error = ProbeError::Local { errno: 19 };
            return self.schedule(Duration::from_micros(10), name, failed(error));
        }
        let port = match flow {
            Flow::Fresh => {
                self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_FRESH_PORT);
                self.next_port
            }
            Flow::Pinned(number) => pinned_port(*number),
        };
        let source = SocketAddr::new(probe.source, port);
        self.flows.insert((name.clone(), source), id);
        let packet = Packet {
            source: probe.source,
            target: probe.target.ip(),
            length: (payload.len() + HEADERS) as u16,
            new_flow: matches!(flow, Flow::Fresh),
            bound_to: probe.via.map(plane),
            known_to: Vec::new(),
        };
        self.send_request(name, source, packet, probe);
    }

    fn send_request(
        &mut self,
        name: &NodeName,
        source: SocketAddr,
        packet: Packet,
        probe: ProbeSend,
    ) {
        let ProbeKind::Stamp { packet: payload, .. } = &probe.kind else { return };
        match self.send_packet(name, &packet) {
            Ok(arrival) => {
                let from = self.source_at(&arrival, source);
                let (local, ttl) = (probe.target, arrival.ttl);
                let target = &self.nodes[&arrival.node];
                if target.core.is_none() || !target.probe_ports.contains(&local.port()) {
                    return self.report_port_unreachable(name, &arrival, &probe);
                }
                if self.requests.len() >= MAX_REQUESTS {
                    self.requests.clear();
                }
                self.requests.insert((arrival.node.clone(), from), arrival.crossed);
                for delay in arrival.delays {
                    let bytes = payload.clone();
                    let input = Input::ProbeRequest { from, local, ttl, bytes };
                    self.schedule(delay, &arrival.node, Event::Input(input));
                }
            }
            Err(NoArrival::Reported(delay)) => {
                let error = ProbeError::TimeExceeded { from: None };
                let input = Input::ProbeError { probe: probe.probe, error };
                self.schedule(delay, name, Event::Input(input));
            }
            Err(NoArrival::Lost) => {}
            Err(NoArrival::Waits(at)) => {
                let (from, probe) = (name.clone(), Box::new(probe));
                self.hold(at, Held::Request { from, source, packet, probe });
            }
        }
    }

    /// Keeps a packet at a machine that stands still, if its ring has room.
    fn hold(&mut self, at: NodeName, packet: Held) {
        let ring = self.held.entry(at).or_default();
        if ring.len() < RING {
            ring.push(packet);
        }
    }

    /// Sends a packet that waited.
    pub(super) fn send_again(&mut self, held: Held) {
        match held {
            Held::Request { from, source, packet, probe } => {
                self.send_request(&from, source, packet, *probe);
            }
            Held::Reply { from, to, packet, bytes } => self.send_reply(&from, to, packet, bytes),
        }
    }

    /// Closes the sockets of a node's pinned flows but these: what comes back for the others is lost.
    pub(super) fn keep_flows(&mut self, name: &NodeName, flows: &BTreeSet<u32>) {
        let kept: BTreeSet<u16> = flows.iter().map(|flow| pinned_port(*flow)).collect();
        self.flows.retain(|(node, source), _| {
            let port = source.port();
            node != name || port >= FIRST_FRESH_PORT || kept.contains(&port)
        });
    }

    /// Returns the source of a packet as its target sees it.
    fn source_at(&mut self, arrival: &Arrival, source: SocketAddr) -> SocketAddr {
        let Some(relay) = arrival.relay.as_ref().filter(|r| self.faults[*r].source_nat) else {
            return source;
        };
        let seen = SocketAddr::new(self.mesh.nodes[relay].probe_addresses[0], source.port());
        self.translated.insert((arrival.node.clone(), seen), source);
        seen
    }

    /// The target's kernel lives and its daemon does not: ICMP port unreachable, which no fault of new flows stops.
    fn report_port_unreachable(&mut self, name: &NodeName, arrival: &Arrival, probe: &ProbeSend) {
        let answer = Packet {
            source: probe.target.ip(),
            target: probe.source,
            length: 100,
            new_flow: false,
            bound_to: None,
            known_to: arrival.crossed.clone(),
        };
        if let Ok(back) = self.send_packet(&arrival.node, &answer)
            && back.node == *name
        {
            let error = ProbeError::Unreachable { from: Some(probe.target.ip()) };
            let input = Input::ProbeError { probe: probe.probe, error };
            self.schedule(arrival.delays[0] + back.delays[0], name, Event::Input(input));
        }
    }

    /// `via`: through the plane of this slot, else by the routes.
    pub(super) fn reflect(
        &mut self,
        name: &NodeName,
        via: Option<Slot>,
        from: SocketAddr,
        to: SocketAddr,
        bytes: Vec<u8>,
    ) {
        let known_to = self.requests.remove(&(name.clone(), to)).unwrap_or_default();
        // A relay that rewrote the source puts the right one back.
        let to = self.translated.get(&(name.clone(), to)).copied().unwrap_or(to);
        // The answer is of the same flow, so it is as old as the request.
        let packet = Packet {
            source: from.ip(),
            target: to.ip(),
            length: (bytes.len() + HEADERS) as u16,
            new_flow: to.port() >= FIRST_FRESH_PORT,
            bound_to: via.map(plane),
            known_to,
        };
        self.send_reply(name, to, packet, bytes);
    }

    fn send_reply(&mut self, name: &NodeName, to: SocketAddr, packet: Packet, bytes: Vec<u8>) {
        let arrival = match self.send_packet(name, &packet) {
            Ok(arrival) => arrival,
            Err(NoArrival::Waits(at)) => {
                return self.hold(at, Held::Reply { from: name.clone(), to, packet, bytes });
            }
            Err(_) => return,
        };
        let flow = (arrival.node.clone(), to);
        let Some(probe) = self.flows.get(&flow).copied() else { return };
        if to.port() >= FIRST_FRESH_PORT {
            self.flows.remove(&flow);
        }
        for delay in arrival.delays {
            let input = Input::ProbeReply { probe, bytes: bytes.clone() };
            self.schedule(delay, &arrival.node, Event::Input(input));
        }
    }

    /// Returns where a packet arrives, or what becomes of it instead.
    fn send_packet(&mut self, name: &NodeName, packet: &Packet) -> Result<Arrival, NoArrival> {
        match self.data_path().walk(name, packet) {
            Fate::Delivered { node, ttl, wan_hops, lan_hops, crossed } => {
                let base = self.config.lan.latency * lan_hops + Duration::from_micros(50);
                let mut delays = vec![base];
                for (a, b) in &wan_hops {
                    let mut after = Vec::new();
                    for so_far in delays {
                        after.extend(self.wan_delays(a, b).into_iter().map(|d| so_far + d));
                    }
                    delays = after;
                }
                if delays.is_empty() {
                    return Err(NoArrival::Lost);
                }
                let relay = wan_hops.last().map(|(_, to)| to).filter(|to| **to != node).cloned();
                Ok(Arrival { node, ttl, delays, relay, crossed })
            }
            Fate::Lost { at, why: PAUSED } => Err(NoArrival::Waits(at)),
            Fate::Lost { .. } => Err(NoArrival::Lost),
            Fate::TimeExceeded { .. } => Err(NoArrival::Reported(self.config.wan.latency * 2)),
        }
    }

    fn link(&self, a: &NodeName, b: &NodeName) -> Link {
        if let Some((_, _, link)) = self.config.links.iter().find(|(f, t, _)| f == a && t == b) {
            return *link;
        }
        let same = self.mesh.nodes[a].location == self.mesh.nodes[b].location;
        if same { self.config.lan } else { self.config.wan }
    }

    /// Returns the delays of one WAN hop; none if the packet is lost.
    fn wan_delays(&mut self, a: &NodeName, b: &NodeName) -> Vec<Duration> {
        let (fa, fb) = (self.faults[a].wan_loss, self.faults[b].wan_loss);
        let more = 1.0 - (1.0 - fa) * (1.0 - fb);
        let link = self.link(a, b);
        let bad = self.bursting.entry((a.clone(), b.clone())).or_default();
        let slower = self.faults[a].wan_delay + self.faults[b].wan_delay;
        let mut delays = link.pass(&mut self.rng, bad, more);
        delays.iter_mut().for_each(|d| *d += slower);
        let path = (a.clone(), b.clone());
        if let Some(weather) = self.weather.get(&path) {
            let link = weather.link();
            let bad = self.weather_bursting.entry(path).or_default();
            let each = std::mem::take(&mut delays);
            for so_far in each {
                delays.extend(link.pass(&mut self.rng, bad, 0.0).into_iter().map(|d| so_far + d));
            }
        }
        delays
    }

    /// Returns whether frames pass from one node to the other, one way.
    pub(super) fn control_passes(&self, a: &NodeName, b: &NodeName) -> bool {
        !self.faults[a].frozen && !self.faults[b].frozen && self.control_passes_late(a, b)
    }

    /// The same, where a machine that stands still takes them when it goes on.
    fn control_passes_late(&self, a: &NodeName, b: &NodeName) -> bool {
        let alive = |n: &NodeName| {
            let f = &self.faults[n];
            !f.crashed && (self.nodes[n].core.is_some() || f.hostile.is_some())
        };
        if !alive(a) || !alive(b) || !self.know_each_other(a, b) {
            return false;
        }
        if self.cuts.contains(&(a.clone(), b.clone())) {
            return false;
        }
        let (fa, fb) = (&self.faults[a], &self.faults[b]);
        let (na, nb) = (&self.mesh.nodes[a], &self.mesh.nodes[b]);
        if na.location == nb.location {
            let cut = |f: &Faults| f.lan_cut || f.lan_control_cut || f.lan_is_down();
            !cut(fa) && !cut(fb)
        } else if let (Some(sa), Some(sb)) = (na.slot, nb.slot) {
            let up = fa.plane_is_up(sb) && fb.plane_is_up(sa);
            up && !fa.wan_cut && !fb.wan_cut && !fa.wireguard_down && !fb.wireguard_down
        } else {
            // No tunnel joins them: over the mesh itself, as any workload.
            self.delivers(a, b)
        }
    }

    /// Returns the delay of a frame that arrives.
    pub(super) fn one_way(&mut self, a: &NodeName, b: &NodeName) -> Duration {
        let least = self.link(a, b).latency;
        self.control_delay(a, b).unwrap_or(least)
    }

    /// Returns the delay one way over the control channel; `None` while nothing passes.
    fn control_delay(&mut self, a: &NodeName, b: &NodeName) -> Option<Duration> {
        if !self.control_passes_late(a, b) {
            return None;
        }
        if self.mesh.nodes[a].location == self.mesh.nodes[b].location {
            return Some(self.link(a, b).latency);
        }
        // QUIC sends a lost frame again; each time costs about a round trip more.
        let repeat = self.link(a, b).latency * 3;
        (0..TRIES).find_map(|n| Some(repeat * n + *self.wan_delays(a, b).first()?))
    }

    pub(super) fn send_frame(&mut self, from: &NodeName, to: &NodeName, frame: Frame) {
        let Some(incarnation) =
            self.nodes.get(to).filter(|n| n.core.is_some()).map(|n| n.incarnation)
        else {
            return;
        };
        if self.nodes[from].connections.get(to).is_none_or(|(_, with)| *with != incarnation) {
            return;
        }
        if let Some(delay) = self.control_delay(from, to) {
            let bytes = frame.encode();
            let frame = Frame::decode(&bytes).expect("what is encoded can be decoded");
            assert_eq!(frame.check(), Ok(()), "{from} sends what others refuse");
            let input = Input::Frame { from: from.clone(), frame: Box::new(frame) };
            self.schedule(delay, to, Event::Input(input));
        }
    }

    pub(super) fn check_connection(&mut self, name: &NodeName, peer: &NodeName) {
        let works = self.control_passes(peer, name);
        let frozen = self.faults[name].frozen || self.faults[peer].frozen;
        let delay = self.control_delay(name, peer).filter(|_| works && !frozen);
        let (now, incarnation) = (self.now, self.nodes[peer].incarnation);
        let connections = &mut self.nodes.get_mut(name).expect("a name of ours").connections;
        let seen = connections.get(peer).copied();
        let node = peer.clone();
        match (delay, seen) {
            (Some(delay), Some((_, with))) if with != incarnation => {
                // The peer has started anew, and so does the connection.
                connections.insert(node.clone(), (now, incarnation));
                self.input(name, Input::PeerDown { node: node.clone() });
                let rtt_micros = (delay * 2).as_micros() as u64;
                self.input(name, Input::PeerUp { node, rtt_micros });
            }
            (Some(_), Some(_)) => drop(connections.insert(node, (now, incarnation))),
            (Some(delay), None) => {
                connections.insert(node.clone(), (now, incarnation));
                let rtt_micros = (delay * 2).as_micros() as u64;
                self.input(name, Input::PeerUp { node, rtt_micros });
            }
            (None, Some((at, _))) if now.since(at) >= PEER_DOWN_AFTER => {
                connections.remove(peer);
                self.input(name, Input::PeerDown { node });
            }
            (None, _) => {}
        }
    }
}
