//! What nodes of this location say of new flows out of it that cross this candidate ([`crate::observe::outward`]).

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use crate::ids::{LocationName, NodeName};
use crate::io::{Effect, LogLevel};
use crate::observe::outward::tested;
use crate::time::{Duration, Instant, Now};
use crate::verdict::Report;

use super::Node;
use super::ignored::Ignored;

/// What was said counts for this long. It is said again every second.
const FRESH: Duration = Duration::from_secs(3);

/// Where new flows do not get through this node.
#[derive(Debug, Default)]
pub(super) struct OutwardWords {
    /// By who says so.
    words: BTreeMap<NodeName, (Instant, BTreeSet<LocationName>)>,
}

impl OutwardWords {
    /// Returns who says that new flows to a location do not get through this node.
    pub(super) fn against(&self, location: &LocationName) -> Option<&NodeName> {
        let mut words = self.words.iter();
        words.find(|(_, (_, lost))| lost.contains(location)).map(|(node, _)| node)
    }

    /// Forgets what nobody repeats. Returns whether there was something.
    pub(super) fn expire(&mut self, now: Instant) -> bool {
        let before = self.words.len();
        self.words.retain(|_, (at, _)| now.since(*at) < FRESH);
        self.words.len() < before
    }

    /// For the status.
    pub(super) fn notes(&self) -> Vec<String> {
        let note = |(node, (_, lost)): (&NodeName, &(Instant, BTreeSet<LocationName>))| {
            lost.iter().map(|location| describe(node, location)).collect::<Vec<_>>()
        };
        self.words.iter().flat_map(note).collect()
    }
}

/// Returns a sentence that names who lost what.
pub(super) fn describe(node: &NodeName, location: &LocationName) -> String {
    format!(
        "new flows from {node} to {location} are lost through this node, and pass through another candidate: look at its firewall"
    )
}

impl Node {
    /// Answers a probe: through the device that it came in by, where it was sent to the address of that device from beyond the tunnel.
    /// By the routes the answer would come to its location through the leader there, which may be another candidate than the probe
    /// crossed.
    pub(super) fn reflection(&self, local: SocketAddr, from: SocketAddr, bytes: Vec<u8>) -> Effect {
        match self.mesh.inner.read(local.ip()) {
            Some((via, _)) if self.mesh.inner.read(from.ip()).is_none() => {
                Effect::ReflectThrough { via, from: local, to: from, bytes }
            }
            _ => Effect::Reflect { from: local, to: from, bytes },
        }
    }

    /// A node of this location reports on its candidates.
    pub(super) fn outward_report(&mut self, now: Now, from: &NodeName, report: &Report) {
        if report.observer != *from {
            self.ignored(now, from.as_str(), Ignored::ReportInAnothersName);
            return;
        }
        // Only of those that try this candidate.
        let mine = self.slot().filter(|mine| tested(&self.mesh, from).contains(mine));
        let about_me = report.slots.iter().filter(|s| Some(s.slot) == mine);
        let rows = about_me.filter(|s| s.verdict.is_degraded()).flat_map(|s| &s.evidence);
        let targets = rows.filter_map(|row| self.mesh.node(row.target.as_ref()?));
        let lost: BTreeSet<LocationName> = targets.map(|n| n.location.clone()).collect();
        let words = &mut self.outward_words.words;
        let before = words.get(from).map(|(_, lost)| lost.clone()).unwrap_or_default();
        if lost.is_empty() {
            words.remove(from);
        } else {
            words.insert(from.clone(), (now.mono, lost.clone()));
        }
        if lost != before {
            for location in lost.difference(&before) {
                let fields = [("location.name", location.to_string())];
                self.log(LogLevel::Warn, &describe(from, location), fields);
            }
            self.review_relays(now, self.other_locations());
        }
    }
}
