//! What one of our kernel objects is for, from its number: the inverse of [`ids`](super::ids), for people who look at the kernel.

use wgctl_plan::{NEXTHOP_ID_BASE, NexthopId};

use super::{OWN_SOURCES_TABLE, RELAY_TABLE};
use crate::ids::{NodeIndex, Slot};

/// What a nexthop object leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NexthopRole {
    /// Out of the plane of this slot.
    Plane(Slot),
    /// To the candidate of this node's location in this slot.
    Candidate(Slot),
    /// To a leader of this node's location: the first (0), the second, …
    Leader(u8),
    /// Group: to the location with this lowest index.
    Location(NodeIndex),
    /// Group: the same, for what a candidate sends itself.
    OwnSources(NodeIndex),
}

/// What one of our route tables is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TableRole {
    /// What has a source of this node, a candidate.
    OwnSources,
    /// A relay's last hop: what comes in on a plane, to the other nodes of its location.
    LastHop,
    /// To the location with this lowest index, ahead of a CNI's or Kilo's routes.
    Location(NodeIndex),
}

/// Returns what a nexthop object is for; `None` if it is none of ours, or of another release.
pub fn nexthop_role(id: NexthopId) -> Option<NexthopRole> {
    // The lowest bit is the family.
    let number = id.0.checked_sub(NEXTHOP_ID_BASE)? / 2;
    let slot = |n: u32| Some(Slot(u8::try_from(n).ok()?)).filter(|s| *s <= Slot::MAX);
    match number {
        0x00..0x10 => slot(number).map(NexthopRole::Plane),
        0x10..0x20 => slot(number - 0x10).map(NexthopRole::Candidate),
        0x30..0x40 => Some(NexthopRole::Leader((number - 0x30) as u8)),
        0x0800..0x2000 => index(number - 0x0800).map(NexthopRole::Location),
        0x2000..0x3000 => index(number - 0x2000).map(NexthopRole::OwnSources),
        _ => None,
    }
}

/// Returns what a route table is for; `None` if it is none of ours.
pub fn table_role(table: u32) -> Option<TableRole> {
    match table {
        OWN_SOURCES_TABLE => Some(TableRole::OwnSources),
        RELAY_TABLE => Some(TableRole::LastHop),
        _ => index(table.checked_sub(RELAY_TABLE + 1)?).map(TableRole::Location),
    }
}

/// An index that a node can have.
fn index(number: u32) -> Option<NodeIndex> {
    Some(NodeIndex(u16::try_from(number).ok()?)).filter(|i| (1..=4094).contains(&i.0))
}

#[cfg(test)]
mod tests {
    use wgctl_plan::Family;

    use super::super::ids::{candidate_nexthop, plane_nexthop, relay_nexthop};
    use super::super::{location_group, location_table, own_group};
    use super::*;
    use crate::group::tests::cluster::mesh;

    #[test]
    fn every_number_that_we_give_is_told_in_words() {
        for family in [Family::V4, Family::V6] {
            for slot in (0..=Slot::MAX.0).map(Slot) {
                let plane = nexthop_role(plane_nexthop(slot, family));
                assert_eq!(plane, Some(NexthopRole::Plane(slot)));
                let candidate = nexthop_role(candidate_nexthop(slot, family));
                assert_eq!(candidate, Some(NexthopRole::Candidate(slot)));
                let leader = nexthop_role(relay_nexthop(slot.0.into(), family));
                assert_eq!(leader, Some(NexthopRole::Leader(slot.0)));
            }
            let mesh = mesh(2, 1, 0);
            for location in mesh.locations.keys() {
                let lowest = mesh.nodes_of(location).map(|n| n.index).min().unwrap();
                let group = location_group(&mesh, location, family).and_then(nexthop_role);
                assert_eq!(group, Some(NexthopRole::Location(lowest)));
                let own = own_group(&mesh, location, family).and_then(nexthop_role);
                assert_eq!(own, Some(NexthopRole::OwnSources(lowest)));
                let table = location_table(&mesh, location).and_then(table_role);
                assert_eq!(table, Some(TableRole::Location(lowest)));
            }
        }
        let highest = NexthopId(NEXTHOP_ID_BASE + 0x4000 + 2 * 4094 + 1);
        assert_eq!(nexthop_role(highest), Some(NexthopRole::OwnSources(NodeIndex(4094))));
        assert_eq!(table_role(759_998), Some(TableRole::OwnSources));
        assert_eq!(table_role(759_999), Some(TableRole::LastHop));
    }

    #[test]
    fn numbers_of_others_mean_nothing() {
        // Group objects of earlier releases, slot 15, index 0, and what lies outside.
        for offset in [0x1e, 0x3e, 0x40, 0x41, 0x80, 0x1000, 0x4000, 0x4000 + 2 * 4095, 0x10_0000] {
            assert_eq!(nexthop_role(NexthopId(NEXTHOP_ID_BASE + offset)), None, "{offset:#x}");
        }
        assert_eq!(nexthop_role(NexthopId(7)), None);
        assert_eq!([254, 760_000, 764_095].map(table_role), [None; 3]);
    }
}
