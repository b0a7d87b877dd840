//! The ranges of leaderd's own addresses in a cluster, and what else lies in them.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::before::Before;
use super::facts::host;
use super::settings::Settings;
use super::{Problem, Subject, prefixes};
use crate::cluster::view::{ClusterView, names};
use crate::mesh::{Host, NEW_INNER, OTHER_INNER, UNSAID_INNER};

/// What IPv6 pods need, where the settings do not say.
const INNER6: &str = "fd4c:eade:0:1::/112";

#[derive(Clone, Copy, Debug)]
pub(super) struct Inner {
    pub v4: Ipv4Net,
    /// In force where a workload prefix is IPv6.
    pub v6: Ipv6Net,
}

impl Inner {
    /// As the settings say; else as it was; else, in a new cluster, the first that nothing known of it is in.
    pub fn of(view: &ClusterView, settings: &Settings, before: &Before) -> Self {
        let said = |key: &str| settings.mesh.get(key).and_then(|v| v.as_str()).map(str::to_owned);
        let v4 = said("inner_cidr").and_then(|t| t.parse().ok());
        let v4 = v4.or_else(|| match &before.inner4 {
            Some(was) => was.parse().ok(),
            None if before.text.is_empty() => Some(choose(view)),
            None => UNSAID_INNER.parse().ok(),
        });
        let v6 = said("inner_cidr6").or(before.inner6.clone()).and_then(|t| t.parse().ok());
        Self {
            v4: v4.unwrap_or_else(|| NEW_INNER.parse().expect("a prefix")),
            v6: v6.unwrap_or_else(|| INNER6.parse().expect("a prefix")),
        }
    }

    /// The range that an address is in.
    pub fn holds(&self, ip: IpAddr) -> Option<IpNet> {
        [IpNet::V4(self.v4), IpNet::V6(self.v6)].into_iter().find(|r| r.contains(&ip))
    }

    /// The range that a prefix shares addresses with.
    pub fn meets(&self, net: &IpNet) -> Option<IpNet> {
        [IpNet::V4(self.v4), IpNet::V6(self.v6)].into_iter().find(|r| overlap(r, net))
    }

    /// What of the cluster lies in the ranges. What is taken of a node is told where it is taken.
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

/// What to do about something that cannot be moved out of a range.
pub(super) fn remedy(range: &IpNet) -> String {
    let field = if range.addr().is_ipv4() { "inner_cidr" } else { "inner_cidr6" };
    format!("choose another `{field}` in [mesh] of the settings, one that nobody uses")
}

pub(super) fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// The first of the candidates that nothing known of the cluster is in; if there is something in each, the problems say so.
fn choose(view: &ClusterView) -> Ipv4Net {
    let used = used(view);
    let all = std::iter::once(NEW_INNER).chain(OTHER_INNER);
    let mut all = all.map(|t| t.parse::<Ipv4Net>().expect("a prefix"));
    let free = |r: &Ipv4Net| !used.iter().any(|u| overlap(u, &IpNet::V4(*r)));
    all.find(free).unwrap_or_else(|| NEW_INNER.parse().expect("a prefix"))
}

/// All addresses and ranges that the cluster is known to use.
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
