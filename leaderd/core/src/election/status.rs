//! What an operator sees of a situation.

use std::collections::BTreeMap;
use std::time::Duration;

use super::decide::Choice;
use super::situation::Situation;
use crate::fault::Fault;
use crate::status::CandidateStatus;
use crate::verdict::{SlotReport, Verdict};

impl Situation {
    /// The candidates, by slot.
    pub fn candidates_status(&self) -> Vec<CandidateStatus> {
        let mut all = Vec::new();
        for (slot, facts) in &self.candidates {
            let reports: Vec<&SlotReport> =
                self.observers().filter_map(|o| o.slot(*slot)).collect();
            let (verdict, agree) = most_common(&reports);
            let rtts: Vec<f64> =
                reports.iter().filter_map(|r| r.rtt).map(|d| d.as_secs_f64() * 1e3).collect();
            let rtt_ms = (!rtts.is_empty()).then(|| rtts.iter().sum::<f64>() / rtts.len() as f64);
            let lost: f32 = reports.iter().map(|r| r.loss).sum();
            let loss = (!reports.is_empty()).then(|| lost / reports.len() as f32);
            let leading = self.leaders.contains(slot);
            let mut blocked_by = self.blocked_by(*slot);
            if facts.ejected && !leading {
                blocked_by
                    .push("failed a short while ago: only if no other candidate forwards".into());
            }
            all.push(CandidateStatus {
                name: facts.name.clone(),
                slot: *slot,
                leading,
                verdict,
                observers: (clip(agree), clip(self.observers().count())),
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

    /// Why leadership does not move although it should.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        match self.decide() {
            Choice::FailStatic { cause } => {
                notes.push(format!(
                    "the leader should go ({cause}), but no standby is known to forward"
                ));
            }
            Choice::Blocked { cause } if self.hold_down > Duration::ZERO => {
                let left = self.hold_down.as_secs_f64();
                notes.push(format!(
                    "the leader is at fault ({cause}); hold-down for another {left:.1} s"
                ));
            }
            Choice::Blocked { cause } => {
                notes.push(format!("the leader is at fault ({cause}), but frozen"))
            }
            _ => {}
        }
        if self.decided && self.hold_down > Duration::from_secs(10) {
            let left = self.hold_down.as_secs();
            notes.push(format!(
                "no automatic failover for another {left} s, after several in a short time"
            ));
        }
        if !self.has_observers() {
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
