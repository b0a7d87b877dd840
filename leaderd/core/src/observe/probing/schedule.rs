//! What is sent when: rounds, and bursts at a first loss.
//!
//! A round sends a new flow of drawn size through every path to the same target; every fifth is of full size. The other
//! classes join one round in five each, as [`ProbeClass::spec`] says. A path is never tested on its own candidate's workload,
//! which the candidate need not relay to: it takes the next target instead.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;

use crate::fault::Fault;
use crate::mesh::Mesh;
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
/// Through each standby.
const BURST_CONTROL: usize = 4;

/// A probe to send.
#[derive(Debug, Clone, Copy)]
pub struct ProbeSpec {
    pub class: ProbeClass,
    /// `None`: the ordinary routes.
    pub path: Option<PathIdx>,
    pub target: TargetIdx,
    /// Bytes, headers included.
    pub size: u16,
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
        let drawn = rng.next_u32();
        let revisit = n.is_multiple_of(REVISIT);
        let troubled = self.paths.iter().any(|p| *p.verdict.get() != Verdict::Forwarding);
        for p in self.paths.indices() {
            let targets = self.targets_of(p);
            let Some(target) = self.pick(&targets, turn) else {
                // Nothing behind it to be tested on.
                probes.push(self.relay_probe(mesh, p, n));
                continue;
            };
            probes.push(self.probe(mesh, class, p, target, Some(drawn)));
            if revisit && let Some(target) = self.quarantined_target(p, n / REVISIT) {
                probes.push(self.probe(mesh, ProbeClass::NewFlow, p, target, None));
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
                        probes.push(self.probe(mesh, class, p, target, Some(drawn)));
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
    pub fn plan_burst(
        &mut self,
        mesh: &Mesh,
        now: Instant,
        p: PathIdx,
        rng: &mut ChaCha8Rng,
    ) -> Vec<ProbeSpec> {
        let mut probes = Vec::new();
        let Some((failed, lost)) = self.last_loss(p) else { return probes };
        let main_targets = self.burst_targets(p, lost);
        let next = |i: usize| main_targets[i % main_targets.len()];
        let (main, other) = match failed.is_full_size() {
            true => (ProbeClass::FullSize, ProbeClass::NewFlow),
            false => (ProbeClass::NewFlow, ProbeClass::FullSize),
        };
        for i in 0..BURST_MAIN {
            let t = next(i);
            // Every other one as small as can be: if those pass, it is the size.
            let size = if i % 2 == 0 { Some(rng.next_u32()) } else { None };
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
            for i in 0..BURST_CONTROL {
                if let Some(t) = same.get(i % same.len().max(1)) {
                    let class = if i == BURST_CONTROL - 1 { other } else { main };
                    let size = if i % 2 == 0 { Some(rng.next_u32()) } else { None };
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

    /// Plans a probe through a path. `drawn`: a random number that chooses the size where the class draws one; `None`: the
    /// smallest.
    pub fn probe(
        &self,
        mesh: &Mesh,
        class: ProbeClass,
        p: PathIdx,
        target: TargetIdx,
        drawn: Option<u32>,
    ) -> ProbeSpec {
        let least = self.targets[target].smallest();
        let size = match (class.spec().size, drawn) {
            (ProbeSize::Full, _) => mesh.mtu.max(least),
            (ProbeSize::Random, Some(drawn)) => {
                // A padding TLV takes four bytes at least.
                let from = least + 4;
                let span = u32::from(mesh.mtu.saturating_sub(from)) + 1;
                from + (drawn % span) as u16
            }
            (ProbeSize::Random, None) | (ProbeSize::Smallest, _) => least,
        };
        ProbeSpec { class, path: Some(p), target, size }
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
