//! From the API's objects to the view: what matters here, and nothing else, so that a large cluster takes little memory.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{ConfigMap, Node};
use leaderd_core::cluster::ClusterNode;

/// Key of the mesh file in its ConfigMap.
pub const MESH_KEY: &str = "mesh.toml";

/// Type of the Node condition.
pub const CONDITION: &str = "RelayForwarding";

/// Prefixes of the annotations that are looked at.
const ANNOTATIONS: [&str; 2] = ["kilo.squat.ai/", "leaderd.io/"];

pub fn node(node: Node) -> ClusterNode {
    let (meta, spec, status) =
        (node.metadata, node.spec.unwrap_or_default(), node.status.unwrap_or_default());
    let condition = |kind: &str| status.conditions.iter().flatten().find(|c| c.type_ == kind);
    let addresses = |kind: &str| -> Vec<IpAddr> {
        let all = status.addresses.iter().flatten().filter(|a| a.type_ == kind);
        all.filter_map(|a| a.address.parse().ok()).collect()
    };
    // The old field stands alone only on servers older than dual stack.
    let cidrs = spec.pod_cidrs.unwrap_or_else(|| spec.pod_cidr.into_iter().collect());
    ClusterNode {
        name: meta.name.unwrap_or_default(),
        resource_version: meta.resource_version.unwrap_or_default(),
        uid: meta.uid.unwrap_or_default(),
        ready: condition("Ready").is_some_and(|c| c.status == "True"),
        labels: meta.labels.unwrap_or_default(),
        annotations: meta
            .annotations
            .unwrap_or_default()
            .into_iter()
            .filter(|(k, _)| ANNOTATIONS.iter().any(|p| k.starts_with(p)))
            .collect(),
        pod_cidrs: cidrs.iter().filter_map(|c| c.parse().ok()).collect(),
        internal: addresses("InternalIP"),
        external: addresses("ExternalIP"),
        relay_forwarding: condition(CONDITION)
            .map(|c| (c.status.clone(), c.reason.clone().unwrap_or_default())),
    }
}

/// The mesh file that the object holds, if it holds one.
pub fn mesh_text(object: ConfigMap) -> Option<String> {
    object.data?.remove(MESH_KEY)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn of_a_node_only_what_matters_is_kept() {
        let object = serde_json::from_value(json!({
            "metadata": {
                "name": "cloud-0", "resourceVersion": "7", "uid": "u",
                "labels": {"topology.kubernetes.io/region": "cloud"},
                "annotations": {"kilo.squat.ai/leader": "true", "leaderd.io/epoch": "4", "volumes.kubernetes.io/x": "y"},
            },
            "spec": {"podCIDR": "10.4.1.0/24", "podCIDRs": ["10.4.1.0/24", "fd00:1::/64", "nonsense"]},
            "status": {
                "addresses": [
                    {"type": "Hostname", "address": "cloud-0"},
                    {"type": "InternalIP", "address": "192.168.0.1"},
                    {"type": "ExternalIP", "address": "203.0.113.5"},
                    {"type": "InternalIP", "address": "fd01::1"},
                ],
                "conditions": [
                    {"type": "Ready", "status": "True"},
                    {"type": "RelayForwarding", "status": "False", "reason": "Degraded"},
                ],
                "images": [{"names": ["large"], "sizeBytes": 1}],
            },
        }))
        .unwrap();
        let node = node(object);
        assert_eq!((node.name.as_str(), node.resource_version.as_str()), ("cloud-0", "7"));
        assert!(node.ready);
        assert_eq!(
            node.annotations.keys().collect::<Vec<_>>(),
            ["kilo.squat.ai/leader", "leaderd.io/epoch"]
        );
        assert_eq!(
            node.pod_cidrs,
            ["10.4.1.0/24".parse().unwrap(), "fd00:1::/64".parse::<ipnet::IpNet>().unwrap()]
        );
        assert_eq!(
            node.internal,
            ["192.168.0.1".parse::<IpAddr>().unwrap(), "fd01::1".parse().unwrap()]
        );
        assert_eq!(node.external, ["203.0.113.5".parse::<IpAddr>().unwrap()]);
        assert_eq!(node.relay_forwarding, Some(("False".into(), "Degraded".into())));
    }

    #[test]
    fn a_node_of_which_nothing_is_known_is_not_ready_and_has_no_addresses() {
        let empty = node(Node::default());
        assert_eq!(empty, ClusterNode::default());
        let old = json!({"metadata": {}, "spec": {"podCIDR": "10.4.1.0/24"}});
        assert_eq!(node(serde_json::from_value(old).unwrap()).pod_cidrs.len(), 1);
    }

    #[test]
    fn a_config_map_without_the_key_holds_no_mesh() {
        assert_eq!(mesh_text(ConfigMap::default()), None);
        let object = json!({"metadata": {}, "data": {"mesh.toml": "x", "other": "y"}});
        assert_eq!(mesh_text(serde_json::from_value(object).unwrap()).as_deref(), Some("x"));
    }
}
