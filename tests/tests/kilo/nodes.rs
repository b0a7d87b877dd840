//! What Nodes and a CNI's objects say, and what leaderd makes of it.

use std::time::Duration;

use ::tests::kilo::cluster::{NODES, annotate, node_path};
use ::tests::kilo::rig::{Rig, wait_for};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use wgctl_lab::{System, system::Leaderd, wait_ready, wall_micros};

use super::beside::{led_by, pair, pool_text, ready};

const MESH: &str = "/api/v1/namespaces/leaderd/configmaps/leaderd-mesh";
const SERVERS: &str = "192.168.77.0/24";
const SERVER: &str = "192.168.77.7";
const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const CILIUM: &str = "/apis/cilium.io/v2/ciliumnodes";

fn mesh(rig: &Rig) -> Result<String> {
    let object = rig.api.get(MESH)?;
    Ok(object["data"]["mesh.toml"].as_str().context("no mesh file")?.to_owned())
}

/// What has to be sent to make a Node again that was deleted.
fn again(mut node: Value) -> (Value, Value) {
    let status = json!({ "status": node["status"].take() });
    let kept = json!({"name": node["metadata"]["name"], "labels": node["metadata"]["labels"], "annotations": node["metadata"]["annotations"]});
    node["metadata"] = kept;
    (node, status)
}

/// A leader whose Node object is deleted leads on, and the mesh is not written, if it is made again soon; else it hands over before it
/// leaves the mesh.
pub fn a_leaders_node_is_deleted(rig: &mut Rig) -> Result<String> {
    let traffic = ready(rig)?;
    let (from, to) = pair(rig, &traffic)?;
    let [name, heir] = [from, to].map(|n| rig.world.nodes[n].node.name.clone());
    let (node, status) = again(rig.api.get(&node_path(&name))?);
    let before = mesh(rig)?;
    let since = wall_micros();
    rig.api.delete(&node_path(&name))?;
    std::thread::sleep(Duration::from_secs(8));
    rig.api.create(NODES, &node)?;
    rig.api.merge_patch(&format!("{}/status", node_path(&name)), &status)?;
    std::thread::sleep(Duration::from_secs(5));
    ensure!(mesh(rig)? == before, "the mesh file is another though the Node is back");
    ensure!(led_by(rig).as_ref() == Some(&name), "leadership moved though the Node is back");
    traffic.wait_steady("with the Node back")?;
    let back = traffic.account(since);

    let since = wall_micros();
    rig.api.delete(&node_path(&name))?;
    std::thread::sleep(Duration::from_secs(50));
    ensure!(led_by(rig).as_ref() == Some(&name), "{name} does not lead on");
    ensure!(mesh(rig)? == before, "the mesh file is another while the departed one leads");
    let stays = traffic.account(since);
    let since = wall_micros();
    wait_for("the other leads", || pool_text(rig), || Ok(led_by(rig).as_ref() == Some(&heir)))?;
    let header = format!("[nodes.{name}]");
    ensure!(mesh(rig)?.contains(&header), "{name} left the mesh before it had handed over");
    let gone = || Ok(!mesh(rig)?.contains(&header));
    wait_for("the departed one leaves the mesh", || mesh(rig).unwrap_or_default(), gone)?;
    let text = mesh(rig)?;
    ensure!(text.contains(&format!("# Given up: {name} ")), "its index is not kept: {text}");
    traffic.wait_steady("without the departed one")?;
    let moved = traffic.account(since);
    moved.nothing_lost().context("the hand-over")?;
    Ok(format!("back after 8 s: {back}; gone for 50 s: {stays}; handed over: {moved}"))
}

