//! What is sent when: rounds, and bursts at a first loss.
//!
//! A round sends a new flow of drawn size through every path to the same target; every fifth is of full size. The other
//! classes join one round in five each, as [`ProbeClass::spec`] says. A path is never tested on its own candidate's workload,
//! which the candidate need not relay to: it takes the next target instead.

use rand_chacha::ChaCha8Rng;

use crate::fault::Fault;
use crate::mesh::Mesh;
use crate::observe::evidence::{Sample, SizeBand};
use crate::observe::index::{PathIdx, TargetIdx};
use crate::observe::location::LocationWatch;
use crate::probe::class::{ProbeFlow, ProbeRoute, ProbeSize, ProbeTarget, ProbeTurn};
use crate::time::Instant;
use crate::verdict::{ProbeClass, Verdict};

/// Rounds of a cycle, in which every class of rounds has its turn.
pub const CYCLE: u64 = 5;
/// Every fifth round also tries a target that is quarantined.
const REVISIT: u64 = 5;
/// Long-lived flows per path: each costs a socket.
const PINNED_TARGETS: usize = 2;
/// A burst through the suspect: of the class that failed; of the other kind of new flow; of pinned and relay each.
/// Nine losses are more than the test asks for in calm conditions (seven).
const BURST_MAIN: usize = 9;
const BURST_OTHER: usize = 3;
const BURST_SIDE: usize = 2;

/// A probe to send.
#[derive(Debug, Clone, Copy)]
pub struct ProbeSpec {
    pub class: ProbeClass,
    /// `None`: the ordinary routes.
    pub path: Option<PathIdx>,
    pub target: TargetIdx,
    /// Bytes, headers included.
    pub size: u16,
    /// The round whose main probe it is: that is sent through all paths at once.
    pub round: Option<u64>,
}

/// Classes that are sent in this round beside the others. Old flows come before the candidate itself.
fn beside(round: u64) -> impl Iterator<Item = ProbeClass> {
    let turn = ProbeTurn::Beside(round % CYCLE);
    ProbeClass::ALL.into_iter().rev().filter(move |class| class.spec().turn == turn)
}

/// The class of this round's new flows, and its number among the rounds of that class: each class counts for itself, so that
/// each comes to every target whatever their number.
fn main_class(round: u64) -> (ProbeClass, u64) {
    let of = |turn| ProbeClass::ALL.into_iter().find(|class| class.spec().turn == turn);
    let replaced = |n: &u64| of(ProbeTurn::InPlace(*n)).is_some();
    match of(ProbeTurn::InPlace(round % CYCLE)) {
        Some(class) => (class, round / CYCLE),
        None => {
            let replaced_before = round / CYCLE * (0..CYCLE).filter(replaced).count() as u64
                + (0..round % CYCLE).filter(replaced).count() as u64;
            (of(ProbeTurn::EveryRound).unwrap_or(ProbeClass::NewFlow), round - replaced_before)
        }
    }
}

/// Probes of a round for each path, on average.
pub fn probes_per_path() -> f64 {
    let planes =
        ProbeClass::ALL.into_iter().map(ProbeClass::spec).filter(|s| s.route == ProbeRoute::Plane);
    let beside = planes.filter(|s| matches!(s.turn, ProbeTurn::Beside(_)));
    1.0 + beside.count() as f64 / CYCLE as f64
}

