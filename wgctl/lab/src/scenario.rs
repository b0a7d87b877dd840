//! A scenario: a mesh, what happens to it and when, and what must come of it. One TOML file each.
//!
//! The file says nothing of addresses or keys: [`crate::topology`] derives them. Times are generous upper bounds; a
//! scenario never passes or fails by the speed of the machine.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Deserializer, Serialize};

use crate::cni::Cni;
use crate::fabric::FabricKind;
use crate::report::Failed;

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
    /// The location whose leader is under test: failovers are counted there.
    pub location: String,
    pub locations: BTreeMap<String, LocationSpec>,
    #[serde(default)]
    pub wan: WanSpec,
    /// Every location is `stateful`.
    #[serde(default)]
    pub stateful: bool,
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
    /// What the mesh file says: `vxlan` (default), `cni`, `flannel`, `direct` or `external`.
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
    /// The host number of the nodes' own addresses within their prefixes, as a CNI may choose it; 0: they hold none.
    #[serde(default = "default_node_host")]
    pub node_host: u8,
    /// Who carries packets between the location's pods: `none` (default), `cilium`, `flannel`, `flannel-nft`.
    #[serde(default)]
    pub cni: Cni,
    /// What joins its nodes: `switch` (default), or `routed`, a cloud's fabric that delivers node addresses only.
    #[serde(default)]
    pub fabric: FabricKind,
    /// Bytes.
    #[serde(default = "default_lan_mtu")]
    pub lan_mtu: u16,
    /// Goes into the mesh file: the nodes' own addresses are carried too.
    #[serde(default)]
    pub node_addresses: bool,
    /// Its candidates track what they forward and drop what connection tracking calls invalid, as kube-proxy has it by default.
    #[serde(default)]
    pub stateful: bool,
}

fn default_lan_mtu() -> u16 {
    1500
}

fn default_node_host() -> u8 {
    1
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

/// The two ends of a meter: the workload (pod) of each of the two nodes, or the node itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Between {
    #[default]
    PodPod,
    NodeNode,
    PodNode,
    NodePod,
}

impl Between {
    /// Whether each end is a pod.
    pub fn pods(self) -> (bool, bool) {
        match self {
            Self::PodPod => (true, true),
            Self::NodeNode => (false, false),
            Self::PodNode => (true, false),
            Self::NodePod => (false, true),
        }
    }
}

impl std::fmt::Display for Between {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let end = |pod| if pod { "pod" } else { "node" };
        let (a, b) = self.pods();
        write!(f, "{}-{}", end(a), end(b))
    }
}

/// The meters run between the workloads of two nodes, unless `between` says otherwise.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MeterSpec {
    /// Default: the last node (a member, if there is one) of the first other location.
    pub from: Option<String>,
    /// Default: the last node of the location under test.
    pub to: Option<String>,
    /// Several pairs of nodes at once, in place of `from` and `to`. The first is what blackouts are told of.
    pub pairs: Vec<[String; 2]>,
    /// Bytes of the whole IP packet; default 128.
    pub size: Option<u16>,
    /// Time between two packets of each meter in each direction; default 1 ms.
    pub every: Option<Span>,
    /// Measure over IPv6.
    pub ipv6: bool,
    /// `pod-pod` (default), `node-node`, `pod-node`, `node-pod`, each in both directions. The first is what blackouts are told of.
    pub between: Vec<Between>,
    /// TCP too: connections opened anew, and one that is kept.
    pub tcp: bool,
}

impl MeterSpec {
    pub fn between(&self) -> Vec<Between> {
        if self.between.is_empty() { vec![Between::default()] } else { self.between.clone() }
    }
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

/// Something that happens, `at` counted from the start of the measurement. Exactly one of `fault`, `command`, `run`, `wan`.
#[derive(Clone, Debug, Default, Deserialize)]
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
    /// Commands for a shell on the node. All of them must succeed, or the scenario cannot be played.
    pub run: Option<String>,
    /// Commands that mend what `run` broke, at the time `until`.
    pub undo: Option<String>,
    /// A fault is undone at this time, and `undo` is run, on the same node.
    pub until: Option<Span>,
    /// A name, or `@leader`, `@standby`, `@raft-leader` of the location under test as it is then, or `@faulty`:
    /// the node of the latest fault.
    pub node: Option<String>,
    /// New values for all paths.
    pub wan: Option<WanSpec>,
    /// Times in the result count from this step (default: the first one).
    #[serde(default)]
    pub inject: bool,
    /// Its place in the file. A step that ends another one (`until`) has the place of that.
    #[serde(skip)]
    pub number: usize,
    /// It ends the step of the same number, on the node where that was done.
    #[serde(skip)]
    pub ends: bool,
}

