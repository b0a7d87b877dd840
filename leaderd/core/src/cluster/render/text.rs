//! The mesh file's text, and which object of the cluster each line of it is from.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use toml::Value;

use super::before::{Before, GIVEN_UP, PREFIXES, REVISION};
use super::draft::Draft;
use super::numbers::Numbers;
use super::settings::Settings;
use crate::cluster::view::Steering;
use crate::ids::{LocationName, NodeName};
use crate::mesh::Host;

/// What a mistake in the text is to be blamed on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Blame {
    Settings,
    Location(LocationName),
    Policy {
        location: LocationName,
        pool: Option<String>,
    },
    /// What a location has besides its nodes.
    Prefixes(LocationName),
    Node(NodeName),
    Whole,
}

/// By first line, from 1.
#[derive(Debug, Default)]
pub(super) struct Blames(BTreeMap<usize, Blame>);

impl Blames {
    pub fn of(&self, line: usize) -> Blame {
        self.0.range(..=line).next_back().map_or(Blame::Whole, |(_, b)| b.clone())
    }
}

const HEAD: &str = "# Made by leaderd from the cluster's Nodes and LocationPools, and made again when those change: do not edit.\n\
                    # Indexes and slots are kept from this text: do not remove it either.\n";

#[derive(Default)]
struct Writer {
    text: String,
    blames: Blames,
}

impl Writer {
    fn table(&mut self, blame: Blame, header: impl Display) {
        let line = self.text.matches('\n').count() + 2;
        self.blames.0.insert(line, blame);
        let _ = write!(self.text, "\n[{header}]\n");
    }

    /// The next line.
    fn blame(&mut self, blame: Blame) {
        self.blames.0.insert(self.text.matches('\n').count() + 1, blame);
    }

    fn set(&mut self, key: &str, value: impl Into<Value>) {
        let _ = writeln!(self.text, "{} = {}", toml_key(key), value.into());
    }
}

/// Bare where TOML allows that.
fn toml_key(name: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if !name.is_empty() && name.chars().all(bare) {
        name.to_owned()
    } else {
        Value::from(name).to_string()
    }
}

pub(super) fn text(
    draft: &Draft<'_>,
    settings: &Settings,
    before: &Before,
    numbers: &Numbers,
    generation: u64,
) -> (String, Blames) {
    let mut w = Writer::default();
    w.text.push_str(HEAD);
    if settings.revision > 0 {
        let mark = settings.mark();
        // The same settings are of the later revision: those in between must not come back.
        let at_least = if mark == before.mark { before.revision } else { 0 };
        let _ = writeln!(w.text, "{REVISION}{}, {mark}", settings.revision.max(at_least));
    }
    if let Some(cni) = draft.source.cni() {
        let _ = writeln!(w.text, "{PREFIXES}{cni}");
    }
    for (name, index) in &numbers.given_up {
        let _ = writeln!(w.text, "{GIVEN_UP}{name} {index}");
    }
    w.table(Blame::Settings, "mesh");
    w.set("generation", i64::try_from(generation).unwrap_or(i64::MAX));
    let prefixes = draft.facts.values().flat_map(|f| &f.prefixes);
    let v6 = prefixes.chain(draft.prefixes.values().flatten()).any(|p| p.addr().is_ipv6());
    if !settings.mesh.contains_key("inner_cidr") {
        w.set("inner_cidr", draft.inner.v4.to_string());
    }
    if v6 && !settings.mesh.contains_key("inner_cidr6") {
        w.set("inner_cidr6", draft.inner.v6.to_string());
    }
    for (key, value) in &settings.mesh {
        w.set(key, value.clone());
    }
    if !settings.policy.is_empty() {
        w.table(Blame::Settings, "policy");
        for (key, value) in &settings.policy {
            w.set(key, value.clone());
        }
    }
    for (name, place) in &draft.places {
        let pool = draft.by_location.get(name).copied();
        let header = format!("locations.{}", toml_key(name.as_str()));
        w.table(Blame::Location(name.clone()), &header);
        w.set("overlay", settings.overlay.as_str());
        if settings.node_addresses {
            w.set("node_addresses", true);
        }
        let steering = pool.map_or(settings.steering, |p| p.spec.steering);
        match steering {
            Steering::Native => {}
            Steering::Kilo => w.set("steering", "kilo"),
            Steering::Observe => w.set("steering", "observe"),
        }
        if !place.witnesses.is_empty() {
            let witnesses: Vec<String> = place.witnesses.iter().map(NodeName::to_string).collect();
            w.set("witnesses", witnesses);
        }
        if let Some(prefixes) = draft.prefixes.get(name) {
            // The last line of its table.
            w.blame(Blame::Prefixes(name.clone()));
            w.set("prefixes", prefixes.iter().map(|p| p.to_string()).collect::<Vec<_>>());
        }
        let mut policy = match pool {
            Some(pool) if !draft.ignored_policies.contains(name) => pool.spec.policy.entries(),
            _ => Vec::new(),
        };
        if steering == Steering::Kilo {
            // Kilo knows one leader; what asks for more is a problem, told elsewhere.
            policy.retain(|(key, _)| *key != "leaders");
            if settings.policy.contains_key("leaders") {
                policy.push(("leaders", Value::from(1)));
            }
        }
        if !policy.is_empty() {
            let pool = pool.map(|p| p.name.clone());
            let blame = Blame::Policy { location: name.clone(), pool };
            w.table(blame, format!("{header}.policy"));
            policy.into_iter().for_each(|(key, value)| w.set(key, value));
        }
    }
    // Those that are as before first, then new ones, then those that changed: of two that clash the later one is blamed.
    let mut nodes: Vec<_> = draft.facts.iter().collect();
    nodes.sort_by_key(|(n, _)| (draft.changed.contains(*n), draft.new.contains(*n), *n));
    for (name, facts) in nodes {
        w.table(Blame::Node(name.clone()), format!("nodes.{}", toml_key(name.as_str())));
        w.set("location", facts.location.as_str());
        w.set("index", i64::from(numbers.indexes[name]));
        let candidate = draft.places.get(&facts.location).and_then(|p| p.candidates.get(name));
        if let Some(candidate) = candidate {
            w.set("slot", i64::from(candidate.slot.0));
            w.set("priority", i64::from(candidate.priority));
            let endpoint = match &candidate.endpoint {
                Host::Ip(ip) => ip.to_string(),
                Host::Name(name) => name.clone(),
            };
            w.set("endpoint", endpoint);
        }
        w.set("address", facts.address.to_string());
        w.set("prefixes", facts.prefixes.iter().map(|p| p.to_string()).collect::<Vec<_>>());
        w.set("wireguard_key", STANDARD.encode(facts.keys.wireguard));
        w.set("control_key", STANDARD.encode(facts.keys.control));
    }
    (w.text, w.blames)
}