impl LocationWatch {
    pub fn plan_round(&mut self, mesh: &Mesh, rng: &mut ChaCha8Rng) -> Vec<ProbeSpec> {
        let n = self.round;
        self.round += 1;
        let mut probes = Vec::new();
        let (class, turn) = main_class(n);
        let size = Some(SizeBand::draw(turn, mesh.mtu, rng));
        let revisit = n.is_multiple_of(REVISIT);
        let troubled = self.paths.iter().any(|p| *p.verdict.get() != Verdict::Forwarding);
        for p in self.paths.indices() {
            let targets = self.targets_of(p);
            let Some(target) = self.pick(&targets, turn) else {
                // Nothing behind it to be tested on.
                probes.push(self.relay_probe(mesh, p, n));
                continue;
            };
            probes.push(ProbeSpec { round: Some(n), ..self.probe(mesh, class, p, target, size) });
            if revisit && let Some(target) = self.quarantined_target(p, n / REVISIT) {
                probes.push(self.probe(mesh, ProbeClass::NewFlow, p, target, None));
            }
            if let size @ Some(_) = self.paths[p].doubtful_size {
                probes.push(self.probe(mesh, ProbeClass::NewFlow, p, target, size));
            }
            let mut relay_probed = false;
            for class in beside(n) {
                let spec = class.spec();
                match (spec.route, spec.target, spec.flow) {
                    (ProbeRoute::Plane, ProbeTarget::Candidate, _) => {
                        relay_probed = true;
                        probes.push(self.relay_probe(mesh, p, n));
                    }
                    (ProbeRoute::Plane, ProbeTarget::Workload, ProbeFlow::LongLived) => {
                        let few = &targets[..targets.len().min(PINNED_TARGETS)];
                        let target = few[(n / CYCLE) as usize % few.len()];
                        probes.push(self.probe(mesh, class, p, target, None));
                    }
                    (ProbeRoute::Plane, ProbeTarget::Workload, ProbeFlow::Fresh) => {
                        probes.push(self.probe(mesh, class, p, target, size));
                    }
                    // Once for the location, below; and services have a pace of their own.
                    (ProbeRoute::Ordinary, ..) | (ProbeRoute::Plane, ProbeTarget::Service, _) => {}
                }
            }
            if troubled && !relay_probed {
                probes.push(self.relay_probe(mesh, p, n));
            }
            // What failed is probed more often, so that its recovery is seen.
            match self.paths[p].verdict.get().fault() {
                Some(Fault::Mtu) if !class.is_full_size() => {
                    probes.push(self.probe(mesh, ProbeClass::FullSize, p, target, None));
                }
                Some(Fault::Partial) => {
                    let failing = self.paths[p].verdict.failing_targets();
                    if !failing.is_empty() {
                        let target = failing[n as usize % failing.len()];
                        probes.push(self.probe(mesh, ProbeClass::NewFlow, p, target, None));
                    }
                }
                _ => {}
            }
        }
        for class in beside(n) {
            match class.spec().route {
                ProbeRoute::Ordinary => {
                    let target = self.next_as_workload();
                    probes.extend(target.map(|target| self.as_workload_probe(target)));
                }
                ProbeRoute::Plane => {}
            }
        }
        probes
    }

    /// Picks the round's target for a path: the same for all paths, but for the one whose own workload it is. That one takes the
    /// next of the same kind, if there is one.
    fn pick(&self, targets: &[TargetIdx], turn: u64) -> Option<TargetIdx> {
        let rotation = &self.rotation;
        if rotation.is_empty() {
            return targets.get(turn as usize % targets.len().max(1)).copied();
        }
        let from = turn as usize % rotation.len();
        let usable = || {
            let all = rotation.iter().cycle().skip(from).take(rotation.len());
            all.copied().filter(|t| targets.contains(t))
        };
        let own = |t: TargetIdx| self.targets[t].is_nodes_own;
        let kind = own(rotation[from]);
        usable()
            .find(|t| own(*t) == kind)
            .or_else(|| usable().next())
            .or_else(|| targets.first().copied())
    }

    /// Plans a probe of the candidate itself.
    fn relay_probe(&self, mesh: &Mesh, p: PathIdx, turn: u64) -> ProbeSpec {
        self.probe(mesh, ProbeClass::Relay, p, self.relay_target(p, turn), None)
    }

