//! Watches other locations: finds faults within a few hundred milliseconds, without false alarms.
//!
//! A candidate sends probes through **every** slot of every other location at once, to the same workload addresses. So each
//! round is an experiment with controls: what a standby loses as well is not the leader's fault, and a target that is dead
//! through every slot is no candidate's. `probing` sends and waits, `evidence` keeps outcomes.
//!
//! At the first timeout of a new flow a burst goes through the suspect, to several targets and in every class, with controls
//! through every standby. One timeout later all of it is in, and `judgement` decides by a sequential test: detection costs about
//! interval/2 + timeout + timeout, and false alarms are as rare as the operator asks. The classes in the burst name the cause in
//! the same moment.
//!
//! A loss counts only where the target is *known to live*: another path reached it with a probe sent at the same time or later.
//! Until that is known no candidate is blamed; a reply that comes after its timeout turns the loss into a delivery and lengthens
//! the timeout. Where everything fails for this observer in most locations, it abstains.
//!
//! Nothing here reads a clock or a random source, and nothing grows without a bound.

mod evidence;
mod index;
mod judgement;
mod location;
pub mod outward;
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

use crate::fault::Fault;
use crate::ids::{Epoch, LocationName, NodeName, Slot};
use crate::io::{LogLevel, ProbeId, ProbeSend};
use crate::mesh::Mesh;
use crate::probe::ProbeKeys;
use crate::status::{HiddenSource, UnreachedNode};
use crate::time::{Instant, Now, WallTime};
use crate::verdict::{Report, Verdict};

use evidence::Path;
use index::{IndexVec, PathIdx, TargetIdx, WatchIdx};
use location::LocationWatch;
pub(crate) use location::{full_watchers, interval_of};
use probing::budget::Budget;
pub use probing::budget::steady_probes;
use probing::in_flight::InFlightProbes;
use probing::schedule::ProbeSpec;

/// Between two reports about a location when nothing changes.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// While a leader is degraded reports are repeated this often and for this long: they may get lost.
const REPEAT_EVERY: Duration = Duration::from_millis(100);
const REPEAT_FOR: Duration = Duration::from_secs(2);
/// Most outputs held. A shell drains them after every input, so there are far fewer.
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
    /// What is known of this node's tunnels to a location has changed: [`Observer::tunnels`], [`Observer::is_silent`].
    TunnelsChanged(LocationName),
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

/// What is due, apart from probes, which have timers of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Round(WatchIdx),
    Report(WatchIdx),
    Verify(WatchIdx),
    /// A loss begins to count.
    Judge(WatchIdx),
    /// The next service of a location.
    Service(WatchIdx),
}

