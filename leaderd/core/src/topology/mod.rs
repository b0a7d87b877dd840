//! Computes the whole network of one node from the mesh and from who leads.
//!
//! Every tunnel between two candidates of different locations is always up. Each end's interface is named after the slot of the *far*
//! end (`a.wgl{j} ↔ b.wgl{i}`), and every peer may always carry everything of its location. So who relays appears in one place only
//! (`relays`): the members of nexthop groups, one per remote location and family, and on a standby the rules that send its own
//! workloads' packets by the relay. Everything else is a function of the mesh alone.
//!
//! No loops, whatever the nodes believe about leaders and relays: a candidate sends what is not its own only into a tunnel, or to its
//! owner in the location; its own, like a member's, goes into a tunnel or to a candidate of the location. So a packet crosses at most
//! node → candidate → candidate → node.
//!
//! With overlays `cni`, `external` and `flannel` the CNI routes the location's own prefixes. Remote prefixes are in tables of our own
//! ahead of the CNI's, one table for each remote location. With `cni` (and, for node addresses, with `vxlan`) a further table is used
//! only for packets that come in on a plane: the relay's last hop, over our VXLAN.
//!
//! Outer packets, WireGuard's to an endpoint and VXLAN's to a node of the location, never take a route of ours: remote destinations
//! that hold an address of the underlay are withheld, and the relay's table does not apply to what this node sends.

mod checks;
mod ids;
mod local;
mod notes;
mod relays;
mod roles;
mod transit;
mod tunnels;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use wgctl_plan::{Family, InterfaceName, MAIN_TABLE, Network, RouteKey, RouteVia, Rule};

use crate::ids::{LocationName, NodeName, Slot};
use crate::mesh::{Host, Location, Mesh, Node, Overlay};
use crate::relay_pair::Relays;

pub use checks::route_checks;
pub use ids::{location_group, location_of_table, location_table, own_group};
pub use notes::{Note, notes};
pub use relays::change_relays;
pub use roles::{NexthopRole, TableRole, nexthop_role, table_role};

/// Metric of our routes. Below what CNIs and DHCP use, above 0, which IPv6 would turn into 1024.
pub const ROUTE_METRIC: u32 = 76;

/// A relay's table for packets that come in on a plane: routes to the other nodes of its location, over our VXLAN. One below the tables
/// of remote locations (see [`location_table`]), as no node has index 0.
pub const RELAY_TABLE: u32 = 759_999;

/// Preference of our rules: after the kernel's own rule for local addresses (0) and before that for `main` (32766). Kilo's (75, 74, …)
/// come before ours, and apply only to packets from its own device.
pub const RULE_PRIORITY: u32 = 76;

/// A candidate's table for what has a source of its own: routes to the relays of its location.
pub const OWN_SOURCES_TABLE: u32 = 759_998;

/// Preference of the rules that lead to it: before those of [`RULE_PRIORITY`].
pub const OWN_SOURCES_PRIORITY: u32 = 70;

/// Everything that a node's network depends on.
#[derive(Debug, Clone, Copy)]
pub struct TopologyInput<'a> {
    pub mesh: &'a Mesh,
    /// The node that the network is for. If the mesh has no such node, the network is empty.
    pub me: &'a NodeName,
    /// The leaders of each location: slots in order. Slots without a candidate are ignored. A location that is missing or has no slot
    /// left is led by the first of [`Mesh::ranking`].
    pub leaders: &'a BTreeMap<LocationName, Vec<Slot>>,
    /// Who carries between this node's location and others, where that is not the leaders of both.
    pub relays: &'a BTreeMap<LocationName, Relays>,
    /// DNS names of endpoints that the shell has resolved. A peer whose name is missing has no endpoint.
    pub resolved: &'a BTreeMap<String, IpAddr>,
    /// The device with this node's LAN address, as the shell found it; the mesh file's `device` wins. Without either, overlays `direct`
    /// and `external` have no routes over the LAN.
    pub lan_device: Option<&'a InterfaceName>,
    /// The MTU of that device, in bytes.
    pub lan_mtu: Option<u32>,
    /// The host has this node's LAN address.
    pub holds_address: bool,
    /// Of the remote locations that Kilo serves too, or that are only observed, those to which our routes carry. See
    /// [`location_table`].
    pub carried: &'a BTreeSet<LocationName>,
}

/// Returns everything that leaderd wants on node `me`.
pub fn desired(input: &TopologyInput<'_>) -> Network {
    let Some(me) = input.mesh.node(input.me) else { return Network::default() };
    let (locations, underlay) = (locations(input.mesh), underlay(input));
    let mut build = Build { input, me, locations, underlay, net: Network::default() };
    build.planes();
    build.location();
    let relays = relays::relay_objects(&build.net.nexthops, input, me);
    build.net.nexthops.extend(relays);
    build.remote_prefixes();
    build.sysctls();
    build.transit();
    build.net
}

