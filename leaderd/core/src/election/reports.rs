//! What the nodes of the mesh said lately: reports, hellos, acknowledgements. Never replicated; every
//! candidate keeps its own, so a new raft leader knows at once. Bounded by the number of nodes in the mesh.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::accusers::Accusers;
use super::situation::{ALIVE, CandidateFacts, Situation};
use super::votes::{Ballot, ObserverView};
use crate::capability::Capabilities;
use crate::fault::Fault;
use crate::ids::{Epoch, Generation, LocationName, NodeName, Slot};
use crate::mesh::Mesh;
use crate::observe::{full_watchers, interval_of};
use crate::relay_pair::{ROW_FRESH, TunnelRow};
use crate::state::{FreezeEnd, LocationState};
use crate::time::{Instant, Now, WallTime};
use crate::verdict::{Report, Verdict};
use crate::wire::Hello;

/// A report counts for this long: three times the interval in which observers repeat it.
const REPORT_FRESH: Duration = Duration::from_secs(3);
/// Slow paths may add this much to both, in all.
const MAX_ALLOWANCE: Duration = Duration::from_secs(5);
/// How long most nodes of the location must miss a leader before that counts, if there are no observers.
const UNREACHABLE_FOR: Duration = Duration::from_millis(2500);
/// The same of a location that watches slowly is two of its intervals, as the evidence in it may be an interval old. Not less than this: it is
/// repeated every second.
const LEAST_FRESH: Duration = Duration::from_millis(1500);
/// Observers whose acknowledgements are remembered.
const MAX_ACKS: usize = 1024;
/// Observers of a fault of the node find it within a second of each other.
const STANDING: Duration = Duration::from_secs(1);

struct Seen<T> {
    at: Instant,
    value: T,
}

/// The last report of an observer.
struct SeenReport {
    at: Instant,
    report: Report,
    /// Since when it finds fault with a candidate, as heard here.
    faults: BTreeMap<Slot, Instant>,
}

impl SeenReport {
    fn view(&self, now: Instant, place: Slot) -> ObserverView {
        let standing = self.faults.iter().filter(|(_, at)| now.since(**at) >= STANDING);
        ObserverView {
            observer: self.report.observer.clone(),
            place,
            slots: self.report.slots.clone(),
            standing: standing.map(|(slot, _)| *slot).collect(),
        }
    }
}

pub(crate) struct Reports {
    started: Instant,
    reports: BTreeMap<NodeName, SeenReport>,
    /// What candidates here say of their tunnels to each other location.
    rows: BTreeMap<(LocationName, Slot), Seen<TunnelRow>>,
    /// Who relays at each other location towards here.
    relays: BTreeMap<LocationName, FarRelays>,
    /// The locations that watch this one at full rate: by the mesh file, whatever their reports say.
    watchers: BTreeSet<LocationName>,
    accusers: Accusers,
    hellos: BTreeMap<NodeName, Seen<HelloFacts>>,
    alive: BTreeMap<NodeName, Instant>,
    down: BTreeMap<NodeName, Instant>,
    /// This node's own trouble.
    broken: Option<Fault>,
    /// The highest epoch that anybody claims for this location, the highest that was proved, that of the decision that this node
    /// follows, and that of the replicated state.
    claimed_epoch: Epoch,
    proved_epoch: Epoch,
    followed_epoch: Epoch,
    epoch: Epoch,
    /// Claims count only with a proof.
    proof_required: bool,
    acks: BTreeMap<NodeName, WallTime>,
    verified: BTreeMap<NodeName, (WallTime, Option<Duration>)>,
    acks_of: Epoch,
    unreachable_since: BTreeMap<Slot, Instant>,
    /// When this node first saw each failover of the replicated state, by the wall-clock time that the state has of it.
    failovers_seen: BTreeMap<WallTime, Instant>,
    /// The freeze in the replicated state, and when it is over on this node's monotonic clock.
    freeze_seen: Option<(FreezeEnd, Instant)>,
}

