//! The result of `lab run`, as JSON and for people.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::machine::Seen;
use crate::meter::{Rewritten, TcpSeen};
use crate::scenario::Between;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    pub scenario: String,
    /// `kernel` or `userspace`: what carried WireGuard.
    pub backend: String,
    pub runs: Vec<RunResult>,
    pub summary: Summary,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunResult {
    /// `pass` or `fail`.
    pub outcome: String,
    pub why: String,
    /// How a failed run failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<Failed>,
    pub failovers: u64,
    pub leader: Leaders,
    pub cause: Option<String>,
    pub ms: Stages,
    /// Of the first pair of ends.
    pub blackout_ms: Blackout,
    pub packets: Packets,
    /// Of each pair of ends.
    #[serde(default)]
    pub meters: Vec<MeterResult>,
    /// Whether the machine let the lab run, while it was measured.
    #[serde(default)]
    pub machine: Seen,
}

/// How a run failed: whether a machine that was busy with something else may be to blame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Failed {
    /// It was not played to its end: the lab failed, or the mesh never became ready.
    NotPlayed,
    /// Too slow, or too many packets lost: the decision was right, or was not taken yet.
    Late,
    /// Something happened that should not, above all an unexpected failover.
    Wrong,
}

impl Failed {
    /// Returns whether a second run may be tried: not after a wrong decision, which is a defect in any case.
    pub fn may_be_tried_again(self) -> bool {
        self != Self::Wrong
    }
}

/// What the meters between two ends saw.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MeterResult {
    /// Names of the two nodes.
    #[serde(default)]
    pub nodes: [String; 2],
    pub between: Between,
    pub blackout_ms: Blackout,
    pub packets: Packets,
    /// What came from none of its sender's addresses.
    pub rewritten: Rewritten,
    pub tcp: Option<TcpSeen>,
}

impl MeterResult {
    /// Its ends in words.
    pub fn ends(&self) -> String {
        let [a, b] = &self.nodes;
        format!("{a} and {b} ({})", self.between)
    }

