//! The peers of this node: which it is connected with, what each said last, and whose turn it is to hear of this node.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::NodeName;
use crate::mesh::Mesh;
use crate::time::{Duration, Instant};
use crate::wire::{HELLO_INTERVAL, HELLO_STALE, Hello};

/// Most hellos to nodes of other locations in one interval; with more of them they take turns. What goes that way (a
/// decision that an announcement did not reach, the mesh file's generation, whether there is a quorum) is not urgent, and would
/// otherwise cost each node as much as the mesh is large.
const MAX_FAR_HELLOS: usize = 64;
/// A node is counted on while it misses no more than this number of its turns.
const MISSED_TURNS: u32 = 3;

#[derive(Debug)]
pub(super) struct PeerTable {
    connected: BTreeSet<NodeName>,
    hellos: BTreeMap<NodeName, (Instant, Hello)>,
    next_hello: Instant,
    /// Rounds of hellos that were sent.
    rounds: usize,
    /// The next of the connected nodes of other locations to get a hello.
    far_turn: usize,
    /// How long it takes until each of those has had one.
    far_round: Duration,
}

impl PeerTable {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            connected: BTreeSet::new(),
            hellos: BTreeMap::new(),
            next_hello: now,
            rounds: 0,
            far_turn: 0,
            far_round: HELLO_INTERVAL,
        }
    }

    /// Returns true if the node was not connected.
    pub(super) fn connect(&mut self, node: NodeName) -> bool {
        self.connected.insert(node)
    }

    pub(super) fn disconnect(&mut self, node: &NodeName) {
        self.connected.remove(node);
    }

    pub(super) fn is_connected(&self, node: &NodeName) -> bool {
        self.connected.contains(node)
    }

    pub(super) fn heard(&mut self, now: Instant, from: NodeName, hello: Hello) {
        self.hellos.insert(from, (now, hello));
    }

    /// What a node said last, however long ago.
    pub(super) fn hello(&self, node: &NodeName) -> Option<&Hello> {
        self.hellos.get(node).map(|(_, hello)| hello)
    }

    /// The same, and when.
    pub(super) fn timed_hello(&self, node: &NodeName) -> Option<(Instant, &Hello)> {
        self.hellos.get(node).map(|(at, hello)| (*at, hello))
    }

    pub(super) fn hellos(&self) -> impl Iterator<Item = (&NodeName, &Hello)> {
        self.hellos.iter().map(|(name, (_, hello))| (name, hello))
    }

    /// True while a node says hello as often as it should.
    pub(super) fn is_fresh(&self, node: &NodeName, now: Instant) -> bool {
        let stale = HELLO_STALE.max(self.far_silence());
        self.hellos.get(node).is_some_and(|(at, _)| now.since(*at) <= stale)
    }

    /// True while a node can itself tell this one what it has to say.
    pub(super) fn hears(&self, node: &NodeName, now: Instant) -> bool {
        self.is_connected(node) || self.is_fresh(node, now)
    }

    /// How long a node of another location may be silent: in a large mesh such nodes take turns.
    pub(super) fn far_silence(&self) -> Duration {
        self.far_round * MISSED_TURNS
    }

    /// Nodes that are gone from the mesh have no generation to show.
    pub(super) fn retain(&mut self, mesh: &Mesh) {
        self.hellos.retain(|n, _| mesh.nodes.contains_key(n));
    }

    pub(super) fn poll_timeout(&self) -> Instant {
        self.next_hello
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.next_hello <= now
    }

    /// Has the next round of hellos begin now: what changed is not to wait for it.
    pub(super) fn hasten(&mut self, now: Instant) {
        self.next_hello = now;
    }

    /// Begins a round of hellos. Returns who gets one: every connected node that is `near`, and of the others those whose turn it is.
    pub(super) fn begin_round(
        &mut self,
        now: Instant,
        near: impl Fn(&NodeName) -> bool,
    ) -> Vec<NodeName> {
        self.next_hello = now + HELLO_INTERVAL;
        self.rounds = self.rounds.wrapping_add(1);
        let (mut turn, far): (Vec<&NodeName>, Vec<&NodeName>) =
            self.connected.iter().partition(|n| near(n));
        let batch = far.len().min(MAX_FAR_HELLOS);
        let from = self.far_turn % far.len().max(1);
        turn.extend(far.iter().cycle().skip(from).take(batch));
        let turn = turn.into_iter().cloned().collect();
        let rounds = far.len().div_ceil(MAX_FAR_HELLOS).max(1) as u32;
        self.far_turn = from + batch;
        self.far_round = HELLO_INTERVAL * rounds;
        turn
    }

    /// Returns `batch` of `all` that are to be told of in this round, others in the next.
    pub(super) fn turn_of<'a, T: 'a>(
        &self,
        all: impl Iterator<Item = &'a T> + Clone + 'a,
        batch: usize,
    ) -> impl Iterator<Item = &'a T> + 'a {
        let count = all.clone().count();
        let from = (self.rounds * batch) % count.max(1);
        all.cycle().skip(from).take(batch.min(count))
    }
}
