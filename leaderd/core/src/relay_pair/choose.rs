//! The rule, a pure function that both ends compute alike.

use super::TunnelState;
use crate::ids::Slot;

/// One of the two locations.
#[derive(Clone, Copy, Debug)]
pub struct End<'a> {
    /// In order; never empty for a location with candidates.
    pub leaders: &'a [Slot],
    /// All candidates: the leaders first, then by rank, those to be avoided last.
    pub order: &'a [Slot],
}

/// A relay pair, and what is known of its tunnel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Chosen {
    /// Of the location with the lower name, and of the other.
    pub low: Slot,
    pub high: Slot,
    pub state: TunnelState,
}

/// Returns the relay pair of two locations, the one with the lower name first. `None` if one of them has no candidates.
///
/// The two leaders, unless their tunnel is worse than another: then the leader of the lower location with the first good candidate of the
/// other, then the other way round, then any. So in trouble the lower location keeps its leader, if that helps at all. While all are bad
/// the leaders stay. An unknown tunnel of the leaders counts as good: after a start everything goes by them.
///
/// `doubted`: one of the two is said not to relay what it should, by somebody at the end of another tunnel. Such a pair comes after those
/// of which nobody says so, as this end is about to find out. That alone moves nothing away from the leaders.
pub fn choose(
    low: End<'_>,
    high: End<'_>,
    state: impl Fn(Slot, Slot) -> TunnelState,
    doubted: impl Fn(Slot, Slot) -> bool,
) -> Option<Chosen> {
    let (low_leader, high_leader) = (*low.leaders.first()?, *high.leaders.first()?);
    let of_low_leader = high.order.iter().map(|&j| (low_leader, j));
    let of_high_leader = low.order.iter().map(|&i| (i, high_leader));
    let all = low.order.iter().flat_map(|&i| high.order.iter().map(move |&j| (i, j)));
    let candidates = std::iter::once((low_leader, high_leader))
        .chain(of_low_leader)
        .chain(of_high_leader)
        .chain(all);
    let rank = |(i, j): (Slot, Slot)| match state(i, j) {
        TunnelState::Good if (i, j) != (low_leader, high_leader) && doubted(i, j) => 1,
        TunnelState::Good => 0,
        TunnelState::Unknown if (i, j) == (low_leader, high_leader) => 0,
        TunnelState::Lossy => 2,
        TunnelState::Unknown => 3,
        TunnelState::Bad => 4,
    };
    // Of several with the least rank `min_by_key` takes the first.
    let (low, high) = candidates.min_by_key(|pair| rank(*pair))?;
    Some(Chosen { low, high, state: state(low, high) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(order: &[Slot]) -> End<'_> {
        End { leaders: &order[..1], order }
    }

    fn order(leader: u8, of: u8) -> Vec<Slot> {
        std::iter::once(leader).chain((0..of).filter(|s| *s != leader)).map(Slot).collect()
    }

    /// Every combination of `states` over `n` × `n` tunnels, and of leaders.
    fn every(n: u8, states: &[TunnelState], check: impl Fn(&[TunnelState], Chosen, (u8, u8))) {
        let tunnels = usize::from(n) * usize::from(n);
        let count = states.len().pow(tunnels as u32);
        for number in 0..count {
            let mut rest = number;
            let table: Vec<TunnelState> = (0..tunnels)
                .map(|_| {
                    let state = states[rest % states.len()];
                    rest /= states.len();
                    state
                })
                .collect();
            for leaders in (0..n).flat_map(|a| (0..n).map(move |b| (a, b))) {
                let (low, high) = (order(leaders.0, n), order(leaders.1, n));

                let fold = |i: Slot, j: Slot| table[usize::from(i.0 * n + j.0)];
                let chosen = choose(end(&low), end(&high), fold, |_, _| false)
                    .expect("there are candidates");
                check(&table, chosen, leaders);
            }
        }
    }

    fn check(n: u8, table: &[TunnelState], chosen: Chosen, leaders: (u8, u8)) {
        let at = |i: u8, j: u8| table[usize::from(i * n + j)];
        let has = |state| table.contains(&state);
        let of_leaders = at(leaders.0, leaders.1);
        assert_eq!(chosen.state, at(chosen.low.0, chosen.high.0));
        let stays = (chosen.low.0, chosen.high.0) == leaders;
        if matches!(of_leaders, TunnelState::Good | TunnelState::Unknown) {
            assert!(stays, "the leaders carry while nothing is known against them: {table:?}");
        } else if has(TunnelState::Good) {
            assert_eq!(chosen.state, TunnelState::Good, "{table:?} {leaders:?}");
            let good = |i, j| at(i, j) == TunnelState::Good;
            if (0..n).any(|j| good(leaders.0, j)) {
                assert_eq!(chosen.low.0, leaders.0, "the lower location keeps its leader");
            } else if (0..n).any(|i| good(i, leaders.1)) {
                assert_eq!(chosen.high.0, leaders.1, "else the greater one does");
            }
        } else if has(TunnelState::Lossy) {
            assert_eq!(chosen.state, TunnelState::Lossy, "{table:?} {leaders:?}");
        } else if !has(TunnelState::Unknown) {
            assert!(stays, "where all are bad the leaders stay: {table:?}");
        }
    }

    #[test]
    fn over_all_states_of_two_by_two_tunnels_and_all_leaders_the_best_tunnel_carries() {
        use TunnelState::*;
        every(2, &[Good, Lossy, Unknown, Bad], |t, c, l| check(2, t, c, l));
    }

    #[test]
    fn over_all_states_of_three_by_three_tunnels_and_all_leaders_the_best_tunnel_carries() {
        use TunnelState::*;
        every(3, &[Good, Bad], |t, c, l| check(3, t, c, l));
        every(3, &[Good, Unknown, Bad], |t, c, l| check(3, t, c, l));
    }

    #[test]
    fn who_is_avoided_is_chosen_last() {
        let (low, high) = ([Slot(0), Slot(2), Slot(1)], [Slot(0), Slot(2), Slot(1)]);

        let bad = |i: Slot, j: Slot| match (i.0, j.0) {
            (0, 0) => TunnelState::Bad,
            _ => TunnelState::Good,
        };
        let chosen = choose(end(&low), end(&high), bad, |_, _| false).unwrap();
        assert_eq!((chosen.low, chosen.high), (Slot(0), Slot(2)));
    }

    #[test]
    fn a_relay_that_another_tunnels_end_accuses_is_no_detour_while_there_is_one_that_nobody_does() {
        let order = [Slot(0), Slot(1)];
        // The leader of the lower location drops new flows, and so far only the leader of the other one has noticed.
        let state = |i: Slot, j: Slot| match (i.0, j.0) {
            (0, 0) => TunnelState::Bad,
            _ => TunnelState::Good,
        };
        let of = |accused: &[u8]| {
            let doubted = |i: Slot, _| accused.contains(&i.0);
            let chosen = choose(end(&order), end(&order), state, doubted).unwrap();
            (chosen.low.0, chosen.high.0)
        };
        assert_eq!(of(&[]), (0, 1));
        assert_eq!(of(&[0]), (1, 0));
        assert_eq!(of(&[0, 1]), (0, 1), "a doubt is better than a fault");
        let good = |_, _| TunnelState::Good;
        let chosen = choose(end(&order), end(&order), good, |_, _| true).unwrap();
        assert_eq!((chosen.low.0, chosen.high.0), (0, 0), "a doubt moves nothing by itself");
    }

    #[test]
    fn a_location_without_candidates_has_no_relay_pair() {
        let some = End { leaders: &[Slot(0)], order: &[Slot(0)] };
        let none = End { leaders: &[], order: &[] };
        assert_eq!(choose(some, none, |_, _| TunnelState::Good, |_, _| false), None);
        assert_eq!(choose(none, some, |_, _| TunnelState::Good, |_, _| false), None);
    }
}
