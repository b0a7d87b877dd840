//! The account of a recording: the inputs that matter, the decisions, the changes of the network, the log, the events.

use std::collections::{BTreeMap, BTreeSet};

use leaderd_core::fault::MoveReason;
use leaderd_core::ids::{Epoch, Generation, LocationName, NodeName};
use leaderd_core::io::{Effect, Input, LogLevel};
use leaderd_core::mesh::Mesh;
use leaderd_core::node::Node;
use leaderd_core::state::Event;
use leaderd_core::time::{Now, WallTime};
use serde::Serialize;
use wgctl_plan::Network;
use wgctl_plan::diff::diff_desired;

use super::play::micros;
use super::render;
use crate::record::{Ended, Header, Tail};

/// Most entries kept; the rest is counted. A node logs little: this is months.
const MAX_ENTRIES: usize = 100_000;
/// Most changes of the network that one entry names.
const MAX_CHANGES: usize = 16;

#[derive(Debug, Serialize)]
pub struct Account {
    /// Version of the leaderd that recorded.
    pub leaderd: String,
    pub mesh: String,
    pub generation: Generation,
    pub node: NodeName,
    pub location: Option<LocationName>,
    /// Wall clock at the start, in microseconds since 1970.
    pub from: WallTime,
    /// Time from the start to the last input.
    pub micros: u64,
    pub inputs: u64,
    pub effects: u64,
    /// Inputs by kind.
    pub kinds: BTreeMap<&'static str, u64>,
    /// `None`: not run to its end.
    pub ended: Option<Ended>,
    /// The recording is cut off: the daemon was killed while it recorded.
    pub cut_off: bool,
    pub entries: Vec<Entry>,
    /// Entries beyond the most that are kept.
    pub left_out: u64,
    /// Events that happened, or went on, during the recording.
    pub events: Vec<Event>,
    #[serde(skip)]
    start: Now,
    #[serde(skip)]
    now: Now,
    #[serde(skip)]
    record: u64,
    #[serde(skip)]
    network: Network,
    /// Peers that are connected: their round trip comes again every few seconds.
    #[serde(skip)]
    up: BTreeSet<NodeName>,
    #[serde(skip)]
    known: BTreeMap<LocationName, (Epoch, Vec<NodeName>)>,
}

/// One line of the account.
#[derive(Debug, Serialize)]
pub struct Entry {
    /// Number of the record: see [`super::Divergence::record`].
    pub record: u64,
    /// Since the start, in microseconds.
    pub at_micros: u64,
    #[serde(flatten)]
    pub what: What,
}

#[derive(Debug, Serialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub enum What {
    /// An input that does not come every second.
    Input {
        text: String,
    },
    /// The node knows a new decision. `came_with`: the input that brought it.
    Decision {
        location: LocationName,
        epoch: Epoch,
        leaders: Vec<NodeName>,
        before: Vec<NodeName>,
        cause: MoveReason,
        came_with: String,
    },
    /// The core asked for another network. `changes` holds the first of `many`.
    Network {
        revision: u64,
        many: usize,
        changes: Vec<String>,
    },
    Log {
        level: LogLevel,
        message: String,
        fields: Vec<(String, String)>,
    },
}

impl Account {
    pub(super) fn new(header: &Header) -> Self {
        Self {
            leaderd: header.leaderd.clone(),
            mesh: header.mesh.name.clone(),
            generation: header.mesh.generation,
            node: header.me.clone(),
            location: header.mesh.node(&header.me).map(|n| n.location.clone()),
            from: header.now.wall,
            micros: 0,
            inputs: 0,
            effects: 0,
            kinds: BTreeMap::new(),
            ended: None,
            cut_off: false,
            entries: Vec::new(),
            left_out: 0,
            events: Vec::new(),
            start: header.now,
            now: header.now,
            record: 0,
            network: Network::default(),
            up: BTreeSet::new(),
            known: BTreeMap::new(),
        }
    }

    /// `None`: the start.
    pub(super) fn input(&mut self, record: u64, now: Now, input: Option<&Input>) {
        (self.record, self.now) = (record, now);
        self.micros = self.micros.max(micros(self.start, now));
        let Some(input) = input else { return };
        self.inputs += 1;
        *self.kinds.entry(render::kind(input)).or_default() += 1;
        let matters = match input {
            Input::PeerUp { node, .. } => self.up.insert(node.clone()),
            Input::PeerDown { node } => self.up.remove(node),
            Input::Local(_)
            | Input::Admin { .. }
            | Input::MeshChanged(_)
            | Input::Resolved(_)
            | Input::LanDevice(_)
            | Input::Overridden(_)
            | Input::HostNotes { .. } => true,
            Input::Programmed { error, .. } => error.is_some(),
            _ => false,
        };
        if matters {
            self.add(What::Input { text: render::input(input) });
        }
    }

    /// Adds what came of the input.
    pub(super) fn effects(&mut self, node: &Node, came_with: &str, effects: &[Effect]) {
        self.effects += effects.len() as u64;
        self.generation = node.mesh().generation;
        let mesh = node.mesh().clone();
        for location in mesh.locations.keys() {
            let Some(decision) = node.decision(location) else { continue };
            let leaders = names(&mesh, location, &decision.leaders);
            let known = self.known.insert(location.clone(), (decision.epoch, leaders.clone()));
            let (epoch, before) = known.unwrap_or_default();
            if epoch != decision.epoch {
                self.add(What::Decision {
                    location: location.clone(),
                    epoch: decision.epoch,
                    leaders,
                    before,
                    cause: decision.cause,
                    came_with: came_with.to_owned(),
                });
            }
        }
        for effect in effects {
            match effect {
                Effect::Log { level, message, fields } => self.add(What::Log {
                    level: *level,
                    message: message.clone(),
                    fields: fields.clone(),
                }),
                // Asked for again without a change, to bring a decision into force: not worth a line.
                Effect::Program { revision, network } if self.network != **network => {
                    let changes = diff_desired(&self.network, network);
                    let first = changes.iter().take(MAX_CHANGES).map(ToString::to_string);
                    self.add(What::Network {
                        revision: *revision,
                        many: changes.len(),
                        changes: first.collect(),
                    });
                    self.network = (**network).clone();
                }
                _ => {}
            }
        }
    }

    pub(super) fn ended(&mut self, node: &Node, tail: Tail) {
        match tail {
            Tail::Ended(why) => self.ended = Some(why),
            Tail::CutOff => self.cut_off = true,
        }
        let from = self.from;
        self.events = node.events();
        self.events.retain(|e| {
            let t = &e.times;
            [t.first_loss, t.suspected, t.condemned, t.committed, t.programmed, t.verified]
                .into_iter()
                .flatten()
                .any(|at| at >= from)
        });
    }

    fn add(&mut self, what: What) {
        if self.entries.len() >= MAX_ENTRIES {
            self.left_out += 1;
            return;
        }
        let at_micros = micros(self.start, self.now);
        self.entries.push(Entry { record: self.record, at_micros, what });
    }
}

fn names(mesh: &Mesh, location: &LocationName, slots: &[leaderd_core::ids::Slot]) -> Vec<NodeName> {
    slots.iter().filter_map(|s| mesh.candidate(location, *s)).map(|n| n.name.clone()).collect()
}
