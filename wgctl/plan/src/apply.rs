//! Applies an accepted change to a `Network`, with all its side effects in a kernel.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::change::Change;
use crate::model::*;

/// Returns the interface that a sysctl path belongs to, such as `wgl0` of `net/ipv4/conf/wgl0/rp_filter`.
pub fn sysctl_interface(path: &str) -> Option<&str> {
    let mut parts = path.split('/');
    (parts.next() == Some("net")).then_some(())?;
    parts.next()?;
    matches!(parts.next(), Some("conf" | "neigh")).then_some(())?;
    parts.next().filter(|name| !matches!(*name, "all" | "default"))
}

/// Applies `change` to `net`, with the side effects that the kernel adds.
pub(crate) fn apply(net: &mut Network, change: &Change) {
    match change.clone() {
        Change::SetSysctl { path, value } => {
            net.sysctls.insert(path, value);
        }
        Change::AddWireguard { name, mtu } => {
            let empty = WgInterface {
                public_key: None,
                listen_port: 0,
                mtu,
                up: false,
                peers: Default::default(),
            };
            net.wireguard.insert(name, empty);
        }
        Change::AddVxlan { name, vxlan } => {
            net.vxlan.insert(name, Vxlan { up: false, ..vxlan });
        }
        Change::DeleteLink { name } => {
            flush_device(net, &name);
            net.wireguard.remove(&name);
            net.vxlan.remove(&name);
            net.addresses.retain(|(n, _)| *n != name);
            net.fdb.retain(|(n, _), _| *n != name);
            net.sysctls.retain(|path, _| sysctl_interface(path) != Some(name.as_str()));
        }
        Change::SetMtu { name, mtu } => {
            if let Some(w) = net.wireguard.get_mut(&name) {
                w.mtu = mtu;
            }
            if let Some(v) = net.vxlan.get_mut(&name) {
                v.mtu = mtu;
            }
        }
        Change::SetMac { name, mac } => {
            if let Some(v) = net.vxlan.get_mut(&name) {
                v.mac = mac;
            }
        }
        Change::SetUp { name, up } => {
            let was = net.is_up(&name);
            if let Some(w) = net.wireguard.get_mut(&name) {
                w.up = up;
            }
            if let Some(v) = net.vxlan.get_mut(&name) {
                v.up = up;
            }
            if was == Some(true) && !up {
                flush_device(net, &name);
                net.addresses.retain(|(n, a)| *n != name || matches!(a, IpNet::V4(_)));
            }
        }
        Change::SetWireguard { name, public_key, listen_port } => {
            let Some(w) = net.wireguard.get_mut(&name) else { return };
            if let Some(key) = public_key {
                w.public_key = Some(key);
                w.peers.remove(&key);
            }
            w.listen_port = listen_port.unwrap_or(w.listen_port);
        }
        Change::SetPeer { name, key, mut peer } => {
            let Some(w) = net.wireguard.get_mut(&name) else { return };
            for other in w.peers.values_mut() {
                other.allowed_ips.retain(|ip| !peer.allowed_ips.contains(ip));
            }
            peer.endpoint = peer.endpoint.or_else(|| w.peers.get(&key).and_then(|p| p.endpoint));
            w.peers.insert(key, peer);
        }
        Change::RemovePeer { name, key } => {
            if let Some(w) = net.wireguard.get_mut(&name) {
                w.peers.remove(&key);
            }
        }
        Change::AddAddress { name, address } => {
            net.addresses.insert((name, address));
        }
        Change::RemoveAddress { name, address } => remove_address(net, &name, address),
        Change::SetNeighbour { dev, address, mac } => {
            net.neighbours.insert((dev, address), mac);
        }
        Change::RemoveNeighbour { dev, address } => {
            net.neighbours.remove(&(dev, address));
        }
        Change::SetFdb { dev, mac, endpoint } => {
            net.fdb.insert((dev, mac), endpoint);
        }
        Change::RemoveFdb { dev, mac } => {
            net.fdb.remove(&(dev, mac));
        }
        Change::SetNexthop { id, nexthop } => {
            net.nexthops.insert(id, nexthop);
        }
        Change::RemoveNexthop { id } => remove_nexthop(net, id),
        Change::AddRule { rule } => {
            net.rules.insert(rule);
        }
        Change::RemoveRule { rule } => {
            net.rules.remove(&rule);
        }
        Change::AddRoute { key, via } | Change::ReplaceRoute { key, via } => {
            net.routes.insert(key, via);
        }
        Change::RemoveRoute { key } => {
            net.routes.remove(&key);
        }
        Change::SetUntracked { transit } => *net.untracked = Some(transit),
        Change::RemoveUntracked => *net.untracked = None,
    }
}

/// The kernel removes a device's neighbours, nexthops and routes when it goes down.
fn flush_device(net: &mut Network, name: &InterfaceName) {
    net.neighbours.retain(|(n, _), _| n != name);
    net.routes.retain(|_, via| via.device() != Some(name));
    let gone: Vec<NexthopId> =
        net.nexthops.iter().filter(|(_, n)| n.device() == Some(name)).map(|(id, _)| *id).collect();
    for id in gone {
        remove_nexthop(net, id);
    }
}

/// The kernel removes a nexthop from its groups, and with it the groups left empty and its routes.
fn remove_nexthop(net: &mut Network, id: NexthopId) {
    net.nexthops.remove(&id);
    net.routes.retain(|_, via| via.nexthop() != Some(id));
    let mut empty = Vec::new();
    for (group, nexthop) in &mut net.nexthops {
        if let Nexthop::Group { members } = nexthop
            && members.remove(&id)
            && members.is_empty()
        {
            empty.push(*group);
        }
    }
    for group in empty {
        remove_nexthop(net, group);
    }
}

/// IPv4: the other addresses of the subnet may be secondary to this one and are then removed with it; with a device's last address the
/// kernel removes its routes. Both families: routes with the address as their source are removed.
fn remove_address(net: &mut Network, name: &InterfaceName, address: IpNet) {
    let mut gone = vec![address.addr()];
    net.addresses.remove(&(name.clone(), address));
    if matches!(address, IpNet::V4(_)) {
        net.addresses.retain(|(n, a)| {
            let secondary = n == name && a.trunc() == address.trunc();
            if secondary {
                gone.push(a.addr());
            }
            !secondary
        });
        if !net.addresses.iter().any(|(n, a)| n == name && matches!(a, IpNet::V4(_))) {
            net.routes.retain(|key, via| {
                via.device() != Some(name) || matches!(key.prefix, IpNet::V6(_))
            });
        }
    }
    let local: BTreeSet<IpAddr> = net.addresses.iter().map(|(_, a)| a.addr()).collect();
    net.routes
        .retain(|_, via| via.source().is_none_or(|ip| !gone.contains(&ip) || local.contains(&ip)));
}
