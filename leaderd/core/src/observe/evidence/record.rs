//! What becomes of a location's evidence when the fate of a probe is known, and which targets are dead themselves.

use std::time::Duration;

use crate::io::ProbeId;
use crate::mesh::Policy;
use crate::time::Instant;
use crate::verdict::ProbeClass;

use crate::observe::evidence::{LOSS_GAIN, Outcome, Path};
use crate::observe::judgement::sprt;
use crate::observe::location::{BurstBudget, LocationWatch};

/// How long nothing must have reached a target before it is taken for dead.
const DEAD_AFTER: Duration = Duration::from_secs(1);

impl LocationWatch {
    /// A path's first sign of life: what was sent before it says nothing, neither of loss nor of time, as WireGuard keeps
    /// packets back until the first handshake. True if this reply is to such a probe.
    pub fn note_first_reply(&mut self, now: Instant, p: usize, sent: Instant) -> bool {
        let path = &mut self.paths[p];
        if path.first_reply.is_none() {
            path.first_reply = Some(now);
            path.any_ok = Some(now);
            path.samples.clear();
            (path.lost_in_row, path.loss, path.shown_loss, path.steady) = (0, 0.0, 0.0, 0.0);
            path.burst = None;
            self.bursts = BurstBudget::full(now);
        }
        self.paths[p].first_reply.is_some_and(|first_reply| sent < first_reply)
    }

    /// Books what became of a probe. A late reply comes here after its loss did, and takes that back.
    pub fn record_outcome(
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
        let Some(sample) = path.find(id) else { return };
        let before = sample.outcome;
        if outcome == Outcome::Lost && self.targets[sample.target].daemon_absent {
            sample.outcome = Outcome::Void;
            return;
        }
        sample.outcome = outcome;
        let sample = *sample;
        let quarantined = self.targets[sample.target].quarantined;
        let pair = &mut self.pairs[p][sample.target];
        let steady = sprt::steady(controls.unwrap_or(0.0), policy.loss_threshold);
        let test = |path: &mut Path, lost: bool| {
            path.loss += LOSS_GAIN * (f64::from(u8::from(lost)) - path.loss);
            path.steady = (path.steady + steady.step(lost)).clamp(0.0, 1e3);
        };
        if sample.is_fresh() && !quarantined && !before.is_loss() && outcome != Outcome::Void {
            path.shown_loss +=
                LOSS_GAIN * (f64::from(u8::from(outcome.is_loss())) - path.shown_loss);
        }
        match outcome {
            Outcome::Delivered => {
                if sample.is_fresh() {
                    pair.delivered = pair.delivered.max(Some(sample.sent));
                    pair.lost_in_row = 0;
                }
                path.any_ok = path.any_ok.max(Some(sample.sent));
                path.lost_in_row = 0;
                if sample.class == ProbeClass::Relay {
                    path.relay_ok = path.relay_ok.max(Some(sample.sent));
                    path.relay_run = path.relay_run.or(Some(sample.sent));
                }
                if sample.is_fresh() {
                    if before.is_loss() {
                        path.loss = (path.loss - LOSS_GAIN).max(0.0);
                        path.shown_loss = (path.shown_loss - LOSS_GAIN).max(0.0);
                        path.steady = (path.steady - steady.step(true)).max(0.0);
                    }
                    test(path, false);
                    path.path_mtu = path.path_mtu.max(Some(sample.size));
                    if let Some((low, _)) = &mut path.mtu_between {
                        *low = (*low).max(sample.size);
                    }
                }
                // A long-lived flow that passes does not make up for new ones that do not.
                if quarantined && sample.is_fresh() && !self.targets[sample.target].daemon_absent {
                    self.targets[sample.target].quarantined = false;
                    self.rebuild_rotation();
                }
            }
            Outcome::Lost | Outcome::Looped => {
                pair.lost_in_row += u32::from(sample.is_fresh());
                path.lost_in_row += 1;
                if sample.class == ProbeClass::Relay {
                    path.relay_run = None;
                }
                if let Some(mtu) = mtu.filter(|m| *m < sample.size) {
                    path.path_mtu = Some(mtu);
                }
                if sample.is_fresh() && !quarantined {
                    path.lossy_at(sample.sent, policy.probe_interval);
                    if elsewhere_alive {
                        test(path, true);
                    }
                }
                if sample.class != ProbeClass::Relay && !quarantined {
                    self.fresh_losses.push((p, sample.class, sample.target, sample.sent));
                }
                self.raise_rate(now);
                self.quarantine(now, sample.target);
            }
            Outcome::Void => path.own_fault = Some(now),
            Outcome::Pending => {}
        }
    }

    /// The target's daemon itself answered.
    pub fn daemon_answered(&mut self, p: usize, t: usize, sent: Instant) {
        let pair = &mut self.pairs[p][t];
        pair.daemon_answered = pair.daemon_answered.max(Some(sent));
        pair.port_unreachable = None;
    }

    /// An ICMP error says in the target's name that nobody listens there. True if the target's daemon has since answered what
    /// was sent through another path: then it is this path that does not reach it.
    pub fn port_unreachable(&mut self, p: usize, t: usize, sent: Instant) -> bool {
        let first = *self.pairs[p][t].port_unreachable.get_or_insert(sent);
        (0..self.paths.len()).any(|k| k != p && self.pairs[k][t].daemon_answered > Some(first))
    }

    /// The target's own kernel says that nobody listens there.
    pub fn mark_daemon_absent(&mut self, t: usize) {
        if !self.targets[t].daemon_absent {
            self.targets[t].daemon_absent = true;
            self.targets[t].quarantined = self.targets[t].relay_of.is_none();
            self.rebuild_rotation();
        }
    }

    /// A target that every slot loses, and has for a while, is dead itself. Where one slot alone can test it, that says
    /// nothing unless the slot has others to be tested on.
    fn quarantine(&mut self, now: Instant, t: usize) {
        if self.targets[t].quarantined || self.targets[t].relay_of.is_some() {
            return;
        }
        let testers: Vec<usize> = (0..self.paths.len()).filter(|p| self.can_test(*p, t)).collect();
        let only = testers.len() == 1 && self.testable(testers[0]).count() == 1;
        let lost: u32 = testers.iter().map(|p| self.pairs[*p][t].lost_in_row).sum();
        // A hiccup that all slots share, while one of them is broken, must not take the target away that shows it.
        let passed = testers.iter().filter_map(|p| self.pairs[*p][t].delivered).max();
        if passed.is_some_and(|sent| now.since(sent) < DEAD_AFTER) {
            return;
        }
        if !only && lost >= 4 && testers.iter().all(|p| self.pairs[*p][t].lost_in_row >= 2) {
            self.targets[t].quarantined = true;
            self.rebuild_rotation();
        }
    }

    /// Another path's latest probe to this target passed, so that a loss here says something about this path.
    fn lives_elsewhere(&self, p: usize, t: usize) -> bool {
        (0..self.paths.len())
            .any(|k| k != p && self.can_test(k, t) && self.pairs[k][t].lost_in_row == 0)
    }
}
