//! leaderd beside Kilo's stand-in whose agents, nodes or API server go and come back.

use std::time::Duration;

use ::tests::kilo::beside::pool_path;
use ::tests::kilo::cluster::node_path;
use ::tests::kilo::rig::{Rig, wait_for};
use ::tests::kilo::rules::NOT_READY_AFTER;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use wgctl_lab::{wait_ready, wall_micros};

use super::beside::{annotated, kilo_follows, led_by, mended, pair, ready, still_carrying};

/// How long nothing must come of what was done.
const LOOK: Duration = Duration::from_secs(5);
/// How long an agent is away, for a Pod that is replaced.
const AWAY: Duration = Duration::from_secs(10);

/// Kilo's agent on the leader crashes, and another starts in its place, which drops the peers of kilo0 and takes them back. Nothing
/// comes of it, nor when that one ends on request: of the routes that it found it leaves all.
pub fn kilos_agent_is_killed(rig: &mut Rig) -> Result<String> {
    let traffic = ready(rig)?;
    freeze(rig)?;
    let (leader, other) = pair(rig, &traffic)?;
    let since = wall_micros();
    rig.kilo.kill(leader);
    std::thread::sleep(LOOK);
    let at = wall_micros();
    rig.kilo.launch(leader, &rig.control)?;
    leads_for_kilo(rig, leader, at)?;
    std::thread::sleep(LOOK);
    let crashed = traffic.account(since);
    crashed.nothing_lost().context("an agent that crashed and started")?;
    let at = wall_micros();
    rig.kilo.terminate(leader)?;
    leads_for_kilo(rig, other, at)?;
    std::thread::sleep(LOOK);
    let ended = traffic.account(at);
    ended.nothing_lost().context("and was told to end")?;
    no_leader_changed(rig, leader)?;
    Ok(format!("killed and started again: {crashed}; told to end: {ended}"))
}

/// Kilo's agent on the leader ends on request and cleans up: its routes go, then its annotations, and another node leads for Kilo. The
/// leader is still sound, so leaderd's decision and mesh stay as they are. Then the same on a member, as a rolling update of Kilo does
/// it to every node: the others' kilo0 no longer admits what it sends.
pub fn kilos_agent_cleans_up(rig: &mut Rig) -> Result<String> {
    let traffic = ready(rig)?;
    freeze(rig)?;
    let (leader, other) = pair(rig, &traffic)?;
    // As in a cluster without a cloud: only Kilo's annotation says where the node is reached.
    let name = rig.world.nodes[leader].node.name.clone();
    let inside = json!({"status": {"addresses": [{"type": "InternalIP", "address": rig.world.nodes[leader].node.lan()}]}});
    rig.api.merge_patch(&format!("{}/status", node_path(&name)), &inside)?;
    std::thread::sleep(LOOK);
    let mesh = mesh_file(rig)?;
    let since = wall_micros();
    rig.kilo.terminate(leader)?;
    leads_for_kilo(rig, other, since)?;
    std::thread::sleep(AWAY);
    still_carrying(rig)?;
    no_leader_changed(rig, leader)?;
    ensure!(mesh_file(rig)? == mesh, "the mesh file is another because an agent restarts");
    let at = wall_micros();
    rig.kilo.launch(leader, &rig.control)?;
    leads_for_kilo(rig, leader, at)?;
    std::thread::sleep(LOOK);
    let of_leader = traffic.account(since);
    of_leader.nothing_lost().context("the leader's agent was replaced")?;
    no_leader_changed(rig, leader)?;
    ensure!(mesh_file(rig)? == mesh, "the mesh file is another because an agent restarted");
    let (member, _) = rig.world.topology.metered(&rig.world.scenario)?;
    let since = wall_micros();
    rig.kilo.terminate(member)?;
    wait_for("the others drop the member", String::new, || {
        Ok(rig.kilo.applied_since(since)?.iter().any(|a| a.node == leader))
    })?;
    std::thread::sleep(AWAY);
    rig.kilo.launch(member, &rig.control)?;
    std::thread::sleep(LOOK);
    let of_member = traffic.account(since);
    of_member.nothing_lost().context("a member's agent was replaced")?;
    still_carrying(rig)?;
    Ok(format!("leader's agent replaced: {of_leader}; member's agent replaced: {of_member}"))
}

