//! The recent rounds over one service, and what they say about each path.

use std::collections::VecDeque;
use std::time::Duration;

use crate::fault::Fault;
use crate::ids::NodeName;
use crate::mesh::{Node, Service};
use crate::observe::evidence::Outcome;
use crate::observe::index::{IndexVec, PathIdx};
use crate::observe::judgement::sprt::{self, Cusum};
use crate::observe::probing::rtt::Rtt;
use crate::time::Instant;

use super::ServiceFault;

/// Rounds remembered per service: a minute of them, or a few bursts.
const ROUNDS: usize = 64;
/// Controls needed for a share of loss, and how many of the latest are looked at by themselves: a service may have begun to
/// fail at random only now.
const CONTROLS: usize = 4;
const RECENT: usize = 8;
/// A candidate has recovered once each service passed this many times in a row through it.
const RECOVERY_ROUNDS: usize = 3;
/// Headers of a full TCP segment, generously: an exchange with more bytes than the MTU less this had large packets.
const SEGMENT_HEADERS: u32 = 120;
/// Rounds of a burst: connects are cheap, requests less so.
const BURST_CONNECTS: usize = 8;
const BURST_REQUESTS: usize = 6;
/// Controls of a burst: paths that the service answers through.
const BURST_CONTROLS: usize = 2;
/// Bursts to one service back off while they find nothing.
const BURST_GAP_MIN: Duration = Duration::from_secs(1);
const BURST_GAP_MAX: Duration = Duration::from_secs(60);
const BURST_CALM: Duration = Duration::from_secs(60);

/// What became of one path's part in a round.
#[derive(Debug, Clone, Copy)]
struct Attempt {
    /// `Void`: not asked.
    outcome: Outcome,
    /// The TCP connect at least succeeded.
    connected: bool,
}

const NOT_ASKED: Attempt = Attempt { outcome: Outcome::Void, connected: false };

#[derive(Debug)]
struct Round {
    sent: Instant,
    attempts: IndexVec<PathIdx, Attempt>,
}

impl Round {
    fn passed(&self) -> bool {
        self.attempts.iter().any(|a| a.outcome == Outcome::Delivered)
    }

    fn passed_elsewhere(&self, p: PathIdx) -> bool {
        self.attempts.enumerate().any(|(k, a)| k != p && a.outcome == Outcome::Delivered)
    }

    fn is_over(&self) -> bool {
        self.attempts.iter().all(|a| a.outcome != Outcome::Pending)
    }
}

/// One service of a watched location.
#[derive(Debug)]
pub struct ServiceHealth {
    service: Service,
    /// The node that it is behind.
    node: NodeName,
    /// The path whose candidate's own workload it is: that one need not relay to it, so it is not asked through it.
    candidate: Option<PathIdx>,
    rounds: VecDeque<Round>,
    created: Instant,
    /// Number of the oldest round.
    first: u64,
    /// Of whole exchanges, the service's own time included.
    rtt: IndexVec<PathIdx, Rtt>,
    /// Bytes of the longest answer so far.
    longest_answer: u32,
    next_burst: Instant,
    burst_gap: Duration,
    /// Number of the round after the last burst.
    burst_end: u64,
    /// When the burst of the present suspicion was sent.
    suspected: Option<Instant>,
    /// It answers through no path, and that was logged.
    down: bool,
}

impl ServiceHealth {
    pub fn new(
        service: Service,
        node: &Node,
        candidate: Option<PathIdx>,
        paths: usize,
        now: Instant,
    ) -> Self {
        Self {
            service,
            node: node.name.clone(),
            candidate,
            rounds: VecDeque::new(),
            created: now,
            first: 0,
            rtt: (0..paths).map(|_| Rtt::new()).collect(),
            longest_answer: 0,
            next_burst: now,
            burst_gap: Duration::ZERO,
            burst_end: 0,
            suspected: None,
            down: false,
        }
    }

    pub fn service(&self) -> &Service {
        &self.service
    }

    pub fn node(&self) -> &NodeName {
        &self.node
    }

    /// It is asked through this path: it is not the workload of the path's own candidate.
    pub fn is_asked_through(&self, p: PathIdx) -> bool {
        self.candidate != Some(p)
    }

    pub fn timeout(&self, p: PathIdx, least: Duration) -> Duration {
        self.rtt[p].timeout(least)
    }

