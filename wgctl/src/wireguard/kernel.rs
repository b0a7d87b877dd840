//! The kernel's WireGuard, through `wireguard-control`.

use std::collections::BTreeSet;
use std::io;

use wgctl_plan::{InterfaceName, WgInterface, WgPeer, WgPublicKey};
use wireguard_control::{AllowedIp, Backend, Device, DeviceUpdate, Key, PeerConfigBuilder};

use super::{PeerStats, Seen, Settings};

/// The crate encodes at most about 285 prefixes of a peer in one message.
const PREFIXES_PER_MESSAGE: usize = 128;

fn parse(name: &InterfaceName) -> io::Result<wireguard_control::InterfaceName> {
    name.as_str().parse().map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

pub(super) fn read(name: &InterfaceName) -> io::Result<Option<Seen>> {
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
        peer.allowed_ips.extend(ips.filter_map(|ip| ipnet::IpNet::new(ip.address, ip.cidr).ok()));
    }
    Ok(Some(Seen { interface, stats }))
}

mod libc_errno {
    pub(super) const ENODEV: i32 = nix::errno::Errno::ENODEV as i32;
    pub(super) const EOPNOTSUPP: i32 = nix::errno::Errno::EOPNOTSUPP as i32;
}

pub(super) fn set(name: &InterfaceName, settings: &Settings<'_>) -> io::Result<()> {
    let mut update = DeviceUpdate::new();
    if let Some(key) = settings.key {
        update = update.set_private_key(Key(*key.bytes()));
    }
    if let Some(port) = settings.listen_port {
        update = update.set_listen_port(port);
    }
    update.apply(&parse(name)?, Backend::Kernel)
}

pub(super) fn set_peer(name: &InterfaceName, key: &WgPublicKey, peer: &WgPeer) -> io::Result<()> {
    let ips: Vec<AllowedIp> = peer
        .allowed_ips
        .iter()
        .map(|n| AllowedIp { address: n.addr(), cidr: n.prefix_len() })
        .collect();
    let (first, rest) = ips.split_at(ips.len().min(PREFIXES_PER_MESSAGE));
    let mut config = PeerConfigBuilder::new(&Key(key.0))
        .replace_allowed_ips()
        .set_persistent_keepalive_interval(peer.persistent_keepalive)
        .add_allowed_ips(first);
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

pub(super) fn remove_peer(name: &InterfaceName, key: &WgPublicKey) -> io::Result<()> {
    DeviceUpdate::new().remove_peer_by_key(&Key(key.0)).apply(&parse(name)?, Backend::Kernel)
}