impl Step {
    fn check(&self) -> Result<()> {
        let kinds =
            [self.fault.is_some(), self.command.is_some(), self.run.is_some(), self.wan.is_some()];
        if kinds.iter().filter(|k| **k).count() != 1 {
            bail!("a step is one of fault, command, run, wan");
        }
        if let Some(f) = &self.fault {
            crate::faults::Fault::parse(f, self.arg.as_deref())?;
        }
        if self.run.is_some() && self.node.is_none() {
            bail!("a step with run needs a node");
        }
        if self.undo.is_some() && self.run.is_none() {
            bail!("undo goes with run");
        }
        let Some(until) = self.until else {
            return match self.undo {
                Some(_) => bail!("undo needs until: when to run it"),
                None => Ok(()),
            };
        };
        if self.off || (self.fault.is_none() && self.undo.is_none()) {
            bail!("until goes with a fault, or with run and undo");
        }
        if until <= self.at {
            bail!("a step ends (until) after it begins (at)");
        }
        Ok(())
    }

    /// The step that ends this one, if `until` says when.
    fn end(&self) -> Option<Self> {
        let (at, run) = (self.until?, self.undo.clone());
        let off = self.fault.is_some();
        Some(Self {
            at,
            run,
            off,
            ends: true,
            inject: false,
            until: None,
            undo: None,
            ..self.clone()
        })
    }
}

/// How long new TCP connections may be out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectOut {
    /// As long as packets of the same pair are, and a little for what a connection needs more: see [`crate::play`].
    Blackout,
    AtMost(Span),
}

impl<'de> Deserialize<'de> for ConnectOut {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        if text == "blackout" {
            return Ok(Self::Blackout);
        }
        let span = humantime::parse_duration(&text).map(Span);
        span.map(Self::AtMost).map_err(|e| {
            serde::de::Error::custom(format!("{text:?} is neither \"blackout\" nor a time: {e}"))
        })
    }
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
    /// Returns how a run failed that had this other number of events: too few may still come, one too many must never happen.
    pub fn missed_by(self, n: u64) -> Failed {
        if n < self.least() { Failed::Late } else { Failed::Wrong }
    }
    pub fn least(self) -> u64 {
        match self {
            Self::Exactly(n) | Self::Between(n, _) => n,
        }
    }
}