impl Timer {
    fn watch(self) -> WatchIdx {
        match self {
            Self::Round(watch)
            | Self::Report(watch)
            | Self::Verify(watch)
            | Self::Judge(watch)
            | Self::Service(watch) => watch,
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
    watches: IndexVec<WatchIdx, LocationWatch>,
    by_name: BTreeMap<LocationName, WatchIdx>,
    by_ssid: BTreeMap<u16, (WatchIdx, TargetIdx)>,
    in_flight: InFlightProbes,
    timers: BTreeSet<(Instant, Timer)>,
    out: VecDeque<ObserverOutput>,
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
            watches: IndexVec::default(),
            by_name: BTreeMap::new(),
            by_ssid: BTreeMap::new(),
            in_flight: InFlightProbes::default(),
            timers: BTreeSet::new(),
            out: VecDeque::new(),
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
        let Some(&watch) = self.by_name.get(location) else { return };
        let w = &mut self.watches[watch];
        if let Some(v) = w.verification.as_ref() {
            self.timers.remove(&(v.next(), Timer::Verify(watch)));
        }
        if w.decided(now.mono, epoch, leaders) {
            self.timers.insert((now.mono, Timer::Verify(watch)));
        }
    }

    pub fn handle_timeout(&mut self, now: Now) {
        self.note_stall(now);
        let mut lossy = BTreeSet::new();
        let mut rounds = Vec::new();
        while self.poll_timeout().is_some_and(|due| due <= now.mono) {
            let timer = self.timers.first().copied();
            let probe = self.in_flight.next_due();
            let Some((due, timer)) =
                timer.filter(|(due, _)| probe.is_none_or(|probe| *due < probe))
            else {
                lossy.extend(self.expire_probe(now));
                continue;
            };
            self.timers.remove(&(due, timer));
            match timer {
                Timer::Round(watch) => rounds.push(watch),
                Timer::Report(watch) => self.report(now, watch),
                Timer::Verify(watch) => self.verify_tick(now, watch),
                Timer::Judge(watch) => drop(lossy.insert(watch)),
                Timer::Service(watch) => self.service_round(now, watch),
            }
        }
        // All that timed out at once is judged together.
        for watch in lossy {
            self.judge(now, watch);
        }
        for watch in rounds {
            self.send_round(now, watch);
        }
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        let timer = self.timers.first().map(|(due, _)| *due);
        [timer, self.in_flight.next_due()].into_iter().flatten().min()
    }

    pub fn poll_output(&mut self) -> Option<ObserverOutput> {
        self.out.pop_front()
    }

    /// Returns the present view of a location, for the status.
    pub fn view(&self, now: Now, location: &LocationName) -> Option<Report> {
        let w = &self.watches[*self.by_name.get(location)?];
        Some(w.report(&self.me, now, self.abstains()))
    }

    /// Returns whether the candidate in this slot forwards, by this node's own evidence.
    pub fn forwards(&self, location: &LocationName, slot: Slot) -> bool {
        self.by_name.get(location).is_some_and(|&watch| self.watches[watch].forwards(slot))
    }

    /// Returns what this node knows of its tunnels to a location: its verdicts on the candidates there, with one exception. If a candidate
    /// answers but relays nothing, and no other tunnel shows that the targets live, the verdict blames nobody. The tunnel still carries
    /// nothing, so this function returns it as not forwarding.
    pub fn tunnels(&self, location: &LocationName) -> Vec<(Slot, Verdict)> {
        let Some(watch) = self.by_name.get(location).map(|&watch| &self.watches[watch]) else {
            return Vec::new();
        };
        let tunnel = |(p, path): (PathIdx, &Path)| match path.verdict.get() {
            verdict if !verdict.is_degraded() && watch.relays_nothing(p) => {
                (path.slot, Verdict::Degraded { cause: Fault::NotForwarding, direction: None })
            }
            verdict => (path.slot, verdict.clone()),
        };
        watch.paths.enumerate().map(tunnel).collect()
    }

    /// Returns whether nothing comes back through any tunnel to a location, and something should: WireGuard's first handshakes are over.
    pub fn is_silent(&self, now: Now, location: &LocationName) -> bool {
        let watch = self.by_name.get(location).map(|&watch| &self.watches[watch]);
        watch.is_some_and(|w| w.is_silent(now.mono))
    }

    /// Returns whether nothing gets through any candidate of the location, by this node's own evidence. Where some packets do
    /// (others are lost, too large, or of new flows), another way would cross the same nodes.
    pub fn is_cut_off(&self, location: &LocationName) -> bool {
        self.by_name.get(location).is_some_and(|&watch| self.watches[watch].is_cut_off())
    }

    /// Returns the candidate that this node would choose by its own evidence: the first of the ranking that forwards.
    pub fn own_choice(&self, location: &LocationName) -> Option<Slot> {
        let w = &self.watches[*self.by_name.get(location)?];
        self.mesh.ranking(location).into_iter().find(|slot| w.forwards(*slot))
    }

    /// Returns the long-lived flows that may be used again ([`crate::io::Flow::Pinned`]).
    pub fn pinned_flows(&self) -> BTreeSet<u32> {
        self.watches.iter().flat_map(LocationWatch::pinned_flows).collect()
    }

    /// Returns the number of replies since the start whose HMAC was wrong.
    pub fn forged_replies(&self) -> u64 {
        self.forged
    }

    /// Returns the number of probes since the start that arrived from another source than they were sent from.
    pub fn rewritten_sources(&self) -> u64 {
        self.rewritten
    }

    /// Returns where sources do not survive on the way to a location.
    pub fn hidden_sources(&self, location: &LocationName) -> Vec<HiddenSource> {
        let watch = self.by_name.get(location);
        watch.map(|&watch| self.watches[watch].hidden_sources()).unwrap_or_default()
    }

    /// Returns the nodes of a location that none of its candidates reaches.
    pub fn unreached(&self, location: &LocationName) -> Vec<UnreachedNode> {
        let watch = self.by_name.get(location);
        watch.map(|&watch| self.watches[watch].unreached()).unwrap_or_default()
    }

    /// Returns the number of rounds left out since the start because the probe budget was spent.
    pub fn rounds_left_out(&self) -> u64 {
        self.budget.left_out()
    }

    /// Returns whether the probe budget is too small for what this node watches.
    pub fn is_short_of_probes(&self, now: Instant) -> bool {
        self.budget.is_short(now)
    }

    fn emit(&mut self, output: ObserverOutput) {
        if self.out.len() < MAX_OUTPUTS {
            self.out.push_back(output);
        }
    }

    /// Judges a location, sends the bursts that it asks for, reports what changed.
    fn judge(&mut self, now: Now, watch: WatchIdx) {
        let mesh = self.mesh.clone();
        let judgement = self.watches[watch].judge(&mesh, now.mono);
        for p in judgement.bursts {
            let probes = self.watches[watch].plan_burst(&mesh, now.mono, p);
            if !self.send_all(now, watch, probes) {
                self.budget.leave_out(now.mono);
            }
        }
        for probe in judgement.probes {
            self.send_all(now, watch, vec![probe]);
        }
        for (level, message, fields) in judgement.logs {
            self.emit(ObserverOutput::Log { level, message, fields });
        }
        let w = &mut self.watches[watch];
        if let Some(old) = std::mem::replace(&mut w.next_judge, judgement.judge_at) {
            self.timers.remove(&(old, Timer::Judge(watch)));
        }
        if let Some(due) = judgement.judge_at {
            self.timers.insert((due, Timer::Judge(watch)));
        }
        if judgement.changed || judgement.tunnels_changed {
            let location = self.watches[watch].location.clone();
            self.emit(ObserverOutput::TunnelsChanged(location));
        }
        if judgement.changed {
            self.report(now, watch);
        }
        self.reschedule_soon(now, watch);
    }

    /// Sends probes if the budget has room for all of them.
    fn send_all(&mut self, now: Now, watch: WatchIdx, probes: Vec<ProbeSpec>) -> bool {
        let enough = self.spend(now.mono, probes.len());
        if enough {
            probes.into_iter().for_each(|probe| self.send(now, watch, probe));
        }
        enough
    }

    /// A location that was watched slowly and is in trouble now gets its next round soon.
    fn reschedule_soon(&mut self, now: Now, watch: WatchIdx) {
        let w = &mut self.watches[watch];
        let soon = now.mono + w.interval(self.mesh.policy_of(&w.location), now.mono);
        if w.next_round > soon {
            self.timers.remove(&(w.next_round, Timer::Round(watch)));
            w.next_round = soon;
            self.timers.insert((soon, Timer::Round(watch)));
        }
    }

    fn report(&mut self, now: Now, watch: WatchIdx) {
        for (level, message) in self.watches[watch].note_unreached(now.mono) {
            let location = self.watches[watch].location.to_string();
            let fields = vec![("location.name".to_owned(), location)];
            self.emit(ObserverOutput::Log { level, message, fields });
        }
        let w = &mut self.watches[watch];
        self.timers.remove(&(w.next_report, Timer::Report(watch)));
        if !w.wants_to_report() {
            w.next_report = now.mono + REPORT_EVERY;
            self.timers.insert((w.next_report, Timer::Report(watch)));
            return;
        }
        // It looks at all locations, so only where there is something to report.
        let abstains = self.abstains();
        let w = &mut self.watches[watch];
        w.report_seq += 1;
        let report = w.report(&self.me, now, abstains);
        let urgent = w.paths.iter().any(|p| {
            p.verdict.get().is_degraded()
                && w.leaders.contains(&p.slot)
                && now.mono.since(p.verdict.since()) < REPEAT_FOR
        });
        w.next_report = now.mono + if urgent { REPEAT_EVERY } else { REPORT_EVERY };
        self.timers.insert((w.next_report, Timer::Report(watch)));
        self.emit(ObserverOutput::Report(report));
    }

    /// Returns whether most locations fail in every slot: then this observer is the sick one (as in Lifeguard,
    /// arXiv:1707.00788).
    fn abstains(&self) -> bool {
        let failing = self.watches.iter().filter(|w| w.all_fail()).count();
        let silent = self.watches.iter().filter(|w| w.all_paths_silent).count();
        let all = self.watches.len();
        all > 0 && (silent == all || (all >= 2 && failing * 2 > all))
    }
}
