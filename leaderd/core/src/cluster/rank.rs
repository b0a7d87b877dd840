//! Who goes first, and who looks. Daemons that want the same agree on an order by rendezvous hashing, without a word to each other.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::view::{ClusterNode, ClusterView, names};
use crate::ids::{LocationName, NodeName};
use crate::mesh::{Mesh, Node};

/// Between two turns.
pub const STEP: Duration = Duration::from_millis(200);
/// The longest that anybody waits.
pub const MOST: Duration = Duration::from_secs(3);

/// How long `me` waits before it does what `key` names: nothing for the first of `all`, one step more for each that comes
/// before. `None` if `me` is none of them.
pub fn turn<'a>(all: impl Iterator<Item = &'a str>, key: &str, me: &str) -> Option<Duration> {
    let mine = weight(key, me);
    let (mut there, mut before) = (false, 0u32);
    for name in all {
        if name == me {
            there = true;
        } else if (weight(key, name), name) > (mine, me) {
            before += 1;
        }
    }
    there.then(|| (STEP * before).min(MOST))
}

/// Members that look at the whole cluster although they never lead: should no candidate reach the API, they write.
const DEPUTIES: usize = 3;

/// True if the daemon of `me` looks at all Nodes and pools: every candidate does, and a few members. Others look at their own Node and
/// the mesh file, so that a change of one Node is not sent to every node of a large cluster. Whoever is in no mesh yet looks as well.
pub fn looks(mesh: &Mesh, me: &NodeName) -> bool {
    mesh.node(me).is_none() || lookers(mesh).contains(me.as_str())
}

fn lookers(mesh: &Mesh) -> BTreeSet<&str> {
    let (candidates, mut members): (Vec<&Node>, Vec<&Node>) =
        mesh.nodes.values().partition(|n| n.slot.is_some());
    members
        .sort_by_key(|n| std::cmp::Reverse((weight("deputy", n.name.as_str()), n.name.as_str())));
    // One of each location first: where one is cut off from the API, others may not be.
    let mut drawn: BTreeMap<&LocationName, usize> = BTreeMap::new();
    let mut turns: Vec<(usize, &Node)> = Vec::new();
    for member in members {
        let before = drawn.entry(&member.location).or_default();
        turns.push((*before, member));
        *before += 1;
    }
    turns.sort_by_key(|(turn, _)| *turn);
    let deputies = turns.into_iter().take(DEPUTIES).map(|(_, n)| n);
    candidates.into_iter().chain(deputies).map(|n| n.name.as_str()).collect()
}

/// How long `me` waits before it does what any daemon may do: as `turn`, among those that look by this mesh, and behind them if it
/// looks for another reason. Without a mesh all take part that have published their keys. `None` if `me` has not.
pub fn turn_of_any(
    view: &ClusterView,
    mesh: Option<&Mesh>,
    key: &str,
    me: &str,
) -> Option<Duration> {
    let Some(mesh) = mesh else { return turn(daemons(view), key, me) };
    let lookers = lookers(mesh);
    let last = view.nodes.get(me).filter(|n| has_daemon(n)).map(|_| MOST);
    turn(daemons(view).filter(|n| lookers.contains(n)), key, me).or(last)
}

/// True if the node's daemon has published its keys.
pub(super) fn has_daemon(node: &ClusterNode) -> bool {
    [names::WIREGUARD_KEY, names::CONTROL_KEY].iter().all(|k| node.annotations.contains_key(*k))
}

/// Names of the nodes whose daemons take turns: those that have published their keys.
fn daemons(view: &ClusterView) -> impl Iterator<Item = &str> {
    view.nodes.values().filter(|n| has_daemon(n)).map(|n| n.name.as_str())
}

/// FNV-1a with a finish that mixes, as `observe::location` uses it: the same on every machine.
fn weight(key: &str, name: &str) -> u64 {
    let bytes = key.bytes().chain([0]).chain(name.bytes());
    let mut h = bytes
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    h ^= h >> 33;
    h = h.wrapping_mul(0xff51_afd7_ed55_8ccd);
    h ^ (h >> 33)
}

/// The first of `all` by the same order.
pub(super) fn first<'a>(all: impl Iterator<Item = &'a str>, key: &str) -> Option<&'a str> {
    all.max_by_key(|n| (weight(key, n), *n))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::fixture::*;
    use crate::cluster::render::render;

    fn large(steering: &str) -> (ClusterView, Mesh) {
        let mut view = two_locations();
        for i in 0..50 {
            let name = format!("member-{i}");
            view.nodes.insert(name.clone(), node(20 + i, "home", &name));
        }
        let settings = format!("[kubernetes]\nsteering = \"{steering}\"\n");
        let mesh = render(&view, &settings).mesh.expect("a mesh");
        (view, mesh)
    }

    #[test]
    fn candidates_and_a_few_members_look_and_others_leave_it_to_them() {
        let (_, mesh) = large("native");
        let looking: Vec<&NodeName> = mesh.nodes.keys().filter(|n| looks(&mesh, n)).collect();
        let candidates = mesh.nodes.values().filter(|n| n.slot.is_some()).count();
        assert!(candidates > 0 && mesh.nodes.len() > candidates + DEPUTIES);
        assert_eq!(looking.len(), candidates + DEPUTIES);
        assert!(mesh.nodes.values().all(|n| n.slot.is_none() || looks(&mesh, &n.name)));
        assert!(looks(&mesh, &"newcomer".parse().unwrap()), "nobody else says what it waits for");
        let (_, kilo) = large("kilo");
        assert_eq!(kilo.nodes.keys().filter(|n| looks(&kilo, n)).count(), looking.len());
    }

    #[test]
    fn deputies_are_of_all_locations() {
        let (_, mesh) = large("native");
        let deputies = mesh.nodes.values().filter(|n| n.slot.is_none() && looks(&mesh, &n.name));
        let locations: BTreeSet<&str> = deputies.map(|n| n.location.as_str()).collect();
        assert_eq!(locations, ["cloud", "home"].into(), "cloud has one member of 52");
    }

    /// The turns of those that do not look would only be waited for.
    #[test]
    fn who_looks_goes_before_who_does_not() {
        let (view, mesh) = large("native");
        let wait = |n: &NodeName| turn_of_any(&view, Some(&mesh), "mesh", n.as_str()).unwrap();
        let (looking, others): (Vec<&NodeName>, Vec<&NodeName>) =
            mesh.nodes.keys().partition(|n| looks(&mesh, n));
        assert_eq!(looking.iter().map(|n| wait(n)).min(), Some(Duration::ZERO));
        let last = looking.iter().map(|n| wait(n)).max().unwrap();
        assert_eq!(last, (STEP * (looking.len() as u32 - 1)).min(MOST), "a turn for each");
        assert!(others.iter().all(|n| wait(n) == MOST));
        assert_eq!(turn_of_any(&view, Some(&mesh), "mesh", "nobody"), None);
    }
}
