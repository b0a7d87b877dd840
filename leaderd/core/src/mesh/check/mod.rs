//! Checks the fields of a mesh file against each other: names, keys, slots, voters, ports. `addresses` checks prefixes and addresses.

mod addresses;
mod shared;

use std::collections::{BTreeMap, BTreeSet};

use super::diagnostic::Sink;
use super::draft::{Draft, DraftLocation, DraftNode, Head};
use super::location::{Overlay, Steering, VxlanDevice};
use super::values::nearest;
use crate::ids::{LocationName, Slot};
use shared::{Once, in_order, owner};

/// As many as there are indices.
const MAX_NODES: usize = 4094;

/// Most witnesses of a location: with one candidate that makes five voters.
const MAX_WITNESSES: usize = 4;

pub(super) fn check(draft: &Draft, sink: &mut Sink<'_>) {
    if draft.nodes.is_empty() {
        sink.push(0, "the mesh has no node".into(), "name each node: [nodes.NAME]");
    }
    if draft.nodes.len() > MAX_NODES || draft.locations.len() > MAX_NODES {
        let message = format!(
            "the mesh has {} locations and {} nodes, the most is {MAX_NODES} of each",
            draft.locations.len(),
            draft.nodes.len()
        );
        return sink.push(0, message, "split the mesh in two");
    }
    identities(draft, sink);
    slots(draft, sink);
    locations(draft, sink);
    witnesses(draft, sink);
    if let Some(head) = &draft.head {
        ports(draft, head, sink);
        addresses::check(draft, head, sink);
    }
    devices(draft, sink);
    carriers(draft, sink);
}

fn identities(draft: &Draft, sink: &mut Sink<'_>) {
    const HELP: &str = "every node has two keys of its own, and one may not serve for the other: run `wgctl keygen`";
    let (mut indices, mut keys) = (Once::new(), Once::new());
    for (name, node) in in_order(&draft.nodes) {
        let who = format!("node {name}");
        let node = &node.value;
        if let Some(index) = &node.index {
            let what = format!("index {}", index.value);
            indices.see(
                index.value,
                index.at,
                &what,
                &who,
                "give each node a number of its own",
                sink,
            );
        }
        if let Some(key) = &node.wireguard_key {
            keys.see(key.value, key.at, "the WireGuard key", &who, HELP, sink);
        }
        if let Some(key) = &node.control_key {
            keys.see(key.value, key.at, "the control key", &who, HELP, sink);
        }
    }
}

fn slots(draft: &Draft, sink: &mut Sink<'_>) {
    let (mut slots, mut endpoints) = (Once::new(), Once::new());
    for (name, node) in in_order(&draft.nodes) {
        let who = format!("node {name}");
        let DraftNode { slot: Some(slot), location, endpoint, .. } = &node.value else { continue };
        if let Some(location) = location {
            let what = format!("slot {} of location {}, that", slot.value, location.value);
            let help = "each candidate of a location has a slot of its own; without `slot` a node is a member";
            slots.see((location.value.clone(), slot.value), slot.at, &what, &who, help, sink);
        }
        if let Some(endpoint) = endpoint {
            let what = "the endpoint";
            let help =
                "all candidates listen on the same ports, so each needs an address of its own";
            endpoints.see(endpoint.value.clone(), endpoint.at, what, &who, help, sink);
        }
    }
}

/// A location's nodes, as numbers.
#[derive(Default)]
struct Count {
    candidates: usize,
    members: usize,
}

