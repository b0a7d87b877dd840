//! This node's LAN device: the one that the mesh names, else the one that has its address. That one is followed while the
//! daemon runs, and its MTU: DHCP may be later than the daemon, and an address may move or be changed in the mesh file.

use std::net::IpAddr;
use std::time::Duration;

use leaderd_core::ids::NodeName;
use leaderd_core::mesh::Mesh;
use nix::ifaddrs::getifaddrs;
use wgctl::net::LinkWatch;
use wgctl_plan::InterfaceName;

/// How often it is looked at.
pub const LOOK: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub struct LanDevice {
    me: NodeName,
    in_use: Option<InterfaceName>,
    mtu: Option<u32>,
    /// The address that no interface had, told once.
    missed: Option<IpAddr>,
}

impl LanDevice {
    pub fn new(me: NodeName) -> Self {
        Self { me, in_use: None, mtu: None, missed: None }
    }

    /// Looks which device it is now. Must be called within a tokio runtime.
    pub async fn look(&mut self, mesh: &Mesh) -> Changed {
        let Some(node) = mesh.node(&self.me) else { return Changed::default() };
        let (named, address) = (node.device.as_ref(), node.address);
        let mut found = Vec::new();
        if named.is_none() {
            // Not here: a node with many interfaces takes a while to list them, and the engine shares this thread.
            let looked = tokio::task::spawn_blocking(move || devices_of(address));
            found = looked.await.unwrap_or_default();
        }
        if named.is_some() || !found.is_empty() {
            self.missed = None;
        } else if self.missed.replace(address) != Some(address) {
            tracing::warn!(node.address = %address, "no interface has this node's address");
        }
        let now = choose(named, self.in_use.as_ref(), &found);
        let device = now != self.in_use;
        self.in_use = now;
        // One that is gone for a moment had better keep what follows from its MTU.
        let mtu = match &self.in_use {
            Some(name) => mtu_of(name).await.or(self.mtu.filter(|_| !device)),
            None => None,
        };
        let before = std::mem::replace(&mut self.mtu, mtu);
        Changed { device, mtu: before != mtu }
    }

    pub const fn mtu(&self) -> Option<u32> {
        self.mtu
    }

    pub fn name(&self) -> Option<&InterfaceName> {
        self.in_use.as_ref()
    }

    /// The mesh with this device in it, as if it named it: what the core was started with is that of the start.
    pub fn put_into(&self, mesh: &Mesh) -> Mesh {
        mesh.with_lan_device(&self.me, self.in_use.clone())
    }
}

/// What is another than at the look before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Changed {
    pub device: bool,
    pub mtu: bool,
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
    async fn it_is_followed_and_put_into_the_mesh() {
        let mut mesh = example_mesh();
        let me = mesh.nodes.keys().next().unwrap().clone();
        let set = |mesh: &mut Mesh, address: [u8; 4], device: Option<InterfaceName>| {
            let node = mesh.edit().nodes.get_mut(&me).unwrap();
            (node.address, node.device) = (address.into(), device);
        };
        let mut lan = LanDevice::new(me.clone());
        set(&mut mesh, [192, 0, 2, 200], None);
        assert_eq!(lan.look(&mesh).await, Changed::default(), "nobody has this address");
        assert_eq!(lan.mtu(), None);
        assert_eq!(lan.put_into(&mesh).node(&me).unwrap().device, None);

        set(&mut mesh, [127, 0, 0, 1], None);
        assert_eq!(lan.look(&mesh).await, Changed { device: true, mtu: true });
        assert_eq!(lan.look(&mesh).await, Changed::default(), "it is told once");
        assert_eq!(lan.mtu(), Some(65_536));
        assert_eq!(lan.put_into(&mesh).node(&me).unwrap().device, Some(device("lo")));
        assert_eq!(lan.put_into(&mesh).hash, mesh.hash, "the file is the same one");

        set(&mut mesh, [192, 0, 2, 200], None);
        assert_eq!(lan.look(&mesh).await, Changed::default(), "the new address is not there yet");
        assert_eq!(lan.name(), Some(&device("lo")));

        set(&mut mesh, [192, 0, 2, 200], Some(device("eth9")));
        let changed = lan.look(&mesh).await;
        assert_eq!(changed, Changed { device: true, mtu: true }, "and there is no such device");
        assert_eq!(lan.put_into(&mesh).node(&me).unwrap().device, Some(device("eth9")));
    }
}
