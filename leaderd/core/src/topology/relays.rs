//! Who relays: the only part of a network that depends on leaders and relay pairs. A few nexthops, and on a standby the rules for its
//! own workloads.
//!
//! | node | packets | route through |
//! |---|---|---|
//! | member | to a remote location | the location's group: its own leaders, each in an object that a decision replaces in place, or the relay of a detour |
//! | candidate | in transit | the location's group: the planes of the relays there |
//! | candidate | with a source of its own | [`OWN_SOURCES_TABLE`], as a member, while it is not itself the relay everywhere |
//!
//! So what a standby's workloads send crosses the same relay as what they receive. Transit never goes back to the LAN: a packet that is
//! not a candidate's own leaves it by a tunnel or for its owner, which is why no packet can loop, whatever the nodes believe.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use wgctl_plan::{Family, Network, Nexthop, NexthopId, RouteKey, Rule};

use super::ids::{
    candidate_nexthop, is_relay_nexthop, location_group, own_group, plane_nexthop, relay_nexthop,
};
use super::{OWN_SOURCES_PRIORITY, OWN_SOURCES_TABLE, TopologyInput, host, known_leaders};
use crate::ids::{LocationName, Slot};
use crate::mesh::Node;
use crate::relay_pair::Relays;

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Updates `net`, which is [`desired`](super::desired) with other leaders or relays of these locations, to those in `input`. Returns
/// `false`, leaving `net` untouched, if the change needs a full recompute. The cost grows with neither prefixes nor peers.
pub fn change_relays<'l>(
    net: &mut Network,
    input: &TopologyInput<'_>,
    changed: impl IntoIterator<Item = &'l LocationName>,
) -> bool {
    let Some(me) = input.mesh.node(input.me) else { return false };
    let mut nexthops = net.nexthops.clone();
    let mut locations: BTreeSet<&LocationName> = changed.into_iter().collect();
    if locations.contains(&me.location) {
        nexthops.retain(|id, _| !is_relay_nexthop(*id));
        let objects = relay_objects(&nexthops, input, me);
        nexthops.extend(objects);
        locations = input.mesh.locations.keys().collect();
    }
    let is_own = |r: &Rule| r.table == OWN_SOURCES_TABLE;
    let (before, stands_by) = (net.rules.iter().any(is_own), stands_by(input, me));
    // Whether it relays everywhere decides over all of a candidate's own groups. The rules say whether it did, if there are any.
    let first = RouteKey { table: OWN_SOURCES_TABLE, prefix: IpNet::default(), metric: 0 };
    let ruled = net.routes.range(first..).next().is_some_and(|(k, _)| k.table == OWN_SOURCES_TABLE);
    if me.slot.is_some() && (before != stands_by || !ruled) {
        locations = input.mesh.locations.keys().collect();
    }
    locations.remove(&me.location);
    for (location, family) in locations.into_iter().flat_map(|l| FAMILIES.map(|f| (l, f))) {
        // Without a group for transit, or on a member for all, there are no routes to the location.
        let routed = location_group(input.mesh, location, family)
            .is_some_and(|id| nexthops.contains_key(&id));
        for (id, members) in groups(&nexthops, input, me, stands_by, location, family) {
            match group(&nexthops, members) {
                Some(group) if nexthops.contains_key(&id) => drop(nexthops.insert(id, group)),
                // Routes come or go with it.
                Some(_) if routed => return false,
                None if nexthops.contains_key(&id) => return false,
                _ => {}
            }
        }
    }
    net.nexthops = nexthops;
    if stands_by && !before {
        let rules = own_source_rules(net, input, me);
        net.rules.extend(rules);
    } else if before && !stands_by {
        net.rules.retain(|r| !is_own(r));
    }
    true
}

/// A group of those of `members` that exist; `None` if none does.
pub(super) fn group(
    nexthops: &BTreeMap<NexthopId, Nexthop>,
    members: Vec<NexthopId>,
) -> Option<Nexthop> {
    let exists = |m: &NexthopId| nexthops.contains_key(m);
    let members: BTreeSet<NexthopId> = members.into_iter().filter(exists).collect();
    (!members.is_empty()).then_some(Nexthop::Group { members })
}

/// The candidates that this node's own packets, or a member's, are sent to by default.
fn default_relays(input: &TopologyInput<'_>, me: &Node) -> Vec<Slot> {
    let leaders = known_leaders(input, &me.location);
    let others: Vec<Slot> = leaders.into_iter().filter(|s| Some(*s) != me.slot).collect();
    if !others.is_empty() {
        return others;
    }
    // Not used while this node is the leader. It is there so that ceasing to be it costs no more than replacing it.
    let ranking = input.mesh.ranking(&me.location).into_iter();
    ranking.filter(|s| Some(*s) != me.slot).take(1).collect()
}

