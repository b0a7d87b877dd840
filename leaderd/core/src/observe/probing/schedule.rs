//! What is sent when: rounds, and bursts at a first loss.
//!
//! A round sends a new flow of drawn size through every slot to the same target; every fifth is of full size. The other
//! classes join one round in five each. A slot is never tested on its own candidate's workload, which it need not relay
//! to: it takes the next target instead.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;

use crate::mesh::Mesh;
use crate::time::Instant;
use crate::verdict::{Cause, ProbeClass, Verdict};

use crate::observe::location::LocationWatch;

/// A cycle of rounds: full size, pinned flow, relay and as-workload have one of them each.
pub const CYCLE: u64 = 5;
/// One round in so many also attempts a target that is thought dead.
const REVISIT: u64 = 5;
/// Long-lived flows per slot: each costs a socket.
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
    /// Index of the path; `None`: the ordinary routes.
    pub path: Option<usize>,
    /// Index of the target.
    pub target: usize,
    /// Bytes, headers included.
    pub size: u16,
}

impl LocationWatch {
    pub fn round(&mut self, mesh: &Mesh, rng: &mut ChaCha8Rng) -> Vec<ProbeSpec> {
        let n = self.round;
        self.round += 1;
        let mut probes = Vec::new();
        let full = n.is_multiple_of(CYCLE);
        let class = if full { ProbeClass::FullSize } else { ProbeClass::NewFlow };
        // Each class counts for itself, so that each comes to every target whatever their number.
        let turn = if full { n / CYCLE } else { n - n / CYCLE - 1 };
        let drawn = rng.next_u32();
        let quarantined = n.is_multiple_of(REVISIT);
        let troubled = self.paths.iter().any(|p| p.verdict != Verdict::Forwarding);
        for p in 0..self.paths.len() {
            let targets = self.targets_of(p);
            let own = |t: usize| self.targets[t].own;
            let Some(target) = pick(&targets, turn, &self.rotation, own) else {
                // Nothing behind it to be tested on.
                probes.push(self.spec(mesh, ProbeClass::Relay, p, self.relay_of(p, n), None));
                continue;
            };
            probes.push(self.spec(mesh, class, p, target, Some(drawn)));
            if quarantined && let Some(dead) = self.quarantined_target(p, n / REVISIT) {
                probes.push(self.spec(mesh, ProbeClass::NewFlow, p, dead, None));
            }
            if n % CYCLE == 1 && !targets.is_empty() {
                let few = &targets[..targets.len().min(PINNED_TARGETS)];
                let target = few[(n / CYCLE) as usize % few.len()];
                probes.push(self.spec(mesh, ProbeClass::PinnedFlow, p, target, None));
            }
            if n % CYCLE == 2 || troubled {
                probes.push(self.spec(mesh, ProbeClass::Relay, p, self.relay_of(p, n), None));
            }
            // What failed is asked more often, so that its recovery is seen.
            match &self.paths[p].verdict {
                Verdict::Degraded { cause: Cause::Mtu, .. } if !full => {
                    probes.push(self.spec(mesh, ProbeClass::FullSize, p, target, None));
                }
                Verdict::Degraded { cause: Cause::Partial, .. } => {
                    let partial = &self.paths[p].partial;
                    if !partial.is_empty() {
                        let t = partial[n as usize % partial.len()];
                        probes.push(self.spec(mesh, ProbeClass::NewFlow, p, t, None));
                    }
                }
                _ => {}
            }
        }
        if n % CYCLE == 3
            && let Some(target) = self.next_as_workload()
        {
            probes.push(self.as_workload(target));
        }
        probes
    }

    /// A burst: what settles whether path `p` fails, and how.
    pub fn burst(
        &mut self,
        mesh: &Mesh,
        now: Instant,
        p: usize,
        rng: &mut ChaCha8Rng,
    ) -> Vec<ProbeSpec> {
        let mut probes = Vec::new();
        let Some((failed, lost)) = self.last_loss(p) else { return probes };
        let main_targets = self.burst_targets(p, lost);
        let next = |i: usize| main_targets[i % main_targets.len()];
        let main =
            if failed == ProbeClass::FullSize { ProbeClass::FullSize } else { ProbeClass::NewFlow };
        let other =
            if main == ProbeClass::FullSize { ProbeClass::NewFlow } else { ProbeClass::FullSize };
        for i in 0..BURST_MAIN {
            let t = next(i);
            // Every other one as small as can be: if those pass, it is the size.
            let size = if i % 2 == 0 { Some(rng.next_u32()) } else { None };
            probes.push(self.spec(mesh, main, p, t, size));
        }
        for i in 0..BURST_OTHER {
            probes.push(self.spec(mesh, other, p, next(i + 1), None));
        }
        let all = self.targets_of(p);
        for i in 0..BURST_SIDE {
            if !all.is_empty() {
                let few = &all[..all.len().min(PINNED_TARGETS)];
                probes.push(self.spec(mesh, ProbeClass::PinnedFlow, p, few[i % few.len()], None));
            }
            probes.push(self.spec(mesh, ProbeClass::Relay, p, self.relay_of(p, i as u64), None));
        }
        let mut order = main_targets.clone();
        order.sort_unstable();
        order.dedup();
        for k in (0..self.paths.len()).filter(|k| *k != p) {
            let usable = self.targets_of(k);
            // The same targets as the suspect's, the lost one first; else whatever this slot can be tested on.
            let mut same: Vec<usize> = Vec::new();
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
                    probes.push(self.spec(mesh, class, k, *t, size));
                }
            }
            let relay = self.relay_of(k, self.round);
            probes.push(self.spec(mesh, ProbeClass::Relay, k, relay, None));
        }
        self.paths[p].burst = Some(now);
        probes
    }

    /// Which targets a burst through `p` goes to, in turn. The one that was lost takes two of three, others the rest. Only
    /// what another path can test as well is evidence, so if the lost one is not that, others stand in for it.
    fn burst_targets(&self, p: usize, lost: usize) -> Vec<usize> {
        let proves = |t: &usize| !self.controls(p, *t).is_empty();
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

    /// `drawn`: a random number that chooses the size of a new flow; `None`: the smallest.
    pub fn spec(
        &self,
        mesh: &Mesh,
        class: ProbeClass,
        p: usize,
        target: usize,
        drawn: Option<u32>,
    ) -> ProbeSpec {
        let least = self.targets[target].smallest();
        let size = match (class, drawn) {
            (ProbeClass::FullSize, _) => mesh.mtu.max(least),
            (ProbeClass::NewFlow, Some(drawn)) => {
                // A padding TLV takes four bytes at least.
                let from = least + 4;
                let span = u32::from(mesh.mtu.saturating_sub(from)) + 1;
                from + (drawn % span) as u16
            }
            _ => least,
        };
        ProbeSpec { class, path: Some(p), target, size }
    }
}

/// The round's target for a slot: all slots agree on it, but for the one whose own workload it is. That one takes the next of the
/// same kind, if there is one.
fn pick(
    targets: &[usize],
    round: u64,
    rotation: &[usize],
    own: impl Fn(usize) -> bool,
) -> Option<usize> {
    if rotation.is_empty() {
        return targets.get(round as usize % targets.len().max(1)).copied();
    }
    let from = round as usize % rotation.len();
    let usable = || {
        rotation
            .iter()
            .cycle()
            .skip(from)
            .take(rotation.len())
            .copied()
            .filter(|t| targets.contains(t))
    };
    let kind = own(rotation[from]);
    usable()
        .find(|t| own(*t) == kind)
        .or_else(|| usable().next())
        .or_else(|| targets.first().copied())
}