/// Who relays at another location.
#[derive(PartialEq)]
struct FarRelays {
    /// By its decision.
    leaders: Vec<Slot>,
    /// Now, with detours.
    relays: Vec<Slot>,
}

/// What matters of a hello.
struct HelloFacts {
    capabilities: Capabilities,
    broken: Option<Fault>,
    /// The node's own slot, if it is a candidate of this location.
    slot: Option<Slot>,
    reaches: Vec<Slot>,
    decided: bool,
    /// The raft leader of its location, as it says.
    raft_leader: Option<NodeName>,
    local: bool,
    /// Of the mesh file that the node has.
    generation: Generation,
}

impl Reports {
    pub fn new(now: Instant) -> Self {
        Self {
            started: now,
            reports: BTreeMap::new(),
            rows: BTreeMap::new(),
            relays: BTreeMap::new(),
            watchers: BTreeSet::new(),
            accusers: Accusers::default(),
            hellos: BTreeMap::new(),
            alive: BTreeMap::new(),
            down: BTreeMap::new(),
            broken: None,
            claimed_epoch: Epoch(0),
            proved_epoch: Epoch(0),
            followed_epoch: Epoch(0),
            epoch: Epoch(0),
            proof_required: false,
            acks: BTreeMap::new(),
            verified: BTreeMap::new(),
            acks_of: Epoch(0),
            unreachable_since: BTreeMap::new(),
            failovers_seen: BTreeMap::new(),
            freeze_seen: None,
        }
    }

    /// Records the monotonic start of each wall-clock interval in `state`, so that setting the clock back cannot lengthen
    /// it. Call it whenever the state changed.
    pub fn note_state(&mut self, now: Now, state: &LocationState) {
        self.epoch = state.epoch();
        let times: BTreeSet<WallTime> = state.failover_times().collect();
        self.failovers_seen.retain(|at, _| times.contains(at));
        for at in times {
            self.failovers_seen.entry(at).or_insert(now.mono);
        }
        let until = state.frozen.flatten();
        if until != self.freeze_seen.map(|(until, _)| until) {
            self.freeze_seen =
                until.map(|until| (until, now.mono + until.span.min(by_wall(now, until))));
        }
    }

    /// What is left of a freeze (`Some(None)`: it has no end). One with an end is over when either clock says so.
    pub fn freeze_left(&self, now: Now, state: &LocationState) -> Option<Option<Duration>> {
        let Some(until) = state.frozen? else { return Some(None) };
        let by_wall = by_wall(now, until);
        let by_mono = self.freeze_seen.map_or(until.span, |(_, ends)| ends.since(now.mono));
        Some(by_wall.min(by_mono)).filter(|left| *left > Duration::ZERO).map(Some)
    }

    /// No automatic failover at present.
    pub fn is_frozen(&self, now: Now, state: &LocationState) -> bool {
        self.freeze_left(now, state).is_some()
    }

    /// What is left of a span that began at `at`: on either clock, whichever has less.
    fn left(&self, now: Now, at: WallTime, span: Duration) -> Duration {
        let by_wall = Duration::from_micros(now.wall.0.saturating_sub(at.0));
        let by_mono =
            self.failovers_seen.get(&at).map_or(Duration::ZERO, |&seen| now.mono.since(seen));
        span.saturating_sub(by_wall.max(by_mono))
    }

    /// The epoch to count on from.
    pub fn highest_epoch(&self) -> Epoch {
        let claimed = if self.proof_required { Epoch(0) } else { self.claimed_epoch };
        claimed.max(self.proved_epoch).max(self.followed_epoch)
    }

    /// The epoch of the decision that this node follows. A group that starts anew exceeds it, or its voters would go back.
    pub fn followed(&mut self, epoch: Epoch) {
        let outdone = epoch.next().may_follow(self.epoch);
        self.followed_epoch = if outdone { epoch } else { Epoch(0) };
    }

