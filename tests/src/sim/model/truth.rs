//! What the true state of the world allows: who could carry traffic, who could decide, who could observe.
//!
//! A constant `KNOWN_LIMIT_…` excuses what the implementation cannot do although the world would allow it.

use std::time::Duration;

use leaderd_core::ids::{LocationName, NodeName};
use leaderd_core::mesh::Node;

use super::World;
use crate::sim::link::Loss;
use crate::sim::{Faults, Link};

/// How well a candidate relays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quality {
    /// All traffic between nodes that work passes.
    Good,
    /// Some of it does, or there is none to carry.
    Grey,
    /// None of it does.
    Broken,
}

/// A path whose round trip suddenly grows by more than this looks dead until its first replies come: observers call it silent after 130 ms.
const KNOWN_LIMIT_DELAY_JUMP: Duration = Duration::from_millis(120);
/// The late replies have all arrived after this.
const KNOWN_LIMIT_DELAY_JUMP_LASTS: Duration = Duration::from_secs(1);

/// A hostile voter can keep its own location from deciding by Raft messages alone: Raft trusts its voters. Such a location is
/// expected to replace no leader while that lasts. All other promises hold.
pub const KNOWN_LIMIT_HOSTILE_VOTER: bool = true;

/// A node that starts without a store knows neither a proof nor which voters sign. It follows whoever announces first, until it has
/// heard most voters, or a proof by the present ones. Refusing such claims would leave a location without a leader in which most
/// voters have just lost their stores: nothing that the present voters signed exists there to count on from.
pub const KNOWN_LIMIT_FIRST_CLAIM: Duration = Duration::from_secs(3);

/// Observers can tell a fault from a dead target only where another candidate reaches the target.
pub const KNOWN_LIMIT_NEEDS_CONTROL: bool = true;

/// An observer that loses more than this on its own WAN, either way, cannot judge others in time.
const KNOWN_LIMIT_OBSERVER_LOSS: f64 = 0.05;

/// While packets pass between two nodes one way alone, or only some, observers may disagree for good. What is owed to a pair of
/// workloads does not depend on that: see [`pairs`](super::pairs).
pub const KNOWN_LIMIT_ONE_WAY_CUT: bool = true;

/// Returns how well this candidate could have carried the traffic of the nodes that work.
pub fn quality(world: &World, c: &Node) -> Quality {
    let remotes: Vec<&Node> = world
        .mesh
        .nodes
        .values()
        .filter(|o| {
            let f = &world.faults[&o.name];
            o.slot.is_some()
                && o.location != c.location
                && !f.crashed
                && f.hostile.is_none()
                && !f.wan_cut
                && !f.wireguard_down
                && f.is_plain()
        })
        .collect();
    let targets: Vec<&Node> = world
        .mesh
        .nodes_of(&c.location)
        .filter(|t| {
            let f = &world.faults[&t.name];
            let out = f.lan_cut || f.vxlan_all || f.vxlan_new_flows;
            t.name != c.name && !f.crashed && !out && f.is_plain()
        })
        .collect();
    let (mut of, mut pass) = (0, 0);
    for o in &remotes {
        for t in &targets {
            of += 1;
            pass +=
                u32::from(crosses_wan(world, o, c) && relays(world, c) && crosses_lan(world, c, t));
        }
    }
    let dead = world.faults[&c.name].crashed;
    if world.mesh_files_differ() {
        // A node with an old file does not know some nodes or keys yet: no candidate carries all of the traffic.
        return Quality::Grey;
    }
    if world.faults[&c.name].hostile.is_some() {
        // It relays, and may report anything of itself.
        return Quality::Grey;
    }
    let f = &world.faults[&c.name];
    let stormy = world.weather.keys().any(|(from, to)| *from == c.name || *to == c.name);
    if stormy
        || f.sizes.is_some()
        || f.outward_new_flows
        || f.family_off.is_some()
        || !f.foreign.is_empty()
        || !f.links_down.is_empty()
    {
        // It carries a part.
        return Quality::Grey;
    }
    let slower = f.wan_delay * 2;
    if slower > KNOWN_LIMIT_DELAY_JUMP
        && world.now().mono.since(world.fault_changed) < KNOWN_LIMIT_DELAY_JUMP_LASTS
    {
        return Quality::Grey;
    }
    match (of, pass) {
        (0, _) if dead => Quality::Broken,
        (0, _) => Quality::Grey,
        (_, 0) => Quality::Broken,
        (of, pass) if of == pass && world.faults[&c.name].wan_loss < 0.02 => Quality::Good,
        _ => Quality::Grey,
    }
}

impl Faults {
    /// Returns whether nothing on the node takes a part of its own traffic away.
    fn is_plain(&self) -> bool {
        !self.frozen
            && !self.lan_packets_cut
            && self.links_down.is_empty()
            && self.foreign.is_empty()
    }
}

/// Returns whether every sound observer can tell that this candidate is at fault.
pub(super) fn is_provable(world: &World, c: &Node) -> bool {
    if !KNOWN_LIMIT_NEEDS_CONTROL {
        return true;
    }
    let passes = |o: &Node, c: &Node, t: &Node| {
        crosses_wan(world, o, c) && relays(world, c) && crosses_lan(world, c, t)
    };
    let others = || world.mesh.nodes_of(&c.location).filter(|n| n.name != c.name);
    let observers =
        world.mesh.nodes.values().filter(|o| o.slot.is_some() && o.location != c.location);
    observers.filter(|o| world.is_sound(&o.name)).all(|o| {
        others().filter(|t| !world.faults[&t.name].crashed).any(|t| {
            let mut controls = others().filter(|k| k.slot.is_some() && k.name != t.name);
            !passes(o, c, t) && controls.any(|k| passes(o, k, t))
        })
    })
}

