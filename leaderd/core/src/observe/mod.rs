//! Watching other locations: fast, and calm.
//!
//! A candidate sends probes through **every** slot of every other location at once, to the same workload addresses. So
//! each round is an experiment with controls: what a standby loses as well is not the leader's fault, and a target that
//! is dead through every slot is nobody's. `schedule` says what a round holds.
//!
//! At the first timeout of a new flow a burst goes through the suspect, to several targets and in every class, with
//! controls through every standby. One timeout later all of it is in, and `judge` decides by a sequential test
//! (`sprt`): detection costs about interval/2 + timeout + timeout, and a false alarm as little as the operator asks
//! for. The classes in the burst name the cause in the same moment.
//!
//! A loss counts only where the target is *known to live*: another path reached it with a probe sent at the same time or
//! later. Until that is known nobody is blamed; a reply that comes after its timeout turns the loss into a delivery and
//! lengthens the timeout. Where everything fails for this observer in most locations, it abstains.
//!
//! Nothing here reads a clock or a random source, and nothing grows without a bound.

mod evidence;
mod judgement;
mod location;
mod probing;
mod reconfigure;
mod service;
#[cfg(test)]
mod tests;
mod verify;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::ids::{Epoch, LocationName, NodeName, Slot};
use crate::io::{LogLevel, ProbeId, ProbeSend};
use crate::mesh::Mesh;
use crate::probe::ProbeKeys;
use crate::status::HiddenSource;
use crate::time::{Instant, Now, WallTime};
use crate::verdict::{Report, Verdict};

use location::LocationWatch;
pub use location::weight;
use probing::budget::Budget;
pub use probing::budget::steady_probes;
use probing::in_flight::InFlight;
use service::requests::InFlightRequest;

/// How long a reply is still awaited after its timeout, to learn that the timeout was wrong.
const GRACE: Duration = Duration::from_secs(2);
/// A timer that fires so much later than it was due: this daemon did not run, and what was under way meanwhile is neither
/// lost nor slow on that account.
const STALL: Duration = Duration::from_millis(5);
/// Between two reports about a location when nothing changes.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// While a leader is degraded reports are repeated this often, for so long: they may get lost.
const REPEAT_EVERY: Duration = Duration::from_millis(100);
const REPEAT_FOR: Duration = Duration::from_secs(2);
/// Most outputs held; a shell drains after every input, so this is never met in earnest.
const MAX_OUTPUTS: usize = 65_536;
/// Bytes of UDP and IP headers.
const UDP: u16 = 8;
const fn ip_header(v6: bool) -> u16 {
    if v6 { 40 } else { 20 }
}

/// What an observer wants done.
#[derive(Clone, PartialEq, Debug)]
pub enum ObserverOutput {
    Send(ProbeSend),
    /// Nothing more is expected for a probe with a socket of its own.
    Forget(ProbeId),
    /// For the candidates of the location it is about.
    Report(Report),
    /// As-workload probes pass under this epoch.
    Verified {
        location: LocationName,
        epoch: Epoch,
        at: WallTime,
        blackout: Option<Duration>,
    },
    Log {
        level: LogLevel,
        message: String,
        fields: Vec<(String, String)>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// A probe's timeout, and then the end of its grace.
    Probe(ProbeId),
    Round(usize),
    Report(usize),
    Verify(usize),
    /// A loss begins to count.
    Judge(usize),
    /// The next service of a location.
    Service(usize),
    /// A service's timeout, and then the end of its grace.
    Request(ProbeId),
}

impl Timer {
    /// True for what a location is due, apart from its probes.
    fn is_of(self, watch: usize) -> bool {
        match self {
            Self::Round(at)
            | Self::Report(at)
            | Self::Verify(at)
            | Self::Judge(at)
            | Self::Service(at) => at == watch,
            Self::Probe(_) | Self::Request(_) => false,
        }
    }
}

/// Watches all other locations. `handle_*` in, then drain `poll_output`, then sleep until `poll_timeout`.
#[derive(Debug)]
pub struct Observer {
    mesh: Arc<Mesh>,
    me: NodeName,
    keys: ProbeKeys,
    rng: ChaCha8Rng,
    watches: Vec<LocationWatch>,
    by_name: BTreeMap<LocationName, usize>,
    /// SSID to (watch, target).
    by_ssid: BTreeMap<u16, (usize, usize)>,
    by_seq: BTreeMap<(u16, u32), ProbeId>,
    in_flight: BTreeMap<ProbeId, InFlight>,
    /// What services were asked and may still answer.
    requests: BTreeMap<ProbeId, InFlightRequest>,
    timers: BTreeSet<(Instant, Timer)>,
    out: VecDeque<ObserverOutput>,
    next_probe: u64,
    next_ssid: u16,
    budget: Budget,
    /// When this daemon last ran late.
    stalled: Instant,
    /// Replies whose HMAC was wrong.
    forged: u64,
    /// Probes that arrived from another source than they were sent from.
    rewritten: u64,
}

impl Observer {
    pub fn new(mesh: Arc<Mesh>, me: NodeName, keys: ProbeKeys, seed: u64, now: Now) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let next_ssid = rng.next_u32() as u16;
        let mut observer = Self {
            mesh: mesh.clone(),
            me,
            keys,
            rng,
            watches: Vec::new(),
            by_name: BTreeMap::new(),
            by_ssid: BTreeMap::new(),
            by_seq: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            requests: BTreeMap::new(),
            timers: BTreeSet::new(),
            out: VecDeque::new(),
            next_probe: 0,
            next_ssid,
            budget: Budget::new(now.mono),
            stalled: Instant::default(),
            forged: 0,
            rewritten: 0,
        };
        observer.set_mesh(now, mesh);
        observer
    }

