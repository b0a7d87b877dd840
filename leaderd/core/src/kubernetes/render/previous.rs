//! The previous mesh file: pinned indexes and slots, and the last known values of nodes.

use std::collections::{BTreeMap, BTreeSet};

use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use toml::{Table, Value};

use super::prefixes::PrefixSource;
use super::{Problem, Subject};
use crate::ids::LocationName;
use crate::kubernetes::view::ClusterView;
use crate::kubernetes::view::MeshText;
use crate::mesh::{Mesh, NEW_INNER, Node, Steering};

/// Start of the line with the revision of the settings.
pub(super) const REVISION: &str = "# Settings of revision ";

/// Start of the line that names the CNI whose objects the prefixes were from. Absent without a CNI.
pub(super) const PREFIXES: &str = "# Prefixes from ";

/// Start of a line with the index of a node that has left the mesh.
pub(super) const GIVEN_UP: &str = "# Given up: ";

#[derive(Debug, Default)]
pub(super) struct PreviousMesh {
    pub text: MeshText,
    /// `None` if there was none, or if it was damaged.
    pub mesh: Option<Arc<Mesh>>,
    pub generation: u64,
    /// Revision of the settings that it was made with.
    pub revision: u64,
    /// [`Settings::mark`](super::settings::Settings::mark) of these settings; empty if the file does not name it.
    pub mark: String,
    /// The CNI whose objects it took the prefixes from.
    pub source: Option<PrefixSource>,
    /// By name of the node. Read even from a file that is no valid mesh.
    indexes: BTreeMap<String, u16>,
    /// Nodes that have left the mesh, with the index of each; the earliest first.
    pub given_up: Vec<(String, u16)>,
    pub inner4: Option<Ipv4Net>,
    pub inner6: Option<Ipv6Net>,
    /// By name of the node: location and slot.
    slots: BTreeMap<String, (String, u8)>,
}

impl PreviousMesh {
    pub fn of(view: &ClusterView, problems: &mut Vec<Problem>) -> Self {
        let Some(object) = view.mesh.as_ref().filter(|m| !m.text.as_str().trim().is_empty()) else {
            return Self::default();
        };
        let text = object.text.as_str();
        let made_with = text.lines().find_map(|l| l.strip_prefix(REVISION)).unwrap_or_default();
        let (revision, mark) = made_with.split_once(',').unwrap_or((made_with, ""));
        let given_up = text.lines().filter_map(|l| {
            let (name, index) = l.strip_prefix(GIVEN_UP)?.split_once(' ')?;
            Some((name.to_owned(), index.trim().parse().ok()?))
        });
        let mut previous = Self {
            text: object.text.clone(),
            revision: revision.trim().parse().unwrap_or(0),
            mark: mark.trim().to_owned(),
            source: text.lines().find_map(|l| PrefixSource::of(l.strip_prefix(PREFIXES)?.trim())),
            given_up: given_up.collect(),
            ..Self::default()
        };
        match object.text.mesh() {
            Ok(mesh) => previous.read(mesh.clone()),
            Err(_) => {
                let message = "the mesh file in the cluster was damaged: leaderd makes a new one, with as many of its indexes and slots as \
                               could be read; do not edit it by hand";
                problems.push(Problem { subject: Subject::Mesh, message: message.to_owned() });
                previous.salvage(text);
            }
        }
        previous
    }

    fn read(&mut self, mesh: Arc<Mesh>) {
        self.generation = mesh.generation.0;
        (self.inner4, self.inner6) = (Some(mesh.inner.v4), mesh.inner.v6);
        for node in mesh.nodes.values() {
            self.indexes.insert(node.name.to_string(), node.index.0);
            if let Some(slot) = node.slot {
                self.slots.insert(node.name.to_string(), (node.location.to_string(), slot.0));
            }
        }
        self.mesh = Some(mesh);
    }

    /// Reads what can be read of a damaged file.
    fn salvage(&mut self, text: &str) {
        let table = text.parse::<Table>().unwrap_or_default();
        let number = |v: &Value, key: &str| v.get(key).and_then(Value::as_integer);
        let generation = table.get("mesh").and_then(|m| number(m, "generation")).unwrap_or(0);
        self.generation = u64::try_from(generation).unwrap_or(0);
        let inner = |key: &str| {
            let value = table.get("mesh").and_then(|m| m.get(key)).and_then(Value::as_str);
            value.or_else(|| value_of(text, key))
        };
        let new = || NEW_INNER.parse().expect("a prefix");
        self.inner4 = inner("inner_cidr").map(|t| t.parse().unwrap_or_else(|_| new()));
        self.inner6 = inner("inner_cidr6").and_then(|t| t.parse().ok());
        for (name, node) in table.get("nodes").and_then(Value::as_table).into_iter().flatten() {
            if let Some(index) = number(node, "index").and_then(|i| u16::try_from(i).ok()) {
                self.indexes.insert(name.clone(), index);
            }
            let slot = number(node, "slot").and_then(|s| u8::try_from(s).ok());
            let location = node.get("location").and_then(Value::as_str);
            if let (Some(slot), Some(location)) = (slot, location) {
                self.slots.insert(name.clone(), (location.to_owned(), slot));
            }
        }
    }

    pub fn node(&self, name: &str) -> Option<&Node> {
        self.mesh.as_ref()?.nodes.get(&name.parse().ok()?)
    }

    /// Returns the prefixes that a location had besides its nodes'.
    pub fn location_prefixes(&self, location: &LocationName) -> Vec<IpNet> {
        let was = self.mesh.as_ref().and_then(|m| m.locations.get(location));
        was.map_or_else(Vec::new, |l| l.prefixes.clone())
    }

    /// True if Kilo steered the location.
    pub fn is_kilos(&self, location: &LocationName) -> bool {
        let location = self.mesh.as_ref().and_then(|m| m.locations.get(location));
        location.is_some_and(|l| l.steering == Steering::Kilo)
    }

    /// Returns the slot that a node had in a location.
    pub fn slot(&self, name: &str, location: &str) -> Option<u8> {
        self.slots.get(name).filter(|(l, _)| l == location).map(|(_, s)| *s)
    }

    /// Returns the slots that were in use in a location.
    pub fn slots_in(&self, location: &str) -> BTreeSet<u8> {
        self.slots.values().filter(|(l, _)| l == location).map(|(_, s)| *s).collect()
    }

    pub fn indexes(&self) -> impl Iterator<Item = (&str, u16)> {
        self.indexes.iter().map(|(n, i)| (n.as_str(), *i))
    }

    pub fn index(&self, name: &str) -> Option<u16> {
        self.indexes.get(name).copied()
    }
}

/// Returns the value of a key that occurs once, even if the text as a whole is no TOML: addresses must not change for that.
fn value_of<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let value = |line: &'a str| {
        let value = line.trim().strip_prefix(key)?.trim_start().strip_prefix('=')?.trim();
        value.strip_prefix('"')?.split_once('"').map(|(value, _)| value)
    };
    text.lines().find_map(value)
}
