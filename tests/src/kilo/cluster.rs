//! Node objects, as kubelet and a cloud leave them, and what a person changes about them.

use anyhow::Result;
use serde_json::{Value, json};
use wgctl_lab::{Node, World};

use super::api::Api;

pub const NODES: &str = "/api/v1/nodes";
pub const REGION: &str = "topology.kubernetes.io/region";

/// Path of a node.
pub fn node_path(name: &str) -> String {
    format!("{NODES}/{name}")
}

/// Creates a Node for each node of the world: region, pod CIDR, addresses, and `Ready`.
pub fn create_nodes(api: &Api, world: &World) -> Result<()> {
    for n in &world.nodes {
        let node = &n.node;
        api.create(NODES, &object(node, &world.topology.locations[node.location].name))?;
        api.merge_patch(&format!("{}/status", node_path(&node.name)), &status(node))?;
    }
    Ok(())
}

fn object(node: &Node, region: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": node.name,
            "labels": {REGION: region, "kubernetes.io/hostname": node.name, "kubernetes.io/os": "linux"},
        },
        "spec": {"podCIDR": node.prefix(), "podCIDRs": [node.prefix()]},
    })
}

fn status(node: &Node) -> Value {
    let mut addresses = vec![
        json!({"type": "InternalIP", "address": node.lan()}),
        json!({"type": "Hostname", "address": node.name}),
    ];
    if let Some(wan) = node.wan() {
        addresses.push(json!({"type": "ExternalIP", "address": wan}));
    }
    json!({"status": {
        "addresses": addresses,
        "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "written by the test rig"}],
    }})
}

/// Sets annotations of a node, or with `null` removes them.
pub fn annotate(api: &Api, node: &str, annotations: Value) -> Result<()> {
    api.merge_patch(&node_path(node), &json!({"metadata": {"annotations": annotations}})).map(drop)
}

/// The value of an annotation.
pub fn annotation(node: &Value, name: &str) -> Option<String> {
    node["metadata"]["annotations"][name].as_str().map(str::to_owned)
}
