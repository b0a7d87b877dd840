//! The ranges of leaderd's own addresses in a cluster, and conflicts with them.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::node_spec::host;
use super::previous::PreviousMesh;
use super::settings::Settings;
use super::{Problem, Subject, prefixes};
use crate::kubernetes::view::{ClusterView, names};
use crate::mesh::{Host, NEW_INNER, OTHER_INNER, UNSAID_INNER};

/// Default of `inner_cidr6`, for clusters with IPv6 Pods.
const INNER6: &str = "fd4c:eade:0:1::/112";

#[derive(Clone, Copy, Debug)]
pub(super) struct InnerRanges {
    pub v4: Ipv4Net,
    /// In use if a workload prefix is IPv6.
    pub v6: Ipv6Net,
}

impl InnerRanges {
    /// Takes the ranges from the settings; else from the previous mesh; else, in a new cluster, the first range that is not in use.
    pub fn of(view: &ClusterView, settings: &Settings, previous: &PreviousMesh) -> Self {
        let said = |key: &str| settings.mesh.get(key).and_then(|v| v.as_str()).map(str::to_owned);
        let v4 = said("inner_cidr").and_then(|t| t.parse().ok());
        let v4 = v4.or_else(|| match &previous.inner4 {
            Some(was) => Some(*was),
            None if previous.text.is_empty() => Some(choose(view)),
            None => UNSAID_INNER.parse().ok(),
        });
        let v6 = said("inner_cidr6").and_then(|t| t.parse().ok()).or(previous.inner6);
        Self {
            v4: v4.unwrap_or_else(|| NEW_INNER.parse().expect("a prefix")),
            v6: v6.unwrap_or_else(|| INNER6.parse().expect("a prefix")),
        }
    }

    /// Returns the range that contains an address.
    pub fn holds(&self, ip: IpAddr) -> Option<IpNet> {
        [IpNet::V4(self.v4), IpNet::V6(self.v6)].into_iter().find(|r| r.contains(&ip))
    }

    /// Returns the range that a prefix overlaps.
    pub fn meets(&self, net: &IpNet) -> Option<IpNet> {
        [IpNet::V4(self.v4), IpNet::V6(self.v6)].into_iter().find(|r| prefixes::overlap(r, net))
    }

    /// Reports what in the cluster lies in the ranges. Conflicts of a node's prefixes and endpoint are reported with its spec.
    pub fn problems(&self, view: &ClusterView, problems: &mut Vec<Problem>) {
        for net in &view.services {
            if let Some(range) = self.meets(net) {
                let message = format!(
                    "the cluster's Service range {net} overlaps leaderd's own addresses {range}: {}",
                    remedy(&range)
                );
                problems.push(Problem { subject: Subject::Mesh, message });
            }
        }
        for node in view.nodes.values() {
            let kinds = [("InternalIP", &node.internal), ("ExternalIP", &node.external)];
            for (kind, ip) in
                kinds.into_iter().flat_map(|(k, all)| all.iter().map(move |ip| (k, ip)))
            {
                if let Some(range) = self.holds(*ip) {
                    let message = format!(
                        "its {kind} {ip} is one of leaderd's own addresses {range}, and is ignored: if it was taken from leaderd's \
                         interfaces, exclude those (wgl0, wgl1, …) where it is found out; else {}",
                        remedy(&range)
                    );
                    problems.push(Problem { subject: Subject::Node(node.name.clone()), message });
                }
            }
        }
    }
}

/// Returns the remedy for something that cannot be moved out of a range.
pub(super) fn remedy(range: &IpNet) -> String {
    let field = if range.addr().is_ipv4() { "inner_cidr" } else { "inner_cidr6" };
    format!("choose another `{field}` in [mesh] of the settings, one that is not in use")
}

/// Returns the first range that is not in use. If all are, the problems say so.
fn choose(view: &ClusterView) -> Ipv4Net {
    let used = used(view);
    let all = std::iter::once(NEW_INNER).chain(OTHER_INNER);
    let mut all = all.map(|t| t.parse::<Ipv4Net>().expect("a prefix"));
    let free = |r: &Ipv4Net| !used.iter().any(|u| prefixes::overlap(u, &IpNet::V4(*r)));
    all.find(free).unwrap_or_else(|| NEW_INNER.parse().expect("a prefix"))
}

/// Returns all addresses and ranges that the cluster is known to use.
fn used(view: &ClusterView) -> Vec<IpNet> {
    let mut used = view.services.clone();
    used.extend(view.cni.all().copied());
    for node in view.nodes.values() {
        used.extend(node.internal.iter().chain(&node.external).map(|ip| IpNet::from(*ip)));
        used.extend(node.pod_cidrs.iter().copied());
        used.extend(prefixes::annotated(node).and_then(Result::ok).unwrap_or_default());
        let of = |name: &str| node.annotations.get(name);
        for name in [names::KILO_FORCE_INTERNAL_IP, names::KILO_INTERNAL_IP] {
            used.extend(of(name).and_then(|a| a.parse::<IpNet>().ok()));
        }
        for name in [names::KILO_FORCE_ENDPOINT, names::KILO_ENDPOINT] {
            if let Some(Host::Ip(ip)) = of(name).and_then(|a| host(a)) {
                used.push(ip.into());
            }
        }
    }
    used
}
