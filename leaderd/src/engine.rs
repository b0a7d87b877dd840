//! The loop around the core's node: one input in, all effects out, then sleep until the next input or timeout.
//!
//! It never blocks: disk and kernel have threads of their own, sockets are non-blocking, and every queue it writes to
//! drops or supersedes when full. Both clocks are read once per input.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use leaderd_core::admin::{AdminRequest, AdminResponse};
use leaderd_core::io::{Effect, Input};
use leaderd_core::mesh::Mesh;
use leaderd_core::node::Node;
use leaderd_core::state::Event;
use leaderd_core::status::Status;
use tokio::sync::{mpsc, oneshot, watch};
use wgctl_plan::Network;

use crate::clock::Clock;
use crate::control::Control;
use crate::counters::Counters;
use crate::probes::Probes;
use crate::record::Recorder;
use crate::store::Writer;

/// Inputs that wait. Frames and disk answers wait for room, floods are dropped where they arise.
pub const MAX_INPUTS: usize = 4096;

/// Requests of the admin socket and of scrapes that wait.
pub const MAX_REQUESTS: usize = 64;

/// Inputs that effects caused at once (a probe refused by the kernel), handled before looking at anything else.
const MAX_IMMEDIATE: usize = 256;

/// Operator commands without an answer yet.
const MAX_COMMANDS: usize = 64;

/// After this nobody waits for the answer of a command any more.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(15);

/// What the kernel is to look like: the newest only. Revision and network.
pub type Program = Option<(u64, Box<Network>)>;

/// What others may ask of the engine.
#[derive(Debug)]
pub enum Request {
    Snapshot(oneshot::Sender<Snapshot>),
    Events(oneshot::Sender<Vec<Event>>),
    Network(oneshot::Sender<Box<Network>>),
    Command(AdminRequest, oneshot::Sender<AdminResponse>),
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
    /// Failover events known, by location.
    pub failovers: BTreeMap<String, u64>,
}

/// The shells that effects go to.
#[derive(Debug)]
pub struct Shells {
    pub probes: Probes,
    pub control: Control,
    pub writer: Writer,
    pub programs: watch::Sender<Program>,
    /// The mesh in force, for whoever has to know.
    pub meshes: watch::Sender<Arc<Mesh>>,
    pub recorder: Option<Recorder>,
    pub counters: Counters,
    /// Counted up when what this node makes of a decision may have changed, for those who would else ask all the time.
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
    commands: BTreeMap<u64, (tokio::time::Instant, oneshot::Sender<AdminResponse>)>,
    next_command: u64,
    ready: bool,
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
        }
    }

    /// Runs until `stop` is done.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        tokio::pin!(stop);
        self.peers_changed();
        self.drain();
        self.recorded(0);
        loop {
            for _ in 0..MAX_IMMEDIATE {
                let Some(input) = self.immediate.pop_front() else { break };
                self.handle(input);
            }
            let deadline = self.node.poll_timeout().map(|at| self.clock.deadline(at));
            let sleep =
                tokio::time::sleep_until(deadline.unwrap_or_else(tokio::time::Instant::now));
            tokio::select! {
                () = &mut stop => return,
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
                inputs = self.shells.probes.ready() => for input in inputs {
                    self.handle(input);
                },
                Some(request) = self.requests.recv() => self.answer(request),
                () = std::future::ready(()), if !self.immediate.is_empty() => {}
            }
        }
    }

    fn handle(&mut self, input: Input) {
        let now = self.clock.now();
        let forged = self.node.forged_packets();
        if let Some(recorder) = &mut self.shells.recorder {
            recorder.input(now, &input);
        }
        if let Input::Programmed { error: None, .. } = input {
            self.ready = true;
        }
        let mesh_changed = matches!(input, Input::MeshChanged(_));
        self.node.handle_input(now, input);
        if mesh_changed {
            self.peers_changed();
        }
        self.drain();
        self.recorded(forged);
    }

    /// All that came of an input was carried out. `forged`: what [`Node::forged_packets`] was before it.
    fn recorded(&mut self, forged: u64) {
        if let Some(recorder) = &mut self.shells.recorder {
            recorder.done(self.node.forged_packets() == forged);
        }
    }

    fn peers_changed(&mut self) {
        let mesh = self.node.mesh().clone();
        self.shells.meshes.send_replace(mesh.clone());
        self.shells.control.set_peers(&self.node.peers());
        if let Err(error) = self.shells.probes.set_ports(&mesh.probe_ports) {
            tracing::error!(%error, "the new probe ports are not in use: the old ones stay");
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
                Effect::Reflect { from, to, bytes } => self.shells.probes.reflect(from, to, &bytes),
                Effect::SendFrame { to, frame } => self.shells.control.send(&to, &frame),
                Effect::Persist { ticket, location, write } => {
                    self.shells.writer.persist(ticket, location, write)
                }
                Effect::Program { revision, network } => {
                    self.shells.programs.send_replace(Some((revision, network)));
                    self.shells.decided.send_modify(|n| *n += 1);
                }
                Effect::AdminReply { id, response } => {
                    if let Some((_, waiting)) = self.commands.remove(&id) {
                        let _ = waiting.send(response);
                    }
                }
                Effect::Log { level, message, fields } => {
                    crate::log::core_event(level, &message, &fields)
                }
            }
        }
    }

    fn answer(&mut self, request: Request) {
        match request {
            Request::Snapshot(to) => {
                let _ = to.send(self.snapshot());
            }
            Request::Events(to) => {
                let _ = to.send(self.node.events());
            }
            Request::Network(to) => {
                let _ = to.send(Box::new(self.node.desired().clone()));
            }
            Request::Command(request, to) => {
                self.commands.retain(|_, (since, waiting)| {
                    since.elapsed() < COMMAND_TIMEOUT && !waiting.is_closed()
                });
                if self.commands.len() >= MAX_COMMANDS {
                    let message = format!(
                        "{MAX_COMMANDS} commands wait for an answer already; try again later"
                    );
                    let _ = to.send(AdminResponse::Refused { message });
                    return;
                }
                let id = self.next_command;
                self.next_command += 1;
                self.commands.insert(id, (tokio::time::Instant::now(), to));
                self.handle(Input::Admin { id, request });
            }
        }
    }

    fn snapshot(&self) -> Snapshot {
        let (mut blackouts, mut failovers) = (BTreeMap::new(), BTreeMap::new());
        for event in self.node.events() {
            if event.kind == leaderd_core::state::EventKind::Failover {
                *failovers.entry(event.location.to_string()).or_insert(0) += 1;
                if let Some(blackout) = event.blackout {
                    blackouts.insert(event.location.to_string(), blackout.as_secs_f64());
                }
            }
        }
        Snapshot {
            status: self.node.status(self.clock.now()),
            core: self.node.counters(),
            shell: self.shells.counters.snapshot(),
            ready: self.ready,
            peers_connected: self.shells.control.connected().len(),
            peers: self.node.peers().len(),
            blackouts,
            failovers,
        }
    }
}
