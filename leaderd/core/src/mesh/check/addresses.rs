//! Checks addresses: workload prefixes, inner ranges, LAN addresses, endpoints and probe addresses against each other.
//!
//! The rule behind all of these: a packet of ours (WireGuard, VXLAN, a probe) must never be routed by what it carries.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use wgctl_plan::Family;

use super::super::diagnostic::Sink;
use super::super::draft::{Draft, Head};
use super::super::inner;
use super::super::location::Overlay;
use super::super::reader::At;
use super::shared::{Once, endpoint_ip, in_order, owner};
use crate::ids::{LocationName, NodeName};

/// Most services, and most foreign reflectors, of a location.
const MAX_SERVICES: usize = 16;
const MAX_REFLECTORS: usize = 16;

pub(super) fn check(draft: &Draft, head: &Head, sink: &mut Sink<'_>) {
    let prefixes = Prefixes::of(draft);
    prefixes.overlaps(sink);
    inner_ranges(draft, head, &prefixes, sink);
    metadata(draft, head, sink);
    addresses(draft, &prefixes, sink);
    probe_addresses(draft, sink);
    services(draft, &prefixes, sink);
    reflectors(draft, &prefixes, sink);
    families(draft, head, &prefixes, sink);
}

/// Behind what a prefix is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Holder<'d> {
    Node(&'d NodeName),
    /// Somewhere in the location, behind none of its nodes.
    Location(&'d LocationName),
}

impl std::fmt::Display for Holder<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Node(name) => f.write_str(&owner(name)),
            Self::Location(name) => write!(f, "location {name}"),
        }
    }
}

/// All workload prefixes, sorted so that one that holds others comes right before them.
struct Prefixes<'d> {
    all: Vec<(IpNet, usize, Holder<'d>)>,
}

impl<'d> Prefixes<'d> {
    fn of(draft: &'d Draft) -> Self {
        let of_nodes = draft.nodes.iter().flat_map(|(name, n)| {
            n.value.prefixes.iter().map(move |p| (p.value, p.at, Holder::Node(name)))
        });
        let of_locations = draft.locations.iter().flat_map(|(name, l)| {
            l.value.prefixes.iter().map(move |p| (p.value, p.at, Holder::Location(name)))
        });
        let mut all: Vec<_> = of_nodes.chain(of_locations).collect();
        all.sort_by_key(|(net, at, _)| (net.network(), net.prefix_len(), *at));
        Self { all }
    }

