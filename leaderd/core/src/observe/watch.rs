//! One watched location: its paths (one per slot), its targets, and what is known of each pair.

use std::net::IpAddr;
use std::time::Duration;

use crate::ids::{Epoch, LocationName, NodeName, Slot};
use crate::io::ProbeId;
use crate::mesh::{Mesh, Node, Policy};
use crate::time::{Instant, Now};
use crate::verdict::{ProbeClass, Report, SlotReport};

use super::evidence::{Cell, LOSS_GAIN, Outcome, Path, Target};
use super::rtt::Rtt;
use super::sprt;
use super::verify::Verify;

/// How long a location that is watched slowly is watched at full rate after a loss.
const RAISED_FOR: Duration = Duration::from_secs(10);

/// Bursts at once, and how long it takes until one more is allowed: stray losses of a lossy path must not use up what the
/// next real fault needs, and a path that loses every tenth probe must not be flooded.
const BURSTS: u32 = 4;
const BURST_EVERY: Duration = Duration::from_secs(1);

/// How many bursts are left: a token bucket.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bursts {
    /// When the bucket is full again.
    full: Instant,
}

impl Bursts {
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
pub(super) struct Watch {
    pub location: LocationName,
    /// This node's location is one of those that watch it at full rate.
    full_rate: bool,
    raised_until: Instant,
    pub epoch: Epoch,
    pub leaders: Vec<Slot>,
    pub paths: Vec<Path>,
    pub targets: Vec<Target>,
    /// `cells[path][target]`.
    pub cells: Vec<Vec<Cell>>,
    /// Workload targets that are not quarantined, members and candidates alike.
    pub rotation: Vec<usize>,
    pub round: u64,
    pub next_round: Instant,
    pub next_report: Instant,
    pub next_judge: Option<Instant>,
    pub report_seq: u64,
    pub bursts: Bursts,
    /// Nothing at all comes back through any slot.
    pub dark: bool,
    /// Something needs judging with every reply.
    pub uneasy: bool,
    /// Losses since the last judgement: (path, class, target, sent).
    pub fresh_losses: Vec<(usize, ProbeClass, usize, Instant)>,
    // As-workload probes.
    pub rtt: Rtt,
    pub as_workload_sent: u64,
    pub verify: Option<Verify>,
}

impl Watch {
    pub(super) fn new(
        mesh: &Mesh,
        me: &Node,
        location: &LocationName,
        now: Instant,
        mut ssid: impl FnMut() -> u16,
    ) -> Self {
        let candidates = mesh.candidates_of(location);
        let paths: Vec<Path> =
            candidates.iter().map(|(s, n)| Path::new(*s, n.wireguard_key, now)).collect();
        let index = |n: &Node| n.slot.and_then(|s| candidates.keys().position(|k| *k == s));
        let mut targets = Vec::new();
        let mut add = |n: &Node, address: IpAddr, relay_of, candidate| {
            targets.push(Target {
                node: n.name.clone(),
                key: n.wireguard_key,
                address,
                relay_of,
                candidate,
                ssid: ssid(),
                seq: 0,
                quarantined: false,
                mute: false,
                replies: Default::default(),
            });
        };
        // Members first, then the candidates' own workloads. A family is tried where both ends have it.
        let mut nodes: Vec<&Node> = mesh.nodes_of(location).collect();
        nodes.sort_by_key(|n| (n.slot, n.index));
        for n in nodes {
            for address in &n.probe_addresses {
                if address.is_ipv4() || mesh.inner.v6.is_some() {
                    add(n, *address, None, index(n));
                }
            }
        }
        // Everybody's `wgl{j}` of slot j answers at the address of *this* node's slot there.
        if let Some(mine) = me.slot {
            for (p, n) in candidates.values().enumerate() {
                add(n, mesh.inner4(n, mine).into(), Some(p), None);
            }
        }
        let cells = vec![vec![Cell::default(); targets.len()]; paths.len()];
        let mut watch = Self {
            location: location.clone(),
            full_rate: watches(mesh, &me.location, location),
            raised_until: now,
            epoch: Epoch::default(),
            leaders: Vec::new(),
            paths,
            targets,
            cells,
            rotation: Vec::new(),
            round: 0,
            next_round: now,
            next_report: now,
            next_judge: None,
            report_seq: 0,
            bursts: Bursts::full(now),
            dark: false,
            uneasy: true,
            fresh_losses: Vec::new(),
            rtt: Rtt::new(),
            as_workload_sent: 0,
            verify: None,
        };
        watch.rotate();
        watch
    }

    /// Takes over what was known under the previous mesh file.
    pub(super) fn inherit(&mut self, old: Watch) {
        for old in old.paths {
            if let Some(path) =
                self.paths.iter_mut().find(|p| p.slot == old.slot && p.key == old.key)
            {
                // Its ring and its partial targets speak of the old targets by number.
                *path = Path { ring: Default::default(), partial: Vec::new(), burst: None, ..old };
            }
        }
        self.epoch = old.epoch;
        self.leaders = old.leaders;
        self.report_seq = old.report_seq;
        self.rtt = old.rtt;
        self.verify = old.verify.map(Verify::forget_targets);
    }

