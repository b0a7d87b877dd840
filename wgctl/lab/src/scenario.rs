//! A scenario: a mesh, what happens to it and when, and what must come of it. One TOML file each.
//!
//! The file says nothing of addresses or keys: [`crate::topology`] derives them. Times are generous upper bounds; a
//! scenario never passes or fails by the speed of the machine.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Deserializer};

/// A duration written as `"150ms"` or `"2s"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        humantime::parse_duration(&text).map(Span).map_err(serde::de::Error::custom)
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    #[serde(skip)]
    pub name: String,
    /// One line for lists.
    pub title: String,
    /// A few sentences for people who wonder why this is tested.
    #[serde(default)]
    pub about: String,
    /// The location whose leader is on trial: failovers are counted there.
    pub location: String,
    pub locations: BTreeMap<String, LocationSpec>,
    #[serde(default)]
    pub wan: WanSpec,
    /// Goes into the mesh file as it is.
    #[serde(default)]
    pub policy: toml::Table,
    #[serde(default)]
    pub meter: MeterSpec,
    /// Real services on workloads, which the mesh file names as such.
    #[serde(default, rename = "service")]
    pub services: Vec<ServiceSpec>,
    #[serde(default, rename = "step")]
    pub steps: Vec<Step>,
    /// How long to go on measuring after the last step, at least.
    #[serde(default = "default_duration")]
    pub duration: Span,
    /// How long what is expected may take after the last step, at most.
    #[serde(default = "default_within")]
    pub within: Span,
    #[serde(default)]
    pub expect: Expect,
}

fn default_duration() -> Span {
    Span(Duration::from_secs(3))
}
fn default_within() -> Span {
    Span(Duration::from_secs(30))
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocationSpec {
    /// `vxlan` (default), `flannel` (what flannel's VXLAN backend sets up, and nobody here), `direct` or `external`.
    #[serde(default = "default_overlay")]
    pub overlay: String,
    /// Nodes that may lead: `NAME-0`, `NAME-1`, …
    #[serde(default = "default_candidates")]
    pub candidates: u16,
    /// Nodes that never lead, numbered after the candidates.
    #[serde(default)]
    pub members: u16,
    /// Candidates of other locations that vote here.
    #[serde(default)]
    pub witnesses: Vec<String>,
    /// Workloads have IPv6 addresses as well.
    #[serde(default)]
    pub dual_stack: bool,
}

fn default_overlay() -> String {
    "vxlan".into()
}
fn default_candidates() -> u16 {
    2
}

/// Every path between two locations.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WanSpec {
    /// Round trip, half of it each way.
    pub rtt: Span,
    /// Each way: the latency wanders by up to this much to both sides.
    pub jitter: Span,
    /// 0 to 1, each way.
    pub loss: f64,
    pub duplicate: f64,
    /// Share of packets that overtake those before them.
    pub reorder: f64,
    /// Megabit per second, each way; 0 is unlimited.
    pub rate_mbit: f64,
    /// Bytes.
    pub mtu: u16,
    /// Whether too large packets are answered with ICMP 'fragmentation needed'.
    pub mtu_icmp: bool,
}

impl Default for WanSpec {
    fn default() -> Self {
        Self {
            rtt: Span(Duration::from_millis(20)),
            jitter: Span::default(),
            loss: 0.0,
            duplicate: 0.0,
            reorder: 0.0,
            rate_mbit: 0.0,
            mtu: 1500,
            mtu_icmp: true,
        }
    }
}

/// The meters run between the workloads of two nodes.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MeterSpec {
    /// Default: the last node (a member, if there is one) of the first other location.
    pub from: Option<String>,
    /// Default: the last node of the location on trial.
    pub to: Option<String>,
    /// Bytes of the whole IP packet; default 128.
    pub size: Option<u16>,
    /// Time between two packets of each meter in each direction; default 1 ms.
    pub every: Option<Span>,
    /// Measure over IPv6.
    pub ipv6: bool,
}

/// An HTTP server on a node's workload.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceSpec {
    pub node: String,
    pub port: u16,
    /// Ask over HTTP; without, a connect is all.
    pub http: Option<String>,
    /// Bytes that are sent with the request.
    #[serde(default)]
    pub body: u32,
    #[serde(default)]
    pub ipv6: bool,
}

/// Something that happens, `at` counted from the start of the measurement. Exactly one of `fault`, `command`, `wan`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    pub at: Span,
    /// A fault, as in `lab list`.
    pub fault: Option<String>,
    /// The fault's argument (bytes, percent, milliseconds, a node).
    pub arg: Option<String>,
    /// Undo the fault.
    #[serde(default)]
    pub off: bool,
    /// `promote`, `drain`, `undrain`, `freeze`, `unfreeze`.
    pub command: Option<String>,
    /// A name, or `@leader`, `@standby`, `@raft-leader` of the location on trial as it is then, or `@faulty`:
    /// the node of the latest fault.
    pub node: Option<String>,
    /// New values for all paths.
    pub wan: Option<WanSpec>,
    /// Times in the result count from this step (default: the first one).
    #[serde(default)]
    pub inject: bool,
}