    fn overlaps(&self, sink: &mut Sink<'_>) {
        let mut outer: Option<&(IpNet, usize, Holder<'_>)> = None;
        for this in &self.all {
            match outer.filter(|o| o.0.contains(&this.0)) {
                None => outer = Some(this),
                Some(o) => {
                    let (later, earlier) = if this.1 > o.1 { (this, o) } else { (o, this) };
                    let message = format!(
                        "prefix {} of {} overlaps {} of {} (line {})",
                        later.0,
                        later.2,
                        earlier.0,
                        earlier.2,
                        sink.line(earlier.1)
                    );
                    sink.push(
                        later.1,
                        message,
                        "a workload address is in one place only: make them disjoint",
                    );
                }
            }
        }
    }

    /// The prefix that holds an address. Sound as long as none overlap; else that is complained about already.
    fn holding(&self, ip: IpAddr) -> Option<&(IpNet, usize, Holder<'d>)> {
        let after = self.all.partition_point(|(net, ..)| net.network() <= ip);
        self.all[..after].last().filter(|(net, ..)| net.contains(&ip))
    }
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

fn ranges(head: &Head) -> Vec<At<IpNet>> {
    let v4 = At { value: IpNet::V4(head.inner4.value), at: head.inner4.at };
    let v6 = head.inner6.as_ref().map(|n| At { value: IpNet::V6(n.value), at: n.at });
    std::iter::once(v4).chain(v6).collect()
}

fn inner_ranges(draft: &Draft, head: &Head, prefixes: &Prefixes<'_>, sink: &mut Sink<'_>) {
    let ranges = ranges(head);
    for (net, at, holder) in &prefixes.all {
        for range in ranges.iter().filter(|r| overlap(&r.value, net)) {
            let message =
                format!("prefix {net} of {holder} overlaps the inner range {}", range.value);
            let help =
                "choose another `inner_cidr` or `inner_cidr6` in [mesh], one that nobody uses";
            sink.push(*at, message, help);
        }
    }
    for (name, node) in &draft.nodes {
        let endpoint = endpoint_ip(&node.value);
        let places =
            [("LAN address", node.value.address.as_ref()), ("endpoint", endpoint.as_ref())];
        for (what, place) in places {
            let Some(place) = place else { continue };
            if let Some(range) = ranges.iter().find(|r| r.value.contains(&place.value)) {
                let message = format!(
                    "{what} {} of {} lies in the inner range {}",
                    place.value,
                    owner(name),
                    range.value
                );
                sink.push(
                    place.at,
                    message,
                    "choose another `inner_cidr` or `inner_cidr6` in [mesh]",
                );
            }
        }
    }
}

/// No slot holds the addresses at which clouds serve metadata.
fn metadata(draft: &Draft, head: &Head, sink: &mut Sink<'_>) {
    for node in draft.nodes.values() {
        let Some(slot) = &node.value.slot else { continue };
        if inner::is_taken(head.inner4.value, slot.value) {
            let message = format!(
                "slot {} of the inner range {} holds 169.254.169.254, where clouds serve metadata",
                slot.value, head.inner4.value
            );
            sink.push(slot.at, message, "give the node another slot");
        }
    }
}

fn addresses(draft: &Draft, prefixes: &Prefixes<'_>, sink: &mut Sink<'_>) {
    let mut once = Once::new();
    for (name, node) in in_order(&draft.nodes) {
        let node = &node.value;
        if let (Some(address), Some(location)) = (&node.address, &node.location) {
            let what = format!("LAN address {}", address.value);
            let help = "each node of a location has an address of its own";
            once.see(
                (location.value.clone(), address.value),
                address.at,
                &what,
                &owner(name),
                help,
                sink,
            );
            let vxlan = overlay(draft, &location.value).and_then(Overlay::vxlan).is_some();
            // A location's own routes lead to what it has besides its nodes, and so to its nodes as well.
            let harmless = |of: &Holder<'_>| match of {
                Holder::Node(of) => !vxlan && *of == name,
                Holder::Location(of) => **of == location.value,
            };
            if let Some((net, _, of)) =
                prefixes.holding(address.value).filter(|(_, _, of)| !harmless(of))
            {
                let message = format!(
                    "LAN address {} of {} lies in workload prefix {net} of {of}",
                    address.value,
                    owner(name)
                );
                let help = "what carries the mesh may not be routed through it: keep LAN addresses out of the prefixes";
                sink.push(address.at, message, help);
            }
        }
        if let Some(endpoint) = endpoint_ip(node)
            && let Some((net, _, of)) = prefixes.holding(endpoint.value)
        {
            let message = format!(
                "endpoint {} of {} lies in workload prefix {net} of {of}",
                endpoint.value,
                owner(name)
            );
            sink.push(
                endpoint.at,
                message,
                "the tunnel would run through itself: write the address outside of the mesh",
            );
        }
    }
}

fn overlay<'d>(draft: &'d Draft, location: &LocationName) -> Option<&'d Overlay> {
    draft.locations.get(location)?.value.overlay.as_ref()
}

fn probe_addresses(draft: &Draft, sink: &mut Sink<'_>) {
    for (name, node) in &draft.nodes {
        let Some(list) = &node.value.probe_addresses else { continue };
        let mut have = Vec::new();
        for address in list {
            let ip = address.value;
            if !node.value.prefixes.iter().any(|p| p.value.contains(&ip)) {
                let message =
                    format!("probe address {ip} of {} lies in none of its prefixes", owner(name));
                sink.push(
                    address.at,
                    message,
                    "write a workload address of this node, or leave `probe_addresses` out",
                );
            }
            let family = Family::of(&ip);
            if have.contains(&family) {
                let message = format!("{} has two probe addresses of one family", owner(name));
                sink.push(address.at, message, "write at most one IPv4 and one IPv6 address");
            }
            have.push(family);
        }
    }
}

/// Services are workloads of the location that names them: only those are reached through its candidates.
fn services(draft: &Draft, prefixes: &Prefixes<'_>, sink: &mut Sink<'_>) {
    for (name, location) in &draft.locations {
        let all = &location.value.services;
        if let Some(surplus) = all.get(MAX_SERVICES) {
            let message = format!("location {name} has more than {MAX_SERVICES} services");
            sink.push(surplus.at, message, "name a few that stand for the others");
        }
        let mut once = Once::new();
        for service in all.iter().take(MAX_SERVICES) {
            let address = service.value.address;
            let (what, who) = (format!("service {address}"), format!("location {name}"));
            let key = (address, service.value.http.as_ref().map(|h| &h.path));
            once.see(key, service.at, &what, &who, "one probe of it is enough", sink);
            belongs(draft, prefixes, name, address.ip(), service.at, &what, sink);
        }
    }
}

