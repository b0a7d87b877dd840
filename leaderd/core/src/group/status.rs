//! What an operator sees of the group.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Group;
use crate::election::{Choice, Situation};
use crate::fault::Fault;
use crate::ids::{NodeName, Slot};
use crate::status::CandidateStatus;
use crate::time::{Now, WallTime};
use crate::verdict::{SlotReport, Verdict};

impl Group {
    /// True if this node is in touch with most voters (as raft leader), or with a raft leader that is. A raft leader whose
    /// disk takes no writes decides nothing.
    pub fn has_quorum(&self, now: Now) -> bool {
        if self.raft.is_leader() {
            !self.disk_is_stuck(now) && self.reachable_voters(now) * 2 > self.voters.len()
        } else {
            self.raft.follows()
        }
    }

    /// True while the disk confirms none of the writes that wait for it.
    pub fn disk_is_stuck(&self, now: Now) -> bool {
        self.leadership.disk_stuck_for(now.mono).is_some()
    }

    fn reachable_voters(&self, now: Now) -> usize {
        let within = (self.raft.election_timeout() * 2).max(Duration::from_millis(1500));
        let heard = |n: &&NodeName| {
            **n == self.me || self.reports.silence(now.mono, n).is_some_and(|s| s < within)
        };
        self.voters.iter().filter(heard).count()
    }

    fn situation(&self, now: Now) -> Situation {
        self.reports.situation(now, &self.mesh, self.raft.state(), &self.me)
    }

    pub fn candidates_status(&self, now: Now) -> Vec<CandidateStatus> {
        let situation = self.situation(now);
        let mut all = Vec::new();
        for (slot, facts) in &situation.candidates {
            let reports: Vec<&SlotReport> =
                situation.observers.iter().filter_map(|o| o.slot(*slot)).collect();
            let (verdict, agree) = most_common(&reports);
            let rtts: Vec<f64> =
                reports.iter().filter_map(|r| r.rtt).map(|d| d.as_secs_f64() * 1e3).collect();
            let rtt_ms = (!rtts.is_empty()).then(|| rtts.iter().sum::<f64>() / rtts.len() as f64);
            let lost: f32 = reports.iter().map(|r| r.loss).sum();
            let loss = (!reports.is_empty()).then(|| lost / reports.len() as f32);
            let leading = situation.leaders.contains(slot);
            let mut blocked_by = situation.blocked_by(*slot, None);
            if facts.ejected && !leading {
                blocked_by
                    .push("failed a short while ago: only if no other candidate forwards".into());
            }
            all.push(CandidateStatus {
                name: facts.name.clone(),
                slot: *slot,
                leading,
                verdict,
                observers: (clip(agree), clip(situation.observers.len())),
                rtt_ms,
                loss,
                path_mtu: reports.iter().filter_map(|r| r.path_mtu).min(),
                services: reports.iter().map(|r| r.services).filter(|s| s.1 > 0).min(),
                drained: facts.drained,
                blocked_by,
            });
        }
        all
    }

    /// Who would lead if the leader failed now.
    pub fn next_leader(&self, now: Now) -> Option<Slot> {
        let situation = self.situation(now);
        situation.eligible(None).into_iter().find(|s| !situation.leaders.contains(s))
    }

    /// The freeze in force and when it ends, by this node's wall clock; `None` once it has ended.
    pub fn freeze_end(&self, now: Now) -> Option<Option<WallTime>> {
        let ends = |left: Duration| WallTime(now.wall.0.saturating_add(left.as_micros() as u64));
        self.reports.freeze_left(now, self.state()).map(|left| left.map(ends))
    }

    /// What prevents a decision, as far as every voter knows.
    pub fn notes(&self, now: Now) -> Vec<String> {
        let mut notes = Vec::new();
        if let Some(waited) = self.leadership.disk_stuck_for(now.mono) {
            notes.push(format!(
                "the disk has confirmed no writes for {} s: this node neither votes nor leads Raft until it does",
                waited.as_secs()
            ));
        }
        let (mine, theirs) = (self.mesh.generation, self.state().voters_generation);
        if mine < theirs {
            notes.push(format!(
                "the voters come from generation {theirs} of the mesh file, and this node has {mine}"
            ));
        }
        if !self.has_quorum(now) {
            let (have, of) = (self.reachable_voters(now), self.voters.len());
            notes.push(format!(
                "no quorum: {have} of {of} voters reachable; nothing can be decided"
            ));
        }
        if self.raft.is_stopped() {
            notes.push(super::drain::TOO_OLD.into());
        }
        if self.raft.is_non_voting() {
            notes.push(
                "this node came with an empty store and does not vote until it has caught up"
                    .into(),
            );
        }
        notes
    }

    /// Why leadership does not move although it should. Only for a voter that gets reports: without them it decides otherwise.
    pub fn notes_of_election(&self, now: Now) -> Vec<String> {
        let situation = self.situation(now);
        let mut notes = Vec::new();
        match situation.decide() {
            Choice::FailStatic { cause } => {
                notes.push(format!(
                    "the leader should go ({cause}), but no standby is known to forward"
                ));
            }
            Choice::Blocked { cause } if situation.hold_down > Duration::ZERO => {
                let left = situation.hold_down.as_secs_f64();
                notes.push(format!(
                    "the leader is at fault ({cause}); hold-down for another {left:.1} s"
                ));
            }
            Choice::Blocked { cause } => {
                notes.push(format!("the leader is at fault ({cause}), but frozen"))
            }
            _ => {}
        }
        if situation.decided && situation.hold_down > Duration::from_secs(10) {
            let left = situation.hold_down.as_secs();
            notes.push(format!(
                "no automatic failover for another {left} s, after several in a short time"
            ));
        }
        if situation.observers.is_empty() {
            notes.push("no observer reports: judged by the daemons' signs of life alone".into());
        }
        notes
    }
}

/// The verdict that most share, and how many do. Observers that saw different directions still agree on the cause.
fn most_common(reports: &[&SlotReport]) -> (Verdict, usize) {
    let mut votes: BTreeMap<(u8, Option<Fault>), (Verdict, usize)> = BTreeMap::new();
    for report in reports {
        let kind = match report.verdict {
            Verdict::Unknown => 0,
            Verdict::Forwarding => 1,
            Verdict::Suspected => 2,
            Verdict::Degraded { .. } => 3,
        };
        let (shown, count) = votes
            .entry((kind, report.verdict.fault()))
            .or_insert_with(|| (report.verdict.clone(), 0));
        if let Verdict::Degraded { direction: None, .. } = shown {
            *shown = report.verdict.clone();
        }
        *count += 1;
    }
    votes.into_values().max_by_key(|(_, n)| *n).unwrap_or((Verdict::Unknown, 0))
}

fn clip(n: usize) -> u16 {
    u16::try_from(n).unwrap_or(u16::MAX)
}