/// Builds one network.
struct Build<'a> {
    input: &'a TopologyInput<'a>,
    me: &'a Node,
    locations: BTreeMap<&'a LocationName, LocationIndex<'a>>,
    underlay: BTreeSet<IpAddr>,
    net: Network,
}

/// The nodes and prefixes of a location, collected once: a search of all nodes for every location would be quadratic.
#[derive(Default)]
struct LocationIndex<'a> {
    nodes: Vec<&'a Node>,
    candidates: BTreeMap<Slot, &'a Node>,
    /// Everything that is routed to the location: its workload prefixes, and the addresses of its nodes where they are carried.
    prefixes: BTreeSet<IpNet>,
}

fn locations(mesh: &Mesh) -> BTreeMap<&LocationName, LocationIndex<'_>> {
    let location = |l: &Location| LocationIndex {
        prefixes: l.prefixes.iter().copied().collect(),
        ..LocationIndex::default()
    };
    let mut locations: BTreeMap<&LocationName, LocationIndex<'_>> =
        mesh.locations.iter().map(|(name, l)| (name, location(l))).collect();
    for node in mesh.nodes.values() {
        let location = locations.entry(&node.location).or_default();
        location.nodes.push(node);
        location.candidates.extend(node.slot.map(|s| (s, node)));
        location.prefixes.extend(&node.prefixes);
        location.prefixes.extend(mesh.carried_address(node).map(host));
    }
    locations
}

/// Returns the addresses at which candidates' WireGuard is reached, as far as this node knows them. A candidate whose DNS name is not
/// resolved here may be at its LAN address.
fn underlay(input: &TopologyInput<'_>) -> BTreeSet<IpAddr> {
    let of = |node: &Node| match node.endpoint.as_ref()? {
        Host::Ip(ip) => Some(*ip),
        Host::Name(name) => Some(input.resolved.get(name).copied().unwrap_or(node.address)),
    };
    input.mesh.nodes.values().filter_map(of).collect()
}

/// True if a prefix holds an address of the underlay: packets to it would include a tunnel's own.
fn holds_underlay(underlay: &BTreeSet<IpAddr>, prefix: &IpNet) -> bool {
    underlay.range(prefix.network()..=prefix.broadcast()).next().is_some()
}