/// Prefixes are those of CiliumNode objects where there are any, and follow them.
pub fn a_cnis_objects_say_the_prefixes(rig: &mut Rig) -> Result<String> {
    wait_ready(&rig.world)?;
    ensure!(mesh(rig)?.contains("inner_cidr = \"169.254.0.0/16\""), "{}", mesh(rig)?);
    let schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let version = json!({"name": "v2", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}});
    let crd = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "ciliumnodes.cilium.io"},
        "spec": {
            "group": "cilium.io", "scope": "Cluster", "versions": [version],
            "names": {"kind": "CiliumNode", "listKind": "CiliumNodeList", "plural": "ciliumnodes", "singular": "ciliumnode"},
        },
    });
    rig.api.create(CRDS, &crd)?;
    wait_for("the API serves CiliumNodes", String::new, || Ok(rig.api.get(CILIUM).is_ok()))?;
    let object = |name: &str, nets: Value| {
        json!({
            "apiVersion": "cilium.io/v2", "kind": "CiliumNode", "metadata": {"name": name},
            "spec": {"ipam": {"podCIDRs": nets}},
        })
    };
    for n in &rig.world.nodes {
        let nets = json!([n.node.prefix()]);
        rig.api.create(CILIUM, &object(&n.node.name, nets))?;
    }
    // Kinds that are not there are asked for again every ten minutes, and at a start.
    for n in 0..rig.world.nodes.len() {
        rig.world.kill_daemon(n)?;
        rig.world.start_daemon(n)?;
    }
    wait_ready(&rig.world)?;
    let before = mesh(rig)?;
    let member = rig.world.nodes.iter().find(|n| n.node.slot.is_none()).context("no member")?;
    let more = |net: &str| {
        let nets = json!([member.node.prefix(), net]);
        let patch = json!({"spec": {"ipam": {"podCIDRs": nets}}});
        rig.api.merge_patch(&format!("{CILIUM}/{}", member.node.name), &patch)?;
        let since = std::time::Instant::now();
        let there = || Ok(mesh(rig)?.contains(&format!("\"{net}\"")));
        wait_for("the mesh file has the prefix", || mesh(rig).unwrap_or_default(), there)?;
        anyhow::Ok(since.elapsed())
    };
    let (first, second) = (more("10.99.7.0/24")?, more("10.99.8.0/24")?);
    ensure!(!mesh(rig)?.contains("10.99.7.0/24"), "what is no longer said is still there");
    ensure!(mesh(rig)? != before, "the mesh file is the same");
    Ok(format!("in the mesh file after {first:.1?} and {second:.1?}"))
}

/// A server in the LAN that no node has, by Kilo's annotation: packets reach it from the other location, by whoever leads.
pub fn what_is_behind_no_node_is_reached(rig: &mut Rig) -> Result<String> {
    let traffic = ready(rig)?;
    let (leader, other) = pair(rig, &traffic)?;
    let behind = &rig.world.nodes[rig.node("cloud-2")];
    behind.ns.output("ip", &["address", "add", &format!("{SERVER}/32"), "dev", "lo"])?;
    // As the annotation wants it: every candidate has a way there.
    let lan = behind.node.lan().to_string();
    for n in [leader, other] {
        rig.world.nodes[n].ns.output("ip", &["route", "add", SERVERS, "via", &lan])?;
    }
    let far = &rig.world.nodes[rig.node("onprem-2")].pod;
    let reached = || far.output("ping", &["-q", "-c", "1", "-W", "1", SERVER]).is_ok();
    ensure!(!reached(), "it is reached without the annotation");
    annotate(&rig.api, "cloud-2", json!({"kilo.squat.ai/allowed-location-ips": SERVERS}))?;
    wait_for("the server is reached", || pool_text(rig), || Ok(reached()))?;
    Leaderd.hand_over(&rig.world, leader, other)?;
    let heir = rig.world.nodes[other].node.name.clone();
    wait_for("the other leads", || pool_text(rig), || Ok(led_by(rig).as_ref() == Some(&heir)))?;
    wait_for("the server is reached by the other", || pool_text(rig), || Ok(reached()))?;
    annotate(&rig.api, "cloud-2", json!({"kilo.squat.ai/allowed-location-ips": null}))?;
    wait_for("it is reached no more", || pool_text(rig), || Ok(!reached()))?;
    Ok(format!("{SERVER} by both candidates"))
}
