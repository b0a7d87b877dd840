//! What Kilo is told: who leads a location, by the annotation that it goes by.
//!
//! First the elected node gets it, with the decision's epoch beside it; only when the view shows that is it taken from the
//! location's other nodes. So Kilo always finds a leader, and one that comes back while still annotated leads again at most until
//! somebody writes. An older decision never undoes a newer one: every change has the node's `resourceVersion` as precondition, and
//! where a node shows a higher epoch nothing is changed at all.
//!
//! None of that is done before our routes have had time to carry: Kilo's change then costs the workload nothing.
//!
//! An annotation without an epoch beside it was set by a person. It is left alone, and reported.

use std::collections::BTreeMap;
use std::time::Duration;

use super::rank;
use super::render::location_of;
use super::task::{Action, NodeChange, Task};
use super::view::{ClusterNode, ClusterView, names};
use crate::ids::{Epoch, LocationName, NodeName};
use crate::mesh::{Location, Mesh, Steering};
use crate::status::{LocationStatus, Status};

/// How long after a decision Kilo is told of it. Kilo breaks before it makes, some 50 ms after it is told; by then our routes must
/// carry on every node, also where leaderd has just begun to steer. Members follow within a second.
pub(super) const HEARD_OF: Duration = Duration::from_secs(2);
/// The same while this node's own routes do not carry, because tunnels are being set up, or because nothing gets through them.
pub(super) const NOT_CARRIED: Duration = Duration::from_secs(15);

/// Value of the leader annotation: Kilo asks only whether it is there.
const VALUE: &str = "leaderd";

/// What a node's annotations say of leading.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mark {
    /// Not annotated as leader.
    None,
    /// By a person.
    ByHand,
    /// By leaderd, of this epoch (0 if it cannot be read).
    Ours(Epoch),
}

fn mark(node: &ClusterNode) -> Mark {
    match (node.annotations.contains_key(names::KILO_LEADER), node.annotations.get(names::EPOCH)) {
        (false, _) => Mark::None,
        (true, None) => Mark::ByHand,
        (true, Some(epoch)) => Mark::Ours(Epoch(epoch.parse().unwrap_or(0))),
    }
}

/// True if what leaderd wrote on the node is of another location, in which it was before.
fn is_elsewheres(node: &ClusterNode, location: &LocationName) -> bool {
    node.annotations.get(names::LOCATION).is_some_and(|l| l != location.as_str())
}

/// What a node's annotations say of leading this location. One that leads another by our word is to be told anew, or freed.
fn mark_in(node: &ClusterNode, location: &LocationName) -> Mark {
    match mark(node) {
        Mark::Ours(_) if is_elsewheres(node, location) => Mark::Ours(Epoch(0)),
        mark => mark,
    }
}

/// The elected node's object, unless it says now that it is in another location: whether it leads there is for that one to say, and
/// the two must not write in turns. One that says nothing is still where it was.
fn node_of<'a>(
    view: &'a ClusterView,
    location: &LocationName,
    leader: &NodeName,
) -> Option<&'a ClusterNode> {
    let node = view.nodes.get(leader.as_str())?;
    location_of(node).is_none_or(|l| l == location.as_str()).then_some(node)
}

/// How far Kilo has been told who leads a location.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Steered {
    /// Nothing decided, or no longer by a quorum: nobody is told anything.
    Undecided,
    /// The elected node's Node object is not there, or in another location.
    Gone(NodeName),
    /// A node is annotated by hand.
    ByHand(Vec<String>),
    /// A node shows a higher epoch than the decision known here.
    Newer {
        node: String,
        epoch: Epoch,
    },
    /// Changes are still to be made.
    Pending,
    Done(NodeName),
}

/// Changes of annotations that make Kilo follow the decisions, for every location with steering `kilo`. Any candidate of the mesh
/// makes them; each in its turn.
pub fn kilo_changes(view: &ClusterView, mesh: &Mesh, status: &Status, me: &NodeName) -> Vec<Task> {
    let candidates = || mesh.nodes.values().filter(|n| n.slot.is_some()).map(|n| n.name.as_str());
    let mut tasks = Vec::new();
    for location in &status.locations {
        if !is_kilo(mesh, &location.name) {
            continue;
        }
        let changes = changes(view, location);
        if changes.is_empty() {
            continue;
        }
        let key = format!("kilo/{}/{}", location.name, location.epoch);
        let Some(wait) = rank::turn(candidates(), &key, me.as_str()) else { continue };
        for change in changes {
            // Setting and removing are two tasks, each with a turn of its own. What is set first has waited for both.
            let sets = change.annotations.values().any(Option::is_some);
            let heard_of = if carries(status) { HEARD_OF } else { NOT_CARRIED };
            let (verb, heard_of) =
                if sets { ("set", heard_of) } else { ("remove", Duration::ZERO) };
            let key = format!("{key}/{verb}/{}", change.node);
            tasks.push(Task { key, wait: heard_of + wait, action: Action::Annotate(change) });
        }
    }
    tasks
}

