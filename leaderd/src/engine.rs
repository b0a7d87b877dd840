//! The loop around the core's node: one input in, all effects out, then sleep until the next input or timeout.
//!
//! It never blocks: disk and kernel have threads of their own, sockets are non-blocking, and every queue it writes to
//! drops or supersedes when full. Both clocks are read once per input.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use futures_util::FutureExt as _;
use leaderd_core::admin::{AdminRequest, AdminResponse};
use leaderd_core::ids::LocationName;
use leaderd_core::io::{Effect, Input, RouteCheck};
use leaderd_core::node::Node;
use leaderd_core::proof::Signer;
use leaderd_core::state::{Event, EventKind, EventSeq};
use leaderd_core::status::{RelayChanges, RelayExplanation, Status};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;
use wgctl_plan::Network;

use crate::clock::Clock;
use crate::control::Control;
use crate::counters::Counters;
use crate::probes::Probes;
use crate::record::Recorder;
use crate::store::Writer;
use crate::supervise;

/// Inputs that wait, but frames, which have an inbox of their own. Disk answers wait for room.
pub const MAX_INPUTS: usize = 4096;

/// Requests of the admin socket and of scrapes that wait.
pub const MAX_REQUESTS: usize = 64;

/// Inputs that effects caused at once (a probe that the kernel refused), handled before anything else.
const MAX_IMMEDIATE: usize = 256;

/// How often the engine gives a beat, at least.
const BEAT: Duration = Duration::from_millis(500);

/// The newest network that the core asked for, with its revision.
pub type Program = Option<(u64, Box<Network>)>;

/// What other parts ask the engine.
#[derive(Debug)]
pub enum Request {
    /// Whether the engine answers, and whether the network was programmed.
    Beat(oneshot::Sender<bool>),
    Snapshot(oneshot::Sender<Snapshot>),
    Events(oneshot::Sender<Vec<Event>>),
    RelayChanges(oneshot::Sender<RelayChanges>),
    /// Which relays carry between two locations or nodes; else why this node cannot say.
    ExplainRelays(String, String, oneshot::Sender<Result<Box<RelayExplanation>, String>>),
    Network(oneshot::Sender<Box<Network>>),
    /// A command and its author, as far as known.
    Command(AdminRequest, Option<String>, oneshot::Sender<AdminResponse>),
}

/// All that metrics and status show.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub status: Status,
    /// The core's counters.
    pub core: BTreeMap<String, u64>,
    /// The shells' counters.
    pub shell: BTreeMap<&'static str, u64>,
    /// The network was programmed at least once.
    pub ready: bool,
    pub peers_connected: usize,
    pub peers: usize,
    /// Measured by the last failover of each location that this node knows of, in seconds.
    pub blackouts: BTreeMap<String, f64>,
    /// Failovers of each location since the start, and those that were remembered then.
    pub failovers: BTreeMap<String, u64>,
}

/// The failovers of a location that were counted. Events are forgotten in the end; the count must not fall.
#[derive(Debug, Default)]
struct Failovers {
    /// Up to here events were counted.
    upto: EventSeq,
    count: u64,
    blackout: Option<Duration>,
}

impl Failovers {
    fn count(&mut self, events: &mut dyn Iterator<Item = &Event>) {
        let mut newest: Option<(EventSeq, Option<Duration>)> = None;
        let (counted, mut upto) = (self.upto, 0);
        for event in events {
            upto = upto.max(event.seq);
            if event.kind != EventKind::Failover {
                continue;
            }
            self.count += u64::from(event.seq > counted);
            // The blackout comes some time after its event.
            if event.blackout.is_some() && newest.is_none_or(|(seq, _)| seq < event.seq) {
                newest = Some((event.seq, event.blackout));
            }
        }
        // Fewer than before: the location has lost its stores, and counts from the beginning.
        self.upto = upto;
        self.blackout = newest.map_or(self.blackout, |(_, blackout)| blackout);
    }
}

/// The shells that effects go to.
#[derive(Debug)]
pub struct Shells {
    pub probes: Probes,
    pub control: Control,
    pub writer: Writer,
    /// This node's control key.
    pub signer: Signer,
    pub programs: watch::Sender<Program>,
    pub route_checks: watch::Sender<Vec<RouteCheck>>,
    pub recorder: Option<Recorder>,
    pub counters: Counters,
    /// Counts up when this node may follow another decision than before, so that others need not poll.
    pub decided: watch::Sender<u64>,
}