    /// This node's own brokenness; true if it changed.
    pub fn set_broken(&mut self, broken: Option<Fault>) -> bool {
        std::mem::replace(&mut self.broken, broken) != broken
    }

    /// Whether claims count only with a proof.
    pub fn require_proof(&mut self, required: bool) {
        self.proof_required = required;
    }

    pub fn proof_required(&self) -> bool {
        self.proof_required
    }

    /// Notes a proved epoch. Returns true if it is the highest so far.
    pub fn proved(&mut self, epoch: Epoch) -> bool {
        let more = epoch > self.proved_epoch && epoch.next().may_follow(self.epoch);
        if more {
            self.proved_epoch = epoch;
        }
        more
    }

    /// Ignores a claim so high that no epoch could follow it.
    fn claimed(&mut self, epoch: Epoch) {
        if epoch.next().may_follow(self.epoch) {
            self.claimed_epoch = self.claimed_epoch.max(epoch);
        }
    }

    /// Takes a report. Returns true if it differs from the observer's last one.
    pub fn report(&mut self, now: Instant, report: Report) -> bool {
        self.claimed(report.epoch);
        let newer = self.reports.get(&report.observer).is_none_or(|old| {
            // A lower number long after the last report is an observer that has started anew.
            report.seq > old.report.seq || now.since(old.at) >= REPORT_FRESH
        });
        if !newer {
            return false;
        }
        let gist = |r: &Report| {
            (r.abstains, r.slots.iter().map(|s| (s.slot, s.verdict.clone())).collect::<Vec<_>>())
        };
        let new = gist(&report);
        let before = self.reports.get(&report.observer).map(|old| &old.faults);
        let found = report.slots.iter().filter(|s| s.verdict.is_degraded()).map(|s| s.slot);
        let faults = found
            .map(|slot| (slot, before.and_then(|b| b.get(&slot)).copied().unwrap_or(now)))
            .collect();
        let observer = report.observer.clone();
        let old = self.reports.insert(observer, SeenReport { at: now, report, faults });
        old.is_none_or(|old| gist(&old.report) != new)
    }

    /// Takes what a candidate of this location says of its tunnels to another one. Returns true if it is news.
    pub fn row(
        &mut self,
        now: Instant,
        location: &LocationName,
        slot: Slot,
        row: TunnelRow,
    ) -> bool {
        let seen = Seen { at: now, value: row };
        let old = self.rows.insert((location.clone(), slot), seen);
        let fresh = old.filter(|old| now.since(old.at) < ROW_FRESH);
        fresh.map_or(TunnelRow::UNKNOWN, |old| old.value) != row
    }

    /// Sets who relays at another location: by its decision, and now. Returns true if that is news.
    pub fn set_relays(
        &mut self,
        location: &LocationName,
        leaders: Vec<Slot>,
        relays: Vec<Slot>,
    ) -> bool {
        let relays = FarRelays { leaders, relays };
        if self.relays.get(location) == Some(&relays) {
            return false;
        }
        self.relays.insert(location.clone(), relays);
        true
    }

    /// Notes which locations' votes turn. Call it whenever what they say may have changed.
    pub fn note_votes(&mut self, now: Instant, situation: &Situation) {
        self.accusers.note(now, situation);
    }

    /// The locations that watch this one at full rate.
    pub fn watchers(&self) -> &BTreeSet<LocationName> {
        &self.watchers
    }