    /// Begins a round through these paths, and returns its number.
    pub fn begin_round(&mut self, now: Instant, paths: &[PathIdx]) -> u64 {
        if self.rounds.len() == ROUNDS {
            self.rounds.pop_front();
            self.first += 1;
        }
        let mut attempts: IndexVec<PathIdx, Attempt> = self.rtt.iter().map(|_| NOT_ASKED).collect();
        for p in paths {
            attempts[*p].outcome = Outcome::Pending;
        }
        self.rounds.push_back(Round { sent: now, attempts });
        self.rounds_so_far() - 1
    }

    fn rounds_so_far(&self) -> u64 {
        self.first + self.rounds.len() as u64
    }

    fn attempt(&mut self, round: u64, p: PathIdx) -> Option<&mut Attempt> {
        let index = usize::try_from(round.checked_sub(self.first)?).ok()?;
        self.rounds.get_mut(index)?.attempts.get_mut(p)
    }

    pub fn on_connected(&mut self, round: u64, p: PathIdx) {
        if let Some(attempt) = self.attempt(round, p) {
            attempt.connected = true;
        }
    }

    /// The service answered, with a body of this many bytes.
    pub fn on_answer(&mut self, p: PathIdx, time: Duration, body: Option<u32>) {
        self.longest_answer = self.longest_answer.max(body.unwrap_or_default());
        self.rtt[p].sample(time);
    }

    /// Takes an outcome down. Returns whether the round is still remembered.
    pub fn record(&mut self, round: u64, p: PathIdx, outcome: Outcome) -> bool {
        let attempt = self.attempt(round, p);
        attempt.map(|attempt| attempt.outcome = outcome).is_some()
    }

    /// Returns whether the service is down, if that is new: it answered through no path in the last two rounds.
    pub fn down_changed(&mut self) -> Option<bool> {
        let asked = |r: &&Round| r.attempts.iter().any(|a| a.outcome != Outcome::Void);
        let last = self.rounds.iter().rev().filter(|r| r.is_over()).filter(asked);
        let failed: Vec<bool> = last.take(2).map(|r| !r.passed()).collect();
        let down = match failed[..] {
            [true, true] => true,
            [false, ..] => false,
            _ => self.down,
        };
        (std::mem::replace(&mut self.down, down) != down).then_some(down)
    }

    /// Forgets what was held against a candidate.
    pub fn clear(&mut self, p: PathIdx) {
        for round in &mut self.rounds {
            round.attempts[p] = NOT_ASKED;
        }
        self.suspected = None;
    }

    /// Whether the latest exchange through a path passed.
    pub fn passed_last(&self, p: PathIdx) -> Option<bool> {
        let outcomes = self.rounds.iter().rev().map(|r| r.attempts[p].outcome);
        outcomes.into_iter().find(|o| o.is_decided()).map(|o| o == Outcome::Delivered)
    }

    /// The share that the best other path lost of the rounds that any path passed: of all, or of the latest if that is more.
    fn control_loss(&self, p: PathIdx) -> f64 {
        let share = |k: PathIdx, latest: usize| {
            let live = self.rounds.iter().rev().filter(|r| r.is_over() && r.passed());
            let decided = live.map(|r| r.attempts[k].outcome).filter(|o| o.is_decided());
            let counts =
                |(n, lost): (usize, usize), o: Outcome| (n + 1, lost + usize::from(o.is_loss()));
            let (n, lost) = decided.take(latest).fold((0, 0), counts);
            // Laplace's estimate: of a few rounds without a loss it is not known that there will be none.
            (n >= CONTROLS).then_some((lost + 1) as f64 / (n + 2) as f64)
        };
        let worse = |k| Some(share(k, ROUNDS)?.max(share(k, RECENT)?));
        let others = self.rtt.indices().filter(|k| *k != p);
        others.filter_map(worse).reduce(f64::min).unwrap_or(0.0)
    }

    /// Rounds that are over and say something about a path, oldest first: (round, lost). `alive`: packets sent then or later
    /// came back.
    fn conclusive(
        &self,
        p: PathIdx,
        alive: Option<Instant>,
    ) -> impl DoubleEndedIterator<Item = (&Round, bool)> {
        let over = self.rounds.iter().filter(|r| r.is_over());
        over.filter_map(move |r| match r.attempts[p].outcome {
            Outcome::Delivered => Some((r, false)),
            Outcome::Lost | Outcome::Looped => {
                (r.passed_elsewhere(p) && alive >= Some(r.sent)).then_some((r, true))
            }
            Outcome::Pending | Outcome::Void => None,
        })
    }