    /// Plans a burst, which shows whether path `p` fails, and how.
    pub fn plan_burst(&mut self, mesh: &Mesh, now: Instant, p: PathIdx) -> Vec<ProbeSpec> {
        let mut probes = Vec::new();
        let Some(Sample { class: failed, target: lost, size: lost_size, .. }) =
            self.last_loss(p).copied()
        else {
            return probes;
        };
        let main_targets = self.burst_targets(p, lost);
        let next = |i: usize| main_targets[i % main_targets.len()];
        let (main, other) = match failed.is_full_size() {
            true => (ProbeClass::FullSize, ProbeClass::NewFlow),
            false => (ProbeClass::NewFlow, ProbeClass::FullSize),
        };
        for i in 0..BURST_MAIN {
            let t = next(i);
            // Every other one as small as can be: if those pass, it is the size.
            let size = (i % 2 == 0).then_some(lost_size);
            probes.push(self.probe(mesh, main, p, t, size));
        }
        for i in 0..BURST_OTHER {
            probes.push(self.probe(mesh, other, p, next(i + 1), None));
        }
        let all = self.targets_of(p);
        for i in 0..BURST_SIDE {
            if !all.is_empty() {
                let few = &all[..all.len().min(PINNED_TARGETS)];
                probes.push(self.probe(mesh, ProbeClass::PinnedFlow, p, few[i % few.len()], None));
            }
            probes.push(self.relay_probe(mesh, p, i as u64));
        }
        let mut order = main_targets.clone();
        order.sort_unstable();
        order.dedup();
        for k in self.paths.indices().filter(|k| *k != p) {
            let usable = self.targets_of(k);
            // The same targets as the suspect's, the lost one first; else whatever this slot can be tested on.
            let mut same: Vec<TargetIdx> = Vec::new();
            if usable.contains(&lost) {
                same.push(lost);
            }
            same.extend(order.iter().copied().filter(|t| *t != lost && usable.contains(t)));
            if same.is_empty() {
                same = usable;
            }
            // The first target as the suspect's: of the size that was lost, as small as can be, and of the other class.
            let controls = [
                (0, main, Some(lost_size)),
                (0, main, None),
                (1, main, Some(lost_size)),
                (0, other, None),
            ];
            for (n, class, size) in controls {
                if let Some(t) = same.get(n % same.len().max(1)) {
                    probes.push(self.probe(mesh, class, k, *t, size));
                }
            }
            probes.push(self.relay_probe(mesh, k, self.round));
        }
        self.paths[p].burst = Some(now);
        probes
    }

    /// Returns the targets of a burst through `p`, in turn. The lost one takes two of three, others the rest. Only targets that
    /// another path can test as well give evidence: if the lost one is none of them, others stand in for it.
    fn burst_targets(&self, p: PathIdx, lost: TargetIdx) -> Vec<TargetIdx> {
        let proves = |t: &TargetIdx| !self.controls(p, *t).is_empty();
        let mut others = self.targets_of(p);
        others.retain(|t| *t != lost && proves(t));
        if others.is_empty() {
            vec![lost]
        } else if proves(&lost) {
            others.into_iter().flat_map(|other| [lost, lost, other]).collect()
        } else {
            others
        }
    }

    /// Plans a probe through a path. `size`: bytes, where the class leaves the size open; `None`: the smallest.
    pub fn probe(
        &self,
        mesh: &Mesh,
        class: ProbeClass,
        p: PathIdx,
        target: TargetIdx,
        size: Option<u16>,
    ) -> ProbeSpec {
        let least = self.targets[target].smallest();
        let size = match (class.spec().size, size) {
            (ProbeSize::Full, _) => mesh.mtu.max(least),
            // A padding TLV takes four bytes at least.
            (ProbeSize::Random, Some(size)) if size >= least + 4 => {
                size.min(mesh.mtu.max(least + 4))
            }
            (ProbeSize::Random, Some(_) | None) | (ProbeSize::Smallest, _) => least,
        };
        ProbeSpec { class, path: Some(p), target, size, round: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fifth_round_is_of_full_size_and_each_class_counts_its_own_rounds() {
        let main: Vec<_> = (0..11).map(main_class).collect();
        let full = |n| (ProbeClass::FullSize, n);
        let new = |n| (ProbeClass::NewFlow, n);
        assert_eq!(
            main,
            [
                full(0),
                new(0),
                new(1),
                new(2),
                new(3),
                full(1),
                new(4),
                new(5),
                new(6),
                new(7),
                full(2)
            ]
        );
        let others: Vec<Vec<_>> = (0..5).map(|n| beside(n).collect()).collect();
        let (pinned, relay, ordinary) =
            (ProbeClass::PinnedFlow, ProbeClass::Relay, ProbeClass::AsWorkload);
        assert_eq!(others, [vec![], vec![pinned], vec![relay], vec![ordinary], vec![]]);
        assert_eq!(probes_per_path(), 1.4);
    }
}