/// What is expected. A field that is absent is not checked, except `failovers`, which is 0 then.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Expect {
    /// Events of kind `failover` in the location under test.
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
    /// In the end a candidate of another location shows a note on the location under test that says this.
    pub note: Option<String>,
    /// At most this many packets are lost.
    pub lost_max: Option<LostMax>,
    /// Both meters deliver again in the end.
    pub recovers: bool,
    /// The leaders of the other locations stay the same.
    pub others_stay: bool,
    /// Time between the last two failovers is at least that between the first two.
    pub hold_down_grows: bool,
    /// `kept`: whatever arrives comes from an address of its sender.
    pub sources: Option<Sources>,
    /// No packets are lost for longer than this, in any direction of any meter.
    pub blackout_max: Option<Span>,
    /// `survives`: every TCP connection opens, and the kept ones stay.
    pub tcp: Option<Tcp>,
    /// New TCP connections do not open for at most so long: a time, or `blackout`, the time for which packets are lost.
    pub tcp_connect_out: Option<ConnectOut>,
    /// The kept TCP connections stand still for at most so long.
    pub tcp_stall_max: Option<Span>,
    /// The mesh cannot carry the workload, and says so: every candidate of the location under test is reported degraded, with these words.
    /// No step is done, and nothing else is checked.
    pub dead: Option<String>,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Sources {
    Kept,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Tcp {
    Survives,
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
            sources: None,
            blackout_max: None,
            tcp: None,
            tcp_connect_out: None,
            tcp_stall_max: None,
            dead: None,
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
    /// Reads a scenario's text. `name` is for messages and reports.
    ///
    /// # Errors
    /// The text is no TOML, has an unknown field, or contradicts itself.
    pub fn parse(name: &str, text: &str) -> Result<Self> {
        let mut s: Scenario = toml::from_str(text).with_context(|| format!("scenario {name}"))?;
        s.name = name.to_owned();
        if !s.locations.contains_key(&s.location) {
            bail!("scenario {name}: location {:?} is not among [locations]", s.location);
        }
        if s.locations.len() < 2 {
            bail!("scenario {name}: a mesh needs two locations");
        }
        for (number, step) in s.steps.iter_mut().enumerate() {
            step.number = number;
            step.check().with_context(|| format!("scenario {name}: step at {:?}", step.at.0))?;
        }
        let ends: Vec<Step> = s.steps.iter().filter_map(Step::end).collect();
        s.steps.extend(ends);
        if s.meter.ipv6 && s.meter.between().iter().any(|b| *b != Between::PodPod) {
            bail!("scenario {name}: nodes are metered over IPv4 only");
        }
        let e = &s.expect;
        let of_tcp = e.tcp.is_some() || e.tcp_connect_out.is_some() || e.tcp_stall_max.is_some();
        if of_tcp && !s.meter.tcp {
            bail!("scenario {name}: expectations of TCP need meter.tcp = true");
        }
        if !s.meter.pairs.is_empty() && (s.meter.from.is_some() || s.meter.to.is_some()) {
            bail!("scenario {name}: meters have pairs, or from and to");
        }
        s.steps.sort_by_key(|s| s.at);
        Ok(s)
    }

    /// Loads a built-in scenario by name, or a file by path.
    ///
    /// # Errors
    /// There is none, or its text is wrong.
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
    fn a_failover_too_many_is_wrong_and_has_no_second_try() {
        let again = |want: Count, n: u64| want.missed_by(n).may_be_tried_again();
        assert!(!again(Count::Exactly(0), 1), "none was expected");
        assert!(!again(Count::Between(1, 2), 3));
        assert!(again(Count::Exactly(1), 0), "it may have been too slow");
        assert!(Failed::NotPlayed.may_be_tried_again());
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

    #[test]
    fn a_step_may_run_a_command_and_end_at_a_time() {
        let good = "title='t'\nlocation='a'\n[locations.a]\n[locations.b]\n";
        let steps = |more: &str| Scenario::parse("x", &format!("{good}{more}")).map(|s| s.steps);
        let both = "[[step]]\nat='1s'\nnode='a-0'\nrun='false'\nundo='true'\nuntil='4s'\n\
                    [[step]]\nat='2s'\nnode='a-1'\nfault='wan-cut'\nuntil='3s'\n";
        let all = steps(both).unwrap();
        let seen: Vec<_> = all.iter().map(|s| (s.at.0.as_secs(), s.number, s.ends)).collect();
        assert_eq!(seen, [(1, 0, false), (2, 1, false), (3, 1, true), (4, 0, true)]);
        assert!(all[2].off && all[3].run.as_deref() == Some("true"));
        for (wrong, why) in [
            ("run='x'", "needs a node"),
            ("node='a-0'\nrun='x'\nundo='y'", "undo needs until"),
            ("node='a-0'\nrun='x'\nuntil='2s'", "until goes with"),
            ("node='a-0'\nfault='wan-cut'\nuntil='1s'", "after it begins"),
            ("node='a-0'\nfault='wan-cut'\nrun='x'", "one of fault, command, run, wan"),
        ] {
            let text = format!("[[step]]\nat='1s'\n{wrong}\n");
            let refused = format!("{:#}", steps(&text).unwrap_err());
            assert!(refused.contains(why), "{refused}");
        }
    }

    #[test]
    fn new_connections_may_be_out_for_a_time_or_as_long_as_packets() {
        let text = |out: &str, meter: &str| {
            let good = "title='t'\nlocation='a'\n[locations.a]\n[locations.b]\n";
            let more = format!("[meter]\n{meter}\n[expect]\ntcp_connect_out='{out}'\n");
            Scenario::parse("x", &format!("{good}{more}")).map(|s| s.expect.tcp_connect_out)
        };
        let ms = |ms| ConnectOut::AtMost(Span(Duration::from_millis(ms)));
        assert_eq!(text("300ms", "tcp=true").unwrap(), Some(ms(300)));
        assert_eq!(text("blackout", "tcp=true").unwrap(), Some(ConnectOut::Blackout));
        assert!(text("sometimes", "tcp=true").is_err());
        assert!(text("300ms", "").is_err(), "TCP is not metered");
    }

    #[test]
    fn a_location_says_its_cni_fabric_and_mtu_and_mistakes_are_named() {
        let text =
            |more: &str| format!("title='t'\nlocation='a'\n[locations.a]\n{more}\n[locations.b]\n");
        let parsed =
            Scenario::parse("x", &text("cni='cilium'\nfabric='routed'\nlan_mtu=1450")).unwrap();
        let a = &parsed.locations["a"];
        assert_eq!((a.cni, a.fabric, a.lan_mtu), (Cni::Cilium, FabricKind::Routed, 1450));
        let b = &parsed.locations["b"];
        assert_eq!((b.cni, b.fabric, b.lan_mtu), (Cni::None, FabricKind::Switch, 1500));
        let wrong = |more: &str| {
            let parsed = Scenario::parse("x", &text(more));
            let refused = parsed.and_then(|s| crate::topology::Topology::of(&s).map(drop));
            format!("{:#}", refused.unwrap_err())
        };
        assert!(wrong("cni='weave'").contains("`none`, `cilium`, `flannel`, `flannel-nft`"));
        assert!(wrong("fabric='mesh'").contains("`switch` or `routed`"));
        assert!(wrong("lan_mtu=500").contains("lan_mtu is 500, not 1300 to 9000"));
        assert!(wrong("dual_stack=true\ncni='flannel'").contains("dual_stack"));
    }

    #[test]
    fn meters_run_between_pods_unless_told_otherwise() {
        let good = "title='t'\nlocation='a'\n[locations.a]\n[locations.b]\n";
        let between =
            |more: &str| Scenario::parse("x", &format!("{good}{more}")).map(|s| s.meter.between());
        assert_eq!(between("").unwrap(), [Between::PodPod]);
        let all = between("[meter]\nbetween=['node-node','pod-node','node-pod']\n").unwrap();
        assert_eq!(
            all.iter().map(Between::to_string).collect::<Vec<_>>(),
            ["node-node", "pod-node", "node-pod"]
        );
        assert!(between("[meter]\nbetween=['node-node']\nipv6=true\n").is_err());
        assert!(between("[expect]\ntcp='survives'\n").is_err());
    }
}