    /// The test against a path.
    pub fn test(&self, p: PathIdx, alive: Option<Instant>) -> Cusum {
        let test = sprt::failure(self.control_loss(p));
        let mut sum = Cusum::default();
        for (round, lost) in self.conclusive(p, alive) {
            sum.add(test.step(lost), round.sent);
        }
        sum
    }

    /// What is held against a path whose test climbs since `from`. A connect that passes where the exchange after it does not,
    /// with large packets in it, points to the MTU.
    pub fn fault(
        &self,
        p: PathIdx,
        alive: Option<Instant>,
        from: Instant,
        mtu: u16,
    ) -> ServiceFault {
        let large = self.service.http.as_ref().map_or(0, |h| h.body.max(self.longest_answer));
        let mut lost = self.conclusive(p, alive).filter(|(r, lost)| *lost && r.sent >= from);
        let connects = lost.all(|(r, _)| r.attempts[p].connected);
        let by_size = connects && large + SEGMENT_HEADERS > u32::from(mtu);
        let passed = self.conclusive(p, alive).filter(|(r, lost)| !lost && r.sent < from);
        ServiceFault {
            cause: if by_size { Fault::Mtu } else { Fault::Partial },
            from,
            suspected: self.suspected,
            ok_before: passed.map(|(r, _)| r.sent).max(),
        }
    }

    /// Passes again and again through a path that it degraded, or is not asked through it. One that passes through no path for
    /// long is not this candidate's trouble.
    pub fn has_recovered(
        &self,
        now: Instant,
        p: PathIdx,
        alive: Option<Instant>,
        stale: Duration,
    ) -> bool {
        let recent = self.conclusive(p, alive).filter(|(r, _)| now.since(r.sent) < stale);
        let lost: Vec<bool> = recent.rev().take(RECOVERY_ROUNDS).map(|(_, lost)| lost).collect();
        let enough = lost.len() == RECOVERY_ROUNDS || now.since(self.created) >= stale;
        !self.is_asked_through(p) || enough && !lost.contains(&true)
    }

    /// (asked, lost) since `from`.
    pub fn count(&self, p: PathIdx, alive: Option<Instant>, from: Instant) -> (u32, u32) {
        let since = self.conclusive(p, alive).filter(|(r, _)| r.sent >= from);
        since.fold((0, 0), |(n, lost), (_, l)| (n + 1, lost + u32::from(l)))
    }

    /// The last burst is still on its way.
    pub fn is_burst_pending(&self) -> bool {
        let of_burst = self.burst_end.saturating_sub(self.first) as usize;
        self.rounds.iter().take(of_burst).any(|r| !r.is_over())
    }

    /// A path whose test climbs needs a burst: not too soon after the last one, unless much speaks against the path already.
    pub fn needs_burst(&self, now: Instant, sum: Cusum, threshold: f64) -> bool {
        let may = now >= self.next_burst || sum.value() >= threshold / 4.0;
        sum.value() > 0.0 && sum.value() < threshold && may
    }

    /// Plans a burst against a path. Returns its number of rounds, and the paths to ask through: it, and controls.
    pub fn plan_burst(&mut self, now: Instant, suspect: PathIdx) -> (usize, Vec<PathIdx>) {
        let controls = self.rtt.indices().filter(|p| {
            *p != suspect && self.is_asked_through(*p) && self.passed_last(*p) == Some(true)
        });
        let paths = std::iter::once(suspect).chain(controls.take(BURST_CONTROLS)).collect();
        if now.since(self.next_burst) > BURST_CALM {
            self.burst_gap = Duration::ZERO;
        }
        self.burst_gap = (self.burst_gap * 2).clamp(BURST_GAP_MIN, BURST_GAP_MAX);
        self.next_burst = now + self.burst_gap;
        self.suspected.get_or_insert(now);
        let rounds = if self.service.http.is_some() { BURST_REQUESTS } else { BURST_CONNECTS };
        (rounds, paths)
    }

    /// The rounds of a burst were sent.
    pub fn burst_sent(&mut self) {
        self.burst_end = self.rounds_so_far();
    }

