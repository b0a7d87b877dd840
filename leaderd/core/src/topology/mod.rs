//! From the mesh and from who leads to the whole network of one node.
//!
//! Every tunnel between two candidates of different locations is always up; each end's interface is named after the
//! slot of the *far* end (`a.wgl{j} ↔ b.wgl{i}`), and every peer may always carry everything of its location. So who
//! leads appears in one place only: the members of one nexthop group per remote location and family on candidates,
//! and of one group per family ('to my leaders') on members. All else is a function of the mesh alone.
//!
//! No loops, whatever the nodes believe about leaders: a candidate sends remote prefixes only into a tunnel and local
//! ones only into the location, a member sends remote ones only to a candidate of its own location. A packet therefore
//! crosses at most member → candidate → candidate → member.
//!
//! With overlays `cni`, `external` and `flannel` the location's own prefixes are the CNI's, and what is remote lies in tables of our
//! own ahead of the CNI's, one for each remote location. With `cni` (and, for node addresses, with `vxlan`) a further table is used
//! only for what comes in on a plane: the relay's last hop, over our VXLAN.
//!
//! Outer packets, WireGuard's to an endpoint and VXLAN's to a node of the own location, are never caught by a route of ours: remote
//! destinations that hold an address of the underlay are withheld, and the relay's table is not asked about what this node sends.

mod ids;
mod leaders;
mod local;
mod notes;
mod transit;
mod tunnels;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod walk;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use wgctl_plan::{Family, InterfaceName, Network, Nexthop, NexthopId, RouteKey, RouteVia, Rule};

use crate::ids::{LocationName, NodeName, Slot};
use crate::mesh::{Host, Location, Mesh, Node, Overlay};

pub use ids::{leaders_group, location_group, steered_location, steered_table};
pub use leaders::change_leaders;
pub use notes::{Note, notes};

/// Metric of our routes. Below what CNIs and DHCP use, above 0, which IPv6 would turn into 1024.
pub const ROUTE_METRIC: u32 = 76;

/// Routing table `main`.
pub const ROUTE_TABLE: u32 = 254;

/// The table that a relay looks into for what comes in on a plane: the other nodes of its location, over our VXLAN. One below those of
/// remote locations (see [`steered_table`]), as no node has index 0.
pub const RELAY_TABLE: u32 = 759_999;

/// Preference of our rules: after the kernel's own for local addresses (0), before `main` (32766). Kilo's (75, 74, …) come before them, and
/// are for packets from its own device alone.
pub const RULE_PRIORITY: u32 = 76;

/// What a node's network follows from.
#[derive(Debug, Clone, Copy)]
pub struct TopologyInput<'a> {
    pub mesh: &'a Mesh,
    /// The node it is for. If the mesh has no such node, nothing is desired.
    pub me: &'a NodeName,
    /// Who leads each location: slots in order. Slots without a candidate are ignored; a location that is missing or
    /// has none left is led by the first of [`Mesh::ranking`].
    pub leaders: &'a BTreeMap<LocationName, Vec<Slot>>,
    /// DNS names of endpoints that the shell has resolved. A peer whose name is missing has no endpoint.
    pub resolved: &'a BTreeMap<String, IpAddr>,
    /// The device that holds this node's LAN address, as the shell found it; the mesh file's `device` wins. Without
    /// either, overlays `direct` and `external` have no routes over the LAN.
    pub lan_device: Option<&'a InterfaceName>,
    /// The MTU of that device, in bytes.
    pub lan_mtu: Option<u32>,
    /// The host holds this node's LAN address.
    pub holds_address: bool,
    /// Remote locations that Kilo serves as well, or that are only observed now, to which our routes carry. See [`steered_table`].
    pub carried: &'a BTreeSet<LocationName>,
}

/// All that leaderd wants on node `me`.
pub fn desired(input: &TopologyInput<'_>) -> Network {
    let Some(me) = input.mesh.node(input.me) else { return Network::default() };
    let (sites, underlay) = (sites(input.mesh), underlay(input));
    let mut build = Build { input, me, sites, underlay, net: Network::default() };
    build.planes();
    build.location();
    build.remote_prefixes();
    build.sysctls();
    build.transit();
    build.net
}

/// One network in the making.
struct Build<'a> {
    input: &'a TopologyInput<'a>,
    me: &'a Node,
    sites: BTreeMap<&'a LocationName, Site<'a>>,
    underlay: BTreeSet<IpAddr>,
    net: Network,
}

/// A location, gathered once: looking through all nodes for every location would be quadratic in a large mesh.
#[derive(Default)]
struct Site<'a> {
    nodes: Vec<&'a Node>,
    candidates: BTreeMap<Slot, &'a Node>,
    /// All that the location is reached for: its workload prefixes, and the addresses of its nodes where they are carried.
    prefixes: BTreeSet<IpNet>,
}

fn sites(mesh: &Mesh) -> BTreeMap<&LocationName, Site<'_>> {
    let site =
        |l: &Location| Site { prefixes: l.prefixes.iter().copied().collect(), ..Site::default() };
    let mut sites: BTreeMap<&LocationName, Site<'_>> =
        mesh.locations.iter().map(|(name, l)| (name, site(l))).collect();
    for node in mesh.nodes.values() {
        let site = sites.entry(&node.location).or_default();
        site.nodes.push(node);
        site.candidates.extend(node.slot.map(|s| (s, node)));
        site.prefixes.extend(&node.prefixes);
        site.prefixes.extend(mesh.carried_address(node).map(host));
    }
    sites
}