impl<'a> Build<'a> {
    fn mesh(&self) -> &'a Mesh {
        self.input.mesh
    }

    /// The families that the mesh carries.
    fn families(&self) -> &'static [Family] {
        if self.mesh().inner.v6.is_some() { &[Family::V4, Family::V6] } else { &[Family::V4] }
    }

    fn overlay(&self) -> &'a Overlay {
        self.mesh().locations.get(&self.me.location).map_or(&Overlay::External, |l| &l.overlay)
    }

    fn other_locations(&self) -> Vec<&'a LocationName> {
        self.locations.keys().copied().filter(|&l| *l != self.me.location).collect()
    }

    /// The remote locations that our routes lead to: not those whose traffic is only observed.
    fn routed_locations(&self) -> Vec<&'a LocationName> {
        let observed = |l: &LocationName| {
            self.mesh().observed_between(&self.me.location, l) && !self.input.carried.contains(l)
        };
        self.other_locations().into_iter().filter(|l| !observed(l)).collect()
    }

    /// The source address of what this node sends to other locations: its own address, where that is carried, so that it has one
    /// identity everywhere. The kernel refuses a route with a source that the host does not have.
    fn source(&self, family: Family) -> Option<IpAddr> {
        let has_device = self.me.device.is_some() || self.input.lan_device.is_some();
        let local = has_device && self.input.holds_address;
        let carried = self.mesh().carried_address(self.me).filter(|_| local);
        carried.filter(|ip| Family::of(ip) == family)
    }

    /// The prefixes that our routes send to a location.
    fn remote(&self, location: &LocationName, family: Family) -> Vec<IpNet> {
        let mine = |p: &&IpNet| Family::of_net(p) == family && !holds_underlay(&self.underlay, p);
        self.locations[location].prefixes.iter().filter(mine).copied().collect()
    }

    /// Routes the prefixes of all other locations: on a candidate into its own tunnels, on a member to the relays of its location. What a
    /// standby sends itself goes as a member's.
    fn remote_prefixes(&mut self) {
        let stands_by = relays::stands_by(self.input, self.me);
        for location in self.routed_locations() {
            for &family in self.families() {
                let prefixes = self.remote(location, family);
                if prefixes.is_empty() {
                    continue;
                }
                let (own, source) = (own_group(self.mesh(), location, family), self.source(family));
                let groups = relays::groups(
                    &self.net.nexthops,
                    self.input,
                    self.me,
                    stands_by,
                    location,
                    family,
                );
                for (id, members) in groups {
                    let Some(group) = relays::group(&self.net.nexthops, members) else { continue };
                    self.net.nexthops.insert(id, group);
                    let table = if Some(id) == own {
                        OWN_SOURCES_TABLE
                    } else {
                        self.table_to(location, family)
                    };
                    // Beside Kilo the routes of a location that it carries are ready, and no rule leads there.
                    if table == OWN_SOURCES_TABLE && self.is_left_to_kilo(location) {
                        continue;
                    }
                    for prefix in &prefixes {
                        let via = RouteVia::Nexthop { id, source };
                        self.route_in(table, *prefix, ROUTE_METRIC, via);
                    }
                }
                if self.me.slot.is_some() && family == Family::V6 {
                    self.probe_routes6(location, &prefixes);
                }
            }
        }
        if stands_by {
            let rules = relays::own_source_rules(&self.net, self.input, self.me);
            self.net.rules.extend(rules);
        }
    }

    fn is_left_to_kilo(&self, location: &LocationName) -> bool {
        self.mesh().kilo_between(&self.me.location, location)
            && !self.input.carried.contains(location)
    }

    fn route(&mut self, prefix: IpNet, via: RouteVia) {
        self.route_in(MAIN_TABLE, prefix, ROUTE_METRIC, via);
    }

    fn route_in(&mut self, table: u32, prefix: IpNet, metric: u32, via: RouteVia) {
        self.net.routes.insert(RouteKey { table, prefix: prefix.trunc(), metric }, via);
    }

    /// Returns the table for packets to a remote location. Adds the rule to it, if our routes carry there.
    fn table_to(&mut self, location: &LocationName, family: Family) -> u32 {
        let kilo = self.mesh().kilo_between(&self.me.location, location);
        let carried = self.input.carried.contains(location);
        if !kilo && !carried && !self.overlay().is_foreign() {
            return MAIN_TABLE;
        }
        let Some(table) = location_table(self.mesh(), location) else { return MAIN_TABLE };
        if !kilo || carried {
            self.net.rules.insert(rule(family, None, table));
        }
        table
    }

    /// The LAN device, where relays send by it: what comes from one that is not this node's present relay would be dropped by a strict filter
    /// while the two ends of a pair of locations change, and what a standby gets from its leader at all times.
    fn lan_of_relays(&self) -> Option<&'a InterfaceName> {
        let by_lan = matches!(self.overlay(), Overlay::Direct | Overlay::External);
        let lan = self.me.device.as_ref().or(self.input.lan_device)?;
        (by_lan && !self.routed_locations().is_empty()).then_some(lan)
    }

    fn sysctls(&mut self) {
        let mut set = |path: String, value: &str| self.net.sysctls.insert(path, value.to_owned());
        set("net/ipv4/ip_forward".into(), "1");
        // Otherwise replacing a nexthop group sends a notification for each route that uses it (688 µs against 51 µs for 1,000).
        set("net/ipv4/nexthop_compat_mode".into(), "0");
        if self.input.mesh.inner.v6.is_some() {
            set("net/ipv6/conf/all/forwarding".into(), "1");
        }
        // Loose: traffic may come in by one plane and leave by another. The kernel takes the greater of the values of `all` and of the
        // interface, and loose (2) is greater than strict (1), so it is enough to set our interfaces.
        let ours = self.net.wireguard.keys().chain(self.net.vxlan.keys());
        let loose: Vec<InterfaceName> = ours.chain(self.lan_of_relays()).cloned().collect();
        for dev in loose {
            self.net.sysctls.insert(format!("net/ipv4/conf/{dev}/rp_filter"), "2".into());
        }
    }
}

fn rule(family: Family, iif: Option<InterfaceName>, table: u32) -> Rule {
    Rule { family, priority: RULE_PRIORITY, from: None, to: None, iif, table }
}

/// Returns the leaders of a location, as far as this node knows. Empty only for a location without candidates.
fn known_leaders(input: &TopologyInput<'_>, location: &LocationName) -> Vec<Slot> {
    let given = input.leaders.get(location).map_or(&[][..], Vec::as_slice);
    let exists = |s: &Slot| input.mesh.candidate(location, *s).is_some();
    let known: Vec<Slot> = given.iter().copied().filter(exists).collect();
    if known.is_empty() {
        input.mesh.ranking(location).into_iter().take(1).collect()
    } else {
        known
    }
}

/// The prefix of exactly one address.
fn host(ip: IpAddr) -> IpNet {
    match ip {
        IpAddr::V4(ip) => Ipv4Net::new(ip, 32).expect("32 is a prefix length").into(),
        IpAddr::V6(ip) => Ipv6Net::new(ip, 128).expect("128 is a prefix length").into(),
    }
}

/// `inner(n, s)` of a family; `None` for IPv6 in a mesh without it.
fn inner(mesh: &Mesh, node: &Node, slot: Slot, family: Family) -> Option<IpAddr> {
    match family {
        Family::V4 => Some(mesh.inner4(node, slot).into()),
        Family::V6 => mesh.inner6(node, slot).map(Into::into),
    }
}

fn slot_range(mesh: &Mesh, slot: Slot, family: Family) -> Option<IpNet> {
    match family {
        Family::V4 => Some(mesh.slot_range4(slot).into()),
        Family::V6 => mesh.slot_range6(slot).map(Into::into),
    }
}
