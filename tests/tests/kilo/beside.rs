//! leaderd beside Kilo's stand-in: the same worlds as in [`super::alone`], and what a cluster adds.

use std::time::Duration;

use ::tests::kilo::beside::pool_path;
use ::tests::kilo::cluster::{annotation, node_path};
use ::tests::kilo::rig::{Account, Rig, Traffic, wait_for};
use ::tests::kilo::rules::names;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use wgctl_lab::{System, system::Leaderd, wait_ready, wall_micros};

use super::alone::lead;

/// An established flow must have been seen to be one.
const PEACE: Duration = Duration::from_secs(4);
/// How long a way that Kilo alone would not have is looked at.
const LOOK: Duration = Duration::from_secs(5);
/// That much lost, of both directions, which a busy machine does not lose.
const BREAKS: Duration = Duration::from_millis(10);
/// The location under test.
pub const LOCATION: &str = "cloud";
/// Preference of leaderd's rules, and how its tables to other locations begin.
const PREFERENCE: &str = "76:";
const TABLES: &str = "lookup 760";

/// Issue #489 once more: leaderd moves the lead, first on its own planes, then Kilo's.
pub fn new_flows_end(rig: &mut Rig) -> Result<String> {
    let traffic = ready(rig)?;
    let (from, to) = pair(rig, &traffic)?;
    let since = wall_micros();
    rig.world.inject(from, "vxlan-new-flows", None)?;
    let account = mended(rig, &traffic, since)?;
    let at = wall_micros();
    kilo_follows(rig, from, to)?;
    traffic.wait_steady("after Kilo has followed")?;
    let after = traffic.account(at);
    has_event(rig, "Failover")?;
    Ok(format!("{account}; while Kilo followed: {after}"))
}

/// Nothing is broken; an operator has leadership moved.
pub fn a_planned_promotion(rig: &mut Rig) -> Result<String> {
    let traffic = ready(rig)?;
    let (from, to) = pair(rig, &traffic)?;
    let since = wall_micros();
    Leaderd.hand_over(&rig.world, from, to)?;
    wait_for("the other candidate leads", String::new, || {
        Ok(led_by(rig).as_deref() == Some(&rig.world.nodes[to].node.name))
    })?;
    kilo_follows(rig, from, to)?;
    traffic.wait_steady("after the move")?;
    let account = traffic.account(since);
    account.nothing_lost().context("a planned move")?;
    Ok(account.to_string())
}

/// The fault comes while no node reaches the API server: the workload moves without it, Kilo when it is back.
pub fn the_api_server_is_away(rig: &mut Rig) -> Result<String> {
    let traffic = ready(rig)?;
    let (from, to) = pair(rig, &traffic)?;
    rig.control.stop_api_server()?;
    let since = wall_micros();
    rig.world.inject(from, "vxlan-new-flows", None)?;
    let account = mended(rig, &traffic, since)?;
    let at = wall_micros();
    rig.control.start_api_server()?;
    kilo_follows(rig, from, to)?;
    traffic.wait_steady("after Kilo has followed")?;
    Ok(format!("{account}; when the API server was back: {}", traffic.account(at)))
}

/// An annotation that a person sets is theirs: it stays, and the pool says so. One on a node that cannot be reached cuts the location off
/// with Kilo alone; nothing comes of it here, nor of one that Kilo follows.
pub fn a_person_annotates_a_node(rig: &mut Rig) -> Result<String> {
    let traffic = ready(rig)?;
    let (first, second) = (rig.node("cloud-0"), rig.node("cloud-1"));
    let since = wall_micros();
    lead(rig, "cloud-2", true)?;
    steered(rig, "False", "cloud-2")?;
    std::thread::sleep(LOOK);
    traffic.wait_steady("with an annotation of a node that cannot be reached")?;
    let unreachable = traffic.account(since);
    ensure!(annotated(rig, "cloud-2")?, "the person's annotation is gone");
    lead(rig, "cloud-2", false)?;
    steered(rig, "True", "")?;

    // Kilo prefers the first by name, so it follows this one once leaderd has moved leadership away from there.
    if led_by(rig).as_deref() != Some("cloud-1") {
        Leaderd.hand_over(&rig.world, first, second)?;
    }
    kilo_follows(rig, first, second)?;
    let since = wall_micros();
    lead(rig, "cloud-0", true)?;
    wait_for("Kilo's stand-in follows the person", String::new, || {
        Ok(rig.kilo.applied_since(since)?.iter().any(|a| a.leads && a.node == first))
    })?;
    steered(rig, "False", "cloud-0")?;
    std::thread::sleep(LOOK);
    traffic.wait_steady("while Kilo follows a person")?;
    let followed = traffic.account(since);
    ensure!(annotated(rig, "cloud-0")?, "the person's annotation is gone");
    ensure!(led_by(rig).as_deref() == Some("cloud-1"), "leaderd gave up its decision");
    lead(rig, "cloud-0", false)?;
    steered(rig, "True", "")?;
    traffic.wait_steady("once the annotation is gone")?;
    still_carrying(rig)?;
    followed.nothing_lost().context("Kilo's change")?;
    Ok(format!("unreachable: {unreachable}; followed by Kilo: {followed}"))
}

/// Waits until the pool says that Kilo goes by leaderd (`True`) or not, with a word of why.
pub fn steered(rig: &Rig, status: &str, why: &str) -> Result<()> {
    wait_for(
        &format!("the pool's Steered is {status} {why}"),
        || pool_text(rig),
        || {
            let condition = condition(rig, "Steered")?;
            let message = condition["message"].as_str().unwrap_or_default();
            Ok(condition["status"] == status && message.contains(why))
        },
    )
}