    pub fn is_suspicious(&self) -> bool {
        self.suspected.is_some()
    }

    /// No path is suspected any more.
    pub fn calm(&mut self) {
        self.suspected = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::index::Index;
    use crate::observe::tests::{CLOUD, mesh};

    fn at(seconds: u64) -> Instant {
        Instant(seconds * 1_000_000)
    }

    fn p(number: usize) -> PathIdx {
        PathIdx::new(number)
    }

    fn health(candidate: Option<PathIdx>) -> ServiceHealth {
        let node = mesh(CLOUD).nodes.values().next().expect("a node").clone();
        let service = Service { address: "10.42.2.10:80".parse().unwrap(), http: None };
        ServiceHealth::new(service, &node, candidate, 2, at(0))
    }

    /// A round at this time in which path 0 has the first outcome, and path 1 the second.
    fn round(health: &mut ServiceHealth, seconds: u64, outcomes: [Outcome; 2]) {
        let number = health.begin_round(at(seconds), &[p(0), p(1)]);
        for (n, outcome) in outcomes.into_iter().enumerate() {
            assert!(health.record(number, p(n), outcome));
        }
    }

    #[test]
    fn a_failure_counts_where_another_path_passed_and_packets_still_pass() {
        let mut health = health(None);
        let value = |h: &ServiceHealth, alive| h.test(p(0), alive).value();
        round(&mut health, 1, [Outcome::Lost, Outcome::Lost]);
        assert_eq!(value(&health, Some(at(9))), 0.0, "the service is down");
        round(&mut health, 2, [Outcome::Lost, Outcome::Delivered]);
        assert_eq!(value(&health, Some(at(1))), 0.0, "packets are lost too");
        assert!(value(&health, Some(at(2))) > 0.0);
        assert_eq!(health.test(p(0), Some(at(2))).from(), Some(at(2)));
        assert_eq!(health.test(p(1), Some(at(2))).value(), 0.0);
        health.begin_round(at(3), &[p(0), p(1)]);
        assert_eq!(
            health.count(p(0), Some(at(3)), at(0)),
            (1, 1),
            "a round on its way says nothing"
        );
    }

    #[test]
    fn a_service_is_down_after_two_rounds_that_fail_through_every_path() {
        let mut health = health(None);
        round(&mut health, 1, [Outcome::Lost, Outcome::Lost]);
        assert_eq!(health.down_changed(), None);
        round(&mut health, 2, [Outcome::Lost, Outcome::Lost]);
        assert_eq!((health.down_changed(), health.down_changed()), (Some(true), None));
        round(&mut health, 3, [Outcome::Delivered, Outcome::Lost]);
        assert_eq!(health.down_changed(), Some(false));
    }

    #[test]
    fn bursts_back_off_until_a_calm_minute_and_never_ask_a_candidate_for_its_own_workload() {
        let mut health = health(Some(p(1)));
        round(&mut health, 1, [Outcome::Lost, Outcome::Delivered]);
        let sum = health.test(p(0), Some(at(1)));
        assert!(health.needs_burst(at(1), sum, 100.0));
        assert_eq!(health.plan_burst(at(1), p(0)), (BURST_CONNECTS, vec![p(0)]));
        assert!(!health.needs_burst(at(1), sum, 100.0) && health.needs_burst(at(2), sum, 100.0));
        health.plan_burst(at(2), p(0));
        assert!(!health.needs_burst(at(3), sum, 100.0) && health.needs_burst(at(4), sum, 100.0));
        health.plan_burst(at(100), p(0));
        assert!(health.needs_burst(at(101), sum, 100.0), "it was calm for over a minute");
        assert!(health.is_suspicious());
        health.clear(p(0));
        assert!(!health.is_suspicious());
        assert_eq!(health.test(p(0), Some(at(1))).value(), 0.0);
    }

    #[test]
    fn rounds_that_are_no_longer_remembered_take_no_outcome() {
        let mut health = health(None);
        let old = health.begin_round(at(1), &[p(0), p(1)]);
        for n in 0..ROUNDS as u64 {
            round(&mut health, 2 + n, [Outcome::Delivered, Outcome::Delivered]);
        }
        assert!(!health.record(old, p(0), Outcome::Lost));
        assert_eq!(health.passed_last(p(0)), Some(true));
    }
}
