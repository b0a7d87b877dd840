//! Ids of our nexthop objects: functions of slots and node indices, so that they stay when the mesh grows.
//!
//! | offset from [`NEXTHOP_ID_BASE`] | object |
//! |---|---|
//! | `0x0000 + 2·slot + family` | out of plane `wgl{slot}` |
//! | `0x0020 + 2·slot + family` | to the own location's candidate in `slot` |
//! | `0x0040 + family` | group: to my leaders |
//! | `0x1000 + 2·lowest node index + family` | group: to a remote location |

use wgctl_plan::{Family, NEXTHOP_ID_BASE, NexthopId};

use crate::ids::{LocationName, NodeIndex, Slot};
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
    let lowest = mesh.nodes_of(location).map(|n| n.index).min()?;
    Some(remote_group(lowest, family))
}

/// [`location_group`], given the lowest node index of the location.
pub(super) const fn remote_group(lowest: NodeIndex, family: Family) -> NexthopId {
    NexthopId(NEXTHOP_ID_BASE + 0x1000 + 2 * lowest.0 as u32 + bit(family))
}
