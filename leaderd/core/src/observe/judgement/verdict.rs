//! The verdict about one path: its states, what moves it from one to the next, and what it is about.

use crate::fault::Fault;
use crate::observe::index::TargetIdx;
use crate::time::Instant;
use crate::verdict::{Direction, EvidenceRow, Verdict};

/// What the evidence about a path says now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    /// Nothing can be held against the candidate: our own kernel refuses to send, every path is silent, or WireGuard's first
    /// handshake is awaited.
    NotJudgeable,
    /// Too little for any other finding.
    Inconclusive,
    /// Packets pass. Of a degraded path: for long enough, in the class that failed.
    Passes,
    /// Losses that count, and the burst that decides is under way.
    Suspicious,
    /// A loss test reached its threshold.
    Failed { cause: Fault, direction: Option<Direction> },
    /// Packets pass, and a service does not.
    ServiceFailed { cause: Fault },
}

/// What is known of a trouble once it is suspected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trouble {
    /// When the first lost probe was sent, and when it was first suspected.
    pub first_loss: Instant,
    pub suspected: Instant,
    /// When the last new flow, or exchange, that passed before was sent.
    pub ok_before: Option<Instant>,
}

/// What a degraded verdict is about.
#[derive(Debug, Clone, Default)]
pub struct Grounds {
    /// Counts behind it.
    pub rows: Vec<EvidenceRow>,
    /// Targets that a partial verdict is about.
    pub failing_targets: Vec<TargetIdx>,
    /// It is by what services lose, not by packets.
    pub by_service: bool,
}

/// The verdict about one path.
///
/// ```text
///               Passes                   Suspicious
///   ┌─────────┐──────────▶┌────────────┐──────────▶┌───────────┐
///   │ Unknown │           │ Forwarding │           │ Suspected │
///   └─────────┘◀──────────└────────────┘◀──────────└───────────┘
///        │    Inconclusive   │      ▲      Passes        │
///        │ Failed,    Failed,│      │ Passes      Failed,│
///        │ ServiceFailed     ▼      │      ServiceFailed │
///        │                ┌────────────┐                 │
///        └───────────────▶│  Degraded  │◀────────────────┘
///                         └────────────┘
///
///   Unknown   ──Suspicious────▶ Suspected
///   Suspected ──Inconclusive──▶ Unknown
///   any state ──NotJudgeable──▶ Unknown
/// ```
///
/// Degraded stays as it is with Inconclusive, Suspicious and Failed. Where packets pass again and a service does not, it becomes
/// degraded by that service, and stays so until services pass.
#[derive(Debug)]
pub struct PathVerdict {
    verdict: Verdict,
    since: Instant,
    trouble: Option<Trouble>,
    grounds: Grounds,
}

impl PathVerdict {
    pub fn new(now: Instant) -> Self {
        Self { verdict: Verdict::Unknown, since: now, trouble: None, grounds: Grounds::default() }
    }

    pub fn get(&self) -> &Verdict {
        &self.verdict
    }

    /// When this verdict was reached.
    pub fn since(&self) -> Instant {
        self.since
    }

    pub fn trouble(&self) -> Option<&Trouble> {
        self.trouble.as_ref()
    }

    pub fn rows(&self) -> &[EvidenceRow] {
        &self.grounds.rows
    }

    /// Targets that a partial verdict is about.
    pub fn failing_targets(&self) -> &[TargetIdx] {
        &self.grounds.failing_targets
    }

    /// It is degraded by what services lose, not by packets.
    pub fn failed_by_service(&self) -> bool {
        self.grounds.by_service
    }

    /// The verdict that follows from a finding.
    pub fn after(&self, finding: Finding) -> Verdict {
        match (&self.verdict, finding) {
            (_, Finding::NotJudgeable) => Verdict::Unknown,
            (_, Finding::Passes) => Verdict::Forwarding,
            (Verdict::Degraded { .. }, Finding::ServiceFailed { .. })
                if self.grounds.by_service =>
            {
                self.verdict.clone()
            }
            (_, Finding::ServiceFailed { cause }) => Verdict::Degraded { cause, direction: None },
            (
                Verdict::Degraded { .. },
                Finding::Inconclusive | Finding::Suspicious | Finding::Failed { .. },
            ) => self.verdict.clone(),
            (
                Verdict::Unknown | Verdict::Forwarding | Verdict::Suspected,
                Finding::Failed { cause, direction },
            ) => Verdict::Degraded { cause, direction },
            (Verdict::Unknown | Verdict::Forwarding | Verdict::Suspected, Finding::Suspicious) => {
                Verdict::Suspected
            }
            (
                Verdict::Unknown | Verdict::Forwarding | Verdict::Suspected,
                Finding::Inconclusive,
            ) => Verdict::Unknown,
        }
    }

