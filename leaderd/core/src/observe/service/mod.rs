//! Real services, asked through every slot at once: what they say about the candidates.
//!
//! A *round* asks one service through every slot at the same moment. A slot fails a round only where another slot
//! passed it, so a service that is down fails through all of them and says nothing. It also counts only where packets
//! of the other classes, sent after it, came back through the slot: what they lose as well is theirs to judge. At the
//! first failure a burst of rounds follows ([`requests`]), and the same sequential test as for packets decides.
//!
//! All of it is kept apart from the rings of the other classes: a service has its own pace, and its own reasons to be slow.

pub mod requests;

use std::collections::VecDeque;
use std::time::Duration;

use crate::ids::NodeName;
use crate::mesh::{Mesh, Node, Service};
use crate::time::Instant;
use crate::verdict::{Cause, EvidenceRow, ProbeClass};

use crate::observe::evidence::Outcome;
use crate::observe::judgement::sprt;
use crate::observe::location::LocationWatch;
use crate::observe::probing::rtt::Rtt;

/// Rounds remembered per service: a minute of them, or a few bursts.
const ROUNDS: usize = 64;
/// Controls needed for a share of loss, and how many of the latest are looked at by themselves: a service may have begun
/// to fail at random only now.
const CONTROLS: usize = 4;
const RECENT: usize = 8;
/// A candidate has recovered once each service passed so many times in a row through it; older rounds count no more.
const RECOVERY_ROUNDS: usize = 3;
const RECOVERY: Duration = Duration::from_secs(2);
const STALE: Duration = Duration::from_secs(30);
/// Headers of a full TCP segment, generously: an exchange with more bytes than the MTU less this had large packets.
const SEGMENT_HEADERS: u32 = 120;

/// What became of one slot's part in a round.
#[derive(Debug, Clone, Copy)]
struct Attempt {
    /// `Void`: not asked.
    outcome: Outcome,
    /// The TCP connect at least succeeded.
    connected: bool,
}

#[derive(Debug)]
struct Round {
    sent: Instant,
    /// By path.
    attempts: Vec<Attempt>,
}

impl Round {
    fn passed_elsewhere(&self, p: usize) -> bool {
        self.attempts.iter().enumerate().any(|(k, t)| k != p && t.outcome == Outcome::Delivered)
    }

    fn is_decided(&self) -> bool {
        self.attempts.iter().all(|t| t.outcome != Outcome::Pending)
    }
}

/// One service of a watched location.
#[derive(Debug)]
pub struct ServiceHealth {
    pub service: Service,
    /// The node that it is behind.
    node: NodeName,
    /// Index of the path whose own workload it is: it need not relay to it, so it is not asked through that one.
    candidate: Option<usize>,
    rounds: VecDeque<Round>,
    since: Instant,
    /// Number of the oldest round.
    first: u64,
    /// By path: of whole exchanges, the service's own time included.
    rtt: Vec<Rtt>,
    /// Bytes of the longest answer so far.
    answer: u32,
    next_burst: Instant,
    burst_gap: Duration,
    /// Number of the round after the last burst.
    burst_end: u64,
    /// When the burst of the present suspicion was sent.
    suspected: Option<Instant>,
    /// It answers through no slot, and that was logged.
    down: bool,
}

/// What the services say against a candidate.
#[derive(Debug, Clone, Copy)]
pub struct ServiceFault {
    pub cause: Cause,
    pub from: Instant,
    pub suspected: Option<Instant>,
    /// When the last exchange that passed before it had begun.
    pub ok_before: Option<Instant>,
}

impl ServiceHealth {
    fn new(
        service: Service,
        node: &Node,
        candidate: Option<usize>,
        paths: usize,
        now: Instant,
    ) -> Self {
        Self {
            service,
            node: node.name.clone(),
            candidate,
            rounds: VecDeque::new(),
            since: now,
            first: 0,
            rtt: vec![Rtt::new(); paths],
            answer: 0,
            next_burst: now,
            burst_gap: Duration::ZERO,
            burst_end: 0,
            suspected: None,
            down: false,
        }
    }

    fn at(&mut self, round: u64, p: usize) -> Option<&mut Attempt> {
        let index = usize::try_from(round.checked_sub(self.first)?).ok()?;
        self.rounds.get_mut(index)?.attempts.get_mut(p)
    }

    /// The share that the best other slot lost of the rounds that any slot passed: of all, or of the latest if that is more.
    fn control_loss(&self, p: usize) -> f64 {
        let paths = self.rtt.len();
        let share = |k: usize, latest: usize| {
            let live =
                self.rounds.iter().rev().filter(|r| r.is_decided() && r.passed_elsewhere(paths));
            let settled = live.filter_map(|r| match r.attempts[k].outcome {
                Outcome::Delivered => Some(false),
                o if o.is_loss() => Some(true),
                _ => None,
            });
            let settled = settled.take(latest);
            let (n, lost) = settled.fold((0, 0), |(n, lost), l| (n + 1, lost + usize::from(l)));
            // Laplace's estimate: of a few rounds without a loss it is not known that there will be none.
            (n >= CONTROLS).then_some((lost + 1) as f64 / (n + 2) as f64)
        };
        let worse = |k: usize| Some(share(k, ROUNDS)?.max(share(k, RECENT)?));
        (0..paths).filter(|k| *k != p).filter_map(worse).reduce(f64::min).unwrap_or(0.0)
    }

    /// Settled rounds that say something about a path, oldest first: (round, lost). `alive`: packets sent then or later
    /// came back.
    fn judged(
        &self,
        p: usize,
        alive: Option<Instant>,
    ) -> impl DoubleEndedIterator<Item = (&Round, bool)> {
        let settled = self.rounds.iter().filter(|r| r.is_decided());
        settled.filter_map(move |r| match r.attempts[p].outcome {
            Outcome::Delivered => Some((r, false)),
            o if o.is_loss() && r.passed_elsewhere(p) && alive >= Some(r.sent) => Some((r, true)),
            _ => None,
        })
    }