fn locations(draft: &Draft, sink: &mut Sink<'_>) {
    let mut counts: BTreeMap<&LocationName, Count> = BTreeMap::new();
    for (name, node) in in_order(&draft.nodes) {
        let Some(location) = &node.value.location else { continue };
        if !draft.locations.contains_key(&location.value) && !sink.is_full() {
            let help = match nearest(
                location.value.as_str(),
                draft.locations.keys().map(LocationName::as_str),
            ) {
                Some(near) => format!("did you mean \"{near}\"?"),
                None => format!("describe it in [locations.{}]", location.value),
            };
            sink.push(
                location.at,
                format!("node {name} is in location {}, which is not there", location.value),
                help,
            );
        }
        let count = counts.entry(&location.value).or_default();
        if node.value.slot.is_some() { count.candidates += 1 } else { count.members += 1 }
    }
    for (name, location) in &draft.locations {
        let at = location.at;
        let Some(count) = counts.get(name) else {
            sink.push(
                at,
                format!("location {name} has no node"),
                "remove it, or put a node into it",
            );
            continue;
        };
        if count.candidates == 0 && draft.locations.len() > 1 {
            let message =
                format!("location {name} has no candidate, so no other location can reach it");
            sink.push(at, message, "give `slot = 0` and an `endpoint` to one of its nodes");
        }
        if voters(count, location.value.witnesses.len()) == 2 {
            let message = format!(
                "location {name} has 2 voters: without one of them the other has no quorum, and cannot decide"
            );
            let help = "add `witnesses = [\"NODE\"]` with a candidate of another location, or a third node";
            sink.push(at, message, help);
        }
    }
}

/// How many voters [`super::model::Mesh::voters_of`] will find.
fn voters(count: &Count, witnesses: usize) -> usize {
    let have = count.candidates + witnesses;
    let want = if have <= 3 { 3 } else { 5 };
    have + count.members.min(want.max(have) - have)
}

fn witnesses(draft: &Draft, sink: &mut Sink<'_>) {
    for (name, location) in &draft.locations {
        let mut seen = BTreeSet::new();
        if let Some(surplus) = location.value.witnesses.get(MAX_WITNESSES) {
            let message = format!("location {name} has more than {MAX_WITNESSES} witnesses");
            sink.push(surplus.at, message, "one or two are enough");
        }
        for witness in location.value.witnesses.iter().take(MAX_WITNESSES) {
            let who = &witness.value;
            let why = match draft.nodes.get(who).map(|n| &n.value) {
                None => "there is no such node".to_owned(),
                Some(n) if n.location.as_ref().is_some_and(|l| l.value == *name) => {
                    "it is of the location itself, and votes anyway".to_owned()
                }
                Some(n) if n.slot.is_none() => "it is a member, which has no tunnels".to_owned(),
                Some(_) if !seen.insert(who) => "it is listed twice".to_owned(),
                Some(_) => continue,
            };
            let candidates = draft.nodes.iter().filter(|(_, n)| {
                n.value.slot.is_some()
                    && n.value.location.as_ref().is_some_and(|l| l.value != *name)
            });
            let fit: Vec<&str> = candidates.map(|(n, _)| n.as_str()).take(5).collect();
            let help = if fit.is_empty() {
                "a witness is a candidate of another location".to_owned()
            } else {
                format!("a witness is a candidate of another location, such as {}", fit.join(", "))
            };
            sink.push(witness.at, format!("{who} cannot be a witness of {name}: {why}"), help);
        }
    }
}