    /// This node has programmed a decision: its as-workload probes test it from now on.
    pub fn decided(&mut self, now: Now, location: &LocationName, epoch: Epoch, leaders: &[Slot]) {
        let Some(&at) = self.by_name.get(location) else { return };
        let w = &mut self.watches[at];
        if let Some(v) = w.verify.as_ref() {
            self.timers.remove(&(v.next, Timer::Verify(at)));
        }
        if w.decided(now.mono, epoch, leaders) {
            self.timers.insert((now.mono, Timer::Verify(at)));
        }
    }

    pub fn handle_timeout(&mut self, now: Now) {
        self.note_stall(now);
        let mut dirty = BTreeSet::new();
        let mut rounds = Vec::new();
        while let Some(&(due, timer)) = self.timers.first() {
            if due > now.mono {
                break;
            }
            self.timers.pop_first();
            match timer {
                Timer::Probe(id) => {
                    if let Some(at) = self.probe_timeout(now, id) {
                        dirty.insert(at);
                    }
                }
                Timer::Round(at) => rounds.push(at),
                Timer::Report(at) => self.report(now, at),
                Timer::Verify(at) => self.verify_tick(now, at),
                Timer::Judge(at) => drop(dirty.insert(at)),
                Timer::Service(at) => self.service_round(now, at),
                Timer::Request(id) => self.request_timeout(now, id),
            }
        }
        // All that timed out at once is judged together.
        for at in dirty {
            self.judge(now, at);
        }
        for at in rounds {
            self.round(now, at);
        }
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.first().map(|t| t.0)
    }

    pub fn poll_output(&mut self) -> Option<ObserverOutput> {
        self.out.pop_front()
    }

    /// Present view of a location (for status).
    pub fn view(&self, now: Now, location: &LocationName) -> Option<Report> {
        let w = &self.watches[*self.by_name.get(location)?];
        Some(w.report(&self.me, now, self.abstains()))
    }

    /// This node's own evidence says that the candidate in this slot forwards.
    pub fn forwards(&self, location: &LocationName, slot: Slot) -> bool {
        self.by_name.get(location).is_some_and(|&at| {
            let mut paths = self.watches[at].paths.iter();
            paths.any(|p| p.slot == slot && p.verdict == Verdict::Forwarding)
        })
    }

    /// This node's own evidence says that nothing gets through any candidate of the location. Where some packets do (others are
    /// lost, too large, or of new flows), another way would cross the same nodes.
    pub fn is_cut_off(&self, location: &LocationName) -> bool {
        self.by_name.get(location).is_some_and(|&at| self.watches[at].is_cut_off())
    }

    /// Whom this node would choose by its own evidence: the first of the ranking that forwards.
    pub fn own_choice(&self, location: &LocationName) -> Option<Slot> {
        let w = &self.watches[*self.by_name.get(location)?];
        let forwards =
            |s: &Slot| w.paths.iter().any(|p| p.slot == *s && p.verdict == Verdict::Forwarding);
        self.mesh.ranking(location).into_iter().find(forwards)
    }

