//! What leaderd does not carry: what is only observed, and what gets through none of its tunnels.

use std::time::Duration;

use ::tests::kilo::beside::pool_path;
use ::tests::kilo::cluster::annotation;
use ::tests::kilo::rig::{Rig, wait_for};
use ::tests::kilo::rules::names;
use anyhow::{Context, Result, ensure};
use serde_json::json;
use wgctl_lab::{wait_ready, wall_micros};

use super::beside::{
    LOCATION, annotated, carries, carrying, condition, kilo_carries, led_by, pair, pool_text,
    ready, steered, still_carrying,
};

/// How long nothing must come of what was done.
const LOOK: Duration = Duration::from_secs(5);

/// Installed to watch, nothing is changed, and the Event says what would have been. Then leaderd steers, and after that watches again:
/// neither change costs a packet.
pub fn observed_and_back(rig: &mut Rig) -> Result<String> {
    wait_ready(&rig.world)?;
    let traffic = rig.traffic()?;
    let leader = rig.world.topology.node(&led_by(rig).context("no node leads")?)?;
    std::thread::sleep(LOOK);
    let since = wall_micros();
    rig.world.inject(leader, "vxlan-new-flows", None)?;
    let name = rig.world.nodes[leader].node.name.clone();
    wait_for(
        "another would lead",
        || pool_text(rig),
        || Ok(led_by(rig).is_some_and(|l| l != name)),
    )?;
    wait_for(
        "the Event says what would have been done",
        || pool_text(rig),
        || said(rig, "nothing was changed"),
    )?;
    std::thread::sleep(LOOK);
    let broken = traffic.account(since);
    ensure!(broken.blackout[0].unfinished, "the traffic was moved: {broken}");
    nothing_changed(rig)?;
    steered(rig, "False", "observe")?;
    ensure!(condition(rig, "Ready")?["status"] == "True", "{}", pool_text(rig));
    rig.world.undo(leader, "vxlan-new-flows")?;
    traffic.wait_steady("once the fault is undone")?;
    std::thread::sleep(LOOK);

    let since = wall_micros();
    steer(rig, "kilo")?;
    carries(rig)?;
    steered(rig, "True", "")?;
    std::thread::sleep(LOOK);
    still_carrying(rig)?;
    let to_kilo = traffic.account(since);
    let since = wall_micros();
    steer(rig, "observe")?;
    kilo_carries(rig)?;
    std::thread::sleep(LOOK);
    let back = traffic.account(since);
    let said = format!("under issue #489: {broken}\nto kilo: {to_kilo}\nback: {back}");
    ensure!(to_kilo.lost == [0, 0] && back.lost == [0, 0], "packets were lost:\n{said}");
    Ok(said)
}

/// Nothing gets through leaderd's tunnels any more: Kilo's way is taken, and given up again once they forward.
pub fn no_tunnel_gets_through(rig: &mut Rig) -> Result<String> {
    let traffic = ready(rig)?;
    pair(rig, &traffic)?;
    let location = rig.world.topology.location(LOCATION)?;
    let far: Vec<usize> = rig.world.nodes_in(location).collect();
    let since = wall_micros();
    for n in &far {
        rig.world.nodes[*n].ns.nft(
            "add table ip shut\nadd chain ip shut in { type filter hook prerouting priority -300; }\n\
             add rule ip shut in udp dport 51900-51915 drop\n",
        )?;
    }
    kilo_carries(rig)?;
    traffic.wait_steady("by Kilo's way")?;
    let account = traffic.account(since);
    ensure!(account.blackout.iter().all(|b| b.ms < 15_000.0), "{account}");
    let at = wall_micros();
    for n in &far {
        rig.world.nodes[*n].ns.nft("delete table ip shut\n")?;
    }
    carries(rig)?;
    std::thread::sleep(LOOK);
    let back = traffic.account(at);
    ensure!(back.lost == [0, 0], "leaderd's routes stepped in too early: {back}");
    Ok(format!("shut: {account}; open again: {back}"))
}

/// Of all pools.
fn steer(rig: &Rig, steering: &str) -> Result<()> {
    for location in &rig.world.topology.locations {
        let path = pool_path(&location.name);
        rig.api.merge_patch(&path, &json!({"spec": {"steering": steering}}))?;
    }
    Ok(())
}

/// No rule, no route to another location's Pods, no annotation of Kilo's.
fn nothing_changed(rig: &Rig) -> Result<()> {
    ensure!(carrying(rig)?.is_empty(), "leaderd carries on {:?}", carrying(rig)?);
    for n in &rig.world.nodes {
        let routes = n.ns.output("ip", &["route", "show", "table", "all", "proto", "76"])?;
        let pods = rig.world.nodes.iter().filter(|o| o.node.location != n.node.location);
        for other in pods {
            let prefix = other.node.prefix().to_string();
            ensure!(!routes.contains(&prefix), "{} has a route to {prefix}", n.node.name);
        }
        ensure!(!annotated(rig, &n.node.name)?, "{} is annotated", n.node.name);
        let node = rig.api.get(&::tests::kilo::cluster::node_path(&n.node.name))?;
        ensure!(annotation(&node, names::LEADER).is_none(), "{} is annotated", n.node.name);
    }
    Ok(())
}

/// An Event about the pool says so.
fn said(rig: &Rig, what: &str) -> Result<bool> {
    let events = rig.api.get("/apis/events.k8s.io/v1/events")?;
    let all = events["items"].as_array().cloned().unwrap_or_default();
    let of_pool =
        all.iter().filter(|e| e["regarding"]["name"] == LOCATION && e["reason"] == "Failover");
    Ok(of_pool.filter_map(|e| e["note"].as_str()).any(|note| note.contains(what)))
}
