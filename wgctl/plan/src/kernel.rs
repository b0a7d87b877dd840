//! A kernel reduced to the rules that order our changes: what must exist first, and what is removed along with what.
//!
//! The rules are Linux's (`net/ipv4/nexthop.c`, `net/ipv4/fib_semantics.c`, `net/ipv4/devinet.c`, `drivers/net/wireguard`),
//! and stricter where Linux is lenient, so that Linux accepts every plan that is accepted here.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::apply::{apply, sysctl_interface};
use crate::change::Change;
use crate::model::*;

/// The network of one node under kernel rules.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ModelKernel {
    pub network: Network,
    /// Links that exist, are up, and are not ours.
    pub foreign: BTreeSet<InterfaceName>,
}

/// The kernel refuses a change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refused {
    pub change: Box<Change>,
    pub why: &'static str,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.change, self.why)
    }
}
impl std::error::Error for Refused {}

impl Nexthop {
    /// Returns the device that it sends out of, if it names one.
    pub fn device(&self) -> Option<&InterfaceName> {
        match self {
            Self::Device { dev, .. } | Self::Gateway { dev, .. } => Some(dev),
            Self::Group { .. } | Self::Blackhole { .. } => None,
        }
    }

    pub const fn is_group(&self) -> bool {
        matches!(self, Self::Group { .. })
    }
}

impl RouteVia {
    /// Returns the device that the route itself names (not that of its nexthop object).
    pub fn device(&self) -> Option<&InterfaceName> {
        match self {
            Self::Device { dev, .. } | Self::Gateway { dev, .. } => Some(dev),
            Self::Nexthop { .. } => None,
        }
    }

    /// Returns the nexthop object that it uses.
    pub const fn nexthop(&self) -> Option<NexthopId> {
        match self {
            Self::Nexthop { id, .. } => Some(*id),
            Self::Device { .. } | Self::Gateway { .. } => None,
        }
    }

    pub const fn source(&self) -> Option<IpAddr> {
        match self {
            Self::Nexthop { source, .. } | Self::Device { source, .. } => *source,
            Self::Gateway { .. } => None,
        }
    }
}

impl Network {
    pub fn has_link(&self, name: &InterfaceName) -> bool {
        self.wireguard.contains_key(name) || self.vxlan.contains_key(name)
    }

    /// Returns whether a link of ours is up; `None` if it is not ours.
    pub fn is_up(&self, name: &InterfaceName) -> Option<bool> {
        self.wireguard.get(name).map(|w| w.up).or_else(|| self.vxlan.get(name).map(|v| v.up))
    }

    /// Returns the family of the routes that a nexthop object serves; of a group, that of its first member that exists.
    pub fn nexthop_family(&self, id: NexthopId) -> Option<Family> {
        match self.nexthops.get(&id)? {
            Nexthop::Device { family, .. } | Nexthop::Blackhole { family } => Some(*family),
            Nexthop::Gateway { gateway, .. } => Some(Family::of(gateway)),
            Nexthop::Group { members } => {
                members.iter().find_map(|m| match self.nexthops.get(m)? {
                    Nexthop::Group { .. } => None,
                    _ => self.nexthop_family(*m),
                })
            }
        }
    }
}

impl ModelKernel {
    pub fn new(network: Network) -> Self {
        Self { network, foreign: BTreeSet::new() }
    }

    /// Applies one change with all its side effects, or refuses it and does nothing.
    ///
    /// # Errors
    /// If the kernel would refuse the change.
    pub fn apply(&mut self, change: &Change) -> Result<(), Refused> {
        self.check(change).map_err(|why| Refused { change: Box::new(change.clone()), why })?;
        apply(&mut self.network, change);
        Ok(())
    }

