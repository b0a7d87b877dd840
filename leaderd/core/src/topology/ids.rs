//! Ids of our nexthop objects and tables: functions of slots and node indices, so they stay the same when the mesh grows.
//!
//! | offset from [`NEXTHOP_ID_BASE`] | object |
//! |---|---|
//! | `0x0000 + 2·slot + family` | out of plane `wgl{slot}` |
//! | `0x0020 + 2·slot + family` | to the own location's candidate in `slot` |
//! | `0x0040 + family` | group: to my leaders |
//! | `0x1000 + 2·lowest node index + family` | group: to a remote location |

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

/// On members: the group that leads to the leaders of their own location.
pub const fn leaders_group(family: Family) -> NexthopId {
    NexthopId(NEXTHOP_ID_BASE + 0x40 + bit(family))
}

/// On candidates: the group that leads to a remote location, through the planes of its leaders.
/// `None` for a location without nodes.
pub fn location_group(mesh: &Mesh, location: &LocationName, family: Family) -> Option<NexthopId> {
    let lowest = lowest(mesh, location)?;
    Some(NexthopId(NEXTHOP_ID_BASE + 0x1000 + 2 * lowest + bit(family)))
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
