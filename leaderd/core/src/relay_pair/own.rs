//! The states of a candidate's own tunnels to one other location, from its observer's verdicts.

use std::collections::BTreeMap;

use super::{TunnelRow, TunnelState};
use crate::ids::Slot;
use crate::time::{Duration, Instant};
use crate::verdict::Verdict;

/// How long a tunnel stays bad or lossy at least, the first time. It doubles with each further time.
const HOLD: Duration = Duration::from_secs(1);
const MAX_HOLD: Duration = Duration::from_secs(60);
/// A tunnel that was good for so long begins anew.
const FORGIVEN_AFTER: Duration = Duration::from_secs(600);
/// How long a state outlives the evidence for it.
const LEASE: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct Own {
    state: TunnelState,
    since: Instant,
    /// When there was last a verdict.
    evidence: Instant,
    /// What is bad lies behind the tunnel.
    behind: bool,
    /// How often it turned from good.
    faults: u32,
    /// When it turned good again last.
    mended: Instant,
}

impl Own {
    fn hold(&self) -> Duration {
        (HOLD * 2u32.saturating_pow(self.faults.saturating_sub(1).min(16))).min(MAX_HOLD)
    }

    fn set(&mut self, now: Instant, state: TunnelState) {
        let faulty = |s| matches!(s, TunnelState::Bad | TunnelState::Lossy);
        match (faulty(self.state), faulty(state)) {
            (false, true) => {
                if now.since(self.mended) >= FORGIVEN_AFTER {
                    self.faults = 0;
                }
                self.faults += 1;
            }
            (true, false) => self.mended = now,
            _ => {}
        }
        (self.state, self.since) = (state, now);
    }

    /// When the state may change without a new verdict, or with the last one.
    fn due(&self) -> Option<Instant> {
        match self.state {
            TunnelState::Unknown => None,
            TunnelState::Good => Some(self.evidence + LEASE),
            TunnelState::Lossy | TunnelState::Bad => {
                Some((self.since + self.hold()).max(self.evidence + LEASE))
            }
        }
    }
}

/// Keeps a tunnel that turned bad there for a while, longer each time, so that one that comes and goes does not move traffic each time.
#[derive(Debug, Default)]
pub struct OwnTunnels {
    tunnels: BTreeMap<Slot, Own>,
    /// Held back by a hold: when to look again.
    again: Option<Instant>,
}

impl OwnTunnels {
    /// Takes the present verdicts. `silent`: nothing comes back through any tunnel. The observer then blames no candidate, as it may be its
    /// own fault; no tunnel carries anything all the same.
    pub fn update<'a>(
        &mut self,
        now: Instant,
        verdicts: impl Iterator<Item = (Slot, &'a Verdict)>,
        silent: bool,
    ) {
        self.again = None;
        let mut present = Vec::new();
        for (slot, verdict) in verdicts {
            present.push(slot);
            let own = self.tunnels.entry(slot).or_insert(Own {
                state: TunnelState::Unknown,
                since: now,
                evidence: now,
                behind: false,
                faults: 0,
                mended: Instant::default(),
            });
            let says = match TunnelState::of(verdict) {
                _ if silent => TunnelState::Bad,
                // A suspicion is evidence of neither.
                None => own.state,
                Some(TunnelState::Unknown) if now.since(own.evidence) < LEASE => own.state,
                Some(state) => state,
            };
            if silent || !matches!(verdict, Verdict::Unknown) {
                own.evidence = now;
            }
            if verdict.is_degraded() {
                own.behind = TunnelState::is_behind(verdict);
            }
            if says == own.state {
                continue;
            }
            let until = own.since + own.hold();
            let better =
                says < own.state && matches!(own.state, TunnelState::Bad | TunnelState::Lossy);
            if better && now < until {
                self.again = Some(self.again.map_or(until, |at| at.min(until)));
                continue;
            }
            own.set(now, says);
        }
        self.tunnels.retain(|slot, _| present.contains(slot));
    }

    pub fn row(&self) -> TunnelRow {
        let states = self.tunnels.iter();
        states.fold(TunnelRow::UNKNOWN, |row, (slot, own)| {
            let row = row.with(*slot, own.state);
            if own.behind && own.state == TunnelState::Bad { row.accusing(*slot) } else { row }
        })
    }

    /// Since when the state of a tunnel is what it is.
    pub fn since(&self, slot: Slot) -> Option<Instant> {
        self.tunnels.get(&slot).map(|own| own.since)
    }