    pub(super) fn interval(&self, policy: &Policy, now: Instant) -> Duration {
        let least = Duration::from_millis(10);
        if self.full_rate
            || now < self.raised_until
            || self.paths.iter().any(|p| p.verdict.is_degraded())
        {
            policy.probe_interval.max(least)
        } else {
            policy.slow_probe_interval.max(least)
        }
    }

    pub(super) fn raise(&mut self, now: Instant) {
        self.raised_until = now + RAISED_FOR;
    }

    /// Workload targets in use.
    fn rotate(&mut self) {
        let workload = |t: &&usize| self.targets[**t].relay_of.is_none();
        let all: Vec<usize> = (0..self.targets.len()).collect();
        let alive: Vec<usize> = all
            .iter()
            .filter(workload)
            .copied()
            .filter(|t| !self.targets[*t].quarantined)
            .collect();
        self.rotation =
            if alive.is_empty() { all.iter().filter(workload).copied().collect() } else { alive };
    }

    /// Workload targets that slot `p` can be tested on: not its own; only quarantined ones if there are no others.
    pub(super) fn targets_of(&self, p: usize) -> Vec<usize> {
        let usable: Vec<usize> = self.testable(p).collect();
        let alive: Vec<usize> =
            usable.iter().copied().filter(|t| !self.targets[*t].quarantined).collect();
        if alive.is_empty() { usable } else { alive }
    }

    fn testable(&self, p: usize) -> impl Iterator<Item = usize> + '_ {
        (0..self.targets.len()).filter(move |t| self.can_test(p, *t))
    }

    pub(super) fn can_test(&self, p: usize, t: usize) -> bool {
        let t = &self.targets[t];
        t.relay_of.is_none() && t.candidate != Some(p)
    }

    pub(super) fn dead_target(&self, p: usize, n: u64) -> Option<usize> {
        let dead: Vec<usize> = self.testable(p).filter(|t| self.targets[*t].quarantined).collect();
        dead.get(n as usize % dead.len().max(1)).copied()
    }

    pub(super) fn relay_of(&self, p: usize) -> usize {
        self.targets
            .iter()
            .position(|t| t.relay_of == Some(p))
            .expect("every path has its relay target")
    }

    /// A path's first sign of life: what was sent before it says nothing, neither of loss nor of time, as WireGuard keeps
    /// packets back until the first handshake. True if this reply is to such a probe.
    pub(super) fn waking(&mut self, now: Instant, p: usize, sent: Instant) -> bool {
        let path = &mut self.paths[p];
        if path.woke.is_none() {
            path.woke = Some(now);
            path.any_ok = Some(now);
            path.ring.clear();
            (path.lost_in_row, path.loss, path.shown_loss, path.steady) = (0, 0.0, 0.0, 0.0);
            path.burst = None;
            self.bursts = Bursts::full(now);
        }
        self.paths[p].woke.is_some_and(|woke| sent < woke)
    }

    /// Books what became of a probe. A late reply comes here after its loss did, and takes that back.
    pub(super) fn settle(
        &mut self,
        policy: &Policy,
        now: Instant,
        p: usize,
        id: ProbeId,
        outcome: Outcome,
        mtu: Option<u16>,
    ) {
        let controls = self.control_loss(p);
        let target = self.paths[p].find(id).map(|o| o.target);
        let elsewhere_alive = target.is_some_and(|t| self.lives_elsewhere(p, t));
        let path = &mut self.paths[p];
        let Some(obs) = path.find(id) else { return };
        let before = obs.outcome;
        if outcome == Outcome::Lost && self.targets[obs.target].mute {
            obs.outcome = Outcome::Void;
            return;
        }
        obs.outcome = outcome;
        let obs = *obs;
        let quarantined = self.targets[obs.target].quarantined;
        let cell = &mut self.cells[p][obs.target];
        let steady = sprt::steady(controls.unwrap_or(0.0), policy.loss_threshold);
        let test = |path: &mut Path, lost: bool| {
            path.loss += LOSS_GAIN * (f64::from(u8::from(lost)) - path.loss);
            path.steady = (path.steady + steady.step(lost)).clamp(0.0, 1e3);
        };
        if obs.is_fresh() && !quarantined && !before.is_loss() && outcome != Outcome::Void {
            path.shown_loss +=
                LOSS_GAIN * (f64::from(u8::from(outcome.is_loss())) - path.shown_loss);
        }
        match outcome {
            Outcome::Delivered => {
                if obs.is_fresh() {
                    cell.delivered = cell.delivered.max(Some(obs.sent));
                    cell.lost_in_row = 0;
                }
                path.any_ok = path.any_ok.max(Some(obs.sent));
                path.lost_in_row = 0;
                if obs.class == ProbeClass::Relay {
                    path.relay_ok = path.relay_ok.max(Some(obs.sent));
                    path.relay_run = path.relay_run.or(Some(obs.sent));
                }
                if obs.is_fresh() {
                    if before.is_loss() {
                        path.loss = (path.loss - LOSS_GAIN).max(0.0);
                        path.shown_loss = (path.shown_loss - LOSS_GAIN).max(0.0);
                        path.steady = (path.steady - steady.step(true)).max(0.0);
                    }
                    test(path, false);
                    path.path_mtu = path.path_mtu.max(Some(obs.size));
                    if let Some((low, _)) = &mut path.mtu_between {
                        *low = (*low).max(obs.size);
                    }
                }
                // A long-lived flow that passes does not make up for new ones that do not.
                if quarantined && obs.is_fresh() && !self.targets[obs.target].mute {
                    self.targets[obs.target].quarantined = false;
                    self.rotate();
                }
            }
            Outcome::Lost | Outcome::Looped => {
                cell.lost_in_row += u32::from(obs.is_fresh());
                path.lost_in_row += 1;
                if obs.class == ProbeClass::Relay {
                    path.relay_run = None;
                }
                if let Some(mtu) = mtu.filter(|m| *m < obs.size) {
                    path.path_mtu = Some(mtu);
                }
                if obs.is_fresh() && !quarantined && elsewhere_alive {
                    test(path, true);
                }
                if obs.class != ProbeClass::Relay && !quarantined {
                    self.fresh_losses.push((p, obs.class, obs.target, obs.sent));
                }
                self.raise(now);
                self.quarantine(obs.target);
            }
            Outcome::Void => path.own_fault = Some(now),
            Outcome::Pending => {}
        }
    }