/// The nexthops to the leaders of the own location, made from those to its candidates. A decision replaces them in place.
pub(super) fn relay_objects(
    nexthops: &BTreeMap<NexthopId, Nexthop>,
    input: &TopologyInput<'_>,
    me: &Node,
) -> BTreeMap<NexthopId, Nexthop> {
    let mut objects = BTreeMap::new();
    for family in FAMILIES {
        let known = default_relays(input, me).into_iter();
        let known = known.filter_map(|s| nexthops.get(&candidate_nexthop(s, family)));
        objects.extend(known.enumerate().map(|(n, h)| (relay_nexthop(n, family), h.clone())));
    }
    objects
}

/// Who relays between this node's location and another one.
fn relays(input: &TopologyInput<'_>, me: &Node, location: &LocationName) -> Relays {
    let leaders =
        || Relays { near: known_leaders(input, &me.location), far: known_leaders(input, location) };
    let exist = |l: &LocationName, slots: &[Slot]| {
        !slots.is_empty() && slots.iter().all(|s| input.mesh.candidate(l, *s).is_some())
    };
    let given = input.relays.get(location);
    let given = given.filter(|r| exist(&me.location, &r.near) && exist(location, &r.far));
    given.cloned().unwrap_or_else(leaders)
}

/// The groups that lead to a remote location, and their members; some of these may not exist. `stands_by`: see [`stands_by`].
pub(super) fn groups(
    nexthops: &BTreeMap<NexthopId, Nexthop>,
    input: &TopologyInput<'_>,
    me: &Node,
    stands_by: bool,
    location: &LocationName,
    family: Family,
) -> Vec<(NexthopId, Vec<NexthopId>)> {
    let Some(id) = location_group(input.mesh, location, family) else { return Vec::new() };
    let relays = relays(input, me, location);
    let to_leaders = || -> Vec<NexthopId> {
        (0..).map(|n| relay_nexthop(n, family)).take_while(|id| nexthops.contains_key(id)).collect()
    };
    let over_the_lan = || -> Vec<NexthopId> {
        match relays.near == known_leaders(input, &me.location) {
            true => to_leaders(),
            false => relays.near.iter().map(|s| candidate_nexthop(*s, family)).collect(),
        }
    };
    let Some(mine) = me.slot else { return vec![(id, over_the_lan())] };
    let planes: Vec<NexthopId> = relays.far.iter().map(|s| plane_nexthop(*s, family)).collect();
    let own = own_group(input.mesh, location, family);
    // Without another candidate, or a way to it, this node's own packets go by its tunnels like all others.
    let Some(own) = own.filter(|_| nexthops.contains_key(&relay_nexthop(0, family))) else {
        return vec![(id, planes)];
    };
    let members = if !relays.near.contains(&mine) {
        over_the_lan()
    } else if stands_by {
        planes.clone()
    } else {
        // This node relays everywhere, and no rule leads to these groups. They stay as they are on a standby, so that a change of leader
        // replaces one object, and not a group for each location.
        to_leaders()
    };
    vec![(id, planes), (own, members)]
}

/// True on a candidate that is not the relay to every other location.
pub(super) fn stands_by(input: &TopologyInput<'_>, me: &Node) -> bool {
    let Some(mine) = me.slot else { return false };
    let remote = || input.mesh.locations.keys().filter(|l| **l != me.location);
    let relays_by_default = known_leaders(input, &me.location).contains(&mine);
    let elsewhere = input.relays.keys().any(|l| !relays(input, me, l).near.contains(&mine));
    // Without an exception the answer is the same for all.
    let some_by_default = || remote().any(|l| !input.relays.contains_key(l));
    elsewhere || !relays_by_default && some_by_default()
}

/// The rules that send what has a source of this node through the relays of its location.
pub(super) fn own_source_rules(net: &Network, input: &TopologyInput<'_>, me: &Node) -> Vec<Rule> {
    let carried = input.mesh.carried_address(me).map(host);
    let sources = me.prefixes.iter().copied().chain(carried);
    let routed = |family: Family| {
        net.routes
            .keys()
            .any(|k| k.table == OWN_SOURCES_TABLE && Family::of_net(&k.prefix) == family)
    };
    let families: Vec<Family> = FAMILIES.into_iter().filter(|f| routed(*f)).collect();
    sources
        .filter(|p| families.contains(&Family::of_net(p)))
        .map(|from| Rule {
            family: Family::of_net(&from),
            priority: OWN_SOURCES_PRIORITY,
            from: Some(from.trunc()),
            to: None,
            iif: None,
            table: OWN_SOURCES_TABLE,
        })
        .collect()
}
