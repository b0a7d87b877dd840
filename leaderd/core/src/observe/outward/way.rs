//! One way out: from this node through a candidate of its own location to another location.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use crate::io::ProbeId;
use crate::observe::judgement::sprt::{self, Cusum};
use crate::observe::probing::rtt::Rtt;
use crate::time::Instant;

/// How long outcomes are kept, and how many.
const KEEP: Duration = Duration::from_secs(5);
const MOST: usize = 64;
/// A doubt that nothing confirmed is over after this.
const DOUBT: Duration = Duration::from_secs(1);
/// Between two bursts while in doubt. What is lost in a shorter time may be one hiccup.
const BURST_AGAIN: Duration = Duration::from_millis(100);
/// A way that failed must pass for this long, and this many probes, until it passes again.
const RECOVERY: Duration = Duration::from_secs(2);
const RECOVERY_PROBES: u32 = 6;
/// Gain of the share of lost probes: about a minute where nothing else is sent than rounds.
const GAIN: f64 = 1.0 / 64.0;
/// That share is an average over few probes. It may be higher by this many standard deviations.
const DOUBTFUL: f64 = 2.0;
/// A probe shows that its target lived when another one was lost that was sent up to this much later.
const SAME_TIME: Duration = Duration::from_millis(50);

/// A probe that was sent.
#[derive(Debug, Clone, Copy)]
struct Sample {
    probe: ProbeId,
    sent: Instant,
    /// The number of the candidate at the other end.
    far: usize,
    /// `None` while its reply is awaited.
    passed: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Passes,
    /// Something was lost; bursts try whether that goes on.
    InDoubt {
        since: Instant,
        next_burst: Instant,
    },
    Fails {
        first_loss: Instant,
        passing: Option<(Instant, u32)>,
    },
}

/// What came of the probes of one way.
#[derive(Debug)]
pub struct Way {
    rtt: Rtt,
    /// When the first reply came. What was sent before waited for WireGuard's handshake.
    up: Option<Instant>,
    samples: VecDeque<Sample>,
    /// The candidates at the other end that have ever answered. One of an older release answers by its routes, so never through a standby here,
    /// whose tunnel takes no such source from another one.
    heard: BTreeSet<usize>,
    /// The share of probes lost, where the candidate at the other end has ever answered.
    loss: f64,
    /// The latest probe to the candidate here itself, over the LAN, that has ended: when it was sent, and whether it was answered.
    near: Option<(Instant, bool)>,
    state: State,
}

impl Way {
    pub fn new() -> Self {
        Self {
            rtt: Rtt::new(),
            up: None,
            samples: VecDeque::new(),
            heard: BTreeSet::new(),
            loss: 0.0,
            near: None,
            state: State::Passes,
        }
    }

    /// How long to wait for a reply; `None` if none has come yet.
    pub fn timeout(&self, least: Duration) -> Option<Duration> {
        self.up.map(|_| self.rtt.timeout(least))
    }

    /// A reply came to what was sent then.
    pub fn replied(&mut self, sent: Instant, now: Instant) {
        if self.up.is_some_and(|up| up <= sent) {
            self.rtt.sample(now.since(sent));
        }
        self.up = self.up.or(Some(now));
    }

    /// Notes what became of a probe to the candidate here itself.
    pub fn near_ended(&mut self, sent: Instant, passed: bool) {
        if self.near.is_none_or(|(at, _)| at <= sent) {
            self.near = Some((sent, passed));
        }
    }

    pub fn sent(&mut self, probe: ProbeId, now: Instant, far: usize) {
        self.samples.push_back(Sample { probe, sent: now, far, passed: None });
        let old = |s: &Sample| s.sent + KEEP < now;
        while self.samples.len() > MOST || self.samples.front().is_some_and(old) {
            self.samples.pop_front();
        }
    }

    /// Notes what became of a probe. What was lost may still pass, late.
    pub fn ended(&mut self, probe: ProbeId, now: Instant, passed: bool) {
        let Some(sample) = self.samples.iter_mut().find(|s| s.probe == probe) else { return };
        sample.passed = Some(passed);
        let (sent, far) = (sample.sent, sample.far);
        if passed {
            self.heard.insert(far);
        } else if !self.heard.contains(&far) {
            return;
        }
        self.loss += GAIN * (f64::from(u8::from(!passed)) - self.loss);
        match &mut self.state {
            State::Fails { passing, .. } if passed => {
                let (_, n) = passing.get_or_insert((now, 0));
                *n += 1;
            }
            State::Fails { passing, .. } => *passing = None,
            State::Passes if !passed => {
                self.state = State::InDoubt { since: sent, next_burst: now };
            }
            State::Passes | State::InDoubt { .. } => {}
        }
    }

    /// The probe was never sent.
    pub fn void(&mut self, probe: ProbeId) {
        self.samples.retain(|s| s.probe != probe);
    }