/// A number, or a range with both ends included.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(untagged)]
pub enum Count {
    Exactly(u64),
    Between(u64, u64),
}

impl Count {
    pub fn holds(self, n: u64) -> bool {
        match self {
            Self::Exactly(want) => n == want,
            Self::Between(low, high) => (low..=high).contains(&n),
        }
    }
    pub fn least(self) -> u64 {
        match self {
            Self::Exactly(n) | Self::Between(n, _) => n,
        }
    }
}

/// What must come of it. What is not said is not checked, but `failovers` is 0 unless said otherwise.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Expect {
    /// Events of kind `failover` in the location on trial.
    pub failovers: Count,
    /// Events of kind `move`.
    pub moves: Count,
    /// Who leads in the end: a name, `same` or `changed`.
    pub leader: Option<String>,
    /// The cause of the first failover or move is one of these.
    pub cause: Vec<String>,
    /// The summary of the first failover or move says this.
    pub summary: Option<String>,
    /// An event of each of these kinds happens (`fail-static`, `notice`, …).
    pub kinds: Vec<String>,
    /// In the end a candidate of another location shows a note on the location on trial that says this.
    pub note: Option<String>,
    /// At most this many packets are lost.
    pub lost_max: Option<LostMax>,
    /// Both meters deliver again in the end.
    pub recovers: bool,
    /// In the other locations nobody moves either.
    pub others_stay: bool,
    /// Time between the last two failovers is at least that between the first two.
    pub hold_down_grows: bool,
}

impl Default for Expect {
    fn default() -> Self {
        Self {
            failovers: Count::Exactly(0),
            moves: Count::Exactly(0),
            leader: None,
            cause: Vec::new(),
            summary: None,
            kinds: Vec::new(),
            note: None,
            lost_max: None,
            recovers: true,
            others_stay: true,
            hold_down_grows: false,
        }
    }
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LostMax {
    pub new_flows: Option<u64>,
    pub established: Option<u64>,
}

impl Scenario {
    /// Reads scenario text; `name` is only kept.
    pub fn parse(name: &str, text: &str) -> Result<Self> {
        let mut s: Scenario = toml::from_str(text).with_context(|| format!("scenario {name}"))?;
        s.name = name.to_owned();
        if !s.locations.contains_key(&s.location) {
            bail!("scenario {name}: location {:?} is not among [locations]", s.location);
        }
        if s.locations.len() < 2 {
            bail!("scenario {name}: a mesh needs two locations");
        }
        for step in &s.steps {
            let kinds = [step.fault.is_some(), step.command.is_some(), step.wan.is_some()]
                .iter()
                .filter(|k| **k)
                .count();
            if kinds != 1 {
                bail!("scenario {name}: a step is one of fault, command, wan");
            }
            if let Some(f) = &step.fault {
                crate::faults::Fault::parse(f, step.arg.as_deref())
                    .with_context(|| format!("scenario {name}"))?;
            }
        }
        s.steps.sort_by_key(|s| s.at);
        Ok(s)
    }

    /// One of ours by name, or a file by path.
    pub fn load(name: &str) -> Result<Self> {
        if let Some((_, text)) = crate::catalog::SCENARIOS.iter().find(|(n, _)| *n == name) {
            return Self::parse(name, text);
        }
        if name.contains('/') || name.ends_with(".toml") {
            let text =
                fs::read_to_string(name).with_context(|| format!("cannot read scenario {name}"))?;
            let stem = std::path::Path::new(name)
                .file_stem()
                .and_then(|s| s.to_str())
                .unwrap_or("scenario");
            return Self::parse(stem, &text);
        }
        bail!("no scenario {name:?}; `wgctl lab list` names them, or give a path to a TOML file")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_of_the_catalogue_parses_and_has_a_topology() {
        for (name, text) in crate::catalog::SCENARIOS {
            let s = Scenario::parse(name, text).unwrap();
            assert!(!s.title.is_empty(), "{name}");
            crate::topology::Topology::of(&s).unwrap();
        }
    }

    #[test]
    fn an_unknown_field_or_fault_is_refused() {
        let good = "title='t'\nlocation='a'\n[locations.a]\n[locations.b]\n";
        Scenario::parse("x", good).unwrap();
        assert!(Scenario::parse("x", &format!("{good}colour='red'\n")).is_err());
        assert!(
            Scenario::parse("x", &format!("{good}[[step]]\nat='1s'\nfault='gremlins'\n")).is_err()
        );
        assert!(Scenario::parse("x", &format!("{good}[[step]]\nat='1s'\n")).is_err());
    }
}
