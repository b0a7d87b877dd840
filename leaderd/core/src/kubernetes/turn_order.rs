//! The order in which daemons take turns, and which daemons watch the whole cluster. Daemons that want the same agree on an order by
//! rendezvous hashing, without any messages.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::view::{ClusterNode, ClusterView, names};
use crate::ids::{LocationName, NodeName};
use crate::mesh::{Mesh, Node};
use crate::rendezvous::weight;

/// Time between two turns.
pub(super) const STEP: Duration = Duration::from_millis(200);
/// Longest wait for a turn.
const MAX_DELAY: Duration = Duration::from_secs(3);

/// Returns how long `me` waits before it does what `key` names: nothing for the first of `all`, and one step more for each that comes
/// before `me`. `None` if `me` is not among them.
pub fn turn_delay<'a>(all: impl Iterator<Item = &'a str>, key: &str, me: &str) -> Option<Duration> {
    let mine = weight(key, me);
    let (mut found, mut before) = (false, 0u32);
    for name in all {
        if name == me {
            found = true;
        } else if (weight(key, name), name) > (mine, me) {
            before += 1;
        }
    }
    found.then(|| (STEP * before).min(MAX_DELAY))
}

/// Number of members that watch the whole cluster although they never lead: they write if no candidate reaches the API.
const MEMBER_WATCHERS: usize = 3;

/// True if the daemon of `me` watches all Nodes and pools: every candidate does, a few members, and nodes that are in no mesh yet.
/// Others watch their own Node and the mesh file, so that a change of one Node is not sent to every node of a large cluster.
pub fn watches_cluster(mesh: &Mesh, me: &NodeName) -> bool {
    mesh.node(me).is_none() || cluster_watchers(mesh).contains(me.as_str())
}

fn cluster_watchers(mesh: &Mesh) -> BTreeSet<&str> {
    let (candidates, mut members): (Vec<&Node>, Vec<&Node>) =
        mesh.nodes.values().partition(|n| n.slot.is_some());
    members
        .sort_by_key(|n| std::cmp::Reverse((weight("deputy", n.name.as_str()), n.name.as_str())));
    // One of each location first: if one location is cut off from the API, others may not be.
    let mut per_location: BTreeMap<&LocationName, usize> = BTreeMap::new();
    let mut ranked: Vec<(usize, &Node)> = Vec::new();
    for member in members {
        let before = per_location.entry(&member.location).or_default();
        ranked.push((*before, member));
        *before += 1;
    }
    ranked.sort_by_key(|(rank, _)| *rank);
    let chosen = ranked.into_iter().take(MEMBER_WATCHERS).map(|(_, n)| n);
    candidates.into_iter().chain(chosen).map(|n| n.name.as_str()).collect()
}

/// Returns how long `me` waits before it does what any daemon may do: its turn among the daemons that watch the cluster by this mesh, or
/// after all of them if it watches for another reason. Without a mesh all daemons take turns. `None` if `me` has not published its keys.
pub fn watcher_turn_delay(
    view: &ClusterView,
    mesh: Option<&Mesh>,
    key: &str,
    me: &str,
) -> Option<Duration> {
    let Some(mesh) = mesh else { return turn_delay(daemons(view), key, me) };
    let watchers = cluster_watchers(mesh);
    let last = view.nodes.get(me).filter(|n| has_daemon(n)).map(|_| MAX_DELAY);
    turn_delay(daemons(view).filter(|n| watchers.contains(n)), key, me).or(last)
}

/// True if the node's daemon has published its keys.
pub(super) fn has_daemon(node: &ClusterNode) -> bool {
    [names::WIREGUARD_KEY, names::CONTROL_KEY].iter().all(|k| node.annotations.contains_key(*k))
}

/// Returns the names of the nodes whose daemons have published their keys.
fn daemons(view: &ClusterView) -> impl Iterator<Item = &str> {
    view.nodes.values().filter(|n| has_daemon(n)).map(|n| n.name.as_str())
}

/// Returns the first of `all` in the same order.
pub(super) fn first_in_turn<'a>(all: impl Iterator<Item = &'a str>, key: &str) -> Option<&'a str> {
    all.max_by_key(|n| (weight(key, n), *n))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::kubernetes::fixture::*;
    use crate::kubernetes::render::render;

    fn large(steering: &str) -> (ClusterView, Mesh) {
        let mut view = two_locations();
        for i in 0..50 {
            let name = format!("member-{i}");
            view.nodes.insert(name.clone(), node(20 + i, "home", &name));
        }
        let settings = format!("[kubernetes]\nsteering = \"{steering}\"\n");
        let mesh = Arc::unwrap_or_clone(render(&view, &settings).mesh.expect("a mesh"));
        (view, mesh)
    }

    #[test]
    fn candidates_and_a_few_members_watch_the_cluster() {
        let (_, mesh) = large("native");
        let watching: Vec<&NodeName> =
            mesh.nodes.keys().filter(|n| watches_cluster(&mesh, n)).collect();
        let candidates = mesh.nodes.values().filter(|n| n.slot.is_some()).count();
        assert!(candidates > 0 && mesh.nodes.len() > candidates + MEMBER_WATCHERS);
        assert_eq!(watching.len(), candidates + MEMBER_WATCHERS);
        assert!(mesh.nodes.values().all(|n| n.slot.is_none() || watches_cluster(&mesh, &n.name)));
        assert!(
            watches_cluster(&mesh, &"newcomer".parse().unwrap()),
            "it has to log what it waits for"
        );
        let (_, kilo) = large("kilo");
        assert_eq!(kilo.nodes.keys().filter(|n| watches_cluster(&kilo, n)).count(), watching.len());
    }

    #[test]
    fn member_watchers_are_from_all_locations() {
        let (_, mesh) = large("native");
        let members =
            mesh.nodes.values().filter(|n| n.slot.is_none() && watches_cluster(&mesh, &n.name));
        let locations: BTreeSet<&str> = members.map(|n| n.location.as_str()).collect();
        assert_eq!(locations, ["cloud", "home"].into(), "cloud has one member of 52");
    }

    /// Others would only wait for the turns of daemons that do not watch.
    #[test]
    fn daemons_that_watch_the_cluster_go_before_those_that_do_not() {
        let (view, mesh) = large("native");
        let wait =
            |n: &NodeName| watcher_turn_delay(&view, Some(&mesh), "mesh", n.as_str()).unwrap();
        let (watching, others): (Vec<&NodeName>, Vec<&NodeName>) =
            mesh.nodes.keys().partition(|n| watches_cluster(&mesh, n));
        assert_eq!(watching.iter().map(|n| wait(n)).min(), Some(Duration::ZERO));
        let last = watching.iter().map(|n| wait(n)).max().unwrap();
        assert_eq!(last, (STEP * (watching.len() as u32 - 1)).min(MAX_DELAY), "a turn for each");
        assert!(others.iter().all(|n| wait(n) == MAX_DELAY));
        assert_eq!(watcher_turn_delay(&view, Some(&mesh), "mesh", "nobody"), None);
    }
}
