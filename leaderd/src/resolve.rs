//! DNS names of endpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use leaderd_core::mesh::{Host, Mesh};
use tokio::time::timeout;

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