    /// The CUSUM of the test against a path, and where its present climb began.
    fn weigh(&self, p: usize, alive: Option<Instant>) -> (f64, Option<Instant>) {
        let test = sprt::failure(self.control_loss(p));
        let (mut value, mut from) = (0.0_f64, None);
        for (round, lost) in self.judged(p, alive) {
            value = (value + test.step(lost)).max(0.0);
            from = if value > 0.0 { from.or(Some(round.sent)) } else { None };
        }
        (value, from)
    }

    /// A connect that passes where the exchange after it does not, with large packets in it, smells of the MTU.
    fn cause(&self, p: usize, alive: Option<Instant>, from: Instant, mtu: u16) -> Cause {
        let large = self.service.http.as_ref().map_or(0, |h| h.body.max(self.answer));
        let mut lost = self.judged(p, alive).filter(|(r, lost)| *lost && r.sent >= from);
        let connects = lost.all(|(r, _)| r.attempts[p].connected);
        if connects && large + SEGMENT_HEADERS > u32::from(mtu) {
            Cause::Mtu
        } else {
            Cause::Partial
        }
    }
}

impl LocationWatch {
    /// The services of the mesh file, with nothing known of them yet.
    pub fn services_of(mesh: &Mesh, watch: &LocationWatch, now: Instant) -> Vec<ServiceHealth> {
        let Some(location) = mesh.locations.get(&watch.location) else { return Vec::new() };
        let all = location.services.iter().filter_map(|s| {
            let node = mesh.node_behind(&watch.location, s.address.ip())?;
            let candidate = watch.paths.iter().position(|p| node.slot == Some(p.slot));
            Some(ServiceHealth::new(s.clone(), node, candidate, watch.paths.len(), now))
        });
        all.collect()
    }

    /// What the services say against a candidate, if that is enough to condemn it: the worst of them.
    pub fn service_fault(&self, p: usize, h: f64, mtu: u16) -> Option<ServiceFault> {
        let alive = self.paths[p].any_ok;
        let faults = self.services.iter().filter_map(|s| {
            let (value, from) = s.weigh(p, alive);
            (value >= h).then_some((value, s, from?))
        });
        let (_, s, from) = faults.max_by(|a, b| a.0.total_cmp(&b.0))?;
        let passed = s.judged(p, alive).filter(|(r, lost)| !lost && r.sent < from);
        Some(ServiceFault {
            cause: s.cause(p, alive, from, mtu),
            from,
            suspected: s.suspected,
            ok_before: passed.map(|(r, _)| r.sent).max(),
        })
    }

    /// A candidate that services condemned serves all of them again.
    pub fn services_recovered(&self, now: Instant, p: usize, interval: Duration) -> bool {
        let path = &self.paths[p];
        if now.since(path.since) < RECOVERY {
            return false;
        }
        let stale = STALE.max(interval * 4);
        self.services.iter().filter(|s| s.candidate != Some(p)).all(|s| {
            let recent = s.judged(p, path.any_ok).filter(|(r, _)| now.since(r.sent) < stale);
            let latest: Vec<bool> =
                recent.rev().take(RECOVERY_ROUNDS).map(|(_, lost)| lost).collect();
            // One that nobody reaches for long is not this candidate's trouble.
            let enough = latest.len() == RECOVERY_ROUNDS || now.since(s.since) >= stale;
            enough && !latest.contains(&true)
        })
    }

    /// What was held against a candidate is settled.
    pub fn clear_service_rounds(&mut self, p: usize) {
        for s in &mut self.services {
            for round in &mut s.rounds {
                round.attempts[p] = Attempt { outcome: Outcome::Void, connected: false };
            }
            s.suspected = None;
        }
    }

    /// How many services answer through a candidate, of how many that were asked through it.
    pub fn services_up(&self, p: usize) -> (u8, u8) {
        let latest = self.services.iter().filter_map(|s| {
            let settled = s.rounds.iter().rev().map(|r| r.attempts[p].outcome);
            settled.into_iter().find(|o| *o == Outcome::Delivered || o.is_loss())
        });
        latest.fold((0, 0), |(up, of), o| (up + u8::from(!o.is_loss()), of + 1))
    }

    /// Evidence of class `service` since `from`: one row over all services, and one for each that failed.
    pub fn service_rows(&self, p: usize, from: Instant) -> Vec<EvidenceRow> {
        let alive = self.paths[p].any_ok;
        let row = |s: Option<&ServiceHealth>, counts: (u32, u32)| EvidenceRow {
            class: ProbeClass::Service,
            target: s.map(|s| s.node.clone()),
            address: s.map(|s| s.service.address.ip()),
            port: s.map(|s| s.service.address.port()),
            sent: counts.0,
            lost: counts.1,
            time_exceeded: 0,
        };
        let count = |s: &ServiceHealth| {
            let since = s.judged(p, alive).filter(|(r, _)| r.sent >= from);
            since.fold((0, 0), |(n, lost), (_, l)| (n + 1, lost + u32::from(l)))
        };
        let counts: Vec<_> = self.services.iter().map(|s| (s, count(s))).collect();
        let all = counts.iter().fold((0, 0), |sum, (_, c)| (sum.0 + c.0, sum.1 + c.1));
        let failed = counts.iter().filter(|(_, c)| c.1 > 0).map(|(s, c)| row(Some(*s), *c));
        let mut rows = vec![row(None, all)];
        rows.extend(failed);
        rows.retain(|r| r.sent > 0);
        rows
    }
}