fn crosses_wan(world: &World, o: &Node, c: &Node) -> bool {
    let f = &world.faults[&c.name];
    let cut = |a: &Node, b: &Node| world.cuts.contains(&(a.name.clone(), b.name.clone()));
    let off = o.slot.is_some_and(|slot| f.planes_off.contains(&slot.0));
    !f.crashed && !f.wan_cut && !f.wireguard_down && !cut(o, c) && !cut(c, o) && !off
}

fn relays(world: &World, c: &Node) -> bool {
    let f = &world.faults[&c.name];
    !f.frozen && !f.forwarding_off && !f.route_loop && f.mtu.is_none_or(|m| m >= world.mesh.mtu)
}

fn crosses_lan(world: &World, c: &Node, t: &Node) -> bool {
    let (f, g) = (&world.faults[&c.name], &world.faults[&t.name]);
    let cut = |a: &Node, b: &Node| world.cuts.contains(&(a.name.clone(), b.name.clone()));
    !f.vxlan_all
        && !f.vxlan_new_flows
        && !f.lan_cut
        && !g.lan_cut
        && !g.vxlan_all
        && !g.vxlan_new_flows
        && !f.lan_packets_cut
        && !g.lan_packets_cut
        && !g.frozen
        && !f.ghosts.contains(&t.name)
        && !g.ghosts.contains(&c.name)
        && !cut(c, t)
        && !cut(t, c)
}

/// Returns whether a majority of voters is awake, with disks that work, and connected both ways to a voter in the location.
pub(super) fn has_quorum(world: &World, location: &LocationName) -> bool {
    let voters = world.mesh.voters_of(location);
    let votes = |n: &NodeName| world.is_sound(n) && !world.faults[n].disk_is_bad();
    let joined = |a: &NodeName, b: &NodeName| {
        a == b || (votes(b) && world.control_passes(a, b) && world.control_passes(b, a))
    };
    let disturbed = |v: &NodeName| {
        KNOWN_LIMIT_HOSTILE_VOTER
            && world.faults[v].hostile.as_ref().is_some_and(|h| h.behaviour.raft)
    };
    if voters.iter().any(disturbed) {
        return false;
    }
    voters.iter().filter(|v| votes(v)).any(|v| {
        let with = voters.iter().filter(|u| joined(v, u)).count();
        // Observers must reach the raft leader.
        with * 2 > voters.len() && world.mesh.nodes[v].location == *location
    })
}

/// Returns whether an observer that works watches the location, and none disturbs it.
pub(super) fn has_observers(world: &World, location: &LocationName) -> bool {
    let others =
        || world.mesh.nodes.values().filter(|o| o.slot.is_some() && o.location != *location);
    let well = |o: &&Node| {
        let f = &world.faults[&o.name];
        world.is_sound(&o.name) && !f.wan_cut && !f.wireguard_down
    };
    let lossy = others().any(|o| world.faults[&o.name].wan_loss > KNOWN_LIMIT_OBSERVER_LOSS);
    let one_way = !world.cuts.is_empty() || !world.weather.is_empty();
    others().any(|o| well(&o)) && !lossy && !(KNOWN_LIMIT_ONE_WAY_CUT && one_way)
}

/// Returns whether hostile nodes are at least as many as sound ones, among the location's observers or among its own nodes. Then what
/// the hostile ones report decides, as if all the others were cut off.
pub(super) fn is_outvoted(world: &World, location: &LocationName) -> bool {
    let outvoted = |watches: &dyn Fn(&Node) -> bool| {
        let of = || world.mesh.nodes.values().filter(|n| watches(n));
        let hostile = of().filter(|n| world.faults[&n.name].hostile.is_some()).count();
        let sound = of().filter(|n| {
            let f = &world.faults[&n.name];
            world.is_sound(&n.name) && !f.wan_cut && !f.lan_cut && !f.wireguard_down
        });
        hostile > 0 && hostile >= sound.count()
    };
    outvoted(&|n| n.slot.is_some() && n.location != *location)
        || outvoted(&|n| n.location == *location)
}

pub(super) fn some_dead(world: &World) -> bool {
    world.mesh.nodes.values().any(|n| {
        let f = &world.faults[&n.name];
        !world.is_sound(&n.name) || f.disk_is_bad() || f.wan_cut || f.lan_cut || f.wireguard_down
    })
}

pub(super) fn slowest_round_trip(world: &World) -> Duration {
    let links = world.config.links.iter().map(|(_, _, l)| l).chain([&world.config.wan]);
    let cost = |l: &Link| {
        let repeat = if l.loss == Loss::NONE { 1 } else { 3 };
        (l.latency + l.jitter) * 2 * repeat
    };
    let slower = world.faults.values().map(|f| f.wan_delay * 4).max();
    let weather = world.weather.values().map(|w| cost(&w.link())).max().unwrap_or_default();
    weather + links.map(cost).max().unwrap_or_default() + slower.unwrap_or_default()
}