    /// The long-lived flows that may be used again: [`crate::io::Flow::Pinned`].
    pub fn pinned_flows(&self) -> BTreeSet<u32> {
        self.watches.iter().flat_map(LocationWatch::pinned_flows).collect()
    }

    /// Replies since the start whose HMAC was wrong.
    pub fn forged_replies(&self) -> u64 {
        self.forged
    }

    /// Probes since the start that arrived from another source than they were sent from.
    pub fn rewritten_sources(&self) -> u64 {
        self.rewritten
    }

    /// Where sources do not survive on the way to a location.
    pub fn hidden_sources(&self, location: &LocationName) -> Vec<HiddenSource> {
        self.by_name.get(location).map(|&at| self.watches[at].hidden_sources()).unwrap_or_default()
    }

    /// Rounds left out since the start because the probe budget was spent.
    pub fn rounds_left_out(&self) -> u64 {
        self.budget.left_out()
    }

    /// The probe budget is too small for what this node watches.
    pub fn is_short_of_probes(&self, now: Instant) -> bool {
        self.budget.is_short(now)
    }

    fn emit(&mut self, output: ObserverOutput) {
        if self.out.len() < MAX_OUTPUTS {
            self.out.push_back(output);
        }
    }

    /// Judges a location, sends the bursts that it asks for, reports what changed.
    fn judge(&mut self, now: Now, at: usize) {
        let mesh = self.mesh.clone();
        let judged = self.watches[at].judge(&mesh, now.mono);
        for p in judged.bursts {
            let probes = self.watches[at].burst(&mesh, now.mono, p, &mut self.rng);
            if self.spend(now.mono, probes.len()) {
                for spec in probes {
                    self.send(now, at, spec);
                }
            } else {
                self.budget.leave_out(now.mono);
            }
        }
        for spec in judged.probes {
            if self.spend(now.mono, 1) {
                self.send(now, at, spec);
            }
        }
        for (level, message, fields) in judged.logs {
            self.emit(ObserverOutput::Log { level, message, fields });
        }
        let w = &mut self.watches[at];
        if let Some(old) = std::mem::replace(&mut w.next_judge, judged.judge_at) {
            self.timers.remove(&(old, Timer::Judge(at)));
        }
        if let Some(again) = judged.judge_at {
            self.timers.insert((again, Timer::Judge(at)));
        }
        if judged.changed {
            self.report(now, at);
        }
        self.reschedule_soon(now, at);
    }

    /// A location that was watched slowly and is in trouble now gets its next round soon.
    fn reschedule_soon(&mut self, now: Now, at: usize) {
        let w = &mut self.watches[at];
        let soon = now.mono + w.interval(self.mesh.policy_of(&w.location), now.mono);
        if w.next_round > soon {
            self.timers.remove(&(w.next_round, Timer::Round(at)));
            w.next_round = soon;
            self.timers.insert((soon, Timer::Round(at)));
        }
    }

    fn report(&mut self, now: Now, at: usize) {
        let w = &mut self.watches[at];
        self.timers.remove(&(w.next_report, Timer::Report(at)));
        if !w.wants_to_report() {
            w.next_report = now.mono + REPORT_EVERY;
            self.timers.insert((w.next_report, Timer::Report(at)));
            return;
        }
        // It looks at all locations: not for each that nothing is said of.
        let abstains = self.abstains();
        let w = &mut self.watches[at];
        w.report_seq += 1;
        let report = w.report(&self.me, now, abstains);
        let urgent = w.paths.iter().any(|p| {
            p.verdict.is_degraded()
                && w.leaders.contains(&p.slot)
                && now.mono.since(p.since) < REPEAT_FOR
        });
        w.next_report = now.mono + if urgent { REPEAT_EVERY } else { REPORT_EVERY };
        self.timers.insert((w.next_report, Timer::Report(at)));
        self.emit(ObserverOutput::Report(report));
    }

    /// Most locations fail in every slot: then this observer is the sick one (as in Lifeguard, arXiv:1707.00788).
    fn abstains(&self) -> bool {
        let failing = self.watches.iter().filter(|w| w.all_fail()).count();
        let all_paths_silent = self.watches.iter().filter(|w| w.all_paths_silent).count();
        let all = self.watches.len();
        all > 0 && (all_paths_silent == all || (all >= 2 && failing * 2 > all))
    }
}