/// The leader's machine dies, and returns. A node that is still annotated leads for Kilo again at once, so the annotation must be gone.
pub fn a_crashed_leader_returns(rig: &mut Rig) -> Result<String> {
    let traffic = ready(rig)?;
    let (from, to) = pair(rig, &traffic)?;
    let since = wall_micros();
    rig.kilo.kill(from);
    rig.world.crash(from)?;
    let crash = mended(rig, &traffic, since)?;
    kilo_follows(rig, from, to)?;
    let at = wall_micros();
    rig.world.boot(from)?;
    rig.kilo.boot(from, &rig.control)?;
    // Until its agent has heard of others it is alone, and leads itself: no other node follows that.
    let leads = |rig: &Rig| {
        let applied = rig.kilo.applied_since(at).ok()?;
        applied.iter().rev().find(|a| a.node == from).map(|a| a.leads)
    };
    wait_for("the returned node follows for Kilo", String::new, || Ok(leads(rig) == Some(false)))?;
    wait_ready(&rig.world)?;
    std::thread::sleep(LOOK);
    ensure!(leads(rig) == Some(false), "the returned node leads for Kilo");
    ensure!(!annotated(rig, &rig.world.nodes[from].node.name)?, "the returned node is annotated");
    no_leader_changed(rig, to)?;
    still_carrying(rig)?;
    traffic.wait_steady("after the return")?;
    let back = traffic.account(at);
    back.nothing_lost()?;
    Ok(format!("crash: {crash}; return: {back}"))
}

/// Nobody reaches the API server for 20 s, and then for so long that every check-in is old. When it is back, each of Kilo's agents at
/// first finds only those that have checked in again, and drops the rest.
pub fn the_api_server_is_away_for_long(rig: &mut Rig) -> Result<String> {
    let traffic = ready(rig)?;
    freeze(rig)?;
    let mut said = Vec::new();
    for away in [Duration::from_secs(20), NOT_READY_AFTER + AWAY] {
        let since = wall_micros();
        rig.control.stop_api_server()?;
        std::thread::sleep(away);
        let gone = traffic.account(since);
        gone.nothing_lost().context("forwarding depends on the API server")?;
        let at = wall_micros();
        rig.control.start_api_server()?;
        // All agents' timers come by.
        let all = |rig: &Rig| -> Result<bool> {
            let nodes =
                rig.api.get("/api/v1/nodes")?["items"].as_array().cloned().unwrap_or_default();
            let seen = |n: &Value| -> Option<u64> {
                n["metadata"]["annotations"]["kilo.squat.ai/last-seen"].as_str()?.parse().ok()
            };
            Ok(nodes.iter().all(|n| seen(n) > Some(at / 1_000_000)))
        };
        wait_for("all of Kilo's agents have checked in", String::new, || all(rig))?;
        std::thread::sleep(LOOK);
        let changes = rig.kilo.applied_since(at)?.len();
        let back = traffic.account(at);
        said.push(format!(
            "away for {away:?}: {gone}; back, with {changes} changes of Kilo's: {back}"
        ));
        back.nothing_lost().with_context(|| format!("{away:?}, {changes} changes of Kilo's"))?;
        still_carrying(rig)?;
        if away > NOT_READY_AFTER {
            ensure!(changes > rig.world.nodes.len(), "Kilo's stand-in did not flap: {changes}");
        }
    }
    Ok(said.join("\n"))
}

/// No automatic failover: a node that a busy machine stalls looks dead, and a move for that is not what is looked at here.
fn freeze(rig: &Rig) -> Result<()> {
    for location in &rig.world.topology.locations {
        let path = pool_path(&location.name);
        rig.api.merge_patch(&path, &json!({"spec": {"freeze": true}}))?;
        wait_for("the location is frozen", String::new, || {
            Ok(rig.api.get(&path)?["status"]["asked"]["freeze"] == true)
        })?;
    }
    Ok(())
}

/// Kilo's stand-in has made it the leader since then.
fn leads_for_kilo(rig: &Rig, node: usize, since: u64) -> Result<()> {
    let what = format!("{} leads for Kilo", rig.world.nodes[node].node.name);
    let leads = || Ok(rig.kilo.applied_since(since)?.iter().any(|a| a.node == node && a.leads));
    wait_for(&what, String::new, leads)
}

/// Returns whether this node leads for leaderd, and is annotated for Kilo.
fn no_leader_changed(rig: &Rig, leader: usize) -> Result<()> {
    let name = &rig.world.nodes[leader].node.name;
    let leads = led_by(rig).context("no node leads")?;
    ensure!(leads == *name, "{leads} leads, not {name}");
    ensure!(annotated(rig, name)?, "{name} is not annotated");
    Ok(())
}

fn mesh_file(rig: &Rig) -> Result<Value> {
    let object = rig.api.get("/api/v1/namespaces/leaderd/configmaps/leaderd-mesh")?;
    Ok(object["data"]["mesh.toml"].clone())
}
