//! One watched location: its paths (one per candidate), its targets, and what is known of each pair.

use std::net::IpAddr;
use std::time::Duration;

use crate::fault::Fault;
use crate::ids::{Epoch, LocationName, NodeName, Slot};
use crate::mesh::{Mesh, Node, Policy};
use crate::rendezvous::weight;
use crate::time::{Instant, Now};
use crate::verdict::{Report, SlotReport, Verdict};
use crate::wire::limits::{MAX_REPORT_ROWS, MAX_ROWS, MAX_RTT};

use super::evidence::{Blocks, PairStats, Path, Sources, Target, TargetHealth, Unreached};
use super::index::{IndexVec, PathIdx, ServiceIdx, TargetIdx};
use super::probing::rtt::Rtt;
use super::service::ServiceHealth;
use super::verify::Verification;

/// How long a location that is watched slowly is watched at full rate after a loss.
const RAISED_FOR: Duration = Duration::from_secs(10);
/// Between two rounds, whatever the policy says.
const LEAST_INTERVAL: Duration = Duration::from_millis(10);

/// Locations watched slowly at `slow_probe_interval`. With more of them the interval grows, so that they take no more of the
/// probe budget from the locations that are watched at full rate.
const SLOW_LOCATIONS: usize = 40;
/// Bursts at once, and how long it takes until one more is allowed: stray losses of a lossy path must not use up what the
/// next real fault needs, and a path that loses every tenth probe must not be flooded.
const BURSTS: u32 = 4;
const BURST_EVERY: Duration = Duration::from_secs(1);

/// The bursts that a location may still send: a token bucket.
#[derive(Debug, Clone, Copy)]
pub(super) struct BurstBudget {
    /// When the bucket is full again.
    full: Instant,
}

impl BurstBudget {
    pub(super) const fn full(now: Instant) -> Self {
        Self { full: now }
    }

    pub(super) fn left(&self, now: Instant) -> bool {
        self.full.since(now) <= BURST_EVERY * (BURSTS - 1)
    }

    pub(super) fn spend(&mut self, now: Instant) {
        self.full = (self.full.max(now) + BURST_EVERY).min(now + BURST_EVERY * BURSTS);
    }
}

#[derive(Debug)]
pub(super) struct LocationWatch {
    pub location: LocationName,
    /// This node's location is one of those that watch it at full rate.
    pub full_rate: bool,
    /// This location is next in rank after those, and reports too, in case they are gone.
    backup_reporter: bool,
    /// The last report was of trouble.
    reported_trouble: bool,
    /// Factor of the slow interval.
    slow_factor: u32,
    raised_until: Instant,
    pub epoch: Epoch,
    pub leaders: Vec<Slot>,
    pub paths: IndexVec<PathIdx, Path>,
    pub targets: IndexVec<TargetIdx, Target>,
    pub pairs: IndexVec<PathIdx, IndexVec<TargetIdx, PairStats>>,
    /// Workload targets that are not quarantined, members and candidates alike.
    pub rotation: Vec<TargetIdx>,
    pub round: u64,
    pub next_round: Instant,
    pub next_report: Instant,
    pub next_judge: Option<Instant>,
    pub services: IndexVec<ServiceIdx, ServiceHealth>,
    pub next_service: Instant,
    /// Rounds over services so far.
    pub service_turn: usize,
    pub report_seq: u64,
    pub bursts: BurstBudget,
    /// What the paths lost lately, to compare them.
    pub blocks: Blocks,
    pub unreached: Unreached,
    /// Nothing at all comes back through any path.
    pub all_paths_silent: bool,
    /// Paths whose candidates answer and relay nothing, at the last judgement.
    pub idle: Vec<PathIdx>,
    /// Every reply is judged, as a path is suspected, degraded or unknown.
    pub needs_eager_judging: bool,
    /// The paths of losses since the last judgement.
    pub fresh_losses: Vec<PathIdx>,
    // As-workload probes. Whether this node has a source for them: of its workloads or its own, and by family.
    has_source: [[bool; 2]; 2],
    pub as_workload_rtt: Rtt,
    pub as_workload_sent: u64,
    pub as_workload_sources: Sources,
    pub verification: Option<Verification>,
    /// Traffic with it is only observed: leaderd has no route there.
    pub observed: bool,
    /// Nodes have yet to say where they are probed.
    pub targets_awaited: bool,
}