/// Foreign reflectors stand at workload addresses too, and not where leaderd itself answers.
fn reflectors(draft: &Draft, prefixes: &Prefixes<'_>, sink: &mut Sink<'_>) {
    for (name, location) in &draft.locations {
        let all = &location.value.reflectors;
        if let Some(surplus) = all.get(MAX_REFLECTORS) {
            let message = format!("location {name} has more than {MAX_REFLECTORS} reflectors");
            sink.push(surplus.at, message, "one or two are enough");
        }
        let mut once = Once::new();
        for reflector in all.iter().take(MAX_REFLECTORS) {
            let (address, at) = (reflector.value, reflector.at);
            let (what, who) = (format!("reflector {address}"), format!("location {name}"));
            once.see(address, at, &what, &who, "one of it is enough", sink);
            belongs(draft, prefixes, name, address.ip(), at, &what, sink);
            if let Some((.., Holder::Node(of))) = prefixes.holding(address.ip())
                && draft.nodes.get(*of).is_some_and(|n| n.value.answers(address.ip()))
            {
                let message = format!("{what} is where leaderd on {} answers probes", owner(of));
                sink.push(
                    at,
                    message,
                    "remove it: that address is probed anyway, with authentication",
                );
            }
        }
    }
}

/// Complains about what a location asks and has in none of its nodes' prefixes.
fn belongs(
    draft: &Draft,
    prefixes: &Prefixes<'_>,
    location: &LocationName,
    ip: IpAddr,
    at: usize,
    what: &str,
    sink: &mut Sink<'_>,
) {
    let of = prefixes.holding(ip).and_then(|(.., holder)| match holder {
        Holder::Node(name) => Some(*name),
        // No node answers for it, so that nobody is told by it.
        Holder::Location(_) => None,
    });
    let there = of.and_then(|name| draft.nodes.get(name)?.value.location.as_ref());
    if there.is_some_and(|l| l.value == *location) {
        return;
    }
    let message = format!("{what} lies in no workload prefix of location {location}");
    let help = match there {
        Some(other) => format!(
            "it is behind {}, in location {}",
            owner(of.expect("it has an owner")),
            other.value
        ),
        None => {
            "only workload addresses of the location are reached through its candidates".to_owned()
        }
    };
    sink.push(at, message, help);
}

fn families(draft: &Draft, head: &Head, prefixes: &Prefixes<'_>, sink: &mut Sink<'_>) {
    let mut lan: BTreeMap<&LocationName, (IpAddr, &NodeName)> = BTreeMap::new();
    let mut nodes: BTreeMap<&LocationName, usize> = BTreeMap::new();
    for (name, node) in in_order(&draft.nodes) {
        let (Some(address), Some(location)) = (&node.value.address, &node.value.location) else {
            continue;
        };
        *nodes.entry(&location.value).or_default() += 1;
        let (first, of) = *lan.entry(&location.value).or_insert((address.value, name));
        if Family::of(&first) != Family::of(&address.value) {
            let message = format!(
                "LAN address {} of {} and {first} of {} are of different families",
                address.value,
                owner(name),
                owner(of)
            );
            sink.push(
                address.at,
                message,
                "the nodes of a location reach each other by one family: use it for all",
            );
        }
    }
    for (net, at, holder) in &prefixes.all {
        if Family::of_net(net) == Family::V6 && head.inner6.is_none() {
            let message =
                format!("prefix {net} of {holder} is IPv6, but the mesh has no inner IPv6 range");
            let help = "add inner_cidr6 = \"fd4c:eade:0:1::/112\" (or another ULA /112) to [mesh]";
            sink.push(*at, message, help);
        }
    }
    for (name, node) in &draft.nodes {
        let node = &node.value;
        for prefix in &node.prefixes {
            let family = Family::of_net(&prefix.value);
            let (Some(address), Some(location)) = (&node.address, &node.location) else { continue };
            let by_lan = matches!(
                overlay(draft, &location.value),
                Some(Overlay::Direct | Overlay::External)
            );
            if by_lan && nodes[&location.value] > 1 && Family::of(&address.value) != family {
                let message = format!(
                    "prefix {} of {} cannot be reached by LAN addresses like {}, which are of another family",
                    prefix.value,
                    owner(name),
                    address.value
                );
                sink.push(
                    prefix.at,
                    message,
                    "use overlay = \"vxlan\" or \"cni\", which carry both families, or remove the prefix",
                );
            }
        }
    }
}
