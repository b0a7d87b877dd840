//! The network that this node wants, how programming it went, and what this node can do itself.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::{LocationName, Slot};
use crate::io::{Effect, LocalFacts, LogLevel};
use crate::time::Now;
use crate::topology::{self, TopologyInput};

use super::Node;

impl Node {
    /// Computes the whole desired network, and asks for it if it changed, or `always`.
    pub(super) fn reprogram(&mut self, always: bool) {
        self.handover.touch();
        if self.lan.is_none() || self.handover.waits() {
            return;
        }
        let leaders = self.all_leaders();
        let input = self.topology_input(&leaders);
        let mut network = topology::desired(&input);
        let notes = topology::notes(&input).iter().map(ToString::to_string).collect();
        self.log_new_notes(notes);
        self.renew_route_checks();
        // Comparing the two, as the next line does, then skips what they share.
        network.share(&self.network);
        if always || network != self.network {
            self.network = network;
            self.program();
        }
        self.decisions.programming(self.revision);
    }

    /// Fast path for other leaders or relays of some locations: replaces a few nexthops. Its cost does not grow with prefixes and peers,
    /// as the networks share all but their nexthops. Programmed `always`, or if anything changes.
    pub(super) fn reprogram_relays(&mut self, locations: &BTreeSet<LocationName>, always: bool) {
        self.handover.touch();
        if self.lan.is_none() || self.handover.waits() {
            return;
        }
        let leaders = self.all_leaders();
        let mut network = self.network.clone();
        let input = self.topology_input(&leaders);
        if !topology::change_relays(&mut network, &input, locations) {
            return self.reprogram(always);
        }
        if always || network != self.network {
            self.network = network;
            self.program();
        }
        self.decisions.programming(self.revision);
    }

    /// Asks for the ways of packets that depend on the mesh and on the addresses of this host.
    pub(super) fn renew_route_checks(&mut self) {
        if self.lan.is_none() || self.handover.waits() {
            return;
        }
        let leaders = self.all_leaders();
        let held = self.addresses.held();
        let checks = topology::route_checks(&self.topology_input(&leaders), &held);
        self.check_routes(checks);
    }

    fn all_leaders(&self) -> BTreeMap<LocationName, Vec<Slot>> {
        let locations = self.mesh.locations.keys();
        locations.filter_map(|l| Some((l.clone(), self.effective_leaders(l)?))).collect()
    }

    fn topology_input<'a>(
        &'a self,
        leaders: &'a BTreeMap<LocationName, Vec<Slot>>,
    ) -> TopologyInput<'a> {
        TopologyInput {
            mesh: &self.mesh,
            me: &self.me,
            leaders,
            relays: self.relays.exceptions(),
            resolved: &self.resolved,
            lan_device: self.lan.as_ref().and_then(|lan| lan.name.as_ref()),
            lan_mtu: self.lan.as_ref().and_then(|lan| lan.mtu),
            holds_address: self.holds_own_address(),
            carried: self.handover.carried(),
        }
    }

    /// Logs the notes that are new.
    fn log_new_notes(&mut self, notes: Vec<String>) {
        let before = std::mem::replace(&mut self.notes, notes);
        let new = self.notes.iter().filter(|n| !before.contains(n)).cloned().collect::<Vec<_>>();
        for note in new {
            self.log(
                LogLevel::Warn,
                "the network is not all that the mesh file says",
                [("why", note)],
            );
        }
    }

    fn program(&mut self) {
        self.revision += 1;
        let network = Box::new(self.network.clone());
        self.effects.push_back(Effect::Program { revision: self.revision, network });
    }

    pub(super) fn programmed(&mut self, now: Now, revision: u64, error: Option<String>) {
        if let Some(error) = error {
            self.count("program.failed");
            // The shell tries again by itself, and has logged it.
            self.log(LogLevel::Debug, "cannot program the network", [("error", error)]);
            return;
        }
        if revision == self.revision && self.handover.programmed() && self.observer.is_some() {
            // Members follow.
            self.peers.hasten(now.mono);
        }
        for (decision, announced_by) in self.decisions.programmed(revision, now.wall) {
            self.decision_in_force(now, &decision, &announced_by);
        }
    }

    pub(super) fn local_facts(&mut self, now: Now, facts: LocalFacts) {
        if facts.broken != self.facts.broken {
            match &facts.broken {
                Some((_, why)) => {
                    self.log(LogLevel::Error, "this node cannot relay", [("why", why.clone())]);
                }
                None => self.log(LogLevel::Info, "this node can relay", []),
            }
            self.peers.hasten(now.mono);
        }
        self.facts = facts;
        if let Some(group) = self.groups.get_mut(&self.location) {
            group.handle_local_facts(now, &self.facts);
        }
        if self.peers.is_due(now.mono) {
            self.send_hellos(now);
        }
    }
}