impl LocationWatch {
    pub(super) fn new(
        mesh: &Mesh,
        me: &Node,
        location: &LocationName,
        now: Instant,
        mut ssid: impl FnMut() -> u16,
    ) -> Self {
        let candidates = mesh.candidates_of(location);
        let paths: IndexVec<PathIdx, Path> =
            candidates.iter().map(|(s, n)| Path::new(*s, n.wireguard_key, now)).collect();
        let path_of = |n: &Node| paths.position(|p| Some(p.slot) == n.slot);
        let mut targets = IndexVec::default();
        let mut add = |n: &Node, address: IpAddr, relay_of, candidate, foreign: Option<u16>| {
            targets.push(Target {
                node: n.name.clone(),
                key: foreign.is_none().then_some(n.wireguard_key),
                address,
                port: foreign,
                relay_of,
                is_nodes_own: mesh.carried_address(n) == Some(address),
                candidate,
                ssid: ssid(),
                seq: 0,
                health: TargetHealth::default(),
                replies: Default::default(),
            });
        };
        let observed = mesh.observed_between(&me.location, location);
        // Members first, then the candidates' own workloads. Tunnels carry IPv6 where the mesh has inner addresses of it;
        // a probe then needs a route, which other traffic would take as well.
        let mut nodes: Vec<&Node> = mesh.nodes_of(location).collect();
        nodes.sort_by_key(|n| (n.slot, n.index));
        for n in nodes {
            for address in mesh.probed_at(n) {
                if address.is_ipv4() || mesh.inner.v6.is_some() && !observed {
                    add(n, address, None, path_of(n), None);
                }
            }
        }
        for reflector in mesh.locations.get(location).iter().flat_map(|l| &l.reflectors) {
            if let Some(n) = mesh.node_behind(location, reflector.ip()) {
                add(n, reflector.ip(), None, path_of(n), Some(reflector.port()));
            }
        }
        // Each candidate's tunnel to this node answers at its inner address of *this* node's slot; over IPv6 too where the
        // workloads of both ends have it.
        if let Some(mine) = me.slot {
            let has_v6 = |l| mesh.prefixes_of(l).iter().any(|p| p.addr().is_ipv6());
            let both = has_v6(location) && has_v6(&me.location);
            for (p, n) in paths.indices().zip(candidates.values()) {
                add(n, mesh.inner4(n, mine).into(), Some(p), None, None);
                if let Some(v6) = mesh.inner6(n, mine).filter(|_| both) {
                    add(n, v6.into(), Some(p), None, None);
                }
            }
        }
        let rank = rank(mesh, &me.location, location);
        let watchers = usize::from(mesh.policy_of(location).watchers);
        let no_stats: IndexVec<TargetIdx, _> =
            targets.iter().map(|_| PairStats::default()).collect();
        let pairs = paths.iter().map(|_| no_stats.clone()).collect();
        let mut watch = Self {
            location: location.clone(),
            full_rate: rank < watchers,
            backup_reporter: rank < 2 * watchers,
            reported_trouble: false,
            slow_factor: slow_factor(mesh),
            raised_until: now,
            epoch: Epoch::default(),
            leaders: Vec::new(),
            paths,
            targets,
            pairs,
            rotation: Vec::new(),
            round: 0,
            next_round: now,
            next_report: now,
            next_judge: None,
            services: IndexVec::default(),
            next_service: now,
            service_turn: 0,
            report_seq: 0,
            bursts: BurstBudget::full(now),
            blocks: Blocks::default(),
            unreached: Unreached::default(),
            all_paths_silent: false,
            idle: Vec::new(),
            needs_eager_judging: true,
            fresh_losses: Vec::new(),
            has_source: Default::default(),
            as_workload_rtt: Rtt::new(),
            as_workload_sent: 0,
            as_workload_sources: Sources::default(),
            verification: None,
            observed,
            targets_awaited: false,
        };
        watch.find_sources(mesh, me);
        watch.rebuild_rotation();
        watch.services = Self::services_of(mesh, &watch, now);
        watch
    }