    /// The target's own kernel says that nobody listens there.
    pub(super) fn muted(&mut self, t: usize) {
        if !self.targets[t].mute {
            self.targets[t].mute = true;
            self.targets[t].quarantined = self.targets[t].relay_of.is_none();
            self.rotate();
        }
    }

    /// A target that every slot loses is dead itself. Where one slot alone can test it, that says nothing unless the
    /// slot has others to be tested on.
    fn quarantine(&mut self, t: usize) {
        if self.targets[t].quarantined || self.targets[t].relay_of.is_some() {
            return;
        }
        let testers: Vec<usize> = (0..self.paths.len()).filter(|p| self.can_test(*p, t)).collect();
        let only = testers.len() == 1 && self.testable(testers[0]).count() == 1;
        let lost: u32 = testers.iter().map(|p| self.cells[*p][t].lost_in_row).sum();
        if !only && lost >= 4 && testers.iter().all(|p| self.cells[*p][t].lost_in_row >= 2) {
            self.targets[t].quarantined = true;
            self.rotate();
        }
    }

    /// Another path's latest probe to this target passed, so that a loss here says something about this path.
    fn lives_elsewhere(&self, p: usize, t: usize) -> bool {
        (0..self.paths.len())
            .any(|k| k != p && self.can_test(k, t) && self.cells[k][t].lost_in_row == 0)
    }

    /// Loss of the best other path that is not degraded.
    pub(super) fn control_loss(&self, p: usize) -> Option<f64> {
        let others =
            self.paths.iter().enumerate().filter(|(k, o)| *k != p && !o.verdict.is_degraded());
        others.map(|(_, o)| o.loss).reduce(f64::min)
    }

    /// Every slot fails, one way or another.
    pub(super) fn all_fail(&self) -> bool {
        self.dark || self.paths.iter().all(|p| p.verdict.is_degraded())
    }

    pub(super) fn report(&self, me: &NodeName, now: Now, abstains: bool) -> Report {
        let slot = |p: &Path| SlotReport {
            slot: p.slot,
            verdict: p.verdict.clone(),
            first_loss: p.first_loss.map(|t| now.wall_at(t)),
            suspected: p.suspected.map(|t| now.wall_at(t)),
            since: now.wall_at(p.since),
            rtt: p.rtt.smoothed(),
            loss: p.shown_loss as f32,
            path_mtu: p.path_mtu,
            evidence: p.rows.clone(),
        };
        Report {
            observer: me.clone(),
            location: self.location.clone(),
            seq: self.report_seq,
            epoch: self.epoch,
            abstains,
            full_rate: self.full_rate,
            slots: self.paths.iter().map(slot).collect(),
        }
    }
}

/// Rendezvous hashing: is `observer` among the `policy.watchers` locations that watch `location` at full rate?
fn watches(mesh: &Mesh, observer: &LocationName, location: &LocationName) -> bool {
    let mine = weight(observer, location);
    let higher = mesh
        .locations
        .keys()
        .filter(|o| *o != location && *o != observer && weight(o, location) > mine)
        .count();
    higher < usize::from(mesh.policy.watchers)
}

/// FNV-1a with a finish that mixes: stable over versions and machines, unlike the standard library's hasher.
fn weight(observer: &LocationName, location: &LocationName) -> u64 {
    let bytes = observer.as_str().bytes().chain([0]).chain(location.as_str().bytes());
    let mut h = bytes
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    h ^= h >> 33;
    h = h.wrapping_mul(0xff51_afd7_ed55_8ccd);
    h ^ (h >> 33)
}