    /// Moves to another verdict, and returns the one before. `trouble` counts where it is suspected or degraded; a trouble that
    /// began earlier goes on.
    pub fn change(
        &mut self,
        now: Instant,
        next: Verdict,
        trouble: Trouble,
        grounds: Grounds,
    ) -> Verdict {
        self.trouble = match next {
            Verdict::Unknown | Verdict::Forwarding => None,
            Verdict::Suspected | Verdict::Degraded { .. } => {
                let goes_on = self.trouble.filter(|t| t.first_loss <= trouble.first_loss);
                match goes_on {
                    // Services have times of their own.
                    Some(earlier) if grounds.by_service => {
                        Some(Trouble { first_loss: earlier.first_loss, ..trouble })
                    }
                    Some(earlier) => Some(earlier),
                    None => Some(trouble),
                }
            }
        };
        (self.since, self.grounds) = (now, grounds);
        std::mem::replace(&mut self.verdict, next)
    }

    /// The same where targets have other numbers.
    pub fn renumbered(self, number_now: impl Fn(TargetIdx) -> Option<TargetIdx>) -> Self {
        let failing_targets = self.grounds.failing_targets.iter().filter_map(|t| number_now(*t));
        let failing_targets = failing_targets.collect();
        Self { grounds: Grounds { failing_targets, ..self.grounds }, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MTU: Verdict = Verdict::Degraded { cause: Fault::Mtu, direction: None };
    const LOOP: Verdict = Verdict::Degraded { cause: Fault::Loop, direction: None };
    const PARTIAL: Verdict = Verdict::Degraded { cause: Fault::Partial, direction: None };

    fn at(seconds: u64) -> Instant {
        Instant(seconds * 1_000_000)
    }

    fn trouble(first_loss: u64, suspected: u64) -> Trouble {
        Trouble {
            first_loss: at(first_loss),
            suspected: at(suspected),
            ok_before: Some(at(first_loss - 1)),
        }
    }

    fn grounds(by_service: bool) -> Grounds {
        Grounds { by_service, ..Grounds::default() }
    }

    #[test]
    fn transition_table_is_exhaustive_and_correct() {
        use Verdict::{Forwarding, Suspected, Unknown};
        let findings = [
            Finding::NotJudgeable,
            Finding::Inconclusive,
            Finding::Passes,
            Finding::Suspicious,
            Finding::Failed { cause: Fault::Loop, direction: None },
            Finding::ServiceFailed { cause: Fault::Partial },
        ];
        // A row for each state (degraded by packets and by a service), a column for each finding.
        let table = [
            (Unknown, false, [Unknown, Unknown, Forwarding, Suspected, LOOP, PARTIAL]),
            (Forwarding, false, [Unknown, Unknown, Forwarding, Suspected, LOOP, PARTIAL]),
            (Suspected, false, [Unknown, Unknown, Forwarding, Suspected, LOOP, PARTIAL]),
            (MTU, false, [Unknown, MTU, Forwarding, MTU, MTU, PARTIAL]),
            (MTU, true, [Unknown, MTU, Forwarding, MTU, MTU, MTU]),
        ];
        for (state, by_service, after) in table {
            let mut verdict = PathVerdict::new(at(1));
            verdict.change(at(2), state.clone(), trouble(2, 2), grounds(by_service));
            for (finding, after) in findings.into_iter().zip(after) {
                assert_eq!(verdict.after(finding), after, "{state:?} {finding:?}");
            }
        }
    }

    #[test]
    fn a_trouble_that_is_suspected_and_then_found_began_with_its_first_loss() {
        let mut verdict = PathVerdict::new(at(1));
        verdict.change(at(2), Verdict::Forwarding, trouble(2, 2), grounds(false));
        assert_eq!(verdict.trouble(), None);
        verdict.change(at(11), Verdict::Suspected, trouble(10, 11), grounds(false));
        assert_eq!(
            verdict.change(at(13), MTU, trouble(12, 13), grounds(false)),
            Verdict::Suspected
        );
        assert_eq!((verdict.trouble(), verdict.since()), (Some(&trouble(10, 11)), at(13)));
        verdict.change(at(20), Verdict::Forwarding, trouble(20, 20), grounds(false));
        assert_eq!(verdict.trouble(), None);
        verdict.change(at(31), MTU, trouble(30, 31), grounds(false));
        assert_eq!(verdict.trouble(), Some(&trouble(30, 31)), "another one");
    }

    #[test]
    fn losses_of_packets_before_those_of_a_service_began_the_trouble() {
        let mut verdict = PathVerdict::new(at(1));
        verdict.change(at(11), Verdict::Suspected, trouble(10, 11), grounds(false));
        verdict.change(at(16), PARTIAL, trouble(14, 15), grounds(true));
        assert!(verdict.failed_by_service());
        let merged = Trouble { first_loss: at(10), ..trouble(14, 15) };
        assert_eq!(verdict.trouble(), Some(&merged));
        verdict.change(at(20), Verdict::Unknown, trouble(20, 20), grounds(false));
        assert!(!verdict.failed_by_service());
    }
}
