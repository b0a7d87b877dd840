//! Daemons that want to write the same at the same time, on the real API server.

use std::time::Duration;

use ::tests::kilo::cluster::{annotate, annotation, node_path};
use ::tests::kilo::control_plane::{User, Write};
use ::tests::kilo::rig::{Rig, wait_for};
use ::tests::kilo::rules::names;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use wgctl_lab::{System, system::Leaderd};

use super::beside::{LOCATION, annotated, led_by, pair, pool_text, ready, steered, still_carrying};

/// How long nothing must come of what was done.
const LOOK: Duration = Duration::from_secs(5);
const EPOCH: &str = "leaderd.io/epoch";
/// Tries to stop all daemons between a decision and its first write, for which there are 2 s.
const TRIES: u32 = 5;

/// All daemons are stopped with a decision that they are about to write. Before they go on, a later decision is written. None of them
/// undoes it, whether it has seen it or not; and once it is gone, their own is written once.
pub fn an_older_epoch_never_undoes_a_newer_one(rig: &mut Rig) -> Result<String> {
    let traffic = ready(rig)?;
    let (mut from, mut to) = pair(rig, &traffic)?;
    let candidates: Vec<usize> =
        (0..rig.world.nodes.len()).filter(|n| rig.world.nodes[*n].node.slot.is_some()).collect();
    let pause =
        |rig: &Rig, on: bool| candidates.iter().try_for_each(|n| rig.world.pause_daemon(*n, on));
    let mut tries = 0;
    let (name, decided) = loop {
        tries += 1;
        ensure!(tries <= TRIES, "the daemons could not be stopped before they wrote");
        let name = rig.world.nodes[to].node.name.clone();
        // Refused until the other is seen to forward.
        wait_for("the other candidate leads", String::new, || {
            let leads = led_by(rig).as_deref() == Some(&name);
            let _ = leads || Leaderd.hand_over(&rig.world, from, to).is_ok();
            Ok(leads)
        })?;
        let decided = epoch(rig)?;
        pause(rig, true)?;
        if !annotated(rig, &name)? {
            break (name, decided);
        }
        pause(rig, false)?;
        still_carrying(rig)?;
        (from, to) = (to, from);
    };
    let path = node_path(&name);
    let seen = rig.api.get(&path)?;
    let before = writes(rig)?.len();
    annotate(&rig.api, &name, json!({names::LEADER: "leaderd", EPOCH: "1000"}))?;

    // What a daemon asks for that has not heard of it.
    let stale = json!({"metadata": {
        "resourceVersion": seen["metadata"]["resourceVersion"],
        "annotations": {names::LEADER: "leaderd", EPOCH: "2"},
    }});
    let refused = rig.control.api(User::Leaderd)?.merge_patch(&path, &stale);
    let why = refused.err().context("an old version is taken")?;
    ensure!(format!("{why:#}").contains("409"), "{why:#}");

    pause(rig, false)?;
    steered(rig, "False", &name)?;
    std::thread::sleep(LOOK);
    let node = rig.api.get(&path)?;
    ensure!(annotation(&node, EPOCH).as_deref() == Some("1000"), "the later epoch is gone");
    let old = &rig.world.nodes[from].node.name;
    ensure!(annotated(rig, old)?, "a write of an older epoch succeeded");
    let during = writes(rig)?.split_off(before);
    ensure!(during.iter().all(|w| w.status == 409), "a write succeeded: {during:?}");
    ensure!(during.len() <= 1 + 2 * candidates.len(), "a stampede: {during:?}");

    // It was of no decision, so it goes, and theirs is written: one annotates, one takes the annotation from the other.
    annotate(&rig.api, &name, json!({names::LEADER: Value::Null, EPOCH: Value::Null}))?;
    let leader = led_by(rig).context("no node leads")?;
    wait_for(
        "the decision is written",
        || pool_text(rig),
        || {
            let others = here(rig).into_iter().filter(|n| *n != leader);
            let mut left = others.map(|n| annotated(rig, &n));
            Ok(annotated(rig, &leader)? && left.try_fold(true, |none, a| a.map(|a| none && !a))?)
        },
    )?;
    steered(rig, "True", "")?;
    still_carrying(rig)?;
    std::thread::sleep(LOOK);
    let after = writes(rig)?.split_off(before + during.len());
    let done = |w: &&Write| w.status == 200;
    // Daemons that were stopped look dead for a moment, and that may be one more decision.
    let decisions = (epoch(rig)? - decided + 1) as usize;
    let count = after.iter().filter(done).count();
    ensure!(count <= 2 * decisions, "of {decisions} decisions written more than once: {after:?}");
    ensure!(after.len() <= 2 * decisions * (1 + candidates.len()), "a stampede: {after:?}");
    traffic.wait_steady("at the end")?;
    Ok(format!(
        "a later epoch stood: {} writes refused; then {} done, {} refused",
        during.len(),
        count,
        after.iter().filter(|w| w.status == 409).count()
    ))
}

/// Names of the location's nodes.
fn here(rig: &Rig) -> Vec<String> {
    let location = rig.world.topology.location(LOCATION).unwrap_or_else(|e| panic!("{e:#}"));
    rig.world.nodes_in(location).map(|n| rig.world.nodes[n].node.name.clone()).collect()
}

/// What leaderd's daemons asked to be changed about them.
fn writes(rig: &Rig) -> Result<Vec<Write>> {
    let here = here(rig);
    let all = rig.control.writes(User::Leaderd)?;
    Ok(all.into_iter().filter(|w| here.contains(&w.node)).collect())
}

/// Of the decision in force.
fn epoch(rig: &Rig) -> Result<u64> {
    let status = rig.world.status_in(rig.world.topology.location(LOCATION)?);
    Ok(status.context("no daemon answers")?.location(LOCATION).context("no location")?.epoch)
}
