//! What one node costs in meshes of growing size, from a [`Slice`] of each.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use leaderd_core::ids::{LocationName, Slot};
use leaderd_core::mesh::{Mesh, Policy};
use leaderd_core::rendezvous::weight;

use super::slice::{Slice, Spent};
use super::{Effort, percentile};
use ::tests::memory;
use ::tests::sim::meshes::{Site, mesh_of};

/// From the start to the measurement: first decisions, first reports.
const SETTLE: Duration = Duration::from_secs(15);
/// A node hears the first decisions of this many locations a second, and of all in turn.
const FIRST_DECISIONS: u64 = 15;

/// One size of mesh.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub locations: usize,
    pub members: u16,
}

pub fn sizes(effort: Effort) -> Vec<Size> {
    let plain = |locations| Size { locations, members: 0 };
    let large = effort.pick(1000, 200);
    vec![plain(10), plain(30), plain(100), Size { locations: 100, members: 20 }, plain(large)]
}

/// Means over the real candidates, per virtual second.
#[derive(Clone, Debug)]
pub struct Cost {
    pub size: Size,
    /// Nodes with real cores, and virtual seconds measured.
    pub real: usize,
    pub seconds: u64,
    pub probes: f64,
    pub reflected: f64,
    pub frames: f64,
    /// Frames by kind.
    pub kinds: BTreeMap<&'static str, f64>,
    /// Frames of a member.
    pub member_frames: f64,
    /// Share of one core of this machine.
    pub cpu: f64,
    /// Bytes in use by one core.
    pub memory: f64,
    /// Connections of a candidate.
    pub peers: usize,
    /// From a fault of the leader (#489) until every real candidate of the mesh has the new decision, median.
    pub failover: f64,
}

pub fn measure(size: Size, effort: Effort) -> Cost {
    let sites: Vec<Site> =
        (0..size.locations).map(|i| Site::new(&format!("l{i}"), 3, size.members)).collect();
    let (mesh, secrets) = mesh_of(&sites, Policy::default());
    let here: LocationName = "l0".parse().expect("a name");
    let mut real: BTreeSet<LocationName> = watchers(&mesh, &here, 1).into_iter().collect();
    real.insert(here.clone());
    let seconds = effort.pick(if size.locations > 300 { 10 } else { 30 }, 5);
    let mut slice = Slice::new(mesh, secrets, &real);
    slice.run_for(SETTLE + Duration::from_secs(size.locations as u64 / FIRST_DECISIONS));
    slice.take_spent();
    slice.run_for(Duration::from_secs(seconds));
    let (candidates, members) = slice.take_spent();
    let mut failovers = Vec::new();
    let large = size.locations * usize::from(3 + size.members) > 1000;
    for _ in 0..effort.pick(if large { 2 } else { 5 }, 1) {
        failovers.extend(failover(&mut slice, &here));
    }
    let peers = slice.mesh.nodes.values().filter(|n| n.slot.is_some()).count() - 1
        + usize::from(size.members);
    let nodes = candidates.len() + members.len();
    let weights = slice.weigh_candidates(memory::in_use);
    let each = |all: &[Spent], what: &dyn Fn(&Spent) -> f64| {
        all.iter().map(what).sum::<f64>() / all.len().max(1) as f64 / seconds as f64
    };
    let frames = |s: &Spent| s.frames.values().sum::<u64>() as f64;
    let kinds: BTreeSet<&'static str> =
        candidates.iter().flat_map(|s| s.frames.keys().copied()).collect();
    let of_kind = |k: &'static str| each(&candidates, &|s| *s.frames.get(k).unwrap_or(&0) as f64);
    Cost {
        size,
        real: nodes,
        seconds,
        probes: each(&candidates, &|s| s.probes as f64),
        reflected: each(&candidates, &|s| s.reflected as f64),
        frames: each(&candidates, &frames),
        kinds: kinds.into_iter().map(|k| (k, of_kind(k))).collect(),
        member_frames: each(&members, &frames),
        cpu: each(&candidates, &|s| s.cpu.as_secs_f64()),
        memory: weights.iter().sum::<i64>() as f64 / weights.len() as f64,
        peers,
        failover: percentile(&mut failovers, 0.5),
    }
}

/// Breaks the leader and waits until all know another; seconds. `None` if nothing moved in five seconds.
fn failover(slice: &mut Slice, location: &LocationName) -> Option<f64> {
    let old: Slot = slice.leaders(location).next()??;
    let leader = slice.mesh.candidate(location, old)?.name.clone();
    slice.broken = Some(leader);
    let (start, end) = (slice.now, slice.now + Duration::from_secs(5));
    let moved = |s: &Slice| s.leaders(location).all(|l| l.is_some_and(|l| l != old));
    while !moved(slice) && slice.step(end) {}
    let took = moved(slice).then(|| slice.now.since(start).as_secs_f64());
    slice.broken = None;
    // The hold-down doubles with each of them.
    slice.run_for(Duration::from_secs(10));
    took
}

/// The locations that watch one at full rate (`times` 1), or those and the next: highest weights first, as `observe::location`
/// draws them.
pub fn watchers(mesh: &Mesh, location: &LocationName, times: usize) -> Vec<LocationName> {
    let mut others: Vec<&LocationName> = mesh.locations.keys().filter(|l| *l != location).collect();
    others.sort_by_key(|o| std::cmp::Reverse(weight(o.as_str(), location.as_str())));
    others.into_iter().take(times * usize::from(mesh.policy.watchers)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use leaderd_core::observe::Observer;
    use leaderd_core::probe::keys::ProbeKeys;
    use leaderd_core::time::{Instant, Now, WallTime};
    use std::sync::Arc;

    #[test]
    fn the_slice_has_the_observers_that_the_core_draws() {
        let sites: Vec<Site> = (0..12).map(|i| Site::new(&format!("l{i}"), 1, 0)).collect();
        let (mesh, secrets) = mesh_of(&sites, Policy::default());
        let here: LocationName = "l0".parse().unwrap();
        let chosen = watchers(&mesh, &here, 1);
        let mesh = Arc::new(mesh);
        let now = Now { mono: Instant(0), wall: WallTime(0) };
        for node in mesh.nodes.values().filter(|n| n.location != here) {
            let keys = ProbeKeys::new(secrets[&node.name]);
            let observer = Observer::new(mesh.clone(), node.name.clone(), keys, 1, now);
            let full = observer.view(now, &here).unwrap().full_rate;
            assert_eq!(full, chosen.contains(&node.location), "{}", node.name);
        }
    }

    #[test]
    fn a_slice_fails_over_like_a_mesh() {
        let cost = measure(Size { locations: 6, members: 1 }, Effort { quick: true });
        assert!(cost.failover < 0.5, "{cost:?}");
        assert!(cost.probes > 50.0 && cost.frames > 10.0, "{cost:?}");
        assert_eq!(cost.real, 16);
    }
}