fn ports(draft: &Draft, head: &Head, sink: &mut Sink<'_>) {
    let top = draft
        .nodes
        .values()
        .filter_map(|n| Some(n.value.slot.as_ref()?.value))
        .max()
        .unwrap_or(Slot(0));
    let planes = head.base_port.value..=head.base_port.value.saturating_add(top.0.into());
    let control = ("the control port".to_owned(), &head.control_port);
    let probes = head.probe_ports.iter().map(|p| ("a probe port".to_owned(), p));
    let mut once = Once::new();
    let mut see = |what: &str, port: u16, at: usize, sink: &mut Sink<'_>| {
        if planes.contains(&port) {
            let message = format!(
                "UDP port {port}, {what}, is one of the planes' ({} to {})",
                planes.start(),
                planes.end()
            );
            sink.push(
                at,
                message,
                "the planes take one port per slot from `base_port`: choose another port",
            );
        }
        once.see(port, at, &format!("UDP port {port}"), what, "choose another port", sink);
    };
    for (what, port) in std::iter::once(control).chain(probes) {
        see(&what, port.value, port.at, sink);
    }
    let mut vxlan = BTreeSet::new();
    for (name, location) in &draft.locations {
        let vxlan_device = location.value.overlay.as_ref().and_then(Overlay::vxlan);
        let Some(&VxlanDevice { port, mtu, .. }) = vxlan_device else { continue };
        let at = location.value.vxlan_at;
        // Locations may share a port: each has its own machines.
        if vxlan.insert(port) {
            see(&format!("the VXLAN overlay of {name}"), port, at, sink);
        }
        if let Some(mtu) = mtu.filter(|mtu| *mtu < head.mtu.value) {
            let message = format!(
                "the VXLAN overlay of {name} carries packets of {mtu} bytes, the mesh of {}: the larger would be lost",
                head.mtu.value
            );
            let help = "lower `mtu` in [mesh], or raise the overlay's (at most the LAN's MTU less 50, or less 70 over IPv6)";
            sink.push(at, message, help);
        }
    }
}

/// A LAN device may not be the overlay's.
fn devices(draft: &Draft, sink: &mut Sink<'_>) {
    for (name, node) in &draft.nodes {
        let (Some(device), Some(location)) = (&node.value.device, &node.value.location) else {
            continue;
        };
        if let Some(vxlan) =
            draft.locations.get(&location.value).and_then(|l| l.value.overlay.as_ref()?.vxlan())
            && vxlan.device == device.value
        {
            let message =
                format!("device {} of node {name} is the VXLAN overlay's name", device.value);
            sink.push(device.at, message, "name the LAN device, such as \"eth0\"");
        }
    }
}

/// What Kilo and flannel can carry.
fn carriers(draft: &Draft, sink: &mut Sink<'_>) {
    let kilo =
        |l: &DraftLocation| l.steering.as_ref().filter(|s| s.value == Steering::Kilo).map(|s| s.at);
    for (name, location) in &draft.locations {
        if let Some(at) = kilo(&location.value)
            && location.value.policy.as_ref().unwrap_or(&draft.policy).leaders != 1
        {
            let message =
                format!("location {name} is steered by Kilo, which knows one leader only");
            sink.push(at, message, "write leaders = 1 in its policy, or steering = \"native\"");
        }
        for prefix in location.value.prefixes.iter().filter(|p| p.value.addr().is_ipv6()) {
            if kilo(&location.value).is_some() {
                let message = format!(
                    "prefix {} of location {name} is IPv6, which Kilo does not carry",
                    prefix.value
                );
                sink.push(prefix.at, message, "leave it out: the mesh then carries IPv4 only");
            }
        }
    }
    for (name, node) in &draft.nodes {
        let node = &node.value;
        let Some(at) = node.location.as_ref() else { continue };
        let Some(location) = draft.locations.get(&at.value) else { continue };
        let flannel = matches!(location.value.overlay, Some(Overlay::Flannel { .. }));
        let carrier = match (flannel, kilo(&location.value)) {
            (true, _) => "flannel",
            (_, Some(_)) => "Kilo",
            _ => continue,
        };
        for prefix in node.prefixes.iter().filter(|p| p.value.addr().is_ipv6()) {
            let message = format!(
                "prefix {} of {} is IPv6, which {carrier} does not carry",
                prefix.value,
                owner(name)
            );
            sink.push(prefix.at, message, "leave it out: the mesh then carries IPv4 only");
        }
        if flannel && node.prefixes.is_empty() {
            let message = format!("{} has no prefix, by which flannel would reach it", owner(name));
            sink.push(at.at, message, "write its pod CIDR: prefixes = [\"10.42.1.0/24\"]");
        }
    }
}