/// A new generation of the mesh while the leader fails.
pub fn a_pool_edited_during_failover(rig: &mut Rig) -> Result<String> {
    let traffic = ready(rig)?;
    let (from, to) = pair(rig, &traffic)?;
    let since = wall_micros();
    rig.world.inject(from, "vxlan-new-flows", None)?;
    let edit = json!({"spec": {"policy": {"holdDown": "2s"}, "candidates": {"priorities": {"cloud-0": 30, "cloud-1": 20}}}});
    let edited = rig.api.merge_patch(&pool_path(LOCATION), &edit)?;
    let account = mended(rig, &traffic, since)?;
    kilo_follows(rig, from, to)?;
    wait_for(
        "the pool's status is of its new spec",
        || pool_text(rig),
        || {
            let pool = rig.api.get(&pool_path(LOCATION))?;
            Ok(pool["status"]["observedGeneration"] == edited["metadata"]["generation"])
        },
    )?;
    traffic.wait_steady("with the new spec")?;
    Ok(account.to_string())
}

/// Waits until all daemons know all leaders, Kilo was told, and leaderd carries the traffic.
pub fn ready(rig: &Rig) -> Result<Traffic> {
    wait_ready(&rig.world)?;
    let leader = led_by(rig).context("no node leads")?;
    wait_for("the leader is annotated for Kilo", || pool_text(rig), || annotated(rig, &leader))?;
    carries(rig)?;
    let traffic = rig.traffic()?;
    std::thread::sleep(PEACE);
    Ok(traffic)
}

/// The node that leads the location under test and carries its traffic, and the other candidate.
pub fn pair(rig: &Rig, traffic: &Traffic) -> Result<(usize, usize)> {
    let leader = rig.world.topology.node(&led_by(rig).context("no node leads")?)?;
    let location = rig.world.topology.location(LOCATION)?;
    let carrier = traffic.gateways.leader(location);
    ensure!(carrier == Some(leader), "{leader} leads, and {carrier:?} carries the traffic");
    let other = rig
        .world
        .nodes_in(location)
        .find(|n| *n != leader && rig.world.nodes[*n].node.slot.is_some());
    Ok((leader, other.context("there is no standby")?))
}

/// New flows go through again although the fault is still there.
pub fn mended(rig: &Rig, traffic: &Traffic, since: u64) -> Result<Account> {
    let breaks = rig.options.packets_in(BREAKS);
    wait_for("the fault breaks something", String::new, || Ok(traffic.lost(since) > breaks))?;
    let steady = traffic.wait_steady("again after the fault");
    let account = traffic.account(since);
    steady.with_context(|| format!("{account}; {}", pool_text(rig)))?;
    Ok(account)
}

/// The annotation goes from one to the other, and leaderd's routes carry all the time.
pub fn kilo_follows(rig: &Rig, from: usize, to: usize) -> Result<()> {
    let [from, to] = [from, to].map(|n| rig.world.nodes[n].node.name.clone());
    let follows = || Ok(annotated(rig, &to)? && !annotated(rig, &from)?);
    wait_for("the new leader is annotated for Kilo", || pool_text(rig), follows)?;
    still_carrying(rig)
}

pub fn annotated(rig: &Rig, node: &str) -> Result<bool> {
    Ok(annotation(&rig.api.get(&node_path(node))?, names::LEADER).is_some())
}

/// Nodes that send the workload by leaderd's routes.
pub fn carrying(rig: &Rig) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for n in &rig.world.nodes {
        let rules = n.ns.output("ip", &["rule"])?;
        if rules.lines().any(|l| l.starts_with(PREFERENCE) && l.contains(TABLES)) {
            all.push(n.node.name.clone());
        }
    }
    Ok(all)
}

/// All nodes send the workload by leaderd's routes, now.
pub fn still_carrying(rig: &Rig) -> Result<()> {
    let all = carrying(rig)?;
    ensure!(all.len() == rig.world.nodes.len(), "only {all:?} send by leaderd's routes");
    Ok(())
}

/// Waits until all nodes do.
pub fn carries(rig: &Rig) -> Result<()> {
    let story = || format!("leaderd carries on {:?} only", carrying(rig).unwrap_or_default());
    wait_for("leaderd's routes carry", story, || Ok(carrying(rig)?.len() == rig.world.nodes.len()))
}

/// Waits until none does.
pub fn kilo_carries(rig: &Rig) -> Result<()> {
    let story = || format!("leaderd still carries on {:?}", carrying(rig).unwrap_or_default());
    wait_for("leaderd's routes step back", story, || Ok(carrying(rig)?.is_empty()))
}

pub fn led_by(rig: &Rig) -> Option<String> {
    let location = rig.world.topology.location(LOCATION).ok()?;
    let status = rig.world.status_in(location)?;
    status.location(LOCATION)?.leaders.first().cloned()
}

pub fn condition(rig: &Rig, kind: &str) -> Result<Value> {
    let pool = rig.api.get(&pool_path(LOCATION))?;
    let all = pool["status"]["conditions"].as_array().cloned().unwrap_or_default();
    Ok(all.into_iter().find(|c| c["type"] == kind).unwrap_or_default())
}

pub fn pool_text(rig: &Rig) -> String {
    rig.api.get(&pool_path(LOCATION)).map_or_else(|e| format!("{e:#}"), |p| p["status"].to_string())
}

/// leaderd told of it in an Event about the pool.
fn has_event(rig: &Rig, reason: &str) -> Result<()> {
    wait_for(
        &format!("an Event {reason}"),
        || pool_text(rig),
        || {
            let events = rig.api.get("/apis/events.k8s.io/v1/events")?;
            let all = events["items"].as_array().cloned().unwrap_or_default();
            Ok(all.iter().any(|e| e["reason"] == reason && e["regarding"]["name"] == LOCATION))
        },
    )
}