    /// Finds which sources this node has for as-workload probes.
    pub(super) fn find_sources(&mut self, mesh: &Mesh, me: &Node) {
        let families = [false, true];
        self.has_source =
            [false, true].map(|own| families.map(|v6| source(mesh, me, own, v6).is_some()));
    }

    /// Takes over what was known under the previous mesh file.
    pub(super) fn inherit(&mut self, old: LocationWatch) {
        for target in self.targets.iter_mut() {
            // Its session goes on, and so do its long-lived flows.
            let same = |o: &&Target| target.is_same_as(o) && target.key == o.key;
            if let Some(old) = old.targets.iter().find(same) {
                (target.ssid, target.seq) = (old.ssid, old.seq);
            }
        }
        let number_now =
            |t: TargetIdx| self.targets.position(|n: &Target| n.is_same_as(&old.targets[t]));
        for old in old.paths {
            let same = |p: &&mut Path| p.slot == old.slot && p.key == old.key;
            if let Some(path) = self.paths.iter_mut().find(same) {
                *path = old.renumbered(number_now);
            }
        }
        self.targets_awaited = old.targets_awaited;
        self.epoch = old.epoch;
        self.leaders = old.leaders;
        self.report_seq = old.report_seq;
        self.as_workload_rtt = old.as_workload_rtt;
        self.as_workload_sources = old.as_workload_sources.renumbered(number_now);
        self.verification =
            old.verification.filter(|_| !self.observed).map(Verification::forget_targets);
    }

    /// Returns the number of the long-lived flow to a target through a path.
    pub(super) fn pinned(&self, p: PathIdx, t: TargetIdx) -> u32 {
        u32::from(self.targets[t].ssid) << 8 | u32::from(self.paths[p].slot.0)
    }

