//! This node's LAN device: the one that the mesh names, else the one that has its address. That one is followed while the
//! daemon runs, and its MTU: DHCP may be later than the daemon, and an address may move or be changed in the mesh file.

use std::net::IpAddr;
use std::time::Duration;

use leaderd_core::ids::NodeName;
use leaderd_core::io::LanDevice;
use leaderd_core::mesh::Mesh;
use nix::ifaddrs::getifaddrs;
use wgctl::net::LinkWatch;
use wgctl_plan::InterfaceName;

/// How often to check.
pub const CHECK: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub struct LanWatch {
    me: NodeName,
    in_use: LanDevice,
    /// The address that no interface had, logged once.
    missed: Option<IpAddr>,
}

impl LanWatch {
    pub fn new(me: NodeName) -> Self {
        Self { me, in_use: LanDevice::default(), missed: None }
    }

    /// Finds out which device it is now, and returns true if it or its MTU changed. Must be called within a tokio runtime.
    pub async fn check(&mut self, mesh: &Mesh) -> bool {
        let Some(node) = mesh.node(&self.me) else { return false };
        let (named, address) = (node.device.as_ref(), node.address);
        let mut found = Vec::new();
        if named.is_none() {
            // Not here: a node with many interfaces takes a while to list them, and the engine shares this thread.
            let listed = tokio::task::spawn_blocking(move || devices_of(address));
            found = listed.await.unwrap_or_default();
        }
        if named.is_some() || !found.is_empty() {
            self.missed = None;
        } else if self.missed.replace(address) != Some(address) {
            tracing::warn!(node.address = %address, "no interface has this node's address");
        }
        let before = self.in_use.clone();
        let name = choose(named, before.name.as_ref(), &found);
        let same = name == before.name;
        // One that is gone for a moment had better keep what follows from its MTU.
        let mtu = match &name {
            Some(name) => mtu_of(name).await.or(before.mtu.filter(|_| same)),
            None => None,
        };
        self.in_use = LanDevice { name, mtu };
        if !same {
            let device = self.in_use.name.as_ref().map(ToString::to_string);
            tracing::info!(device.name = device, "this node's LAN device");
        }
        self.in_use != before
    }

    pub const fn in_use(&self) -> &LanDevice {
        &self.in_use
    }
}

async fn mtu_of(device: &InterfaceName) -> Option<u32> {
    let state = LinkWatch::open(device).ok()?.next().await.ok()??;
    Some(state.mtu)
}

/// `found`: the devices that have the address. Routes stay where they are while they can, also while no device has it: a lease
/// that is renewed late is no reason to have none.
fn choose(
    named: Option<&InterfaceName>,
    in_use: Option<&InterfaceName>,
    found: &[InterfaceName],
) -> Option<InterfaceName> {
    let stays = in_use.filter(|d| found.is_empty() || found.contains(d));
    named.or(stays).or(found.first()).cloned()
}

/// The first device that has this address.
pub(crate) fn device_of(address: IpAddr) -> Option<InterfaceName> {
    devices_of(address).into_iter().next()
}

/// The devices that have this address.
fn devices_of(address: IpAddr) -> Vec<InterfaceName> {
    let Ok(all) = getifaddrs() else { return Vec::new() };
    let has = all.filter_map(|i| {
        let storage = i.address?;
        let ip = match (storage.as_sockaddr_in(), storage.as_sockaddr_in6()) {
            (Some(v4), _) => IpAddr::V4(v4.ip()),
            (_, Some(v6)) => IpAddr::V6(v6.ip()),
            _ => return None,
        };
        (ip == address).then(|| i.interface_name.parse().ok()).flatten()
    });
    has.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::example_mesh;

    fn device(name: &str) -> InterfaceName {
        name.parse().unwrap()
    }

    #[test]
    fn a_device_is_left_only_for_one_that_has_the_address_instead() {
        let (a, b, c) = (device("eth0"), device("eth1"), device("eth2"));
        let both = [a.clone(), b.clone()];
        for (named, in_use, found, chosen) in [
            (None, None, &[][..], None),
            (None, None, &both[..], Some(&a)),
            (None, Some(&b), &both[..], Some(&b)),
            (None, Some(&c), &both[..], Some(&a)),
            (None, Some(&c), &[][..], Some(&c)),
            (Some(&c), None, &both[..], Some(&c)),
            (Some(&c), Some(&a), &both[..], Some(&c)),
        ] {
            assert_eq!(choose(named, in_use, found).as_ref(), chosen, "{named:?} {in_use:?}");
        }
    }

    #[tokio::test]
    async fn the_device_follows_the_address_and_the_mesh_file() {
        let mut mesh = example_mesh();
        let me = mesh.nodes.keys().next().unwrap().clone();
        let set = |mesh: &mut Mesh, address: [u8; 4], device: Option<InterfaceName>| {
            let node = mesh.edit().nodes.get_mut(&me).unwrap();
            (node.address, node.device) = (address.into(), device);
        };
        let mut lan = LanWatch::new(me.clone());
        set(&mut mesh, [192, 0, 2, 200], None);
        assert!(!lan.check(&mesh).await, "no device has this address");
        assert_eq!(*lan.in_use(), LanDevice::default());

        set(&mut mesh, [127, 0, 0, 1], None);
        assert!(lan.check(&mesh).await);
        assert!(!lan.check(&mesh).await, "a change is reported once");
        assert_eq!(*lan.in_use(), LanDevice { name: Some(device("lo")), mtu: Some(65_536) });

        set(&mut mesh, [192, 0, 2, 200], None);
        assert!(!lan.check(&mesh).await, "the new address is not there yet");
        assert_eq!(lan.in_use().name, Some(device("lo")));

        set(&mut mesh, [192, 0, 2, 200], Some(device("eth9")));
        assert!(lan.check(&mesh).await);
        let there_is_no_such_device = LanDevice { name: Some(device("eth9")), mtu: None };
        assert_eq!(*lan.in_use(), there_is_no_such_device);
    }
}
