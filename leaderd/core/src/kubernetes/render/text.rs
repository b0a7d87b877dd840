//! Writes the mesh file's text, and records which object of the cluster each line is from.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use toml::Value;

use super::draft::Draft;
use super::indexes::Indexes;
use super::previous::{GIVEN_UP, PREFIXES, PreviousMesh, REVISION};
use super::settings::Settings;
use crate::ids::{LocationName, NodeName};
use crate::kubernetes::view::Steering;
use crate::mesh::Host;

/// The part of the input that a line is from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Origin {
    Settings,
    Location(LocationName),
    Policy {
        location: LocationName,
        pool: Option<String>,
    },
    /// Prefixes of a location besides its nodes'.
    Prefixes(LocationName),
    Node(NodeName),
    Whole,
}

/// By first line, from 1.
#[derive(Debug, Default)]
pub(super) struct Origins(BTreeMap<usize, Origin>);

impl Origins {
    pub fn of(&self, line: usize) -> Origin {
        self.0.range(..=line).next_back().map_or(Origin::Whole, |(_, b)| b.clone())
    }
}

const HEAD: &str = "# Made by leaderd from the cluster's Nodes and LocationPools, and made again when those change: do not edit.\n\
                    # Indexes and slots are kept from this text: do not remove it either.\n";

#[derive(Default)]
struct Writer {
    text: String,
    origins: Origins,
}

impl Writer {
    fn table(&mut self, origin: Origin, header: impl Display) {
        let line = self.text.matches('\n').count() + 2;
        self.origins.0.insert(line, origin);
        let _ = write!(self.text, "\n[{header}]\n");
    }

    /// Sets the origin of the next line.
    fn origin(&mut self, origin: Origin) {
        self.origins.0.insert(self.text.matches('\n').count() + 1, origin);
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
    previous: &PreviousMesh,
    numbers: &Indexes,
    generation: u64,
) -> (String, Origins) {
    let mut w = Writer::default();
    w.text.push_str(HEAD);
    if settings.revision > 0 {
        let mark = settings.mark();
        // The same settings are of the later revision: those in between must not come back.
        let at_least = if mark == previous.mark { previous.revision } else { 0 };
        let _ = writeln!(w.text, "{REVISION}{}, {mark}", settings.revision.max(at_least));
    }
    if let Some(cni) = draft.source.cni() {
        let _ = writeln!(w.text, "{PREFIXES}{cni}");
    }
    for (name, index) in &numbers.given_up {
        let _ = writeln!(w.text, "{GIVEN_UP}{name} {index}");
    }
    w.table(Origin::Settings, "mesh");
    w.set("generation", i64::try_from(generation).unwrap_or(i64::MAX));
    let prefixes = draft.specs.values().flat_map(|f| &f.prefixes);
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
        w.table(Origin::Settings, "policy");
        for (key, value) in &settings.policy {
            w.set(key, value.clone());
        }
    }
    for (name, plan) in &draft.plans {
        let pool = draft.by_location.get(name).copied();
        let header = format!("locations.{}", toml_key(name.as_str()));
        w.table(Origin::Location(name.clone()), &header);
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
        if !plan.witnesses.is_empty() {
            let witnesses: Vec<String> = plan.witnesses.iter().map(NodeName::to_string).collect();
            w.set("witnesses", witnesses);
        }
        if let Some(prefixes) = draft.prefixes.get(name) {
            // This is the last line of its table.
            w.origin(Origin::Prefixes(name.clone()));
            w.set("prefixes", prefixes.iter().map(|p| p.to_string()).collect::<Vec<_>>());
        }
        let mut policy = match pool {
            Some(pool) if !draft.ignored_policies.contains(name) => pool.spec.policy.entries(),
            _ => Vec::new(),
        };
        if steering == Steering::Kilo {
            // Kilo knows one leader; more is reported as a problem elsewhere.
            policy.retain(|(key, _)| *key != "leaders");
            if settings.policy.contains_key("leaders") {
                policy.push(("leaders", Value::from(1)));
            }
        }
        if !policy.is_empty() {
            let pool = pool.map(|p| p.name.clone());
            let origin = Origin::Policy { location: name.clone(), pool };
            w.table(origin, format!("{header}.policy"));
            policy.into_iter().for_each(|(key, value)| w.set(key, value));
        }
    }
    // Unchanged nodes first, then new ones, then changed ones: of two that conflict, the check reports the later one.
    let mut nodes: Vec<_> = draft.specs.iter().collect();
    nodes.sort_by_key(|(n, _)| (draft.changed.contains(*n), draft.new.contains(*n), *n));
    for (name, specs) in nodes {
        w.table(Origin::Node(name.clone()), format!("nodes.{}", toml_key(name.as_str())));
        w.set("location", specs.location.as_str());
        w.set("index", i64::from(numbers.indexes[name]));
        let candidate = draft.plans.get(&specs.location).and_then(|p| p.candidates.get(name));
        if let Some(candidate) = candidate {
            w.set("slot", i64::from(candidate.slot.0));
            w.set("priority", i64::from(candidate.priority));
            let endpoint = match &candidate.endpoint {
                Host::Ip(ip) => ip.to_string(),
                Host::Name(name) => name.clone(),
            };
            w.set("endpoint", endpoint);
        }
        w.set("address", specs.address.to_string());
        w.set("prefixes", specs.prefixes.iter().map(|p| p.to_string()).collect::<Vec<_>>());
        w.set("wireguard_key", STANDARD.encode(specs.keys.wireguard));
        w.set("control_key", STANDARD.encode(specs.keys.control));
    }
    (w.text, w.origins)
}
