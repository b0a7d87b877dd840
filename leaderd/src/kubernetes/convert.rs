//! Converts the API's objects to the view, with only the fields that leaderd uses, so that a large cluster takes little memory.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::api::DynamicObject;
use leaderd_core::kubernetes::ClusterNode;
use serde_json::Value;

/// Key of the mesh file in its ConfigMap.
pub const MESH_KEY: &str = "mesh.toml";

/// Types of the Node conditions.
pub const CONDITION: &str = "RelayForwarding";
pub const REFUSED: &str = "MeshChangeRefused";

/// Prefixes of the annotations that leaderd reads.
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
        change_refused: condition(REFUSED)
            .map(|c| (c.reason.clone().unwrap_or_default(), c.message.clone().unwrap_or_default())),
    }
}

/// Returns the mesh file in the object, if it has one.
pub fn mesh_text(object: ConfigMap) -> Option<String> {
    object.data?.remove(MESH_KEY)
}

/// Returns the prefixes in a list.
fn nets(list: &Value) -> impl Iterator<Item = IpNet> {
    list.as_array().into_iter().flatten().filter_map(|v| v.as_str()?.parse().ok())
}

/// Reads a `CiliumNode`: the node, and the prefixes of its Pods from all pools.
pub fn cilium_node(object: &DynamicObject) -> (String, Vec<IpNet>) {
    let ipam = &object.data["spec"]["ipam"];
    let pools = ipam["pools"]["allocated"].as_array().into_iter().flatten();
    let found = nets(&ipam["podCIDRs"]).chain(pools.flat_map(|pool| nets(&pool["cidrs"])));
    (object.metadata.name.clone().unwrap_or_default(), found.collect())
}

/// Reads a `BlockAffinity` of Calico: the node, and its own block; none while the block is being assigned or released. Calico itself routes
/// single addresses that other nodes borrow from the block.
pub fn block_affinity(object: &DynamicObject) -> (String, Vec<IpNet>) {
    let spec = &object.data["spec"];
    let text = |key: &str| spec[key].as_str().unwrap_or_default();
    let deleted = spec["deleted"].as_bool().unwrap_or_else(|| text("deleted") == "true");
    let of_host = matches!(text("type"), "" | "host");
    let holds = text("state") == "confirmed" && !deleted && of_host;
    let net = text("cidr").parse().ok().filter(|_| holds);
    (text("node").to_owned(), net.into_iter().collect())
}

/// Reads a `ServiceCIDR`.
pub fn service_cidr(object: &DynamicObject) -> Vec<IpNet> {
    nets(&object.data["spec"]["cidrs"]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_node_is_reduced_to_the_fields_in_use() {
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
                    {"type": "MeshChangeRefused", "status": "True", "reason": "Held", "message": "it clashes"},
                ],
                "images": [{"names": ["large"], "sizeBytes": 1}],
            },
        }))
        .unwrap();
        let node = node(object);
        assert_eq!((node.name.as_str(), node.resource_version.as_str()), ("cloud-0", "7"));
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
        assert_eq!(node.change_refused, Some(("Held".into(), "it clashes".into())));
    }

    #[test]
    fn an_empty_node_has_no_addresses() {
        let empty = node(Node::default());
        assert_eq!(empty, ClusterNode::default());
        let old = json!({"metadata": {}, "spec": {"podCIDR": "10.4.1.0/24"}});
        assert_eq!(node(serde_json::from_value(old).unwrap()).pod_cidrs.len(), 1);
    }

    fn object(spec: Value) -> DynamicObject {
        serde_json::from_value(json!({"metadata": {"name": "a"}, "spec": spec})).unwrap()
    }

    #[test]
    fn cilium_prefixes_are_the_nodes_and_its_pools() {
        let of = |spec: Value| {
            let (node, nets) = cilium_node(&object(spec));
            assert_eq!(node, "a");
            nets.iter().map(IpNet::to_string).collect::<Vec<_>>()
        };
        let ipam = json!({"ipam": {"podCIDRs": ["10.0.3.0/24", "fd00::/64"], "pools": {
            "requested": [{"pool": "default", "needed": {"ipv4-addrs": 16}}],
            "allocated": [{"pool": "default", "cidrs": ["10.10.0.0/27"]}, {"pool": "jupiter", "cidrs": ["192.168.16.0/27"]}],
        }}});
        assert_eq!(of(ipam), ["10.0.3.0/24", "fd00::/64", "10.10.0.0/27", "192.168.16.0/27"]);
        for none in [
            json!({}),
            json!({"ipam": {}}),
            json!({"ipam": {"podCIDRs": "x", "pools": {"allocated": 3}}}),
        ] {
            assert_eq!(of(none), [""; 0]);
        }
    }

    #[test]
    fn a_calico_block_counts_only_while_confirmed() {
        let of = |state: &str, deleted: Value, kind: &str| {
            let spec = json!({"node": "b", "cidr": "192.168.1.64/26", "state": state, "deleted": deleted, "type": kind});
            let (node, nets) = block_affinity(&object(spec));
            assert_eq!(node, "b");
            nets.len()
        };
        assert_eq!(of("confirmed", json!("false"), "host"), 1);
        assert_eq!(of("confirmed", json!("false"), ""), 1);
        assert_eq!(of("pending", json!("false"), "host"), 0);
        assert_eq!(of("pendingDeletion", json!("false"), "host"), 0);
        assert_eq!(of("confirmed", json!("true"), "host"), 0);
        assert_eq!(of("confirmed", json!(true), "host"), 0);
        assert_eq!(of("confirmed", json!("false"), "virtual"), 0);
        assert_eq!(block_affinity(&object(json!({}))), (String::new(), vec![]));
    }

    #[test]
    fn a_config_map_without_the_key_holds_no_mesh() {
        assert_eq!(mesh_text(ConfigMap::default()), None);
        let object = json!({"metadata": {}, "data": {"mesh.toml": "x", "other": "y"}});
        assert_eq!(mesh_text(serde_json::from_value(object).unwrap()).as_deref(), Some("x"));
    }
}