    pub(super) fn pinned_flows(&self) -> impl Iterator<Item = u32> + '_ {
        let paths = self.paths.indices();
        paths.flat_map(move |p| self.targets.indices().map(move |t| self.pinned(p, t)))
    }

    pub(super) fn interval(&self, policy: &Policy, now: Instant) -> Duration {
        if self.full_rate
            || now < self.raised_until
            || self.paths.iter().any(|p| p.verdict.get().is_degraded())
        {
            policy.probe_interval.max(LEAST_INTERVAL)
        } else {
            self.slow_interval(policy).max(LEAST_INTERVAL)
        }
    }

    /// Returns the time between two rounds over a location that is watched slowly.
    pub(super) fn slow_interval(&self, policy: &Policy) -> Duration {
        policy.slow_probe_interval * self.slow_factor
    }

    /// Returns whether to report. Observers that watch slowly do not count while others watch at full rate, and all of them
    /// reporting every second would cost each node in proportion to the mesh: so only backup reporters do when all is well.
    /// Every observer reports trouble, and its end once.
    pub(super) fn wants_to_report(&mut self) -> bool {
        let trouble = self.paths.iter().any(|p| p.verdict.get().is_degraded());
        let before = std::mem::replace(&mut self.reported_trouble, trouble);
        self.backup_reporter || trouble || before
    }

    pub(super) fn raise_rate(&mut self, now: Instant) {
        self.raised_until = now + RAISED_FOR;
    }

    /// Finds the workload targets in use again, as a quarantine began or ended.
    pub(super) fn rebuild_rotation(&mut self) {
        let workloads = self.targets.indices().filter(|t| self.targets[*t].relay_of.is_none());
        self.rotation = self.alive_if_any(workloads.collect());
        // One family after the other: a slot that leaves out its own candidate then takes the next of the same family. Workloads
        // and nodes' own addresses in turn, so that a few rounds come to both, however many nodes there are.
        let mut seen = [[0; 2]; 2];
        self.rotation.sort_by_cached_key(|t| {
            let t = &self.targets[*t];
            let (v6, own) = (t.address.is_ipv6(), t.is_nodes_own);
            let number = &mut seen[usize::from(v6)][usize::from(own)];
            *number += 1;
            (v6, *number, own)
        });
    }

    /// Returns workload targets of the families and kinds for which this node has a source, the families in turn.
    pub(super) fn as_workload_targets(&self) -> Vec<TargetIdx> {
        let of = |v6: bool| {
            let has_source = move |t: &TargetIdx| {
                let t = &self.targets[*t];
                let sources = self.has_source[usize::from(t.is_nodes_own)];
                t.address.is_ipv6() == v6 && sources[usize::from(v6)]
            };
            self.rotation.iter().copied().filter(has_source)
        };
        let (mut v4, mut v6) = (of(false), of(true));
        let mut turns = Vec::new();
        loop {
            let before = turns.len();
            turns.extend(v4.next().into_iter().chain(v6.next()));
            if turns.len() == before {
                return turns;
            }
        }
    }

    /// Returns workload targets that path `p` can be tested on: not its candidate's own; only quarantined ones if there are no others.
    pub(super) fn targets_of(&self, p: PathIdx) -> Vec<TargetIdx> {
        self.alive_if_any(self.testable(p).collect())
    }

    /// Those that are not quarantined; if there are none, all.
    fn alive_if_any(&self, targets: Vec<TargetIdx>) -> Vec<TargetIdx> {
        let alive = targets.iter().filter(|t| !self.targets[**t].health.is_quarantined());
        let alive: Vec<TargetIdx> = alive.copied().collect();
        if alive.is_empty() { targets } else { alive }
    }

    pub(super) fn testable(&self, p: PathIdx) -> impl Iterator<Item = TargetIdx> + '_ {
        self.targets.indices().filter(move |t| self.can_test(p, *t))
    }

    pub(super) fn can_test(&self, p: PathIdx, t: TargetIdx) -> bool {
        let t = &self.targets[t];
        t.relay_of.is_none() && t.candidate != Some(p)
    }

    /// Returns the quarantined target whose turn it is on a path.
    pub(super) fn quarantined_target(&self, p: PathIdx, turn: u64) -> Option<TargetIdx> {
        let quarantined = self.testable(p).filter(|t| self.targets[*t].health.is_quarantined());
        let quarantined: Vec<TargetIdx> = quarantined.collect();
        quarantined.get(turn as usize % quarantined.len().max(1)).copied()
    }

    /// Returns the candidate's own address; where it has one of each family they take turns.
    pub(super) fn relay_target(&self, p: PathIdx, turn: u64) -> TargetIdx {
        let all = self.targets.indices().filter(|t| self.targets[*t].relay_of == Some(p));
        let all: Vec<TargetIdx> = all.collect();
        all[turn as usize % all.len()]
    }

    /// Returns the loss of the best other path that is not degraded.
    pub(super) fn control_loss(&self, p: PathIdx) -> Option<f64> {
        let others = self.paths.enumerate().filter(|(k, _)| *k != p).map(|(_, other)| other);
        let healthy = others.filter(|other| !other.verdict.get().is_degraded());
        healthy.map(|other| other.loss.own()).reduce(f64::min)
    }

    /// Returns whether every path is silent or degraded.
    pub(super) fn all_fail(&self) -> bool {
        self.all_paths_silent || self.paths.iter().all(|p| p.verdict.get().is_degraded())
    }

    /// Returns whether the candidate in this slot forwards.
    pub(super) fn forwards(&self, slot: Slot) -> bool {
        self.paths.iter().any(|p| p.slot == slot && *p.verdict.get() == Verdict::Forwarding)
    }

    pub(super) fn is_cut_off(&self) -> bool {
        let dead = |c| matches!(c, Fault::TunnelDown | Fault::NotForwarding | Fault::Loop);
        self.all_paths_silent
            || self.paths.iter().all(|p| p.verdict.get().fault().is_some_and(dead))
    }

    pub(super) fn report(&self, me: &NodeName, now: Now, abstains: bool) -> Report {
        // The classes come first, so what is cut is some of many targets.
        let rows = MAX_ROWS.min(MAX_REPORT_ROWS / self.paths.len().max(1));
        let slot = |(n, p): (PathIdx, &Path)| SlotReport {
            slot: p.slot,
            verdict: p.verdict.get().clone(),
            first_loss: p.verdict.trouble().map(|t| now.wall_at(t.first_loss)),
            suspected: p.verdict.trouble().map(|t| now.wall_at(t.suspected)),
            since: now.wall_at(p.verdict.since()),
            rtt: p.rtt.smoothed().map(|rtt| rtt.min(MAX_RTT)),
            loss: p.loss.shown() as f32,
            path_mtu: p.mtu.known(),
            services: self.services_up(n),
            evidence: p.verdict.rows().iter().take(rows).cloned().collect(),
        };
        Report {
            observer: me.clone(),
            location: self.location.clone(),
            seq: self.report_seq,
            epoch: self.epoch,
            abstains,
            full_rate: self.full_rate,
            slots: self.paths.enumerate().map(slot).collect(),
        }
    }
}

