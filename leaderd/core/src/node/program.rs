//! The network that this node wants, how its programming went, and what the node says of itself.

use std::collections::BTreeMap;

use crate::ids::{LocationName, Slot};
use crate::io::{Effect, LocalFacts, LogLevel};
use crate::time::{Duration, Now};
use crate::topology::{self, TopologyInput};

use super::Node;

/// How long after a failed attempt the kernel is asked again to look as desired.
const PROGRAM_RETRY: Duration = Duration::from_secs(1);

impl Node {
    /// Computes the whole desired network and asks for it if it changed, or in any case.
    pub(super) fn reprogram(&mut self, always: bool) {
        self.steer.touch();
        if self.steer.waits() {
            return;
        }
        let leaders: BTreeMap<LocationName, Vec<Slot>> = self
            .mesh
            .locations
            .keys()
            .filter_map(|l| Some((l.clone(), self.effective_leaders(l)?)))
            .collect();
        let input = self.topology_input(&leaders);
        let mut network = topology::desired(&input);
        let notes = topology::notes(&input).iter().map(ToString::to_string).collect();
        self.tell_notes(notes);
        // Whoever compares it with the one before, as the next line does, then need not look into what has stayed.
        network.share(&self.network);
        if always || network != self.network {
            self.network = network;
            self.ask_for_network();
        }
        self.known.programming(self.revision);
    }

    /// The same where nothing but the leaders of one location changed: no more work with many prefixes and peers than with few, as
    /// the networks share all but their nexthops.
    pub(super) fn reprogram_leaders(&mut self, location: &LocationName) {
        self.steer.touch();
        if self.steer.waits() {
            return;
        }
        let leaders = self.effective_leaders(location).map(|l| (location.clone(), l));
        let leaders = leaders.into_iter().collect();
        let mut network = std::mem::take(&mut self.network);
        let input = self.topology_input(&leaders);
        let done = topology::change_leaders(&mut network, &input, location);
        self.network = network;
        if !done {
            return self.reprogram(true);
        }
        self.ask_for_network();
        self.known.programming(self.revision);
    }

    fn topology_input<'a>(
        &'a self,
        leaders: &'a BTreeMap<LocationName, Vec<Slot>>,
    ) -> TopologyInput<'a> {
        TopologyInput {
            mesh: &self.mesh,
            me: &self.me,
            leaders,
            resolved: &self.resolved,
            lan_device: self.lan_device.as_ref(),
            lan_mtu: self.lan_mtu,
            holds_address: self.holds_own_address(),
            carried: &self.steer.carried,
        }
    }

    /// Logs what is new, once.
    fn tell_notes(&mut self, notes: Vec<String>) {
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

    fn ask_for_network(&mut self) {
        self.revision += 1;
        self.program_retry = None;
        let network = Box::new(self.network.clone());
        self.effects.push_back(Effect::Program { revision: self.revision, network });
    }

    pub(super) fn programmed(&mut self, now: Now, revision: u64, error: Option<String>) {
        if let Some(error) = error {
            self.count("program.failed");
            // The shell has logged it, and knows how often.
            self.log(LogLevel::Debug, "cannot program the network", [("error", error)]);
            if revision == self.revision {
                self.program_retry = Some(now.mono + PROGRAM_RETRY);
            }
            return;
        }
        if revision == self.revision && self.steer.programmed() && self.observer.is_some() {
            // Members follow: said at once, not with the next hello.
            self.heard.next_hello = now.mono;
        }
        for (decision, announced_by) in self.known.programmed(revision, now.wall) {
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
            // Said at once, not with the next hello.
            self.heard.next_hello = now.mono;
        }
        self.facts = facts;
        if let Some(group) = self.groups.get_mut(&self.location) {
            group.handle_local_facts(now, &self.facts);
        }
        if self.heard.next_hello <= now.mono {
            self.send_hellos(now);
        }
    }
}
