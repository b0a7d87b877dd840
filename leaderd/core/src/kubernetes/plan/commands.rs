//! Commands that pools ask of the mesh: freeze, drain, and their reversal.

use std::collections::BTreeSet;
use std::time::Duration;

use super::RAFT_LEADER_GRACE;
use crate::admin::AdminRequest;
use crate::ids::NodeName;
use crate::kubernetes::status::{current_status, is_voter};
use crate::kubernetes::tasks::{Action, Running, Task};
use crate::kubernetes::turn_order;
use crate::kubernetes::view::{ClusterView, Pool};
use crate::status::LocationStatus;

/// Returns the commands for what pools ask of the mesh and the mesh does not do yet, and for what they no longer ask for. A pool
/// undoes only what its status says that it did (`asked`); what it asks for is done again even if an operator undoes it with wgctl.
pub(super) fn tasks(view: &ClusterView, running: Running<'_>, me: &NodeName) -> Vec<Task> {
    let mut tasks = Vec::new();
    let mut locations = BTreeSet::new();
    for pool in view.pools.values() {
        // Of two pools of a location the first by name counts.
        if !locations.insert(&pool.spec.location) {
            continue;
        }
        let of_pool = |l: &&LocationStatus| l.name.as_str() == pool.spec.location;
        let Some(l) = running.status.locations.iter().find(of_pool) else { continue };
        let leads_raft = l.raft_leader.as_ref() == Some(me);
        let key = format!("command/{}", pool.name);
        let candidates = l.candidates.iter().map(|c| c.name.as_str());
        let turn = match turn_order::turn_delay(candidates, &key, me.as_str()) {
            _ if leads_raft => Duration::ZERO,
            // Only voters know what is frozen and drained.
            Some(turn) if is_voter(l) && l.raft_leader.is_some() => RAFT_LEADER_GRACE + turn,
            _ => continue,
        };
        for command in wanted(pool, l) {
            let key = format!("{key}/{command:?}");
            tasks.push(Task { key, wait: turn, action: Action::Command(command) });
        }
    }
    tasks
}

fn wanted(pool: &Pool, l: &LocationStatus) -> Vec<AdminRequest> {
    let before = current_status(pool);
    // The status records a request before it is carried out, so that it can be undone.
    if pool.status.is_none() || before.observed_generation != pool.generation {
        return Vec::new();
    }
    let (spec, asked) = (&pool.spec, &before.asked);
    let mut all = Vec::new();
    if spec.freeze && asked.freeze && l.frozen != Some(None) {
        all.push(AdminRequest::Freeze { location: l.name.clone(), duration: None });
    }
    if !spec.freeze && asked.freeze && l.frozen == Some(None) {
        all.push(AdminRequest::Unfreeze { location: l.name.clone() });
    }
    for c in &l.candidates {
        let has = |set: &BTreeSet<String>| set.contains(c.name.as_str());
        match (has(&spec.drained), has(&asked.drained), c.drained) {
            (true, true, false) => all.push(AdminRequest::Drain { node: c.name.clone() }),
            (false, true, true) => all.push(AdminRequest::Undrain { node: c.name.clone() }),
            _ => {}
        }
    }
    all
}
