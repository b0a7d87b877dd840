//! Scenarios in which the mesh cannot carry the workload from the start: it must say so.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::{POLL, Session};
use crate::meter::{Meter, wall_micros};
use crate::report::{Failed, Leaders, RunResult};

/// The verdicts must stay the same for this long.
const STAYS: Duration = Duration::from_secs(2);
/// Packets that are counted as lost or not.
const MEASURED: Duration = Duration::from_secs(1);

impl Session {
    /// Waits until every candidate of the location under test is reported degraded with these words, and checks that it is.
    pub(super) fn play_dead(&mut self, words: &str) -> Result<RunResult> {
        self.world.start_daemons()?;
        let scenario = self.world.scenario.clone();
        let (began, mut since): (Instant, Option<Instant>) = (Instant::now(), None);
        let mut missing = Some("nothing was asked yet".to_owned());
        while began.elapsed() < scenario.within.0 && since.is_none_or(|s| s.elapsed() < STAYS) {
            std::thread::sleep(POLL);
            missing = self.not_named(words);
            since = if missing.is_some() { None } else { since.or(Some(Instant::now())) };
        }
        let meters = self.start_meters()?;
        std::thread::sleep(MEASURED);
        let until = wall_micros();
        self.in_flight();
        let all = [Meter::NewFlows, Meter::Established].map(|m| meters.main().tally(m, 0, until));
        self.remember();
        let mut failed = missing.is_some().then_some(Failed::Late);
        let mut wrong: Vec<String> = missing.into_iter().collect();
        if all.iter().any(|t| t.lost < t.sent || t.sent == 0) {
            failed = Some(Failed::Wrong);
            wrong.push(format!("packets get through: {}", meters.losses()));
        }
        let outcome = if wrong.is_empty() { "pass" } else { "fail" }.to_owned();
        let leader = Leaders { before: self.leader(), after: self.leader() };
        Ok(RunResult { outcome, leader, failed, ..RunResult::broken(wrong.join("; ")) })
    }

    /// Returns a candidate that is not reported so; `None` when all are.
    fn not_named(&self, words: &str) -> Option<String> {
        let location = &self.world.scenario.location;
        let statuses: Vec<_> =
            (0..self.world.nodes.len()).filter_map(|n| self.world.status(n).ok()).collect();
        let candidates = self.world.nodes_in(self.tested).map(|n| &self.world.nodes[n].node);
        candidates.filter(|n| n.slot.is_some()).find_map(|n| {
            let seen: Vec<String> = statuses
                .iter()
                .filter_map(|s| s.location(location))
                .flat_map(|l| &l.candidates)
                .filter(|c| c.name == n.name)
                .map(|c| c.verdict.to_string())
                .collect();
            let named = seen.iter().any(|v| v.contains("degraded") && v.contains(words));
            (!named).then(|| {
                format!("{} is not called degraded with {words:?}, but {}", n.name, seen.join(", "))
            })
        })
    }
}