/// Kilo is told of decisions about the location. While another one is only observed it is not: a change of Kilo's leader would touch
/// traffic between the two.
fn is_kilo(mesh: &Mesh, location: &LocationName) -> bool {
    let of = |l: &Location| l.steering;
    mesh.locations.get(location).map(of) == Some(Steering::Kilo)
        && !mesh.locations.values().any(|l| l.steering == Steering::Observe)
}

/// This daemon's own routes carry between its location and all others that Kilo steers. Then those of others mostly do.
fn carries(status: &Status) -> bool {
    status.locations.iter().all(|l| l.carried != Some(false))
}

fn nodes_of<'a>(
    view: &'a ClusterView,
    location: &LocationName,
) -> impl Iterator<Item = &'a ClusterNode> {
    view.nodes.values().filter(move |n| location_of(n) == Some(location.as_str()))
}

/// The decision: who leads, by which epoch. A node that has left the decision for its own ranking has none to tell.
fn elected(location: &LocationStatus) -> Option<(&NodeName, Epoch)> {
    let leader = location.leaders.first()?;
    (!location.fallback && location.epoch > Epoch(0)).then_some((leader, location.epoch))
}

/// The node of the location, or the elected one though it no longer says where it is, that shows a higher epoch; with a leader annotation or without.
fn newer(view: &ClusterView, location: &LocationStatus, epoch: Epoch) -> Option<(String, Epoch)> {
    let leader = location.leaders.first().and_then(|l| node_of(view, &location.name, l));
    let here = nodes_of(view, &location.name).chain(leader);
    here.filter(|n| !is_elsewheres(n, &location.name)).find_map(|n| {
        let seen = n.annotations.get(names::EPOCH)?.parse().ok().map(Epoch)?;
        (seen > epoch).then(|| (n.name.clone(), seen))
    })
}

/// What is to be changed now, by whoever's turn it is: the elected node, or once that is annotated all others of ours.
fn changes(view: &ClusterView, location: &LocationStatus) -> Vec<NodeChange> {
    let Some((leader, epoch)) = elected(location) else { return Vec::new() };
    if newer(view, location, epoch).is_some() {
        return Vec::new();
    }
    let Some(node) = node_of(view, &location.name, leader) else { return Vec::new() };
    match mark_in(node, &location.name) {
        Mark::Ours(e) if e == epoch => {}
        // Somebody made it Kilo's leader already: it is not ours to sign.
        Mark::ByHand => {}
        Mark::None | Mark::Ours(_) => {
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
        .filter(|n| matches!(mark_in(n, &location.name), Mark::Ours(e) if e <= epoch))
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

/// All go together: an epoch left behind would make a later annotation by hand look like ours.
fn removal() -> BTreeMap<String, Option<String>> {
    [names::KILO_LEADER, names::EPOCH, names::LOCATION].map(|k| (k.to_owned(), None)).into()
}

/// How far Kilo follows, for the pool's status.
pub(super) fn steered(view: &ClusterView, location: &LocationStatus) -> Steered {
    let Some((leader, epoch)) = elected(location) else { return Steered::Undecided };
    let by_hand = nodes_of(view, &location.name).filter(|n| mark(n) == Mark::ByHand);
    let by_hand: Vec<String> = by_hand.map(|n| n.name.clone()).collect();
    if !by_hand.is_empty() {
        return Steered::ByHand(by_hand);
    }
    if let Some((node, epoch)) = newer(view, location, epoch) {
        return Steered::Newer { node, epoch };
    }
    if node_of(view, &location.name, leader).is_none() {
        return Steered::Gone(leader.clone());
    }
    if changes(view, location).is_empty() {
        Steered::Done(leader.clone())
    } else {
        Steered::Pending
    }
}

/// Everything of ours removed from the nodes: our annotations, but for what people write, and Kilo's where we set it. For one caller, that waits for nobody.
pub fn uninstall_changes(view: &ClusterView) -> Vec<NodeChange> {
    let mut changes = Vec::new();
    for node in view.nodes.values() {
        let ours = |k: &&String| k.starts_with(names::PREFIX) && *k != names::PREFIXES;
        let ours = node.annotations.keys().filter(ours).cloned();
        let mut annotations: BTreeMap<String, Option<String>> = ours.map(|k| (k, None)).collect();
        if matches!(mark(node), Mark::Ours(_)) {
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
