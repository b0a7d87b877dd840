//! Kilo's leader annotation: makes Kilo follow the decisions.
//!
//! The elected node is annotated first, with the decision's epoch beside it; once the view shows that, the annotation is removed from
//! the location's other nodes. So Kilo always finds a leader, and a node that comes back while still annotated leads again only until
//! the next write. An older decision never undoes a newer one: every change has the node's `resourceVersion` as precondition, and
//! where a node shows a higher epoch, nothing is changed.
//!
//! All of this waits until our routes have had time to carry traffic: Kilo's change then costs the workload nothing.
//!
//! An annotation without an epoch beside it was set by a person. It is left alone, and reported.

use std::collections::BTreeMap;
use std::time::Duration;

use super::render::location_of;
use super::tasks::{Action, NodeChange, Task};
use super::turn_order;
use super::view::{ClusterNode, ClusterView, names};
use crate::ids::{Epoch, LocationName, NodeName};
use crate::mesh::{Location, Mesh, Steering};
use crate::status::{LocationStatus, Status};

/// Delay between a decision and Kilo's annotation. Kilo breaks before it makes, some 50 ms after the annotation changes; by then our
/// routes must carry traffic on every node, even if leaderd has just begun to steer. Members follow within a second.
pub(super) const ANNOTATE_AFTER: Duration = Duration::from_secs(2);
/// The same while this node's own routes carry no traffic: tunnels are being set up, or nothing gets through them.
pub(super) const ANNOTATE_AFTER_UNCARRIED: Duration = Duration::from_secs(15);

/// Value of the leader annotation. Kilo checks only that it exists.
const VALUE: &str = "leaderd";

/// A node's leader annotation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum LeaderAnnotation {
    /// Not annotated as leader.
    None,
    /// Annotated by a person.
    ByHand,
    /// Annotated by leaderd for this epoch (0 if it cannot be parsed).
    Ours(Epoch),
}

fn leader_annotation(node: &ClusterNode) -> LeaderAnnotation {
    match (node.annotations.contains_key(names::KILO_LEADER), node.annotations.get(names::EPOCH)) {
        (false, _) => LeaderAnnotation::None,
        (true, None) => LeaderAnnotation::ByHand,
        (true, Some(epoch)) => LeaderAnnotation::Ours(Epoch(epoch.parse().unwrap_or(0))),
    }
}

/// True if leaderd annotated the node for another location, in which it was before.
fn is_of_another_location(node: &ClusterNode, location: &LocationName) -> bool {
    node.annotations.get(names::LOCATION).is_some_and(|l| l != location.as_str())
}

/// Returns a node's annotation as leader of this location. A node that we annotated for another location counts as epoch 0 here: its
/// annotation is written again or removed.
fn annotation_in(node: &ClusterNode, location: &LocationName) -> LeaderAnnotation {
    match leader_annotation(node) {
        LeaderAnnotation::Ours(_) if is_of_another_location(node, location) => {
            LeaderAnnotation::Ours(Epoch(0))
        }
        annotation => annotation,
    }
}

/// Returns the elected node's object, unless it is now in another location: only that location decides whether it leads there, and the
/// two must not overwrite each other. A node that names no location is still where it was.
fn node_of<'a>(
    view: &'a ClusterView,
    location: &LocationName,
    leader: &NodeName,
) -> Option<&'a ClusterNode> {
    let node = view.nodes.get(leader.as_str())?;
    location_of(node).is_none_or(|l| l == location.as_str()).then_some(node)
}

/// How far Kilo follows the decision about a location.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum KiloState {
    /// There is no decision, or no quorum any more: nothing is annotated.
    Undecided,
    /// The elected node's Node object is missing, or in another location.
    Gone(NodeName),
    /// A node is annotated by hand.
    ByHand(Vec<String>),
    /// A node shows a higher epoch than the decision known here.
    Newer {
        node: String,
        epoch: Epoch,
    },
    /// Annotations have yet to be changed.
    Pending,
    Done(NodeName),
}

/// Returns the changes of annotations that make Kilo follow the decisions, for every location with steering `kilo`. Every candidate
/// of the mesh may make them, in its turn.
pub(super) fn annotation_tasks(
    view: &ClusterView,
    mesh: &Mesh,
    status: &Status,
    me: &NodeName,
) -> Vec<Task> {
    let candidates = || mesh.nodes.values().filter(|n| n.slot.is_some()).map(|n| n.name.as_str());
    let mut tasks = Vec::new();
    for location in &status.locations {
        if !is_steered(mesh, &location.name) {
            continue;
        }
        let changes = changes(view, location);
        if changes.is_empty() {
            continue;
        }
        let key = format!("kilo/{}/{}", location.name, location.epoch);
        let Some(wait) = turn_order::turn_delay(candidates(), &key, me.as_str()) else { continue };
        for change in changes {
            // Setting and removing are two tasks with a turn each. The delay comes before the first of them.
            let sets = change.annotations.values().any(Option::is_some);
            let delay = if carries(status) { ANNOTATE_AFTER } else { ANNOTATE_AFTER_UNCARRIED };
            let (verb, delay) = if sets { ("set", delay) } else { ("remove", Duration::ZERO) };
            let key = format!("{key}/{verb}/{}", change.node);
            tasks.push(Task { key, wait: delay + wait, action: Action::Annotate(change) });
        }
    }
    tasks
}

/// True if decisions about the location are annotated for Kilo. While another location is only observed they are not: a change of
/// Kilo's leader would affect traffic between the two.
fn is_steered(mesh: &Mesh, location: &LocationName) -> bool {
    let of = |l: &Location| l.steering;
    mesh.locations.get(location).map(of) == Some(Steering::Kilo)
        && !mesh.locations.values().any(|l| l.steering == Steering::Observe)
}

