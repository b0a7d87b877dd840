//! Who goes first. Daemons that want the same agree on an order by rendezvous hashing, without a word to each other.

use std::time::Duration;

use super::view::{ClusterNode, ClusterView, names};

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

/// True if the node's daemon has published its keys.
pub(super) fn has_daemon(node: &ClusterNode) -> bool {
    [names::WIREGUARD_KEY, names::CONTROL_KEY].iter().all(|k| node.annotations.contains_key(*k))
}

/// Names of the nodes whose daemons take turns: those that have published their keys.
pub fn daemons(view: &ClusterView) -> impl Iterator<Item = &str> {
    view.nodes.values().filter(|n| has_daemon(n)).map(|n| n.name.as_str())
}

/// FNV-1a with a finish that mixes, as `observe::watch` uses it: the same on every machine.
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