    /// Takes a hello. Returns true if the node's brokenness changed.
    pub fn hello(
        &mut self,
        now: Instant,
        hello: &Hello,
        location: &LocationName,
        mesh: &Mesh,
    ) -> bool {
        let local = mesh.node(&hello.node).filter(|n| n.location == *location);
        let slot = local.and_then(|n| n.slot);
        let local = local.is_some();
        let decided = hello.decision.as_ref().filter(|d| local && d.location == *location);
        if let Some(decision) = decided {
            self.claimed(decision.epoch);
        }
        let facts = HelloFacts {
            capabilities: hello.capabilities,
            broken: hello.broken,
            slot,
            reaches: hello.reaches.clone(),
            raft_leader: hello.raft_leader.clone(),
            decided: decided.is_some() || (local && hello.raft_leader.is_some()),
            local,
            generation: hello.generation,
        };
        self.alive.insert(hello.node.clone(), now);
        let old = self.hellos.insert(hello.node.clone(), Seen { at: now, value: facts });
        self.note_reach(now);
        old.is_none_or(|old| old.value.broken != hello.broken)
    }

    pub fn sign_of_life(&mut self, now: Instant, node: &NodeName) {
        match self.alive.get_mut(node) {
            Some(at) => *at = now,
            None => drop(self.alive.insert(node.clone(), now)),
        }
    }

    pub fn reachable(&mut self, now: Instant, node: &NodeName, up: bool) {
        if up {
            self.down.remove(node);
        } else {
            self.down.entry(node.clone()).or_insert(now);
        }
    }

    pub fn ack(&mut self, epoch: Epoch, from: &NodeName, at: WallTime) {
        if self.turn(epoch) && self.acks.len() < MAX_ACKS {
            self.acks.entry(from.clone()).or_insert(at);
        }
    }

    pub fn verify(
        &mut self,
        epoch: Epoch,
        from: &NodeName,
        at: WallTime,
        blackout: Option<Duration>,
    ) {
        if self.turn(epoch) && self.verified.len() < MAX_ACKS {
            self.verified.entry(from.clone()).or_insert((at, blackout));
        }
    }

    /// Makes room for a newer epoch's acknowledgements; false for an older one.
    fn turn(&mut self, epoch: Epoch) -> bool {
        if epoch > self.acks_of {
            self.acks_of = epoch;
            self.acks.clear();
            self.verified.clear();
        }
        epoch == self.acks_of
    }

