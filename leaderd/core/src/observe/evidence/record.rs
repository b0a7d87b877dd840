//! Takes the outcome of a probe down, and finds which targets are dead themselves.

use std::time::Duration;

use crate::io::ProbeId;
use crate::mesh::Policy;
use crate::observe::index::{PathIdx, TargetIdx};
use crate::observe::judgement::sprt;
use crate::observe::location::{BurstBudget, LocationWatch};
use crate::time::Instant;

use super::Outcome;

/// How long nothing must have reached a target before it is taken for dead.
const DEAD_AFTER: Duration = Duration::from_secs(1);
/// Losses of a target, through all paths and through each, before it is taken for dead.
const DEAD_LOSSES: u32 = 4;
const DEAD_LOSSES_EACH: u32 = 2;

impl LocationWatch {
    /// Notes that something came back through a path; with the first, what was known of the path is forgotten. Returns whether
    /// what was sent then says nothing about it ([`super::path::SignsOfLife::precedes`]).
    pub fn note_first_reply(&mut self, now: Instant, p: PathIdx, sent: Instant) -> bool {
        let path = &mut self.paths[p];
        if path.life.on_reply(now) {
            path.samples.clear();
            path.loss.restart();
            path.compared = Default::default();
            path.burst = None;
            self.bursts = BurstBudget::full(now);
        }
        self.paths[p].life.precedes(sent)
    }

    /// Takes the outcome of a probe down. A late reply comes here after its loss did, and takes that back.
    pub fn record_outcome(
        &mut self,
        policy: &Policy,
        now: Instant,
        p: PathIdx,
        id: ProbeId,
        outcome: Outcome,
        mtu: Option<u16>,
    ) {
        let controls = self.control_loss(p);
        let target = self.paths[p].samples.find(id).map(|s| s.target);
        let lives_elsewhere = target.is_some_and(|t| self.lives_elsewhere(p, t));
        let path = &mut self.paths[p];
        let Some(sample) = path.samples.find(id) else { return };
        let target = &mut self.targets[sample.target];
        let before = sample.outcome;
        if outcome == Outcome::Lost && target.health.is_daemon_absent() {
            sample.outcome = Outcome::Void;
            return;
        }
        sample.outcome = outcome;
        let sample = *sample;
        let (new_flow, relay) = (sample.is_new_flow(), sample.class.is_of_tunnel());
        let quarantined = target.health.is_quarantined();
        let pair = &mut self.pairs[p][sample.target];
        let steady = sprt::steady(controls.unwrap_or(0.0), policy.loss_threshold);
        if new_flow && !quarantined && !before.is_loss() && outcome != Outcome::Void {
            path.loss.show(outcome.is_loss());
        }
        if outcome.is_decided() && !quarantined {
            self.blocks.record(p, &sample, outcome.is_loss());
        }
        match outcome {
            Outcome::Delivered => {
                path.life.on_delivered(sample.sent, relay);
                // A long-lived flow that passes does not make up for new ones that do not.
                if new_flow {
                    pair.on_delivered(sample.sent);
                    if before.is_loss() {
                        path.loss.take_back(&steady);
                    }
                    path.loss.count(false, &steady);
                    path.mtu.on_delivered(sample.size);
                    if target.health.on_new_flow_passed() {
                        self.rebuild_rotation();
                    }
                }
            }
            Outcome::Lost | Outcome::Looped => {
                path.life.on_lost(relay);
                if let Some(mtu) = mtu.filter(|m| *m < sample.size) {
                    path.mtu.on_too_big(mtu);
                }
                if new_flow {
                    pair.on_lost(sample.sent);
                }
                if new_flow && !quarantined {
                    path.loss.lost_at(sample.sent, policy.probe_interval);
                    if lives_elsewhere {
                        path.loss.count(true, &steady);
                    }
                }
                if !relay && !quarantined {
                    self.fresh_losses.push(p);
                }
                self.raise_rate(now);
                self.quarantine_if_dead(now, sample.target);
            }
            Outcome::Void => path.own_fault = Some(now),
            Outcome::Pending => {}
        }
    }

    /// An ICMP error says in the target's name that nothing listens there. Returns whether the target's daemon has since answered
    /// what was sent through another path: then it is this path that does not reach it.
    pub fn port_unreachable(&mut self, p: PathIdx, t: TargetIdx, sent: Instant) -> bool {
        let first = self.pairs[p][t].on_unreachable(sent);
        self.paths.indices().any(|k| k != p && self.pairs[k][t].daemon_answered() > Some(first))
    }

    /// The target's own kernel says that nothing listens there.
    pub fn mark_daemon_absent(&mut self, t: TargetIdx) {
        let target = &mut self.targets[t];
        if target.health.on_unreachable(target.relay_of.is_some()) {
            self.rebuild_rotation();
        }
    }

    /// A target that every path loses, and has for a while, is dead itself. Where one path alone can test it, that says nothing
    /// unless the path has others to be tested on.
    fn quarantine_if_dead(&mut self, now: Instant, t: TargetIdx) {
        if self.targets[t].health.is_quarantined() || self.targets[t].relay_of.is_some() {
            return;
        }
        let testers: Vec<PathIdx> = self.paths.indices().filter(|p| self.can_test(*p, t)).collect();
        let only = testers.len() == 1 && self.testable(testers[0]).count() == 1;
        let lost = |p: &PathIdx| self.pairs[*p][t].lost_in_row();
        // A hiccup that all paths share, while one of them is broken, must not take the target away that shows it.
        let passed = testers.iter().filter_map(|p| self.pairs[*p][t].delivered()).max();
        if passed.is_some_and(|sent| now.since(sent) < DEAD_AFTER) {
            return;
        }
        let all_lose = testers.iter().all(|p| lost(p) >= DEAD_LOSSES_EACH);
        if !only && testers.iter().map(lost).sum::<u32>() >= DEAD_LOSSES && all_lose {
            self.targets[t].health.quarantine();
            self.rebuild_rotation();
        }
    }

    /// Another path's latest probe to this target passed, so that a loss here says something about this path.
    fn lives_elsewhere(&self, p: PathIdx, t: TargetIdx) -> bool {
        let mut others = self.paths.indices().filter(|k| *k != p && self.can_test(*k, t));
        others.any(|k| self.pairs[k][t].lost_in_row() == 0)
    }
}