/// True if this daemon's own routes carry traffic to all other locations that Kilo steers. Other daemons' routes then mostly do too.
fn carries(status: &Status) -> bool {
    status.locations.iter().all(|l| l.carried != Some(false))
}

fn nodes_of<'a>(
    view: &'a ClusterView,
    location: &LocationName,
) -> impl Iterator<Item = &'a ClusterNode> {
    view.nodes.values().filter(move |n| location_of(n) == Some(location.as_str()))
}

/// Returns the decision: the leader and the epoch. A node in fallback follows its own ranking and has no decision to announce.
fn elected(location: &LocationStatus) -> Option<(&NodeName, Epoch)> {
    let leader = location.leaders.first()?;
    (!location.fallback && location.epoch > Epoch(0)).then_some((leader, location.epoch))
}

/// Returns a node of the location (or the elected node, even if it names no location) that shows a higher epoch, with or without a
/// leader annotation.
fn newer_epoch(
    view: &ClusterView,
    location: &LocationStatus,
    epoch: Epoch,
) -> Option<(String, Epoch)> {
    let leader = location.leaders.first().and_then(|l| node_of(view, &location.name, l));
    let here = nodes_of(view, &location.name).chain(leader);
    here.filter(|n| !is_of_another_location(n, &location.name)).find_map(|n| {
        let seen = n.annotations.get(names::EPOCH)?.parse().ok().map(Epoch)?;
        (seen > epoch).then(|| (n.name.clone(), seen))
    })
}

/// Returns the changes to make now: the elected node, or once that is annotated, all other nodes that leaderd annotated.
fn changes(view: &ClusterView, location: &LocationStatus) -> Vec<NodeChange> {
    let Some((leader, epoch)) = elected(location) else { return Vec::new() };
    if newer_epoch(view, location, epoch).is_some() {
        return Vec::new();
    }
    let Some(node) = node_of(view, &location.name, leader) else { return Vec::new() };
    match annotation_in(node, &location.name) {
        LeaderAnnotation::Ours(e) if e == epoch => {}
        // A person made it Kilo's leader already: the annotation is not ours.
        LeaderAnnotation::ByHand => {}
        LeaderAnnotation::None | LeaderAnnotation::Ours(_) => {
            let annotations = [
                (names::KILO_LEADER.to_owned(), Some(VALUE.to_owned())),
                (names::EPOCH.to_owned(), Some(epoch.to_string())),
                (names::LOCATION.to_owned(), Some(location.name.to_string())),
            ];
            let why = format!("leads location {} by epoch {epoch}", location.name);
            return vec![change(node, annotations.into(), why)];
        }
    }
    let others = nodes_of(view, &location.name).filter(|n| n.name != node.name);
    others
        .filter(
            |n| matches!(annotation_in(n, &location.name), LeaderAnnotation::Ours(e) if e <= epoch),
        )
        .map(|n| {
            let why = format!("{leader} leads location {} by epoch {epoch}", location.name);
            change(n, removal(), why)
        })
        .collect()
}

fn change(
    node: &ClusterNode,
    annotations: BTreeMap<String, Option<String>>,
    why: String,
) -> NodeChange {
    let (node, resource_version) = (node.name.clone(), node.resource_version.clone());
    NodeChange { node, resource_version, annotations, why }
}

/// Removes all of them together: an epoch left behind would make a later annotation by hand look like ours.
fn removal() -> BTreeMap<String, Option<String>> {
    [names::KILO_LEADER, names::EPOCH, names::LOCATION].map(|k| (k.to_owned(), None)).into()
}

/// Returns how far Kilo follows, for the pool's status.
pub(super) fn kilo_state(view: &ClusterView, location: &LocationStatus) -> KiloState {
    let Some((leader, epoch)) = elected(location) else { return KiloState::Undecided };
    let by_hand =
        nodes_of(view, &location.name).filter(|n| leader_annotation(n) == LeaderAnnotation::ByHand);
    let by_hand: Vec<String> = by_hand.map(|n| n.name.clone()).collect();
    if !by_hand.is_empty() {
        return KiloState::ByHand(by_hand);
    }
    if let Some((node, epoch)) = newer_epoch(view, location, epoch) {
        return KiloState::Newer { node, epoch };
    }
    if node_of(view, &location.name, leader).is_none() {
        return KiloState::Gone(leader.clone());
    }
    if changes(view, location).is_empty() {
        KiloState::Done(leader.clone())
    } else {
        KiloState::Pending
    }
}

/// Returns the changes that remove everything of ours from the nodes: our annotations except those that people write, and Kilo's
/// where we set it. For `leaderd uninstall`, which takes no turns.
pub fn uninstall_changes(view: &ClusterView) -> Vec<NodeChange> {
    let mut changes = Vec::new();
    for node in view.nodes.values() {
        let ours = |k: &&String| k.starts_with(names::PREFIX) && *k != names::PREFIXES;
        let ours = node.annotations.keys().filter(ours).cloned();
        let mut annotations: BTreeMap<String, Option<String>> = ours.map(|k| (k, None)).collect();
        if matches!(leader_annotation(node), LeaderAnnotation::Ours(_)) {
            annotations.insert(names::KILO_LEADER.to_owned(), None);
        }
        if !annotations.is_empty() {
            changes.push(change(node, annotations, "leaderd is uninstalled".to_owned()));
        }
    }
    changes
}

#[cfg(test)]
mod tests;