    /// When these observers had programmed the decision of this epoch.
    pub fn acks<'a>(
        &self,
        epoch: Epoch,
        observers: impl Iterator<Item = &'a ObserverView>,
    ) -> Vec<WallTime> {
        let of = observers.filter(|_| epoch == self.acks_of);
        of.filter_map(|o| self.acks.get(&o.observer).copied()).collect()
    }

    /// When these observers saw traffic pass under the decision of this epoch, and after what blackout.
    pub fn verified<'a>(
        &self,
        epoch: Epoch,
        observers: impl Iterator<Item = &'a ObserverView>,
    ) -> Vec<(WallTime, Option<Duration>)> {
        let of = observers.filter(|_| epoch == self.acks_of);
        of.filter_map(|o| self.verified.get(&o.observer).copied()).collect()
    }

    /// A new mesh file: forgets nodes that have left the mesh or the location.
    pub fn set_mesh(&mut self, mesh: &Mesh, location: &LocationName) {
        let has_candidates = |l: &LocationName| !mesh.candidates_of(l).is_empty();
        self.watchers = full_watchers(mesh, location).filter(has_candidates).collect();
        self.rows.retain(|(l, slot), _| {
            mesh.locations.contains_key(l) && mesh.candidate(location, *slot).is_some()
        });
        self.relays.retain(|l, _| mesh.locations.contains_key(l));
        self.accusers.keep(mesh);
        self.reports.retain(|n, _| mesh.node(n).is_some_and(|n| n.slot.is_some()));
        self.hellos.retain(|n, _| mesh.node(n).is_some());
        self.alive.retain(|n, _| mesh.node(n).is_some());
        self.down.retain(|n, _| mesh.node(n).is_some());
    }

    /// How many voters, this node included, have said hello and know of no decision; `None` if one knows of one.
    pub fn undecided(&self, now: Instant, voters: &[NodeName], me: &NodeName) -> Option<usize> {
        let fresh = || self.hellos.iter().filter(|(_, h)| now.since(h.at) < ALIVE);
        if self.highest_epoch() > Epoch(0) || fresh().any(|(_, h)| h.value.local && h.value.decided)
        {
            return None;
        }
        Some(1 + fresh().filter(|(n, _)| *n != me && voters.contains(n)).count())
    }

    /// The generation of the mesh file that a living node reports.
    pub fn generation(&self, now: Instant, node: &NodeName) -> Option<Generation> {
        let hello = self.hellos.get(node).filter(|h| now.since(h.at) < ALIVE)?;
        Some(hello.value.generation)
    }

    /// True if another node of the location names this one as raft leader.
    pub fn is_said_to_lead(&self, now: Instant, node: &NodeName) -> bool {
        self.hellos.iter().any(|(n, h)| {
            let fresh = h.value.local && now.since(h.at) < ALIVE;
            n != node && fresh && h.value.raft_leader.as_ref() == Some(node)
        })
    }

    /// What a node's leaderd understands by its last hello; nothing if it was never heard.
    pub fn capabilities(&self, node: &NodeName) -> Capabilities {
        self.hellos.get(node).map(|h| h.value.capabilities).unwrap_or_default()
    }

    pub fn is_alive(&self, now: Instant, node: &NodeName) -> bool {
        self.silence(now, node).is_some_and(|s| s < ALIVE)
    }

    /// Alive, and its control channel is not known to be down.
    pub fn is_up(&self, now: Instant, node: &NodeName) -> bool {
        self.is_alive(now, node) && !self.down.contains_key(node)
    }

    /// How long a node has been silent; `None` if it was never heard.
    pub fn silence(&self, now: Instant, node: &NodeName) -> Option<Duration> {
        self.alive.get(node).map(|&at| now.since(at))
    }

    /// Everything that a decision depends on, in one value.
    pub fn situation(
        &self,
        now: Now,
        mesh: &Mesh,
        state: &LocationState,
        me: &NodeName,
    ) -> Situation {
        let location = &state.location;
        let policy = mesh.policy_of(location);
        let ranking = mesh.ranking(location);
        let ballots = self.ballots(now.mono, mesh, location);
        let mut candidates = BTreeMap::new();
        for (slot, node) in mesh.candidates_of(location) {
            let own = node.name == *me;
            let silent = if own {
                Duration::ZERO
            } else {
                // The silence of a node that was never heard counts from this node's start.
                self.silence(now.mono, &node.name).unwrap_or_else(|| now.mono.since(self.started))
            };
            let heard = own || self.alive.contains_key(&node.name);
            let broken = if own {
                self.broken
            } else {
                self.hellos.get(&node.name).and_then(|h| h.value.broken)
            };
            let ejected = state
                .ejection(&node.name, policy)
                .is_some_and(|(at, hold)| self.left(now, at, hold) > Duration::ZERO);
            candidates.insert(
                slot,
                CandidateFacts {
                    name: node.name.clone(),
                    drained: state.drained.contains(&node.name),
                    broken,
                    silent,
                    heard,
                    unreachable: self.unreachable(now.mono, slot),
                    ejected,
                },
            );
        }
        let hold =
            state.hold_down(policy).map(|(at, hold)| self.left(now, at, hold)).unwrap_or_default();
        Situation {
            location: location.clone(),
            ranking,
            candidates,
            ballots,
            leaders: state.decision.as_ref().map(|d| d.leaders.clone()).unwrap_or_default(),
            decided: state.decision.is_some(),
            last_cause: state.decision.as_ref().map(|d| d.cause),
            frozen: self.is_frozen(now, state),
            hold_down: hold,
            up_for: now.mono.since(self.started),
            daemon_dead_after: policy.daemon_dead_after,
            fail_back: policy.fail_back,
            want: usize::from(policy.leaders.max(1)),
        }
    }

    /// What each location with fresh reports has to say.
    fn ballots(
        &self,
        now: Instant,
        mesh: &Mesh,
        location: &LocationName,
    ) -> BTreeMap<LocationName, Ballot> {
        let slow = interval_of(mesh, location, false) * 2;
        let slow = slow.clamp(LEAST_FRESH, REPORT_FRESH);
        let mut ballots: BTreeMap<LocationName, Ballot> = BTreeMap::new();
        for seen in self.reports.values() {
            let Some(node) = mesh.node(&seen.report.observer) else { continue };
            let Some(place) = node.slot else { continue };
            let fully = self.watchers.contains(&node.location);
            if !is_fresh(now, seen, if fully { REPORT_FRESH } else { slow }) {
                continue;
            }
            let new = || self.ballot(now, mesh, &node.location);
            let ballot = ballots.entry(node.location.clone()).or_insert_with(new);
            ballot.observers.push(seen.view(now, place));
        }
        ballots
    }

    /// The ballot of a location, without its observers.
    fn ballot(&self, now: Instant, mesh: &Mesh, of: &LocationName) -> Ballot {
        let known = self.relays.get(of).filter(|r| !r.leaders.is_empty());
        let (leaders, relays) = match known {
            Some(known) => (known.leaders.clone(), known.relays.clone()),
            None => {
                // Who leads by default.
                let first: Vec<Slot> = mesh.ranking(of).into_iter().take(1).collect();
                (first.clone(), first)
            }
        };
        let all = (of.clone(), Slot(0))..=(of.clone(), Slot::MAX);
        let rows = self.rows.range(all).filter(|(_, row)| now.since(row.at) < ROW_FRESH);
        Ballot {
            observers: Vec::new(),
            candidates: mesh.candidates_of(of).into_keys().collect(),
            leaders,
            relays,
            rows: rows.map(|((_, slot), row)| (*slot, row.value)).collect(),
            fully: self.watchers.contains(of),
            discounted: self.accusers.is_discounted(now, of),
        }
    }

    /// Notes which slots most nodes of the location do not reach, and since when.
    fn note_reach(&mut self, now: Instant) {
        let fresh = |h: &&Seen<HelloFacts>| h.value.local && now.since(h.at) < ALIVE;
        for slot in (0..=Slot::MAX.0).map(Slot) {
            // A node that reaches no candidate is cut off itself; a candidate always reaches itself.
            let counts =
                |h: &&Seen<HelloFacts>| !h.value.reaches.is_empty() && h.value.slot != Some(slot);
            let voices = self.hellos.values().filter(fresh).filter(counts);
            let (of, missed) = voices.fold((0, 0), |(of, missed), h| {
                (of + 1, missed + usize::from(!h.value.reaches.contains(&slot)))
            });
            if missed * 2 > of {
                self.unreachable_since.entry(slot).or_insert(now);
            } else {
                self.unreachable_since.remove(&slot);
            }
        }
    }

    /// True if for [`UNREACHABLE_FOR`] most nodes of the location that reach any candidate have not reached this one.
    fn unreachable(&self, now: Instant, slot: Slot) -> bool {
        self.unreachable_since.get(&slot).is_some_and(|&at| now.since(at) >= UNREACHABLE_FOR)
    }
}

/// True for a report that counts: its observer does not abstain, has some verdict, and sent it less than `within` ago, or a little
/// longer where paths are slow.
fn is_fresh(now: Instant, seen: &SeenReport, within: Duration) -> bool {
    let report = &seen.report;
    let rtt = report.slots.iter().filter_map(|s| s.rtt).max().unwrap_or_default();
    !report.abstains
        && report.slots.iter().any(|s| s.verdict != Verdict::Unknown)
        && now.since(seen.at) < within + rtt.saturating_mul(4).min(MAX_ALLOWANCE)
}

/// What is left of a freeze by this node's wall clock.
fn by_wall(now: Now, end: FreezeEnd) -> Duration {
    Duration::from_micros(end.until.0.saturating_sub(now.wall.0))
}
