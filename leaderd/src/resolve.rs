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
            Ok(Ok(addresses)) => addresses.map(|a| a.ip()).collect::<Vec<_>>(),
            Ok(Err(error)) => {
                tracing::warn!(endpoint.name = name, %error, "cannot resolve an endpoint");
                Vec::new()
            }
            Err(_) => {
                tracing::warn!(endpoint.name = name, "resolving an endpoint takes too long");
                Vec::new()
            }
        };
        choose(old, &found).map(|ip| (name.clone(), ip))
    });
    futures_util::future::join_all(lookups).await.into_iter().flatten().collect()
}

/// Which of the addresses that the resolver found to use.
///
/// Its order says which family to prefer: what this machine cannot reach comes last (RFC 6724, section 6, rule 1). Within a
/// family the order may be another each time, so the one in use stays, or all tunnels would move about.
fn choose(old: Option<IpAddr>, found: &[IpAddr]) -> Option<IpAddr> {
    let family = found.first().map(IpAddr::is_ipv4);
    let preferred = found.iter().filter(|ip| Some(ip.is_ipv4()) == family).min();
    old.filter(|ip| found.contains(ip)).or(preferred.copied()).or(old)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resolvers_family_is_taken_and_the_address_in_use_stays() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let all = |text: &str| text.split_whitespace().map(ip).collect::<Vec<_>>();
        for (old, found, chosen) in [
            // A machine without IPv4, and one that prefers it.
            (None, "2001:db8::1 192.0.2.1", Some("2001:db8::1")),
            (None, "192.0.2.1 2001:db8::1", Some("192.0.2.1")),
            // The same from every order within the family.
            (None, "2001:db8::2 192.0.2.1 2001:db8::1", Some("2001:db8::1")),
            (None, "2001:db8::1 2001:db8::2 192.0.2.1", Some("2001:db8::1")),
            // In use: stays while it is listed, and while nothing is.
            (Some("192.0.2.2"), "2001:db8::1 192.0.2.1 192.0.2.2", Some("192.0.2.2")),
            (Some("192.0.2.2"), "", Some("192.0.2.2")),
            (Some("192.0.2.2"), "2001:db8::1 192.0.2.1", Some("2001:db8::1")),
            (None, "", None),
        ] {
            assert_eq!(choose(old.map(ip), &all(found)), chosen.map(ip), "{old:?} {found}");
        }
    }
}