    /// When [`Self::update`] is to be called again although no verdict has changed.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let unknown = self.tunnels.values().filter(|own| own.state != TunnelState::Unknown);
        let lease = unknown.filter_map(Own::due).min();
        self.again.into_iter().chain(lease).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Fault;

    const BAD: Verdict = Verdict::Degraded { cause: Fault::TunnelDown, direction: None };

    fn at(millis: u64) -> Instant {
        Instant::default() + Duration::from_millis(millis)
    }

    fn update(own: &mut OwnTunnels, millis: u64, verdict: &Verdict) -> TunnelState {
        own.update(at(millis), std::iter::once((Slot(0), verdict)), false);
        own.row().state(Slot(0))
    }

    #[test]
    fn a_fault_counts_at_once_and_a_suspicion_changes_nothing() {
        let mut own = OwnTunnels::default();
        assert_eq!(update(&mut own, 0, &Verdict::Unknown), TunnelState::Unknown);
        assert_eq!(update(&mut own, 1, &Verdict::Suspected), TunnelState::Unknown);
        assert_eq!(update(&mut own, 2, &Verdict::Forwarding), TunnelState::Good);
        assert_eq!(update(&mut own, 3, &Verdict::Suspected), TunnelState::Good);
        assert_eq!(update(&mut own, 4, &BAD), TunnelState::Bad);
        assert_eq!(update(&mut own, 2000, &Verdict::Suspected), TunnelState::Bad);
    }

    #[test]
    fn a_tunnel_that_comes_and_goes_is_held_longer_each_time() {
        let mut own = OwnTunnels::default();
        update(&mut own, 0, &Verdict::Forwarding);
        let mut now = 10;
        for hold in [1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000] {
            assert_eq!(update(&mut own, now, &BAD), TunnelState::Bad);
            assert_eq!(update(&mut own, now + hold - 1, &Verdict::Forwarding), TunnelState::Bad);
            assert_eq!(own.poll_timeout(), Some(at(now + hold)));
            assert_eq!(update(&mut own, now + hold, &Verdict::Forwarding), TunnelState::Good);
            now += hold + 10;
        }
        // After ten good minutes it begins anew.
        now += 600_000;
        update(&mut own, now, &BAD);
        assert_eq!(update(&mut own, now + 1000, &Verdict::Forwarding), TunnelState::Good);
    }

    #[test]
    fn a_state_ends_some_seconds_after_its_evidence() {
        let mut own = OwnTunnels::default();
        update(&mut own, 0, &BAD);
        assert_eq!(update(&mut own, 100, &Verdict::Unknown), TunnelState::Bad);
        assert_eq!(own.poll_timeout(), Some(at(5000)));
        assert_eq!(update(&mut own, 5000, &Verdict::Unknown), TunnelState::Unknown);
        assert_eq!(own.poll_timeout(), None);
    }

    #[test]
    fn where_nothing_comes_back_at_all_every_tunnel_is_bad_whoever_is_to_blame() {
        let mut own = OwnTunnels::default();
        assert_eq!(update(&mut own, 0, &Verdict::Forwarding), TunnelState::Good);
        own.update(at(400), std::iter::once((Slot(0), &Verdict::Unknown)), true);
        assert_eq!(own.row().state(Slot(0)), TunnelState::Bad);
        assert!(!own.row().accuses(Slot(0)));
        // It goes on, and so does time.
        own.update(at(60_000), std::iter::once((Slot(0), &Verdict::Unknown)), true);
        assert_eq!(own.row().state(Slot(0)), TunnelState::Bad);
        assert!(own.poll_timeout() > Some(at(60_000)));
    }

    #[test]
    fn a_candidate_that_answers_and_relays_nothing_is_accused() {
        let mut own = OwnTunnels::default();
        let verdict = Verdict::Degraded { cause: Fault::NewFlow, direction: None };
        update(&mut own, 0, &verdict);
        assert!(own.row().accuses(Slot(0)));
        update(&mut own, 1, &BAD);
        assert!(!own.row().accuses(Slot(0)));
    }

    #[test]
    fn slots_that_are_gone_are_forgotten() {
        let mut own = OwnTunnels::default();
        update(&mut own, 0, &BAD);
        own.update(at(1), std::iter::empty(), false);
        assert_eq!(own.row(), TunnelRow::UNKNOWN);
        assert_eq!(own.since(Slot(0)), None);
    }
}
