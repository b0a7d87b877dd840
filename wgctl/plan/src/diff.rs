//! The ordered difference between two networks.
//!
//! Additions come first, in the order in which objects depend on each other: untracked transit, links, peers, addresses, neighbours,
//! nexthops, groups, rules, routes. Removals come last, in the reverse order. What can be replaced in place is never removed first. So
//! a packet that has a route before and after has one at every step between. The model kernel's rules say which objects the kernel
//! removes along with a link or an address; those are added again.
//!
//! A nexthop id that turns from a single one into a group (or changes family) cannot be replaced in place. Its routes are parked on a
//! spare id with the new meaning while the old object is removed and the new one is added.

mod remove;

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::apply::{apply, sysctl_interface};
use crate::change::Change;
use crate::model::*;

/// One round is enough unless a removal also removed something that is desired; the second round adds that again, and removes
/// nothing.
const MAX_ROUNDS: usize = 3;

/// Returns the changes from `observed` to `desired`.
///
/// Endpoints roam: a present peer keeps its endpoint. Peers that have not changed are left out, as some WireGuard implementations
/// drop the session of every peer that is set. Sysctls are set, never unset.
pub fn diff(desired: &Network, observed: &Network) -> Vec<Change> {
    difference(desired, observed, Endpoints::Roam)
}

/// Returns the changes from `old`, assumed to be in place, to `new`. A peer whose endpoint differs gets the new one.
pub fn diff_desired(old: &Network, new: &Network) -> Vec<Change> {
    difference(new, old, Endpoints::Compare)
}

#[derive(Clone, Copy, PartialEq)]
enum Endpoints {
    Roam,
    Compare,
}

fn difference(desired: &Network, observed: &Network, endpoints: Endpoints) -> Vec<Change> {
    if let Some(changes) = nexthops_only(desired, observed) {
        return changes;
    }
    let mut plan = Plan { desired, state: observed.clone(), endpoints, changes: Vec::new() };
    for _ in 0..MAX_ROUNDS {
        let before = plan.changes.len();
        plan.round();
        if plan.changes.len() == before {
            break;
        }
    }
    plan.changes
}

/// Fast path for a failover: everything is equal except nexthops that can be replaced in place. If `desired` is a changed copy of
/// `observed`, only the nexthops are compared: the rest is shared.
fn nexthops_only(desired: &Network, observed: &Network) -> Option<Vec<Change>> {
    let same = desired.wireguard == observed.wireguard
        && desired.vxlan == observed.vxlan
        && desired.addresses == observed.addresses
        && desired.fdb == observed.fdb
        && desired.neighbours == observed.neighbours
        && desired.routes == observed.routes
        && desired.rules == observed.rules
        && desired.sysctls == observed.sysctls
        && desired.untracked == observed.untracked
        && desired.nexthops.keys().eq(observed.nexthops.keys());
    if !same {
        return None;
    }
    // The ids are the same, so both maps are iterated together.
    let pairs = desired.nexthops.iter().zip(observed.nexthops.values());
    let changed = pairs.filter(|((_, want), have)| want != have).map(|(want, _)| want);
    let (groups, singles): (Vec<_>, Vec<_>) = changed.partition(|(_, n)| n.is_group());
    // An unchanged nexthop has kept its family, unless a member of it changed family, which then clashes itself.
    if singles.iter().chain(&groups).any(|(id, _)| clashes(**id, desired, observed)) {
        return None;
    }
    let set = |(id, nexthop): (&NexthopId, &Nexthop)| Change::SetNexthop {
        id: *id,
        nexthop: nexthop.clone(),
    };
    Some(singles.into_iter().chain(groups).map(set).collect())
}

/// True if the id is in both and the kernel would not replace one by the other.
fn clashes(id: NexthopId, desired: &Network, observed: &Network) -> bool {
    let (Some(want), Some(have)) = (desired.nexthops.get(&id), observed.nexthops.get(&id)) else {
        return false;
    };
    let blackhole = |n: &Nexthop| matches!(n, Nexthop::Blackhole { .. });
    want.is_group() != have.is_group()
        || desired.nexthop_family(id) != observed.nexthop_family(id)
        || blackhole(want) != blackhole(have)
}

struct Plan<'a> {
    desired: &'a Network,
    /// `observed` after `changes`.
    state: Network,
    endpoints: Endpoints,
    changes: Vec<Change>,
}

