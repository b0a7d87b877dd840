//! DNS names of endpoints, and the LAN device of this node's address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use leaderd_core::mesh::{Host, Mesh};
use nix::ifaddrs::getifaddrs;
use tokio::time::timeout;
use wgctl_plan::InterfaceName;

/// How long one name may take; the last known address stays in use.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// Resolves every name in the mesh. Names that cannot be resolved keep what `known` has, if it has something.
pub async fn resolve(mesh: &Mesh, known: &BTreeMap<String, IpAddr>) -> BTreeMap<String, IpAddr> {
    let names: BTreeSet<&String> = mesh
        .nodes
        .values()
        .filter_map(|n| match &n.endpoint {
            Some(Host::Name(name)) => Some(name),
            _ => None,
        })
        .collect();
    let lookups = names.into_iter().map(|name| async move {
        let old = known.get(name).copied();
        let found = match timeout(LOOKUP_TIMEOUT, tokio::net::lookup_host((name.as_str(), 0))).await
        {
            Ok(Ok(addresses)) => addresses.map(|a| a.ip()).collect::<BTreeSet<_>>(),
            Ok(Err(error)) => {
                tracing::warn!(endpoint.name = name, %error, "cannot resolve an endpoint");
                BTreeSet::new()
            }
            Err(_) => {
                tracing::warn!(endpoint.name = name, "resolving an endpoint takes too long");
                BTreeSet::new()
            }
        };
        // A name with several addresses comes in any order: stay with the one in use, or all tunnels would move about.
        let chosen = old.filter(|ip| found.contains(ip)).or(found.first().copied()).or(old);
        chosen.map(|ip| (name.clone(), ip))
    });
    futures_util::future::join_all(lookups).await.into_iter().flatten().collect()
}

/// The device that has this address.
pub fn device_of(address: IpAddr) -> Option<InterfaceName> {
    getifaddrs().ok()?.find_map(|i| {
        let storage = i.address?;
        let ip = match (storage.as_sockaddr_in(), storage.as_sockaddr_in6()) {
            (Some(v4), _) => IpAddr::V4(v4.ip()),
            (_, Some(v6)) => IpAddr::V6(v6.ip()),
            _ => return None,
        };
        (ip == address).then(|| i.interface_name.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_of_an_address_is_found() {
        assert_eq!(device_of("127.0.0.1".parse().unwrap()), Some("lo".parse().unwrap()));
        assert_eq!(device_of("192.0.2.200".parse().unwrap()), None);
    }
}
