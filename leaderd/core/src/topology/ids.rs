//! Ids of our nexthop objects and tables: functions of slots and node indices, so they stay the same when the mesh grows.
//!
//! | offset from [`NEXTHOP_ID_BASE`] | object |
//! |---|---|
//! | `0x0000 + 2·slot + family` | out of plane `wgl{slot}` |
//! | `0x0020 + 2·slot + family` | to the own location's candidate in `slot` |
//! | `0x0060 + 2·number + family` | to the own location's leaders, in order |
//! | `0x1000 + 2·lowest node index + family` | group: to a remote location |
//! | `0x4000 + 2·lowest node index + family` | group: to a remote location, for what a candidate sends itself |
//!
//! `0x0040` and `0x0041` were groups in earlier releases.

use wgctl_plan::{Family, NEXTHOP_ID_BASE, NexthopId};

use crate::ids::{LocationName, Slot};
use crate::mesh::Mesh;

const fn bit(family: Family) -> u32 {
    match family {
        Family::V4 => 0,
        Family::V6 => 1,
    }
}

pub(super) const fn plane_nexthop(slot: Slot, family: Family) -> NexthopId {
    NexthopId(NEXTHOP_ID_BASE + 2 * slot.0 as u32 + bit(family))
}

pub(super) const fn candidate_nexthop(slot: Slot, family: Family) -> NexthopId {
    NexthopId(NEXTHOP_ID_BASE + 0x20 + 2 * slot.0 as u32 + bit(family))
}

/// The nexthop to a leader of the own location: the first, the second, …
pub(super) const fn relay_nexthop(number: usize, family: Family) -> NexthopId {
    NexthopId(NEXTHOP_ID_BASE + 0x60 + 2 * number as u32 + bit(family))
}

pub(super) fn is_relay_nexthop(id: NexthopId) -> bool {
    (NEXTHOP_ID_BASE + 0x60..NEXTHOP_ID_BASE + 0x80).contains(&id.0)
}

/// The group that leads to a remote location: on candidates through the planes of the relays there, on members to the relays here.
/// `None` for a location without nodes.
pub fn location_group(mesh: &Mesh, location: &LocationName, family: Family) -> Option<NexthopId> {
    let lowest = lowest(mesh, location)?;
    Some(NexthopId(NEXTHOP_ID_BASE + 0x1000 + 2 * lowest + bit(family)))
}

/// On candidates: the group that leads what they send themselves to a remote location, through the relays of their own.
pub fn own_group(mesh: &Mesh, location: &LocationName, family: Family) -> Option<NexthopId> {
    let lowest = lowest(mesh, location)?;
    Some(NexthopId(NEXTHOP_ID_BASE + 0x4000 + 2 * lowest + bit(family)))
}

/// The table with our routes to a remote location, where this location has a CNI or Kilo. The routes are always there. Beside Kilo the
/// rule that leads to the table comes and goes, so stepping in and back costs one message, whatever the number of prefixes. `None` for a
/// location without nodes.
pub fn location_table(mesh: &Mesh, location: &LocationName) -> Option<u32> {
    Some(760_000 + lowest(mesh, location)?)
}

/// The location that a [`location_table`] belongs to.
pub fn location_of_table(mesh: &Mesh, table: u32) -> Option<&LocationName> {
    mesh.locations.keys().find(|l| location_table(mesh, l) == Some(table))
}

/// The lowest index of a location's nodes, by which its objects are numbered.
fn lowest(mesh: &Mesh, location: &LocationName) -> Option<u32> {
    mesh.nodes_of(location).map(|n| u32::from(n.index.0)).min()
}