impl Plan<'_> {
    fn push(&mut self, change: Change) {
        apply(&mut self.state, &change);
        self.changes.push(change);
    }

    fn extend(&mut self, changes: Vec<Change>) {
        for change in changes {
            self.push(change);
        }
    }

    fn round(&mut self) {
        self.sysctls(false);
        self.untracked();
        self.unfit_links();
        self.links();
        self.sysctls(true);
        self.wireguard();
        self.addresses();
        self.fdb_and_neighbours();
        self.nexthops_rules_and_routes();
        self.remove_the_rest();
    }

    fn sysctls(&mut self, of_our_links: bool) {
        let ours = |path: &str| {
            sysctl_interface(path)
                .and_then(|n| n.parse().ok())
                .is_some_and(|n| self.desired.has_link(&n))
        };
        let set = self
            .desired
            .sysctls
            .iter()
            .filter(|(path, value)| {
                ours(path) == of_our_links && self.state.sysctls.get(*path) != Some(*value)
            })
            .map(|(path, value)| Change::SetSysctl { path: path.clone(), value: value.clone() })
            .collect();
        self.extend(set);
    }

    /// Comes before the routes that bring transit here: a connection that is tracked once is rewritten for as long as it is known.
    fn untracked(&mut self) {
        if let Some(transit) = &*self.desired.untracked
            && self.state.untracked != self.desired.untracked
        {
            self.push(Change::SetUntracked { transit: transit.clone() });
        }
    }

    /// Recreates devices, or takes them down, with all that is on them. Comes first, so that the rest is added again.
    fn unfit_links(&mut self) {
        let mut out = Vec::new();
        for name in self.state.wireguard.keys() {
            if self.desired.vxlan.contains_key(name) {
                out.push(Change::DeleteLink { name: name.clone() });
            } else if self.state.wireguard[name].up
                && self.desired.wireguard.get(name).is_some_and(|w| !w.up)
            {
                out.push(Change::SetUp { name: name.clone(), up: false });
            }
        }
        for (name, have) in &self.state.vxlan {
            let Some(want) = self.desired.vxlan.get(name) else {
                if self.desired.wireguard.contains_key(name) {
                    out.push(Change::DeleteLink { name: name.clone() });
                }
                continue;
            };
            if (have.vni, have.local, have.port) != (want.vni, want.local, want.port) {
                out.push(Change::DeleteLink { name: name.clone() });
            } else if have.up && !want.up {
                out.push(Change::SetUp { name: name.clone(), up: false });
            }
        }
        self.extend(out);
    }

    fn links(&mut self) {
        for (name, want) in &self.desired.vxlan {
            match self.state.vxlan.get(name).cloned() {
                None => self.push(Change::AddVxlan { name: name.clone(), vxlan: want.clone() }),
                Some(have) => {
                    if have.mtu != want.mtu {
                        self.push(Change::SetMtu { name: name.clone(), mtu: want.mtu });
                    }
                    if have.mac != want.mac {
                        self.push(Change::SetMac { name: name.clone(), mac: want.mac });
                    }
                }
            }
            if want.up && self.state.is_up(name) == Some(false) {
                self.push(Change::SetUp { name: name.clone(), up: true });
            }
        }
        for (name, want) in &self.desired.wireguard {
            match self.state.wireguard.get(name).map(|w| w.mtu) {
                None => self.push(Change::AddWireguard { name: name.clone(), mtu: want.mtu }),
                Some(mtu) if mtu != want.mtu => {
                    self.push(Change::SetMtu { name: name.clone(), mtu: want.mtu })
                }
                Some(_) => {}
            }
        }
    }

    /// Sets an interface up before its port: setting a port that is taken is an error, while an interface goes up without one.
    fn wireguard(&mut self) {
        for (name, want) in &self.desired.wireguard {
            if want.up && !self.state.wireguard[name].up {
                self.push(Change::SetUp { name: name.clone(), up: true });
            }
            let have = &self.state.wireguard[name];
            let public_key = want.public_key.filter(|key| have.public_key != Some(*key));
            let listen_port = Some(want.listen_port).filter(|port| have.listen_port != *port);
            if public_key.is_some() || listen_port.is_some() {
                self.push(Change::SetWireguard { name: name.clone(), public_key, listen_port });
            }
            for (key, want) in &want.peers {
                let mut peer = want.clone();
                if let Some(have) = self.state.wireguard[name].peers.get(key) {
                    let keep = have.endpoint == want.endpoint
                        || want.endpoint.is_none()
                        || (self.endpoints == Endpoints::Roam && have.endpoint.is_some());
                    let same = have.allowed_ips == want.allowed_ips
                        && have.persistent_keepalive == want.persistent_keepalive;
                    if keep && same {
                        continue;
                    }
                    if keep {
                        peer.endpoint = None;
                    }
                }
                self.push(Change::SetPeer { name: name.clone(), key: *key, peer });
            }
        }
    }

    fn addresses(&mut self) {
        // Removes first an old address that conflicts with a desired one, or whose removal would remove it too.
        let clash = |have: &IpNet, want: &IpNet| match (have, want) {
            (IpNet::V4(a), IpNet::V4(b)) => a.trunc() == b.trunc(),
            (IpNet::V6(a), IpNet::V6(b)) => a.addr() == b.addr(),
            _ => false,
        };
        let in_the_way: Vec<_> = self
            .state
            .addresses
            .difference(&self.desired.addresses)
            .filter(|(name, have)| {
                self.desired.addresses.iter().any(|(n, want)| n == name && clash(have, want))
            })
            .cloned()
            .collect();
        for (name, address) in in_the_way {
            if self.state.addresses.contains(&(name.clone(), address)) {
                self.push(Change::RemoveAddress { name, address });
            }
        }
        let add = self
            .desired
            .addresses
            .difference(&self.state.addresses)
            .map(|(name, address)| Change::AddAddress { name: name.clone(), address: *address })
            .collect();
        self.extend(add);
    }

    fn fdb_and_neighbours(&mut self) {
        let mut out = Vec::new();
        for ((dev, address), mac) in &self.desired.neighbours {
            if self.state.neighbours.get(&(dev.clone(), *address)) != Some(mac) {
                out.push(Change::SetNeighbour { dev: dev.clone(), address: *address, mac: *mac });
            }
        }
        for ((dev, mac), endpoint) in &self.desired.fdb {
            let have = self.state.fdb.get(&(dev.clone(), *mac));
            if have == Some(endpoint) {
                continue;
            }
            // Observed with several endpoints (shown as unspecified): replacing would change only the first of them.
            if have.is_some_and(IpAddr::is_unspecified) {
                out.push(Change::RemoveFdb { dev: dev.clone(), mac: *mac });
            }
            out.push(Change::SetFdb { dev: dev.clone(), mac: *mac, endpoint: *endpoint });
        }
        self.extend(out);
    }

    fn nexthops_rules_and_routes(&mut self) {
        let parked = self.parking();
        self.singles(&parked);
        self.groups(&parked);
        let add = self
            .desired
            .rules
            .difference(&self.state.rules)
            .map(|r| Change::AddRule { rule: r.clone() });
        self.extend(add.collect());
        self.routes(&parked);
        if parked.is_empty() {
            return;
        }
        // Nothing desired uses the old objects now: remove them, and move from the spare ids to the right ones.
        self.remove_routes();
        self.remove_nexthops(&parked);
        let none = BTreeMap::new();
        self.singles(&none);
        self.groups(&none);
        self.routes(&none);
    }

    /// Returns a spare id for each id that cannot be replaced in place.
    fn parking(&self) -> BTreeMap<NexthopId, NexthopId> {
        let mut spare =
            (NEXTHOP_ID_BASE..=NEXTHOP_ID_BASE + 0xffff).rev().map(NexthopId).filter(|id| {
                !self.desired.nexthops.contains_key(id) && !self.state.nexthops.contains_key(id)
            });
        let clashing =
            self.desired.nexthops.keys().filter(|id| clashes(**id, self.desired, &self.state));
        clashing.filter_map(|id| Some((*id, spare.next()?))).collect()
    }

    fn singles(&mut self, parked: &BTreeMap<NexthopId, NexthopId>) {
        for (id, nexthop) in self.desired.nexthops.iter().filter(|(_, n)| !n.is_group()) {
            let id = *parked.get(id).unwrap_or(id);
            if self.state.nexthops.get(&id) != Some(nexthop) {
                self.push(Change::SetNexthop { id, nexthop: nexthop.clone() });
            }
        }
    }

    fn groups(&mut self, parked: &BTreeMap<NexthopId, NexthopId>) {
        for (id, nexthop) in &self.desired.nexthops {
            let Nexthop::Group { members } = nexthop else { continue };
            let id = *parked.get(id).unwrap_or(id);
            let members = members.iter().map(|m| *parked.get(m).unwrap_or(m)).collect();
            let nexthop = Nexthop::Group { members };
            if self.state.nexthops.get(&id) != Some(&nexthop) {
                self.push(Change::SetNexthop { id, nexthop });
            }
        }
    }

    fn routes(&mut self, parked: &BTreeMap<NexthopId, NexthopId>) {
        for (key, via) in &self.desired.routes {
            let via = match via {
                RouteVia::Nexthop { id, source } => {
                    RouteVia::Nexthop { id: *parked.get(id).unwrap_or(id), source: *source }
                }
                other => other.clone(),
            };
            let key = key.clone();
            match self.state.routes.get(&key) {
                None => self.push(Change::AddRoute { key, via }),
                Some(have) if *have != via => self.push(Change::ReplaceRoute { key, via }),
                Some(_) => {}
            }
        }
    }
}
