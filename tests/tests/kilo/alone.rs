//! Kilo's stand-in without leaderd: what is to be mended.

use std::time::Duration;

use ::tests::kilo::cluster::{annotate, annotation, node_path};
use ::tests::kilo::rig::{Rig, Traffic, wait_for};
use ::tests::kilo::rules::names;
use anyhow::{Result, ensure};
use serde_json::{Value, json};
use wgctl_lab::wall_micros;

/// An established flow must have been seen to be one.
const PEACE: Duration = Duration::from_secs(4);
/// How long an outage is watched that no system ends.
const LOOK: Duration = Duration::from_secs(15);
/// How long the end of a change is looked at.
const CALM: Duration = Duration::from_secs(2);

/// Asks for the lead in Kilo's way, or no more.
pub fn lead(rig: &Rig, node: &str, asked: bool) -> Result<()> {
    let value = if asked { json!("true") } else { Value::Null };
    annotate(&rig.api, node, json!({names::LEADER: value}))
}

/// Kilo issue #489: the outage lasts as long as anybody looks, and the lead stays where it is.
pub fn new_flows_die(rig: &mut Rig) -> Result<String> {
    let traffic = rig.traffic()?;
    std::thread::sleep(PEACE);
    let leader = rig.node("cloud-0");
    carries(rig, &traffic, leader, "before the fault")?;
    let since = wall_micros();
    rig.world.inject(leader, "vxlan-new-flows", None)?;
    std::thread::sleep(LOOK);
    let account = traffic.account(since);
    let [new, old] = account.blackout;
    ensure!(new.unfinished, "new flows went through again: {account}");
    ensure!(new.ms > LOOK.as_secs_f64() * 1e3 - 2000.0, "new flows went on for long: {account}");
    ensure!(
        old.ms < 1000.0,
        "the established flow died as well, so this is another fault: {account}"
    );
    carries(rig, &traffic, leader, "after it")?;
    let moves = rig.kilo.applied_since(since)?;
    ensure!(moves.is_empty(), "Kilo's stand-in changed something: {moves:?}");
    rig.world.undo(leader, "vxlan-new-flows")?;
    traffic.wait_steady("once the fault is undone")?;
    Ok(format!("{account}; the leader stayed"))
}

/// An operator annotates the standby; and if more moves are asked for, takes that back, and annotates it again.
pub fn a_planned_move(rig: &mut Rig) -> Result<String> {
    let traffic = rig.traffic()?;
    let candidates = ["cloud-0", "cloud-1"].map(|n| rig.node(n));
    let mut said = Vec::new();
    for i in 0..rig.options.moves {
        let [from, to] = if i % 2 == 0 { candidates } else { [candidates[1], candidates[0]] };
        carries(rig, &traffic, from, "before the move")?;
        let since = wall_micros();
        lead(rig, "cloud-1", i % 2 == 0)?;
        let location = rig.world.nodes[to].node.location;
        let moved = || Ok(traffic.gateways.leader(location) == Some(to));
        // Both new ends have traffic to send and begin the handshake in the same moment: each drops the other's, and both try again
        // 5 s later, in step. It may last; then that is what Kilo's move costs.
        if wait_for("the other carries the traffic", String::new, moved).is_err() {
            said.push(format!(
                "{}: the ends of the new tunnel do not come together",
                traffic.account(since)
            ));
            break;
        }
        std::thread::sleep(CALM);
        traffic.wait_steady("after the move")?;
        let account = traffic.account(since);
        let lost = account.lost.iter().sum::<u64>();
        ensure!(lost > 0, "Kilo's way breaks before it makes: {account}");
        said.push(account.to_string());
        std::thread::sleep(PEACE);
    }
    Ok(said.join("\n"))
}

/// A person annotates a node that cannot be reached from outside, which Kilo allows.
pub fn a_private_leader(rig: &mut Rig) -> Result<String> {
    let traffic = rig.traffic()?;
    let since = wall_micros();
    lead(rig, "cloud-2", true)?;
    std::thread::sleep(LOOK);
    let account = traffic.account(since);
    ensure!(account.blackout.iter().all(|b| b.unfinished), "traffic flows: {account}");
    lead(rig, "cloud-2", false)?;
    traffic.wait_steady("once the annotation is gone")?;
    Ok(account.to_string())
}

/// No API server for a while, then one node that cannot reach it: forwarding goes on, and check-ins come back.
pub fn the_api_server_is_away(rig: &mut Rig) -> Result<String> {
    let traffic = rig.traffic()?;
    let since = wall_micros();
    rig.control.stop_api_server()?;
    std::thread::sleep(LOOK);
    rig.control.start_api_server()?;
    let node = rig.node("cloud-1");
    rig.world.management_link(node, false)?;
    let (cut, other) = (checked_in(rig, "cloud-1")?, checked_in(rig, "cloud-0")?);
    wait_for("cloud-0 checks in", String::new, || Ok(checked_in(rig, "cloud-0")? > other))?;
    ensure!(checked_in(rig, "cloud-1")? == cut, "cloud-1 checks in over a cable that is pulled");
    rig.world.management_link(node, true)?;
    wait_for("cloud-1 checks in again", String::new, || Ok(checked_in(rig, "cloud-1")? > cut))?;
    let account = traffic.account(since);
    let quiet = account.blackout.iter().all(|b| !b.unfinished && b.ms < 1000.0);
    ensure!(quiet, "forwarding depends on the API server: {account}");
    Ok(account.to_string())
}

fn checked_in(rig: &Rig, node: &str) -> Result<u64> {
    let node = rig.api.get(&node_path(node))?;
    Ok(annotation(&node, names::LAST_SEEN).and_then(|s| s.parse().ok()).unwrap_or(0))
}

/// It is this node that the traffic of its location takes.
fn carries(rig: &Rig, traffic: &Traffic, node: usize, when: &str) -> Result<()> {
    let n = &rig.world.nodes[node].node;
    let carrier = traffic.gateways.leader(n.location);
    ensure!(carrier == Some(node), "{} does not carry the traffic {when}, but {carrier:?}", n.name);
    Ok(())
}