/// Returns the source of as-workload probes: to a workload a workload address of this node, to a node its own address.
pub(super) fn source(mesh: &Mesh, me: &Node, own: bool, v6: bool) -> Option<IpAddr> {
    match own {
        true => mesh.carried_address(me).filter(|a| a.is_ipv6() == v6),
        false => me.probe_addresses.iter().copied().find(|a| a.is_ipv6() == v6),
    }
}

/// Returns the factor by which rounds over slowly watched locations are rarer.
fn slow_factor(mesh: &Mesh) -> u32 {
    mesh.locations.len().saturating_sub(1).div_ceil(SLOW_LOCATIONS).max(1) as u32
}

/// Returns whether `observer` watches `location` at full rate.
pub(super) fn is_watched_fully(
    mesh: &Mesh,
    observer: &LocationName,
    location: &LocationName,
) -> bool {
    rank(mesh, observer, location) < usize::from(mesh.policy_of(location).watchers)
}

/// Returns the locations that watch a location at full rate.
pub(crate) fn full_watchers<'a>(
    mesh: &'a Mesh,
    location: &'a LocationName,
) -> impl Iterator<Item = LocationName> + 'a {
    let others = mesh.locations.keys().filter(move |o| *o != location);
    let mut others: Vec<(u64, &LocationName)> =
        others.map(|o| (weight(o.as_str(), location.as_str()), o)).collect();
    others.sort_by(|a, b| b.cmp(a));
    let watchers = usize::from(mesh.policy_of(location).watchers);
    others.into_iter().take(watchers).map(|(_, o)| o.clone())
}

/// Returns the time between two rounds over a location, while all is well.
pub(crate) fn interval_of(mesh: &Mesh, location: &LocationName, fully: bool) -> Duration {
    let policy = mesh.policy_of(location);
    let slow = policy.slow_probe_interval * slow_factor(mesh);
    if fully { policy.probe_interval } else { slow }.max(LEAST_INTERVAL)
}

/// Returns how many locations come before `observer` in watching `location`, by rendezvous hashing. The first `watchers` of its
/// policy watch it at full rate.
fn rank(mesh: &Mesh, observer: &LocationName, location: &LocationName) -> usize {
    let weight_of = |o: &LocationName| weight(o.as_str(), location.as_str());
    let mine = weight_of(observer);
    mesh.locations
        .keys()
        .filter(|o| *o != location && *o != observer && weight_of(o) > mine)
        .count()
}
