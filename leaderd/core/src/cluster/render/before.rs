//! The mesh file before: what is pinned, and what a node said when it last said it.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use toml::{Table, Value};

use super::prefixes::PrefixSource;
use super::{Problem, Subject};
use crate::cluster::view::ClusterView;
use crate::ids::LocationName;
use crate::mesh::{self, Mesh, Node, Steering};

/// What the line begins with that says of which revision the settings were.
pub(super) const REVISION: &str = "# Settings of revision ";

/// What the line begins with that says which CNI's objects the prefixes were from; none if from no CNI's.
pub(super) const PREFIXES: &str = "# Prefixes from ";

/// What a line begins with that says which index a node had that has left the mesh.
pub(super) const GIVEN_UP: &str = "# Given up: ";

#[derive(Debug, Default)]
pub(super) struct Before {
    pub text: String,
    /// `None` if there was none, or if it was damaged.
    pub mesh: Option<Mesh>,
    pub generation: u64,
    /// Of the settings that it was made with.
    pub revision: u64,
    /// [`Settings::mark`](super::settings::Settings::mark) of them; empty if it was made by a leaderd that did not say.
    pub mark: String,
    /// The CNI whose objects it took the prefixes from.
    pub source: Option<PrefixSource>,
    /// By name of the node. Read even from a file that is no good mesh.
    indexes: BTreeMap<String, u16>,
    /// Nodes that have left the mesh, with the index that each had; the longest ago first.
    pub given_up: Vec<(String, u16)>,
    /// `inner_cidr` and `inner_cidr6`, if it has them.
    pub inner4: Option<String>,
    pub inner6: Option<String>,
    /// By name of the node: location and slot.
    slots: BTreeMap<String, (String, u8)>,
}

impl Before {
    pub fn of(view: &ClusterView, problems: &mut Vec<Problem>) -> Self {
        let text = view.mesh.as_ref().map_or("", |m| m.text.as_str()).to_owned();
        if text.trim().is_empty() {
            return Self::default();
        }
        let mesh = mesh::parse(&text).ok();
        if mesh.is_none() {
            let message = "the mesh file in the cluster was damaged: it is made anew, with as many of its indexes and slots as \
                           could be read; let nobody edit it but leaderd";
            problems.push(Problem { subject: Subject::Mesh, message: message.to_owned() });
        }
        let made_with = text.lines().find_map(|l| l.strip_prefix(REVISION)).unwrap_or_default();
        let (revision, mark) = made_with.split_once(',').unwrap_or((made_with, ""));
        let (revision, mark) = (revision.trim().parse().unwrap_or(0), mark.trim().to_owned());
        let source = text.lines().find_map(|l| PrefixSource::of(l.strip_prefix(PREFIXES)?.trim()));
        let table = text.parse::<Table>().unwrap_or_default();
        let number = |v: &Value, key: &str| v.get(key).and_then(Value::as_integer);
        let generation = table.get("mesh").and_then(|m| number(m, "generation")).unwrap_or(0);
        let inner = |key: &str| {
            let said = table.get("mesh").and_then(|m| m.get(key)).and_then(Value::as_str);
            said.or_else(|| line(&text, key)).map(str::to_owned)
        };
        let (inner4, inner6) = (inner("inner_cidr"), inner("inner_cidr6"));
        let given_up = text.lines().filter_map(|l| {
            let (name, index) = l.strip_prefix(GIVEN_UP)?.split_once(' ')?;
            Some((name.to_owned(), index.trim().parse().ok()?))
        });
        let given_up = given_up.collect();
        let mut before = Self {
            text,
            given_up,
            inner4,
            inner6,
            mesh,
            generation: u64::try_from(generation).unwrap_or(0),
            revision,
            mark,
            source,
            ..Self::default()
        };
        for (name, node) in table.get("nodes").and_then(Value::as_table).into_iter().flatten() {
            if let Some(index) = number(node, "index").and_then(|i| u16::try_from(i).ok()) {
                before.indexes.insert(name.clone(), index);
            }
            let slot = number(node, "slot").and_then(|s| u8::try_from(s).ok());
            if let (Some(slot), Some(location)) =
                (slot, node.get("location").and_then(Value::as_str))
            {
                before.slots.insert(name.clone(), (location.to_owned(), slot));
            }
        }
        before
    }

    pub fn node(&self, name: &str) -> Option<&Node> {
        self.mesh.as_ref()?.nodes.get(&name.parse().ok()?)
    }

    /// What a location had besides its nodes.
    pub fn besides(&self, location: &LocationName) -> Vec<IpNet> {
        let was = self.mesh.as_ref().and_then(|m| m.locations.get(location));
        was.map_or_else(Vec::new, |l| l.prefixes.clone())
    }

    /// Kilo steers the location.
    pub fn is_kilos(&self, location: &LocationName) -> bool {
        let location = self.mesh.as_ref().and_then(|m| m.locations.get(location));
        location.is_some_and(|l| l.steering == Steering::Kilo)
    }

    /// The slot that a node had in a location.
    pub fn slot(&self, name: &str, location: &str) -> Option<u8> {
        self.slots.get(name).filter(|(l, _)| l == location).map(|(_, s)| *s)
    }

    /// The slots that somebody had in a location.
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

/// What a text says of a key that is written once, even if the text as a whole is no TOML: addresses must not move for that.
fn line<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let value = |line: &'a str| {
        let value = line.trim().strip_prefix(key)?.trim_start().strip_prefix('=')?.trim();
        value.strip_prefix('"')?.split_once('"').map(|(value, _)| value)
    };
    text.lines().find_map(value)
}
