//! Fast path for a leader change: replaces one nexthop group per family. Its cost does not depend on the size of the mesh.

use wgctl_plan::{Family, Network, Nexthop, NexthopId};

use super::ids::{candidate_nexthop, leaders_group, location_group, plane_nexthop};
use super::{TopologyInput, known_leaders};
use crate::ids::{LocationName, Slot};

/// Updates `net`, which is [`desired`](super::desired) with other leaders of `location`, to the leaders in `input`. Returns `false`,
/// leaving `net` untouched, if the change needs a full recompute.
pub fn change_leaders(
    net: &mut Network,
    input: &TopologyInput<'_>,
    location: &LocationName,
) -> bool {
    let Some(me) = input.mesh.node(input.me) else { return false };
    let member = me.slot.is_none();
    // A candidate sends nothing through a leader of its own location. A member sends everything remote through those, and nothing
    // through others.
    if member != (me.location == *location) {
        return true;
    }
    let slots = known_leaders(input, location);
    let mut changes: Vec<(NexthopId, Nexthop)> = Vec::new();
    for family in [Family::V4, Family::V6] {
        let (id, single): (_, fn(Slot, Family) -> NexthopId) = match member {
            true => (Some(leaders_group(family)), candidate_nexthop),
            false => (location_group(input.mesh, location, family), plane_nexthop),
        };
        let Some(id) = id.filter(|id| net.nexthops.contains_key(id)) else { continue };
        let members = slots.iter().map(|&s| single(s, family));
        let members = members.filter(|m| net.nexthops.contains_key(m)).collect();
        changes.push((id, Nexthop::Group { members }));
    }
    // Without a group there are no routes through it either, and a group must not be empty.
    let empty = |n: &Nexthop| matches!(n, Nexthop::Group { members } if members.is_empty());
    if changes.is_empty() || changes.iter().any(|(_, n)| empty(n)) {
        return false;
    }
    net.nexthops.extend(changes);
    true
}