    /// How long packets were lost at most, in milliseconds.
    pub fn longest_blackout_ms(&self) -> f64 {
        self.blackout_ms.new_flows.max(self.blackout_ms.established)
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Leaders {
    pub before: Option<String>,
    pub after: Option<String>,
}

/// Milliseconds from the injection; `null` for what did not happen.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Stages {
    pub suspected: Option<f64>,
    pub condemned: Option<f64>,
    pub committed: Option<f64>,
    pub programmed: Option<f64>,
    pub verified: Option<f64>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Blackout {
    pub new_flows: f64,
    pub established: f64,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Packets {
    pub new_flows: Tally,
    pub established: Tally,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    pub sent: u64,
    pub lost: u64,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Summary {
    pub passed: usize,
    pub failed: usize,
    /// Of the new flows, over all runs.
    pub blackout_ms: Percentiles,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Percentiles {
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
}

impl RunResult {
    /// A run that could not be played.
    pub fn broken(why: String) -> Self {
        Self {
            outcome: "fail".into(),
            why,
            failed: Some(Failed::NotPlayed),
            failovers: 0,
            leader: Leaders::default(),
            cause: None,
            ms: Stages::default(),
            blackout_ms: Blackout::default(),
            packets: Packets::default(),
            meters: Vec::new(),
            machine: Seen::default(),
        }
    }

    pub fn passed(&self) -> bool {
        self.outcome == "pass"
    }
}

impl Report {
    pub fn new(scenario: &str) -> Self {
        Self {
            scenario: scenario.into(),
            backend: String::new(),
            runs: Vec::new(),
            summary: Summary::default(),
        }
    }

    pub fn add(&mut self, backend: String, result: RunResult) {
        if !backend.is_empty() {
            self.backend = backend;
        }
        self.runs.push(result);
    }

    pub fn failed(&self) -> usize {
        self.runs.iter().filter(|r| !r.passed()).count()
    }

    /// Fills the summary.
    pub fn finish(&mut self) {
        let mut all: Vec<f64> = self.runs.iter().map(|r| r.blackout_ms.new_flows).collect();
        all.sort_by(f64::total_cmp);
        self.summary = Summary {
            passed: self.runs.len() - self.failed(),
            failed: self.failed(),
            blackout_ms: Percentiles {
                p50: percentile(&all, 0.50),
                p99: percentile(&all, 0.99),
                max: all.last().copied().unwrap_or(0.0),
            },
        };
    }
}

/// Nearest rank: the least value that at least this share of all does not exceed.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied().unwrap_or(0.0)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} ({} WireGuard)", self.scenario, self.backend)?;
        for (i, r) in self.runs.iter().enumerate() {
            let name = |l: &Option<String>| l.clone().unwrap_or_else(|| "-".into());
            let ms = |v: Option<f64>| v.map_or_else(|| "-".into(), |v| format!("{v:.0}"));
            writeln!(
                f,
                "  run {:<3} {}  {} -> {}  failovers {}  cause {}  blackout new {:.0} ms, old {:.0} ms  lost {}/{} new, {}/{} old",
                i + 1,
                r.outcome,
                name(&r.leader.before),
                name(&r.leader.after),
                r.failovers,
                name(&r.cause),
                r.blackout_ms.new_flows,
                r.blackout_ms.established,
                r.packets.new_flows.lost,
                r.packets.new_flows.sent,
                r.packets.established.lost,
                r.packets.established.sent,
            )?;
            writeln!(
                f,
                "          ms: suspected {}  condemned {}  committed {}  programmed {}  verified {}",
                ms(r.ms.suspected),
                ms(r.ms.condemned),
                ms(r.ms.committed),
                ms(r.ms.programmed),
                ms(r.ms.verified)
            )?;
            for m in r.meters.iter().filter(|m| r.meters.len() > 1 || m.tcp.is_some()) {
                write!(
                    f,
                    "          {}: blackout new {:.0} ms, old {:.0} ms  lost {}/{} new, {}/{} old  rewritten {}",
                    m.ends(),
                    m.blackout_ms.new_flows,
                    m.blackout_ms.established,
                    m.packets.new_flows.lost,
                    m.packets.new_flows.sent,
                    m.packets.established.lost,
                    m.packets.established.sent,
                    m.rewritten.total(),
                )?;
                match m.tcp {
                    Some(tcp) => writeln!(f, "  {tcp}")?,
                    None => writeln!(f)?,
                }
            }
            if r.machine.starved() {
                writeln!(f, "          {}", r.machine)?;
            }
            if !r.why.is_empty() {
                writeln!(f, "          {}", r.why)?;
            }
        }
        let s = &self.summary;
        writeln!(
            f,
            "  passed {}, failed {}; blackout of new flows p50 {:.0} ms, p99 {:.0} ms, max {:.0} ms",
            s.passed, s.failed, s.blackout_ms.p50, s.blackout_ms.p99, s.blackout_ms.max
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let all: Vec<f64> = (1..=50).map(f64::from).collect();
        assert_eq!(percentile(&all, 0.5), 25.0);
        assert_eq!(percentile(&all, 0.99), 50.0);
        assert_eq!(percentile(&[], 0.5), 0.0);
    }

    #[test]
    fn the_json_has_the_agreed_shape() {
        let mut r = Report::new("kilo-489");
        r.add("userspace".into(), RunResult::broken("no".into()));
        r.finish();
        let v = serde_json::to_value(&r).unwrap();
        for path in [
            "/scenario",
            "/backend",
            "/runs/0/outcome",
            "/runs/0/why",
            "/runs/0/failovers",
            "/runs/0/leader/before",
            "/runs/0/cause",
            "/runs/0/ms/suspected",
            "/runs/0/blackout_ms/new_flows",
            "/runs/0/packets/established/lost",
            "/runs/0/machine/longest_ms",
            "/runs/0/machine/share",
            "/summary/passed",
            "/summary/blackout_ms/p99",
        ] {
            assert!(v.pointer(path).is_some(), "{path} is missing");
        }
    }
}
