//! The kernel's WireGuard, through `wireguard-control`.

use std::collections::BTreeSet;
use std::io;

use ipnet::IpNet;
use wgctl_plan::{InterfaceName, WgInterface, WgPeer, WgPublicKey};
use wireguard_control::{AllowedIp, Backend, Device, DeviceUpdate, Key, PeerConfigBuilder};

use super::{Observed, PeerStats, Settings};

/// The crate encodes at most about 285 prefixes of a peer in one message.
const PREFIXES_PER_MESSAGE: usize = 128;

fn parse(name: &InterfaceName) -> io::Result<wireguard_control::InterfaceName> {
    name.as_str().parse().map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

pub(super) fn read(name: &InterfaceName) -> io::Result<Option<Observed>> {
    let device = match Device::get(&parse(name)?, Backend::Kernel) {
        Ok(device) => device,
        Err(e) if matches!(e.raw_os_error(), Some(libc_errno::ENODEV | libc_errno::EOPNOTSUPP)) => {
            return Ok(None);
        }
        Err(e) => return Err(e),
    };
    let mut interface = WgInterface {
        public_key: device.public_key.map(|k| WgPublicKey(k.0)),
        listen_port: device.listen_port.unwrap_or(0),
        mtu: 0,
        up: false,
        peers: Default::default(),
    };
    let mut stats = Vec::new();
    for info in device.peers {
        let key = WgPublicKey(info.config.public_key.0);
        let peer = interface.peers.entry(key).or_insert_with(|| {
            stats.push((
                key,
                PeerStats {
                    rx_bytes: info.stats.rx_bytes,
                    tx_bytes: info.stats.tx_bytes,
                    last_handshake: info.stats.last_handshake_time,
                },
            ));
            WgPeer {
                endpoint: info.config.endpoint,
                allowed_ips: BTreeSet::new(),
                persistent_keepalive: info.config.persistent_keepalive_interval.unwrap_or(0),
            }
        });
        // A peer with many prefixes comes in several parts.
        let ips = info.config.allowed_ips.iter();
        peer.allowed_ips.extend(ips.filter_map(|ip| IpNet::new(ip.address, ip.cidr).ok()));
    }
    Ok(Some(Observed { interface, stats }))
}

mod libc_errno {
    pub(super) const ENODEV: i32 = nix::errno::Errno::ENODEV as i32;
    pub(super) const EOPNOTSUPP: i32 = nix::errno::Errno::EOPNOTSUPP as i32;
}

/// The crate's `apply` creates a missing link, which then has neither our alias nor our MTU. Here a missing link is an error instead,
/// and repaired like any other drift.
fn must_exist(name: &InterfaceName) -> io::Result<()> {
    nix::net::if_::if_nametoindex(name.as_str()).map(drop).map_err(io::Error::from)
}

pub(super) fn set(name: &InterfaceName, settings: &Settings<'_>) -> io::Result<()> {
    let mut update = DeviceUpdate::new();
    if let Some(key) = settings.key {
        update = update.set_private_key(Key(*key.bytes()));
    }
    if let Some(port) = settings.listen_port {
        update = update.set_listen_port(port);
    }
    must_exist(name)?;
    update.apply(&parse(name)?, Backend::Kernel)
}

pub(super) fn set_peer(name: &InterfaceName, key: &WgPublicKey, peer: &WgPeer) -> io::Result<()> {
    must_exist(name)?;
    // One message replaces all prefixes at once. With several messages, the prefixes of the later ones would be missing for a moment, so
    // the present ones stay if they may.
    let present = match peer.allowed_ips.len() > PREFIXES_PER_MESSAGE {
        true => read(name)?.and_then(|mut seen| seen.interface.peers.remove(key)),
        false => None,
    };
    let present = present.map(|p| p.allowed_ips).unwrap_or_default();
    let (replace, add) = prefixes_to_send(&peer.allowed_ips, &present);
    let ips: Vec<AllowedIp> =
        add.iter().map(|n| AllowedIp { address: n.addr(), cidr: n.prefix_len() }).collect();
    let (first, rest) = ips.split_at(ips.len().min(PREFIXES_PER_MESSAGE));
    let mut config = PeerConfigBuilder::new(&Key(key.0))
        .set_persistent_keepalive_interval(peer.persistent_keepalive)
        .add_allowed_ips(first);
    if replace {
        config = config.replace_allowed_ips();
    }
    if let Some(endpoint) = peer.endpoint {
        config = config.set_endpoint(endpoint);
    }
    let name = parse(name)?;
    DeviceUpdate::new().add_peer(config).apply(&name, Backend::Kernel)?;
    for chunk in rest.chunks(PREFIXES_PER_MESSAGE) {
        let more = PeerConfigBuilder::new(&Key(key.0)).add_allowed_ips(chunk);
        DeviceUpdate::new().add_peer(more).apply(&name, Backend::Kernel)?;
    }
    Ok(())
}

/// Returns whether all present prefixes must be replaced, and which to add. A single prefix cannot be removed: Linux has
/// `WGALLOWEDIP_F_REMOVE_ME` only since 6.16.
fn prefixes_to_send(
    wanted: &BTreeSet<IpNet>,
    present: &BTreeSet<IpNet>,
) -> (bool, BTreeSet<IpNet>) {
    match !present.is_empty() && present.is_subset(wanted) {
        true => (false, wanted - present),
        false => (true, wanted.clone()),
    }
}

pub(super) fn remove_peer(name: &InterfaceName, key: &WgPublicKey) -> io::Result<()> {
    must_exist(name)?;
    DeviceUpdate::new().remove_peer_by_key(&Key(key.0)).apply(&parse(name)?, Backend::Kernel)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(prefixes: &[&str]) -> BTreeSet<IpNet> {
        prefixes.iter().map(|p| p.parse().unwrap()).collect()
    }

    #[test]
    fn prefixes_that_stay_are_left_alone() {
        let wanted = set(&["10.0.0.0/24", "10.0.1.0/24"]);
        assert_eq!(prefixes_to_send(&wanted, &set(&[])), (true, wanted.clone()));
        assert_eq!(
            prefixes_to_send(&wanted, &set(&["10.0.0.0/24"])),
            (false, set(&["10.0.1.0/24"]))
        );
        assert_eq!(prefixes_to_send(&wanted, &wanted), (false, set(&[])));
        assert_eq!(prefixes_to_send(&wanted, &set(&["10.9.0.0/24"])), (true, wanted.clone()));
    }
}
