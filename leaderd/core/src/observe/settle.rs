//! What becomes of a location's evidence when the fate of a probe is known, and which targets are dead themselves.

use std::time::Duration;

use crate::io::ProbeId;
use crate::mesh::Policy;
use crate::time::Instant;
use crate::verdict::ProbeClass;

use super::evidence::{LOSS_GAIN, Outcome, Path};
use super::sprt;
use super::watch::{Bursts, Watch};

/// How long nothing must have reached a target before it is taken for dead.
const DEAD_AFTER: Duration = Duration::from_secs(1);

impl Watch {
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
                if obs.is_fresh() && !quarantined {
                    path.lossy_at(obs.sent, policy.probe_interval);
                    if elsewhere_alive {
                        test(path, true);
                    }
                }
                if obs.class != ProbeClass::Relay && !quarantined {
                    self.fresh_losses.push((p, obs.class, obs.target, obs.sent));
                }
                self.raise(now);
                self.quarantine(now, obs.target);
            }
            Outcome::Void => path.own_fault = Some(now),
            Outcome::Pending => {}
        }
    }

    /// The target's daemon itself answered.
    pub(super) fn proved(&mut self, p: usize, t: usize, sent: Instant) {
        let cell = &mut self.cells[p][t];
        cell.proved = cell.proved.max(Some(sent));
        cell.refused = None;
    }

    /// An ICMP error says in the target's name that nobody listens there. True if the target's daemon has since answered what
    /// was sent through another path: then it is this path that does not reach it.
    pub(super) fn refused(&mut self, p: usize, t: usize, sent: Instant) -> bool {
        let first = *self.cells[p][t].refused.get_or_insert(sent);
        (0..self.paths.len()).any(|k| k != p && self.cells[k][t].proved > Some(first))
    }

    /// The target's own kernel says that nobody listens there.
    pub(super) fn muted(&mut self, t: usize) {
        if !self.targets[t].mute {
            self.targets[t].mute = true;
            self.targets[t].quarantined = self.targets[t].relay_of.is_none();
            self.rotate();
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
        let lost: u32 = testers.iter().map(|p| self.cells[*p][t].lost_in_row).sum();
        // A hiccup that all slots share, while one of them is broken, must not take the target away that shows it.
        let passed = testers.iter().filter_map(|p| self.cells[*p][t].delivered).max();
        if passed.is_some_and(|sent| now.since(sent) < DEAD_AFTER) {
            return;
        }
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
}