    fn usable(&self, dev: &InterfaceName) -> Result<(), &'static str> {
        match self.network.is_up(dev) {
            Some(true) => Ok(()),
            Some(false) => Err("the device is down"),
            None if self.foreign.contains(dev) => Ok(()),
            None => Err("no such device"),
        }
    }

    fn check(&self, change: &Change) -> Result<(), &'static str> {
        let net = &self.network;
        let ensure = |ok: bool, why: &'static str| if ok { Ok(()) } else { Err(why) };
        match change {
            Change::SetSysctl { path, .. } => match sysctl_interface(path) {
                Some(dev) => ensure(
                    dev.parse().is_ok_and(|dev| net.has_link(&dev) || self.foreign.contains(&dev)),
                    "no such sysctl",
                ),
                None => Ok(()),
            },
            Change::AddWireguard { name, .. } | Change::AddVxlan { name, .. } => {
                ensure(!net.has_link(name) && !self.foreign.contains(name), "the name is taken")
            }
            Change::DeleteLink { name }
            | Change::SetMtu { name, .. }
            | Change::SetUp { name, .. } => ensure(net.has_link(name), "no such device"),
            Change::SetMac { name, .. } => {
                ensure(net.vxlan.contains_key(name), "no such VXLAN device")
            }
            Change::SetWireguard { name, .. } => {
                ensure(net.wireguard.contains_key(name), "no such WireGuard device")
            }
            Change::SetPeer { name, key, .. } => match net.wireguard.get(name) {
                None => Err("no such WireGuard device"),
                Some(w) => ensure(w.public_key != Some(*key), "a device is no peer of itself"),
            },
            Change::RemovePeer { name, key } => ensure(
                net.wireguard.get(name).is_some_and(|w| w.peers.contains_key(key)),
                "no such peer",
            ),
            Change::AddAddress { name, address } => {
                ensure(net.has_link(name), "no such device")?;
                let same = |(n, a): &(InterfaceName, IpNet)| {
                    n == name
                        && (a == address || matches!(a, IpNet::V6(_)) && a.addr() == address.addr())
                };
                ensure(!net.addresses.iter().any(same), "the address is there")
            }
            Change::RemoveAddress { name, address } => {
                ensure(net.addresses.contains(&(name.clone(), *address)), "no such address")
            }
            Change::SetNeighbour { dev, .. } | Change::SetFdb { dev, .. } => {
                ensure(net.vxlan.contains_key(dev), "no such VXLAN device")
            }
            Change::RemoveNeighbour { dev, address } => {
                ensure(net.neighbours.contains_key(&(dev.clone(), *address)), "no such neighbour")
            }
            Change::RemoveFdb { dev, mac } => {
                ensure(net.fdb.contains_key(&(dev.clone(), *mac)), "no such fdb entry")
            }
            Change::SetNexthop { id, nexthop } => self.check_nexthop(*id, nexthop),
            Change::RemoveNexthop { id } => {
                ensure(net.nexthops.contains_key(id), "no such nexthop")
            }
            Change::AddRule { rule } => ensure(!net.rules.contains(rule), "the rule is there"),
            Change::RemoveRule { rule } => ensure(net.rules.contains(rule), "no such rule"),
            Change::AddRoute { key, via } => {
                ensure(!net.routes.contains_key(key), "a route of this key is there")?;
                self.check_route(key, via)
            }
            Change::ReplaceRoute { key, via } => {
                ensure(net.routes.contains_key(key), "no such route")?;
                self.check_route(key, via)
            }
            Change::RemoveRoute { key } => ensure(net.routes.contains_key(key), "no such route"),
            Change::SetUntracked { .. } => Ok(()),
            Change::RemoveUntracked => ensure(net.untracked.is_some(), "no such table"),
        }
    }

    fn check_nexthop(&self, id: NexthopId, nexthop: &Nexthop) -> Result<(), &'static str> {
        let net = &self.network;
        if let Some(dev) = nexthop.device() {
            self.usable(dev)?;
        }
        let mut trial = net.clone_nexthops();
        trial.nexthops.insert(id, nexthop.clone());
        if let Nexthop::Group { members } = nexthop {
            let families: BTreeSet<_> = members.iter().map(|m| trial.nexthop_family(*m)).collect();
            let singles =
                members.iter().all(|m| net.nexthops.get(m).is_some_and(|n| !n.is_group()));
            let blackhole = members
                .iter()
                .any(|m| matches!(net.nexthops.get(m), Some(Nexthop::Blackhole { .. })));
            if members.is_empty() {
                return Err("a group needs members");
            } else if !singles {
                return Err("a member of the group is no single nexthop");
            } else if families.len() != 1 {
                return Err("the members are of two families");
            } else if blackhole && members.len() > 1 {
                return Err("a blackhole is alone in its group");
            }
        }
        let Some(old) = net.nexthops.get(&id) else { return Ok(()) };
        if old.is_group() != nexthop.is_group() {
            return Err("a nexthop and a group cannot replace each other");
        }
        let groups: Vec<_> = net
            .nexthops
            .iter()
            .filter_map(|(g, n)| match n {
                Nexthop::Group { members } if members.contains(&id) => Some((*g, members.len())),
                _ => None,
            })
            .collect();
        if matches!(nexthop, Nexthop::Blackhole { .. }) && groups.iter().any(|(_, n)| *n > 1) {
            return Err("a blackhole is alone in its group");
        }
        let used = |n: NexthopId| net.routes.values().any(|v| v.nexthop() == Some(n));
        if trial.nexthop_family(id) != net.nexthop_family(id) && (used(id) || !groups.is_empty()) {
            return Err("routes or groups use the nexthop for the other family");
        }
        Ok(())
    }

    fn check_route(&self, key: &RouteKey, via: &RouteVia) -> Result<(), &'static str> {
        let family = Family::of_net(&key.prefix);
        match via.source() {
            Some(ip) if Family::of(&ip) != family => Err("the source is of the other family")?,
            Some(ip) if !self.is_local(&ip) => Err("the source is no address of this node")?,
            _ => {}
        }
        match via {
            RouteVia::Nexthop { id, .. } => match self.network.nexthop_family(*id) {
                None => Err("no such nexthop"),
                Some(f) if f != family => Err("the nexthop is of the other family"),
                Some(_) => Ok(()),
            },
            RouteVia::Device { dev, .. } => self.usable(dev),
            RouteVia::Gateway { dev, gateway, .. } => {
                self.usable(dev)?;
                if Family::of(gateway) == family {
                    Ok(())
                } else {
                    Err("the gateway is of the other family")
                }
            }
        }
    }

    /// Foreign links may have any address.
    fn is_local(&self, ip: &IpAddr) -> bool {
        !self.foreign.is_empty() || self.network.addresses.iter().any(|(_, a)| a.addr() == *ip)
    }
}

impl Network {
    fn clone_nexthops(&self) -> Self {
        Self { nexthops: self.nexthops.clone(), ..Self::default() }
    }
}
