//! What the true state of the world allows: who could carry traffic, who could decide, who could tell.

use std::time::Duration;

use leaderd_core::ids::{LocationName, NodeName};
use leaderd_core::mesh::Node;

use super::World;
use crate::sim::Link;
use crate::sim::link::Loss;

/// What a candidate's relay is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quality {
    /// All traffic of the healthy passes.
    Good,
    /// Some of it does, or nobody is there to use it.
    Grey,
    /// None does.
    Broken,
}

/// A path that becomes so much slower at once, round trip, cannot be told from a dead one until its first replies come.
const JUMP: Duration = Duration::from_millis(120);
/// … and all that were late are in after this.
const JUMPED: Duration = Duration::from_secs(1);

/// A voter that is hostile may keep its own location from deciding by Raft messages alone: Raft trusts its voters. Such a location is
/// owed no leader while it lasts, and all other promises hold.
pub const KNOWN_LIMIT_HOSTILE_VOTER: bool = true;

/// Could this candidate have carried the traffic of those who are well?
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
        })
        .collect();
    let targets: Vec<&Node> = world
        .mesh
        .nodes_of(&c.location)
        .filter(|t| {
            let f = &world.faults[&t.name];
            t.name != c.name && !f.crashed && !f.lan_cut && !f.vxlan_all && !f.vxlan_new_flows
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
    if world.is_parted() {
        // Whose file is old knows some nodes or keys not yet: nobody carries all of it.
        return Quality::Grey;
    }
    if world.faults[&c.name].hostile.is_some() {
        // It carries, and says of itself what it likes.
        return Quality::Grey;
    }
    let slower = world.faults[&c.name].wan_delay * 2;
    if slower > JUMP && world.now().mono.since(world.fault_changed) < JUMPED {
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

/// A fault can be told from a dead target only where another candidate reaches what this one does not.
pub(super) fn is_provable(world: &World, c: &Node) -> bool {
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
    !f.crashed && !f.wan_cut && !f.wireguard_down && !cut(o, c) && !cut(c, o)
}

fn relays(world: &World, c: &Node) -> bool {
    let f = &world.faults[&c.name];
    !f.forwarding_off && !f.route_loop && f.mtu.is_none_or(|m| m >= world.mesh.mtu)
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
        && !f.ghosts.contains(&t.name)
        && !g.ghosts.contains(&c.name)
        && !cut(c, t)
        && !cut(t, c)
}

/// Most voters are awake, with disks that work, and reach one of their own, both ways.
pub(super) fn has_quorum(world: &World, location: &LocationName) -> bool {
    let voters = world.mesh.voters_of(location);
    let votes = |n: &NodeName| world.is_sound(n) && !world.faults[n].disk_is_bad();
    let joined = |a: &NodeName, b: &NodeName| {
        a == b || (votes(b) && world.control_passes(a, b) && world.control_passes(b, a))
    };
    let disturbed = |v: &NodeName| {
        KNOWN_LIMIT_HOSTILE_VOTER && world.faults[v].hostile.as_ref().is_some_and(|h| h.lies.raft)
    };
    if voters.iter().any(disturbed) {
        return false;
    }
    voters.iter().filter(|v| votes(v)).any(|v| {
        let with = voters.iter().filter(|u| joined(v, u)).count();
        // A raft leader that observers cannot reach is not much use.
        with * 2 > voters.len() && world.mesh.nodes[v].location == *location
    })
}

/// Somebody who is well watches the location, and nobody who is not has a say.
pub(super) fn has_observers(world: &World, location: &LocationName) -> bool {
    let others =
        || world.mesh.nodes.values().filter(|o| o.slot.is_some() && o.location != *location);
    let well = |o: &&Node| {
        let f = &world.faults[&o.name];
        world.is_sound(&o.name) && !f.wan_cut && !f.wireguard_down
    };
    let lossy = others().any(|o| world.faults[&o.name].wan_loss > 0.05);
    others().any(|o| well(&o)) && !lossy && world.cuts.is_empty()
}

/// Those who watch the location from elsewhere and are sound are no more than those who lie about it, or those of its own
/// nodes: then the liars' word decides, as it would if all the others had cut their cables.
pub(super) fn is_outvoted(world: &World, location: &LocationName) -> bool {
    let outvoted = |watches: &dyn Fn(&Node) -> bool| {
        let of = || world.mesh.nodes.values().filter(|n| watches(n));
        let liars = of().filter(|n| world.faults[&n.name].hostile.is_some()).count();
        let sound = of().filter(|n| {
            let f = &world.faults[&n.name];
            world.is_sound(&n.name) && !f.wan_cut && !f.lan_cut && !f.wireguard_down
        });
        liars > 0 && liars >= sound.count()
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
    links.map(cost).max().unwrap_or_default() + slower.unwrap_or_default()
}
