//! What all candidates of two locations say of the tunnels between them, at one of their nodes.

use std::collections::BTreeMap;

use super::{TunnelRow, TunnelState};
use crate::ids::Slot;
use crate::time::{Duration, Instant};

/// How long a row counts after it was heard: three that were to follow it got lost.
pub const ROW_FRESH: Duration = Duration::from_millis(3500);

/// Whose row it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Who {
    /// A candidate of this node's location.
    Near(Slot),
    /// A candidate of the other location.
    Far(Slot),
}

#[derive(Clone, Copy, Debug)]
struct Heard {
    /// `None`: this node's own.
    at: Option<Instant>,
    row: TunnelRow,
    /// From the candidate itself.
    first_hand: bool,
}

impl Heard {
    fn is_fresh(&self, now: Instant) -> bool {
        self.at.is_none_or(|at| now.since(at) < ROW_FRESH)
    }
}

/// The rows between this node's location and another one.
#[derive(Debug, Default)]
pub struct TunnelTable {
    rows: BTreeMap<Who, Heard>,
}

impl TunnelTable {
    /// Takes a row. What another candidate passes on counts only while nothing is heard of the candidate itself. Returns true if it says
    /// anything new.
    pub fn hear(&mut self, now: Instant, who: Who, row: TunnelRow, first_hand: bool) -> bool {
        let fresh = self.rows.get(&who).filter(|h| h.is_fresh(now));
        if fresh.is_some_and(|h| h.first_hand && !first_hand || h.at.is_none()) {
            return false;
        }
        let changed = fresh.map_or(TunnelRow::UNKNOWN, |h| h.row) != row;
        self.rows.insert(who, Heard { at: Some(now), row, first_hand });
        changed
    }

    /// Sets this node's own row, which does not grow old. Returns true if it differs from the one before.
    pub fn set_own(&mut self, slot: Slot, row: TunnelRow) -> bool {
        let heard = Heard { at: None, row, first_hand: true };
        let before = self.rows.insert(Who::Near(slot), heard);
        before.map_or(TunnelRow::UNKNOWN, |h| h.row) != row
    }

    /// Forgets what is too old. Returns true if anything was.
    pub fn expire(&mut self, now: Instant) -> bool {
        let before = self.rows.len();
        self.rows.retain(|_, heard| heard.is_fresh(now));
        self.rows.len() != before
    }

    /// When a row becomes too old.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.rows.values().filter_map(|heard| Some(heard.at? + ROW_FRESH)).min()
    }

    /// The rows that the other location's candidates sent to this node.
    pub fn heard_first_hand(&self) -> impl Iterator<Item = (Slot, TunnelRow)> {
        self.rows.iter().filter_map(|(who, heard)| match who {
            Who::Far(slot) if heard.first_hand => Some((*slot, heard.row)),
            _ => None,
        })
    }

    pub fn row(&self, who: Who) -> Option<TunnelRow> {
        self.rows.get(&who).map(|heard| heard.row)
    }

    /// True if anybody says that a tunnel is bad or lossy, or asks to be avoided.
    pub fn is_trouble(&self) -> bool {
        self.rows.values().any(|heard| heard.row.is_trouble())
    }

    /// What is known of a tunnel: by the candidate in slot `near` here and the one in slot `far` there.
    pub fn state(&self, near: Slot, far: Slot) -> TunnelState {
        let says = |who, of| self.row(who).map_or(TunnelState::Unknown, |row| row.state(of));
        says(Who::Near(near), far).and(says(Who::Far(far), near))
    }

    /// Whether a candidate is said not to relay what it should, by anybody at the far end of one of its tunnels.
    pub fn is_accused(&self, who: Who) -> bool {
        self.rows.iter().any(|(by, heard)| match (by, who) {
            (Who::Near(_), Who::Far(slot)) | (Who::Far(_), Who::Near(slot)) => {
                heard.row.accuses(slot)
            }
            _ => false,
        })
    }

    /// Whether a candidate asks to be avoided.
    pub fn avoids(&self, who: Who) -> bool {
        self.row(who).is_some_and(TunnelRow::avoids)
    }

    /// Whether another candidate here than this one has a good tunnel and does not ask to be avoided.
    pub fn has_good_way_without(&self, near: Slot) -> bool {
        let others = self.rows.iter().filter_map(|(who, heard)| match who {
            Who::Near(slot) if *slot != near && !heard.row.avoids() => Some(*slot),
            _ => None,
        });
        let far = || (0..=Slot::MAX.0).map(Slot);
        others.into_iter().any(|i| far().any(|j| self.state(i, j) == TunnelState::Good))
    }

    /// Who finds fault with a tunnel.
    pub fn accuser(&self, near: Slot, far: Slot) -> Option<Who> {
        let worst = self.state(near, far);
        let rows = [(Who::Near(near), far), (Who::Far(far), near)];
        let blames =
            |(who, of): &(Who, Slot)| self.row(*who).is_some_and(|r| r.state(*of) == worst);
        rows.into_iter().find(blames).map(|(who, _)| who)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::default() + Duration::from_millis(millis)
    }

    fn bad(slot: u8) -> TunnelRow {
        TunnelRow::UNKNOWN.with(Slot(slot), TunnelState::Bad)
    }

    #[test]
    fn a_tunnel_is_bad_if_either_end_says_so() {
        let mut table = TunnelTable::default();
        assert_eq!(table.state(Slot(0), Slot(1)), TunnelState::Unknown);
        let good = TunnelRow::UNKNOWN.with(Slot(1), TunnelState::Good);
        assert!(table.set_own(Slot(0), good));
        assert!(
            !table.hear(at(0), Who::Near(Slot(0)), bad(1), true),
            "nobody speaks for this node"
        );
        assert_eq!(table.state(Slot(0), Slot(1)), TunnelState::Good);
        assert!(table.hear(at(0), Who::Far(Slot(1)), bad(0), true));
        assert_eq!(table.state(Slot(0), Slot(1)), TunnelState::Bad);
        assert_eq!(table.accuser(Slot(0), Slot(1)), Some(Who::Far(Slot(1))));
        assert_eq!(table.state(Slot(1), Slot(0)), TunnelState::Unknown);
        assert!(!table.hear(at(1), Who::Far(Slot(1)), bad(0), true), "it is known");
    }

    #[test]
    fn what_is_passed_on_counts_only_while_the_candidate_itself_is_silent() {
        let mut table = TunnelTable::default();
        let far = Who::Far(Slot(1));
        assert!(table.hear(at(0), far, bad(0), true));
        assert!(!table.hear(at(1), far, bad(2), false));
        assert_eq!(table.row(far), Some(bad(0)));
        assert!(table.hear(at(3501), far, bad(2), false));
        assert_eq!(table.row(far), Some(bad(2)));
        assert_eq!(table.heard_first_hand().count(), 0);
        assert!(table.hear(at(3502), far, bad(0), true));
        assert_eq!(table.heard_first_hand().collect::<Vec<_>>(), [(Slot(1), bad(0))]);
    }

    #[test]
    fn a_row_that_is_not_repeated_is_forgotten() {
        let mut table = TunnelTable::default();
        table.hear(at(0), Who::Far(Slot(1)), bad(0), true);
        assert_eq!(table.poll_timeout(), Some(at(3500)));
        assert!(!table.expire(at(3499)));
        assert!(table.expire(at(3500)));
        assert_eq!(table.state(Slot(0), Slot(1)), TunnelState::Unknown);
        assert_eq!(table.poll_timeout(), None);
    }
}