#[derive(Debug)]
pub struct Engine {
    node: Node,
    clock: Clock,
    shells: Shells,
    inputs: mpsc::Receiver<Input>,
    requests: mpsc::Receiver<Request>,
    immediate: VecDeque<Input>,
    /// Commands without an answer yet. The core bounds them, and answers each within its deadline.
    commands: BTreeMap<u64, oneshot::Sender<AdminResponse>>,
    next_command: u64,
    ready: bool,
    failovers: BTreeMap<LocationName, Failovers>,
}

impl Engine {
    pub fn new(
        node: Node,
        clock: Clock,
        shells: Shells,
        inputs: mpsc::Receiver<Input>,
        requests: mpsc::Receiver<Request>,
    ) -> Self {
        let immediate = VecDeque::new();
        let commands = BTreeMap::new();
        Self {
            node,
            clock,
            shells,
            inputs,
            requests,
            immediate,
            commands,
            next_command: 1,
            ready: false,
            failovers: BTreeMap::new(),
        }
    }

    /// Runs until `stop` is done.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        tokio::pin!(stop);
        let beat = supervise::beat("engine");
        let mut beats = tokio::time::interval(BEAT);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.drain();
        self.recorded(0);
        loop {
            beat.give();
            for _ in 0..MAX_IMMEDIATE {
                let Some(input) = self.immediate.pop_front() else { break };
                self.handle(input);
            }
            let deadline = self.node.poll_timeout().map(|at| self.clock.deadline(at));
            let sleep =
                tokio::time::sleep_until(deadline.unwrap_or_else(tokio::time::Instant::now));
            tokio::select! {
                () = &mut stop => {
                    // Dropping the store's writer waits for its thread, and that may wait for room for its answer.
                    self.inputs.close();
                    return;
                }
                () = sleep, if deadline.is_some() => {
                    // After a pause replies and their timeouts are due together: the replies first.
                    if let Some(inputs) = self.shells.probes.ready().now_or_never() {
                        for input in inputs {
                            self.handle(input);
                        }
                    }
                    self.handle(Input::Timeout);
                }
                Some(input) = self.inputs.recv() => self.handle(input),
                frame = self.shells.control.next_frame() => self.handle(frame),
                inputs = self.shells.probes.ready() => for input in inputs {
                    self.handle(input);
                },
                Some(request) = self.requests.recv() => self.answer(request),
                () = std::future::ready(()), if !self.immediate.is_empty() => {}
                // Gives its beat with nothing to do as well.
                _ = beats.tick() => {}
            }
        }
    }

    fn handle(&mut self, input: Input) {
        let now = self.clock.now();
        // A recording keeps the input that the core did not survive.
        let _unwind = self.shells.recorder.is_some().then(supervise::unwind_first);
        let forged = self.node.forged_packets();
        if let Some(recorder) = &mut self.shells.recorder {
            recorder.input(now, &input);
        }
        if let Input::Programmed { error: None, .. } = input {
            self.ready = true;
        }
        self.node.handle_input(now, input);
        self.drain();
        self.recorded(forged);
    }

    /// All that came of an input was carried out. `forged`: what [`Node::forged_packets`] was before it.
    fn recorded(&mut self, forged: u64) {
        if let Some(recorder) = &mut self.shells.recorder {
            recorder.done(self.node.forged_packets() == forged);
        }
    }

    fn drain(&mut self) {
        while let Some(effect) = self.node.poll_effect() {
            if let Some(recorder) = &mut self.shells.recorder {
                recorder.effect(&effect);
            }
            match effect {
                Effect::SendProbe(probe) => self.immediate.extend(self.shells.probes.send(&probe)),
                Effect::ForgetProbe { probe } => self.shells.probes.forget(probe),
                Effect::Reflect { from, to, bytes } => {
                    self.shells.probes.reflect(None, from, to, &bytes)
                }
                Effect::ReflectThrough { via, from, to, bytes } => {
                    self.shells.probes.reflect(Some(via), from, to, &bytes)
                }
                Effect::SendFrame { to, frame } => self.shells.control.send(&to, &frame),
                Effect::Sign { id, statement } => {
                    let signature = self.shells.signer.sign(&statement);
                    self.immediate.push_back(Input::Signed { id, signature });
                }
                Effect::Persist { ticket, location, write } => {
                    self.shells.writer.persist(ticket, location, *write)
                }
                Effect::Program { revision, network } => {
                    self.shells.programs.send_replace(Some((revision, network)));
                    self.shells.decided.send_modify(|n| *n += 1);
                }
                Effect::AdminReply { id, response } => {
                    if let Some(waiting) = self.commands.remove(&id) {
                        let _ = waiting.send(response);
                    }
                }
                Effect::Log { level, message, fields } => {
                    crate::log::core_event(level, &message, &fields)
                }
                Effect::SetPeers { peers } => self.shells.control.set_peers(&peers),
                Effect::ListenProbes { ports } => {
                    if let Err(error) = self.shells.probes.set_ports(&ports) {
                        tracing::error!(%error, "the new probe ports are not in use: the old ones stay");
                    }
                }
                Effect::KeepFlows { flows } => self.shells.probes.keep_pinned(&flows),
                Effect::CheckRoutes { checks } => {
                    self.shells.route_checks.send_replace(checks);
                }
            }
        }
    }

    fn answer(&mut self, request: Request) {
        match request {
            Request::Beat(to) => {
                let _ = to.send(self.ready);
            }
            Request::Snapshot(to) => {
                let _ = to.send(self.snapshot());
            }
            Request::Events(to) => {
                let _ = to.send(self.node.events());
            }
            Request::RelayChanges(to) => {
                let _ = to.send(self.node.seen_relay_changes());
            }
            Request::ExplainRelays(a, b, to) => {
                let explained = self.node.explain_relays(self.clock.now(), &a, &b);
                let _ = to.send(explained.map(Box::new));
            }
            Request::Network(to) => {
                let _ = to.send(Box::new(self.node.desired().clone()));
            }
            Request::Command(request, user, to) => {
                let id = self.next_command;
                self.next_command += 1;
                self.commands.insert(id, to);
                self.handle(Input::Admin { id, user, request });
            }
        }
    }

    fn snapshot(&mut self) -> Snapshot {
        let mesh = self.node.mesh().clone();
        self.failovers.retain(|location, _| mesh.locations.contains_key(location));
        for location in mesh.locations.keys() {
            let failovers = self.failovers.entry(location.clone()).or_default();
            failovers.count(&mut self.node.events_of(location));
        }
        let counted = || self.failovers.iter().filter(|(_, f)| f.count > 0);
        let failovers = counted().map(|(l, f)| (l.to_string(), f.count)).collect();
        let blackouts = counted()
            .filter_map(|(l, f)| Some((l.to_string(), f.blackout?.as_secs_f64())))
            .collect();
        Snapshot {
            status: self.node.status(self.clock.now()),
            core: self.node.counters(),
            shell: self.shells.counters.snapshot(),
            ready: self.ready,
            peers_connected: self.shells.control.connected().len(),
            peers: self.shells.control.peers(),
            blackouts,
            failovers,
        }
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD as BASE64;
    use std::sync::Arc;

    use leaderd_core::io::{Persist, Ticket};
    use leaderd_core::mesh::Mesh;
    use leaderd_core::node::NodeConfig;
    use leaderd_core::probe::keys::ProbeKeys;

    use super::*;
    use crate::secrets::{Keys, Secret};
    use crate::store::{Identity, Store};

    fn event(seq: EventSeq, kind: EventKind, blackout: Option<u64>) -> Event {
        Event {
            seq,
            location: "cloud".parse().unwrap(),
            kind,
            epoch: Default::default(),
            cause: None,
            direction: None,
            leaders_before: vec![],
            leaders_after: vec![],
            summary: String::new(),
            times: Default::default(),
            blackout: blackout.map(Duration::from_millis),
            blocked_by: Default::default(),
            evidence: Default::default(),
            author: None,
        }
    }

    #[test]
    fn failovers_are_counted_once_and_stay_counted_when_their_events_are_forgotten() {
        let mut counted = Failovers::default();
        let mut after = |events: &[Event]| {
            counted.count(&mut events.iter());
            (counted.count, counted.blackout.map(|b| b.as_millis()))
        };
        let (failover, other) = (EventKind::Failover, EventKind::Notice);
        assert_eq!(after(&[]), (0, None));
        let first = event(1, failover, None);
        assert_eq!(after(&[first.clone(), event(2, other, None)]), (1, None));
        let first = Event { blackout: Some(Duration::from_millis(250)), ..first };
        assert_eq!(after(&[first.clone(), event(2, other, None)]), (1, Some(250)));
        assert_eq!(after(&[event(4, failover, Some(90)), first]), (2, Some(90)));
        assert_eq!(after(&[event(9, other, None)]), (2, Some(90)), "forgotten");
        // A location that has lost its stores begins again.
        assert_eq!(after(&[event(1, other, None)]), (2, Some(90)));
        assert_eq!(after(&[event(2, failover, Some(70))]), (3, Some(70)));
    }

    /// A mesh of one node, with free control and probe ports.
    fn alone(keys: &Keys) -> Mesh {
        let free = [(); 2].map(|()| std::net::UdpSocket::bind("[::]:0").unwrap());
        let [control, probes] = free.map(|socket| socket.local_addr().unwrap().port());
        let text = format!(
            "[mesh]\nname = \"alone\"\ngeneration = 1\ncontrol_port = {control}\nprobe_ports = [{probes}]\n\
             [locations.home]\noverlay = \"direct\"\n\
             [nodes.home-0]\nlocation = \"home\"\nindex = 1\nslot = 0\naddress = \"192.0.2.1\"\nendpoint = \"192.0.2.1\"\n\
             prefixes = [\"10.42.1.0/24\"]\nwireguard_key = \"{}\"\ncontrol_key = \"{}\"\n",
            BASE64.encode(keys.wireguard_public().0),
            BASE64.encode(keys.control_public().0),
        );
        leaderd_core::mesh::parse(&text).unwrap_or_else(|mistakes| panic!("{mistakes:?}"))
    }

    #[test]
    fn the_engine_stops_while_its_queue_of_inputs_is_full_and_the_store_waits_for_room() {
        let (stopped, has_stopped) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(stop_while_the_queue_is_full());
            stopped.send(()).unwrap();
        });
        has_stopped.recv_timeout(Duration::from_secs(30)).expect("it stops");
    }

    async fn stop_while_the_queue_is_full() {
        let keys = Keys { wireguard: Secret::new([1; 32]), control: Secret::new([2; 32]) };
        let mesh = Arc::new(alone(&keys));
        let (me, location) = ("home-0".parse().unwrap(), "home".parse().unwrap());
        let dir = tempfile::tempdir().unwrap();
        let (clock, counters) = (Clock::default(), Counters::default());
        let (inputs, inputs_rx) = mpsc::channel(1);
        let control =
            Control::start(mesh.control_port, &keys, inputs.clone(), counters.clone()).unwrap();
        let probes = Probes::bind(&mesh.probe_ports, counters.clone()).unwrap();
        let identity = Identity { mesh: "alone".into(), location, node: me };
        let store = Store::open(dir.path(), &identity).unwrap();
        let Identity { location, node: me, .. } = identity;
        let config = NodeConfig {
            mesh: mesh.clone(),
            me,
            keys: ProbeKeys::new(*keys.wireguard.expose()),
            restored: BTreeMap::new(),
            seed: 1,
            resolved: BTreeMap::new(),
        };
        let node = Node::new(config, clock.now()).unwrap();

        // The queue's only place is taken.
        let taken = inputs.clone().reserve_owned().await.unwrap();
        let writer = store
            .start(counters.clone(), move |ticket| {
                let _ = inputs.blocking_send(Input::Persisted { ticket });
            })
            .unwrap();
        writer.persist(Ticket(1), location, Persist::default());
        let shells = Shells {
            probes,
            control,
            writer,
            signer: Signer::new(keys.control.expose()),
            programs: watch::channel(None).0,
            route_checks: watch::channel(Vec::new()).0,
            recorder: None,
            counters,
            decided: watch::channel(0).0,
        };
        let (_asker, requests) = mpsc::channel(1);
        Engine::new(node, clock, shells, inputs_rx, requests).run(std::future::ready(())).await;
        drop(taken);
    }
}