    pub fn fails(&self) -> bool {
        matches!(self.state, State::Fails { .. })
    }

    /// Since when what is sent this way is lost.
    pub fn first_loss(&self) -> Option<Instant> {
        match self.state {
            State::Fails { first_loss, .. } => Some(first_loss),
            State::Passes | State::InDoubt { .. } => None,
        }
    }

    /// How many probes were sent since then and how many of them were lost.
    pub fn counts(&self) -> (u32, u32) {
        let Some(from) = self.first_loss() else { return (0, 0) };
        let ended = self.samples.iter().filter(|s| s.sent >= from).filter_map(|s| s.passed);
        ended.fold((0, 0), |(sent, lost), passed| (sent + 1, lost + u32::from(!passed)))
    }

    /// When the next burst is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::InDoubt { next_burst, .. } => Some(next_burst),
            State::Passes | State::Fails { .. } => None,
        }
    }

    /// Returns whether a burst is due, and takes it as sent. The next one comes when this one has ended, after this timeout.
    pub fn take_burst(&mut self, now: Instant, timeout: Duration) -> bool {
        match &mut self.state {
            State::InDoubt { next_burst, .. } if *next_burst <= now => {
                *next_burst = now + timeout.max(BURST_AGAIN);
                true
            }
            _ => false,
        }
    }

    /// Returns whether the reply to something sent since then is awaited.
    fn is_pending(&self, since: Instant) -> bool {
        self.samples.iter().any(|s| s.sent >= since && s.passed.is_none())
    }

    /// Judges the way by its outcomes and those of the other ways. It fails only if the candidate here itself answers over the LAN: else the LAN
    /// may be at fault, or this node. `fars`: how many candidates the other location has. Returns whether it
    /// fails now and did not, or the reverse.
    pub fn judge<'w>(
        &mut self,
        now: Instant,
        others: impl Iterator<Item = &'w Way> + Clone,
        fars: usize,
        threshold: f64,
        timeout: Duration,
    ) -> bool {
        match self.state {
            State::Passes => false,
            State::Fails { passing: Some((since, n)), .. }
                if now.since(since) >= RECOVERY && n >= RECOVERY_PROBES =>
            {
                self.state = State::Passes;
                self.samples.clear();
                true
            }
            State::Fails { .. } => false,
            State::InDoubt { since, .. } => {
                // In bad weather all of them lose some.
                let usual = others.clone().map(Way::may_lose).reduce(f64::min).unwrap_or_default();
                let test = sprt::failure(usual);
                let (mut sum, mut last) = (Cusum::default(), since);
                let mut each = vec![Cusum::default(); fars];
                let mut passes = vec![false; fars];
                for s in self.samples.iter().filter(|s| s.sent >= since) {
                    let lost = match s.passed {
                        None => continue,
                        Some(passed) => !passed,
                    };
                    let counts = |s: &Sample| {
                        self.heard.contains(&s.far)
                            && others.clone().any(|other| other.reached(s.far, s.sent))
                    };
                    if lost && !counts(s) {
                        continue;
                    }
                    sum.add(test.step(lost), s.sent);
                    each[s.far].add(test.step(lost), s.sent);
                    passes[s.far] = !lost;
                    if lost {
                        last = s.sent;
                    }
                }
                // Where the present losses began.
                let first = sum.from().unwrap_or(since);
                // Where one of them is reached, the way is good, and the tunnel to another one is not: that is known from its ends.
                let lost_to = each.iter().filter(|sum| sum.value() >= threshold / 3.0).count();
                let to_all = lost_to >= fars.min(2) && !passes.contains(&true);
                let answers = self.near.is_some_and(|(at, passed)| passed && at > first);
                let long = last.since(first) >= BURST_AGAIN;
                if sum.value() >= threshold && to_all && long && answers {
                    self.state = State::Fails { first_loss: first, passing: None };
                    return true;
                }
                let settled = sum.value() == 0.0 && !self.is_pending(since);
                if settled || now.since(first) > DOUBT + timeout * 3 {
                    self.state = State::Passes;
                }
                false
            }
        }
    }

    /// The share of probes that this way may lose.
    fn may_lose(&self) -> f64 {
        let variance = self.loss * (1.0 - self.loss) * GAIN / (2.0 - GAIN);
        self.loss + DOUBTFUL * variance.sqrt()
    }

    /// Returns whether a probe to this candidate passed that was sent at about this time or later.
    fn reached(&self, far: usize, at: Instant) -> bool {
        let alive = |s: &Sample| s.far == far && s.passed == Some(true) && s.sent + SAME_TIME >= at;
        self.samples.iter().any(alive)
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{Rng as _, SeedableRng as _};

    use super::*;

    const THRESHOLD: f64 = 22.0;
    const TIMEOUT: Duration = Duration::from_millis(20);

    fn at(ms: u64) -> Instant {
        Instant(0) + Duration::from_millis(ms)
    }

    /// Sends to each of two candidates at each of these times; `lost` says what becomes of a probe. Returns when the way was found to
    /// fail.
    fn find(
        times: impl IntoIterator<Item = u64>,
        lost: impl FnMut(u64, usize) -> bool,
        control_passes: bool,
    ) -> Option<u64> {
        find_with(times, lost, control_passes, true)
    }

    fn find_with(
        times: impl IntoIterator<Item = u64>,
        mut lost: impl FnMut(u64, usize) -> bool,
        control_passes: bool,
        near_answers: bool,
    ) -> Option<u64> {
        let (mut way, mut control) = (Way::new(), Way::new());
        let mut id = 0;
        for ms in times {
            for far in 0..2 {
                for w in [&mut way, &mut control] {
                    w.sent(ProbeId(id), at(ms), far);
                    id += 1;
                }
                control.ended(ProbeId(id - 1), at(ms + 1), control_passes);
                way.ended(ProbeId(id - 2), at(ms + 20), !lost(ms, far));
            }
            way.near_ended(at(ms), near_answers);
            if way.judge(at(ms + 20), std::iter::once(&control), 2, THRESHOLD, TIMEOUT) {
                return Some(ms);
            }
        }
        None
    }

    #[test]
    fn a_way_fails_that_loses_what_another_one_does_not() {
        let found = find((0..2000).step_by(50), |ms, _| ms >= 500, true);
        assert!(found.is_some_and(|ms| (600..=700).contains(&ms)), "{found:?}");
    }

    #[test]
    fn what_every_way_loses_accuses_none() {
        assert_eq!(find((0..5000).step_by(50), |ms, _| ms >= 500, false), None);
    }

    #[test]
    fn a_way_that_never_carried_an_answer_is_not_accused() {
        assert_eq!(find((0..5000).step_by(50), |_, _| true, true), None);
    }

    #[test]
    fn a_candidate_that_does_not_answer_over_the_lan_is_not_accused() {
        assert_eq!(find_with((0..5000).step_by(50), |ms, _| ms >= 500, true, false), None);
    }

    #[test]
    fn losses_to_one_of_two_candidates_accuse_no_way() {
        assert_eq!(find((0..5000).step_by(50), |ms, far| ms >= 500 && far == 0, true), None);
        // Nor if one is lost to the other as well.
        let some = |ms, far| ms >= 500 && (far == 0 || ms == 700);
        assert_eq!(find((0..5000).step_by(50), some, true), None);
    }

    #[test]
    fn a_hiccup_shorter_than_a_tenth_of_a_second_is_no_fault() {
        assert_eq!(find((0..5000).step_by(5), |ms, _| (500..580).contains(&ms), true), None);
    }

    #[test]
    fn where_all_ways_lose_a_fifth_none_is_accused_and_a_dead_one_is() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut fifth = || rng.next_u32() < u32::MAX / 5;
        let (mut way, mut control) = (Way::new(), Way::new());
        let mut id = 0;
        let mut found = None;
        for n in 0..100_000 {
            let (now, dead) = (at(n * 100), n >= 99_000);
            for far in 0..2 {
                for (w, lost) in [(&mut way, dead || fifth()), (&mut control, fifth())] {
                    w.sent(ProbeId(id), now, far);
                    w.ended(ProbeId(id), now, !lost);
                    id += 1;
                }
            }
            way.near_ended(now, true);
            if way.judge(now, std::iter::once(&control), 2, THRESHOLD, TIMEOUT) {
                found = Some(n);
                break;
            }
        }
        assert!(found.is_some_and(|n| (99_000..99_030).contains(&n)), "{found:?}");
    }

    #[test]
    fn every_third_packet_lost_is_left_to_the_observers_of_other_locations() {
        let mut n = 0;
        let third = |_, _| {
            n += 1;
            n % 3 == 0
        };
        assert_eq!(find((0..20_000).step_by(50), third, true), None);
    }

    #[test]
    fn a_way_that_failed_passes_again_after_a_while() {
        let (mut way, control) = (Way::new(), Way::new());
        way.state = State::Fails { first_loss: at(0), passing: None };
        let mut id = 0;
        let mut probe = |way: &mut Way, ms, passed| {
            id += 1;
            way.sent(ProbeId(id), at(ms), 0);
            way.ended(ProbeId(id), at(ms), passed);
            way.judge(at(ms), std::iter::once(&control), 1, THRESHOLD, TIMEOUT)
        };
        assert!((0..4).all(|n| !probe(&mut way, n * 500, true)));
        assert!(!probe(&mut way, 1900, false), "one loss begins it anew");
        let passes = (0..20).map(|n| 2000 + n * 500).find(|ms| probe(&mut way, *ms, true));
        assert_eq!(passes, Some(4500));
        assert!(!way.fails());
    }
}
