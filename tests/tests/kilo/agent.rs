//! leaderd beside Kilo's stand-in whose agents, nodes or API server go and come back.

use std::time::Duration;

use ::tests::kilo::beside::pool_path;
use ::tests::kilo::cluster::node_path;
use ::tests::kilo::rig::{Account, Rig, wait_for};
use ::tests::kilo::rules::NOT_READY_AFTER;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use wgctl_lab::{wait_ready, wall_micros};

use super::beside::{annotated, carrying, kilo_follows, led_by, mended, pair, ready, stepped_back};

/// How long nothing must come of what was done.
const LOOK: Duration = Duration::from_secs(5);
/// Kilo alone loses sessions for WireGuard's 5 s and more. leaderd looks five times a second, and is given time on a busy machine.
const BRIEF: f64 = 2500.0;

/// Kilo's agent on the leader crashes, which changes nothing; the one that starts in its place drops the peers of kilo0 and takes them
/// back, and leaderd's routes carry meanwhile.
pub fn kilos_agent_is_killed(rig: &mut Rig) -> Result<String> {
    let traffic = ready(rig)?;
    freeze(rig)?;
    let (leader, _) = pair(rig, &traffic)?;
    let since = wall_micros();
    rig.kilo.kill(leader);
    std::thread::sleep(LOOK);
    let away = traffic.account(since);
    quiet(&away).context("an agent that is not there costs packets")?;
    let at = wall_micros();
    rig.kilo.launch(leader, &rig.control)?;
    leads_for_kilo(rig, leader, at)?;
    std::thread::sleep(LOOK);
    stepped_back(rig)?;
    traffic.wait_steady("with the new agent")?;
    let back = traffic.account(at);
    brief(&back)?;
    nobody_moved(rig, leader)?;
    Ok(format!("killed: {away}; started again: {back}"))
}

/// Kilo's agent on the leader is told to end and cleans up: its routes go, then its annotations, and another node leads for Kilo. The
/// leader is still sound, so leaderd's decision and mesh stay as they are, its routes carry, and step back when the agent has returned.
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
    std::thread::sleep(LOOK);
    traffic.wait_steady("without Kilo's agent on the leader")?;
    let ended = traffic.account(since);
    let carried = carrying(rig)?;
    ensure!(carried.len() == rig.world.nodes.len(), "only {carried:?} send by leaderd's routes");
    brief(&ended)?;
    nobody_moved(rig, leader)?;
    ensure!(mesh_file(rig)? == mesh, "the mesh file is another because an agent restarts");
    let at = wall_micros();
    rig.kilo.launch(leader, &rig.control)?;
    leads_for_kilo(rig, leader, at)?;
    stepped_back(rig)?;
    traffic.wait_steady("with the agent back")?;
    let back = traffic.account(at);
    brief(&back)?;
    nobody_moved(rig, leader)?;
    ensure!(mesh_file(rig)? == mesh, "the mesh file is another because an agent restarted");
    Ok(format!("ended: {ended}; back: {back}"))
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
    // Until its agent has heard of others it is alone, and leads itself: nobody else goes by that.
    let leads = |rig: &Rig| {
        let applied = rig.kilo.applied_since(at).ok()?;
        applied.iter().rev().find(|a| a.node == from).map(|a| a.leads)
    };
    wait_for("the returned node follows for Kilo", String::new, || Ok(leads(rig) == Some(false)))?;
    wait_ready(&rig.world)?;
    std::thread::sleep(LOOK);
    ensure!(leads(rig) == Some(false), "the returned node leads for Kilo");
    ensure!(!annotated(rig, &rig.world.nodes[from].node.name)?, "the returned node is annotated");
    nobody_moved(rig, to)?;
    stepped_back(rig)?;
    traffic.wait_steady("after the return")?;
    let back = traffic.account(at);
    brief(&back)?;
    Ok(format!("crash: {crash}; return: {back}"))
}

/// Nobody reaches the API server for so long that every check-in is old. When it is back, each of Kilo's agents at first finds only those
/// that have checked in again, and drops the rest.
pub fn the_api_server_is_away_for_long(rig: &mut Rig) -> Result<String> {
    let traffic = ready(rig)?;
    let since = wall_micros();
    rig.control.stop_api_server()?;
    std::thread::sleep(NOT_READY_AFTER + LOOK);
    let away = traffic.account(since);
    quiet(&away).context("forwarding depends on the API server")?;
    let at = wall_micros();
    rig.control.start_api_server()?;
    // All agents' timers come by.
    let all = |rig: &Rig| -> Result<bool> {
        let nodes = rig.api.get("/api/v1/nodes")?["items"].as_array().cloned().unwrap_or_default();
        let seen = |n: &Value| -> Option<u64> {
            n["metadata"]["annotations"]["kilo.squat.ai/last-seen"].as_str()?.parse().ok()
        };
        Ok(nodes.iter().all(|n| seen(n) > Some(at / 1_000_000)))
    };
    wait_for("all of Kilo's agents have checked in", String::new, || all(rig))?;
    let flapped = rig.kilo.applied_since(at)?;
    ensure!(flapped.len() > rig.world.nodes.len(), "Kilo's stand-in did not flap: {flapped:?}");
    std::thread::sleep(LOOK);
    stepped_back(rig)?;
    traffic.wait_steady("after Kilo's flapping")?;
    let back = traffic.account(at);
    brief(&back)?;
    Ok(format!("away: {away}; back, with {} changes of Kilo's: {back}", flapped.len()))
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

/// A busy machine stalls for a moment; what depends on something that is not there ends for good.
fn quiet(account: &Account) -> Result<()> {
    let quiet = account.blackout.iter().all(|b| !b.unfinished && b.ms < 1000.0);
    ensure!(quiet, "{account}");
    Ok(())
}

fn brief(account: &Account) -> Result<()> {
    let fits = account.blackout.iter().all(|b| !b.unfinished && b.ms < BRIEF);
    ensure!(fits, "out for longer than {BRIEF} ms: {account}");
    Ok(())
}

/// Kilo's stand-in has made it the leader since then.
fn leads_for_kilo(rig: &Rig, node: usize, since: u64) -> Result<()> {
    let what = format!("{} leads for Kilo", rig.world.nodes[node].node.name);
    let leads = || Ok(rig.kilo.applied_since(since)?.iter().any(|a| a.node == node && a.leads));
    wait_for(&what, String::new, leads)
}

/// It is this node that leads for leaderd, and that Kilo is told of.
fn nobody_moved(rig: &Rig, leader: usize) -> Result<()> {
    let name = &rig.world.nodes[leader].node.name;
    let leads = led_by(rig).context("nobody leads")?;
    ensure!(leads == *name, "{leads} leads, not {name}");
    ensure!(annotated(rig, name)?, "{name} is not annotated");
    Ok(())
}

fn mesh_file(rig: &Rig) -> Result<Value> {
    let object = rig.api.get("/api/v1/namespaces/leaderd/configmaps/leaderd-mesh")?;
    Ok(object["data"]["mesh.toml"].clone())
}
