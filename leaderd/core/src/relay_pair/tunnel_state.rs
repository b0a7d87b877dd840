//! What is known of tunnels.

use serde::{Deserialize, Serialize};

use crate::fault::Fault;
use crate::ids::Slot;
use crate::verdict::Verdict;

/// What is known of the tunnel between two candidates, and of what lies behind its far end.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TunnelState {
    /// Carries, both ways.
    Good,
    /// Loses packets, and another one does not.
    Lossy,
    /// Neither end has fresh evidence.
    Unknown,
    /// Does not carry all that it should.
    Bad,
}

impl TunnelState {
    /// As in status and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Lossy => "lossy",
            Self::Unknown => "unknown",
            Self::Bad => "bad",
        }
    }

    /// What an observer's verdict says; `None`: it is about to say more.
    pub const fn of(verdict: &Verdict) -> Option<Self> {
        Some(match verdict {
            Verdict::Unknown => Self::Unknown,
            Verdict::Forwarding => Self::Good,
            Verdict::Suspected => return None,
            Verdict::Degraded { cause: Fault::Loss, .. } => Self::Lossy,
            Verdict::Degraded { .. } => Self::Bad,
        })
    }

    /// True if a verdict is about what lies behind the tunnel: packets come back from the candidate itself.
    pub const fn is_behind(verdict: &Verdict) -> bool {
        match verdict {
            Verdict::Degraded { cause, .. } => !matches!(cause, Fault::TunnelDown | Fault::Loss),
            _ => false,
        }
    }

    /// The word of both ends together: either may find fault.
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Unknown, known) | (known, Self::Unknown) => known,
            (a, b) => a.max(b),
        }
    }
}

/// What one candidate knows of its tunnels to the candidates of another location.
///
/// | bits | |
/// |---|---|
/// | 2·slot, 2·slot + 1 | the state of the tunnel: unknown, good, lossy, bad |
/// | 31 | the candidate itself asks not to be chosen |
/// | 32 + slot | what is bad is not the tunnel: the candidate at its far end relays less than it should |
///
/// Written as a number (`docs/compatibility.md`): the meaning of no bit changes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TunnelRow(u64);

const AVOID: u64 = 1 << 31;
/// The upper bits of all states: set for lossy and bad.
const TROUBLE: u64 = 0x2aaa_aaaa;

impl TunnelRow {
    /// Nothing is known of any tunnel.
    pub const UNKNOWN: Self = Self(0);

    #[must_use]
    pub const fn with(self, slot: Slot, state: TunnelState) -> Self {
        if slot.0 > Slot::MAX.0 {
            return self;
        }
        let bits = match state {
            TunnelState::Unknown => 0,
            TunnelState::Good => 1,
            TunnelState::Lossy => 2,
            TunnelState::Bad => 3,
        };
        let at = 2 * slot.0 as u32;
        Self(self.0 & !(3 << at) | bits << at)
    }

    /// The candidate in this slot answers and does not relay what it should: its other tunnels are likely to be of no use either.
    #[must_use]
    pub const fn accusing(self, slot: Slot) -> Self {
        if slot.0 > Slot::MAX.0 { self } else { Self(self.0 | 1 << (32 + slot.0)) }
    }

    pub const fn accuses(self, slot: Slot) -> bool {
        slot.0 <= Slot::MAX.0 && self.0 >> (32 + slot.0) & 1 == 1
    }

    pub const fn state(self, slot: Slot) -> TunnelState {
        if slot.0 > Slot::MAX.0 {
            return TunnelState::Unknown;
        }
        match self.0 >> (2 * slot.0 as u32) & 3 {
            0 => TunnelState::Unknown,
            1 => TunnelState::Good,
            2 => TunnelState::Lossy,
            _ => TunnelState::Bad,
        }
    }

    /// The candidate asks not to be chosen: it is drained, or knows that it cannot relay.
    #[must_use]
    pub const fn avoiding(self, avoid: bool) -> Self {
        if avoid { Self(self.0 | AVOID) } else { Self(self.0 & !AVOID) }
    }

    pub const fn avoids(self) -> bool {
        self.0 & AVOID != 0
    }

    /// True if a tunnel is bad or lossy, or the candidate is to be avoided: the other end should know.
    pub const fn is_trouble(self) -> bool {
        self.0 & (TROUBLE | AVOID) != 0
    }
}

impl std::fmt::Debug for TunnelRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let known = (0..=Slot::MAX.0).map(Slot).filter(|s| self.state(*s) != TunnelState::Unknown);
        let mut map = f.debug_map();
        map.entries(known.map(|s| (s, self.state(s))));
        for slot in (0..=Slot::MAX.0).map(Slot).filter(|s| self.accuses(*s)) {
            map.entry(&"accuses", &slot);
        }
        if self.avoids() {
            map.entry(&"avoid", &true);
        }
        map.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [TunnelState; 4] =
        [TunnelState::Good, TunnelState::Lossy, TunnelState::Unknown, TunnelState::Bad];

    #[test]
    fn a_row_holds_a_state_for_every_slot_and_one_bit_for_the_candidate() {
        for slot in (0..=Slot::MAX.0).map(Slot) {
            for state in ALL {
                let full = (0..=Slot::MAX.0)
                    .fold(TunnelRow::UNKNOWN, |row, s| row.with(Slot(s), TunnelState::Good));
                let row = full.with(slot, state).avoiding(true);
                assert_eq!(row.state(slot), state);
                assert!(row.avoids() && row.is_trouble());
                let accusing = row.accusing(slot);
                assert!(accusing.accuses(slot) && accusing.state(slot) == state);
                let accused = (0..=Slot::MAX.0).filter(|s| accusing.accuses(Slot(*s)));
                assert_eq!(accused.count(), 1);
                let others = (0..=Slot::MAX.0).map(Slot).filter(|s| *s != slot);
                assert!(others.into_iter().all(|s| row.state(s) == TunnelState::Good));
                let trouble = matches!(state, TunnelState::Lossy | TunnelState::Bad);
                assert_eq!(row.avoiding(false).is_trouble(), trouble, "{state:?}");
            }
        }
        assert_eq!(TunnelRow::UNKNOWN.with(Slot(15), TunnelState::Bad), TunnelRow::UNKNOWN);
    }

    #[test]
    fn either_end_may_find_fault_and_either_may_vouch_where_the_other_knows_nothing() {
        use TunnelState::*;
        for state in ALL {
            assert_eq!(state.and(Unknown), state);
            assert_eq!(state.and(Bad), Bad);
            for other in ALL {
                assert_eq!(state.and(other), other.and(state));
            }
        }
        assert_eq!(Good.and(Lossy), Lossy);
        assert_eq!(Good.and(Good), Good);
    }
}