/// The addresses that candidates' WireGuard is reached at, as far as this node knows them. A candidate with a DNS name that has no address
/// here may be at its own.
fn underlay(input: &TopologyInput<'_>) -> BTreeSet<IpAddr> {
    let of = |node: &Node| match node.endpoint.as_ref()? {
        Host::Ip(ip) => Some(*ip),
        Host::Name(name) => Some(input.resolved.get(name).copied().unwrap_or(node.address)),
    };
    input.mesh.nodes.values().filter_map(of).collect()
}

/// Whether a prefix holds an address of the underlay: what is sent there would be a tunnel's own packets.
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
        self.sites.keys().copied().filter(|&l| *l != self.me.location).collect()
    }

    /// Those that routes of ours lead to: not where traffic is only observed.
    fn routed_locations(&self) -> Vec<&'a LocationName> {
        let observed = |l: &LocationName| {
            self.mesh().observed_between(&self.me.location, l) && !self.input.carried.contains(l)
        };
        self.other_locations().into_iter().filter(|l| !observed(l)).collect()
    }

    fn leaders(&self, location: &LocationName) -> Vec<Slot> {
        known_leaders(self.input, location)
    }

    /// What this node itself sends to other locations from: its own address, where that is carried, so that it has one identity
    /// everywhere. The kernel refuses such routes where it does not hold the address.
    fn source(&self, family: Family) -> Option<IpAddr> {
        let there = self.me.device.is_some() || self.input.lan_device.is_some();
        let held = there && self.input.holds_address;
        let carried = self.mesh().carried_address(self.me).filter(|_| held);
        carried.filter(|ip| Family::of(ip) == family)
    }

    /// What goes to a location by our routes.
    fn remote(&self, location: &LocationName, family: Family) -> Vec<IpNet> {
        let mine = |p: &&IpNet| Family::of_net(p) == family && !holds_underlay(&self.underlay, p);
        self.sites[location].prefixes.iter().filter(mine).copied().collect()
    }

    /// Routes all prefixes of other locations: on a candidate into its own tunnels, on a member to its leaders.
    fn remote_prefixes(&mut self) {
        if self.me.slot.is_some() {
            self.remote_prefixes_by_tunnel();
        } else {
            self.remote_prefixes_by_leaders();
        }
    }

    fn route(&mut self, prefix: IpNet, via: RouteVia) {
        self.route_in(ROUTE_TABLE, prefix, ROUTE_METRIC, via);
    }

    fn route_in(&mut self, table: u32, prefix: IpNet, metric: u32, via: RouteVia) {
        self.net.routes.insert(RouteKey { table, prefix: prefix.trunc(), metric }, via);
    }

    /// The table for what is sent to a remote location; with the rule to it, if our routes carry there.
    fn table_to(&mut self, location: &LocationName, family: Family) -> u32 {
        let kilo = self.mesh().kilo_between(&self.me.location, location);
        let carried = self.input.carried.contains(location);
        if !kilo && !carried && !self.overlay().is_foreign() {
            return ROUTE_TABLE;
        }
        let Some(table) = steered_table(self.mesh(), location) else { return ROUTE_TABLE };
        if !kilo || carried {
            self.net.rules.insert(rule(family, None, table));
        }
        table
    }

    /// A group of those of `members` that exist; `None` if none does.
    fn group(
        &mut self,
        id: NexthopId,
        members: impl Iterator<Item = NexthopId>,
    ) -> Option<NexthopId> {
        let members: BTreeSet<NexthopId> =
            members.filter(|m| self.net.nexthops.contains_key(m)).collect();
        if members.is_empty() {
            return None;
        }
        self.net.nexthops.insert(id, Nexthop::Group { members });
        Some(id)
    }

    fn sysctls(&mut self) {
        let mut set = |path: String, value: &str| self.net.sysctls.insert(path, value.to_owned());
        set("net/ipv4/ip_forward".into(), "1");
        // Without this a replaced nexthop group notifies once per route that uses it (688 µs against 51 µs for 1,000).
        set("net/ipv4/nexthop_compat_mode".into(), "0");
        if self.input.mesh.inner.v6.is_some() {
            set("net/ipv6/conf/all/forwarding".into(), "1");
        }
        // Loose: traffic may come in by one plane and leave by another. The kernel takes the greater of `all` and the
        // interface, and loose (2) is greater than strict (1), so our interfaces alone suffice.
        let ours: Vec<InterfaceName> =
            self.net.wireguard.keys().chain(self.net.vxlan.keys()).cloned().collect();
        for dev in ours {
            self.net.sysctls.insert(format!("net/ipv4/conf/{dev}/rp_filter"), "2".into());
        }
    }
}

fn rule(family: Family, iif: Option<InterfaceName>, table: u32) -> Rule {
    Rule { family, priority: RULE_PRIORITY, from: None, to: None, iif, table }
}

/// Who leads a location, as far as this node knows. Empty only for a location without candidates.
fn known_leaders(input: &TopologyInput<'_>, location: &LocationName) -> Vec<Slot> {
    let told = input.leaders.get(location).map_or(&[][..], Vec::as_slice);
    let is_there = |s: &Slot| input.mesh.candidate(location, *s).is_some();
    let known: Vec<Slot> = told.iter().copied().filter(is_there).collect();
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
