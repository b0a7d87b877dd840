//! `settings.toml`: a person's choices for the whole mesh. It has the mesh file's tables, and one for Kubernetes.

use sha2::{Digest, Sha256};
use toml::{Table, Value};

use super::prefixes::PrefixSource;
use super::{Problem, Subject};
use crate::kubernetes::view::Steering;

#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// `[mesh]`, without generation.
    pub mesh: Table,
    /// `[policy]`
    pub policy: Table,
    /// Overlay between the nodes of each location.
    pub overlay: String,
    /// Whether the nodes' own addresses are carried between locations.
    pub node_addresses: bool,
    /// Steering of locations without a pool.
    pub steering: Steering,
    /// Source of nodes' prefixes.
    pub prefixes: PrefixSource,
    /// Increases with every change of the settings; 0 if it is not set.
    pub revision: u64,
}

impl Default for Settings {
    fn default() -> Self {
        let mut mesh = Table::new();
        mesh.insert("name".into(), "kubernetes".into());
        Self {
            mesh,
            policy: Table::new(),
            overlay: "cni".to_owned(),
            node_addresses: true,
            steering: Steering::Native,
            prefixes: PrefixSource::default(),
            revision: 0,
        }
    }
}

impl Settings {
    /// Identifies the program version and the settings without their revision: a revision that increases for other reasons too (Helm's
    /// increases with every upgrade) does not make them different.
    pub fn mark(&self) -> String {
        let Self { mesh, policy, overlay, node_addresses, steering, prefixes, revision: _ } = self;
        let rest = format!("{overlay} {node_addresses} {steering:?} {prefixes:?}");
        let digest = Sha256::digest(format!("{mesh}\n[policy]\n{policy}\n{rest}"));
        let digest: String = digest.iter().take(4).map(|b| format!("{b:02x}")).collect();
        format!("{} {digest}", env!("CARGO_PKG_VERSION"))
    }
}

/// Overlays that a cluster may have.
const OVERLAYS: [&str; 5] = ["cni", "flannel", "external", "direct", "vxlan"];

/// Reads the settings. Adds every mistake to `problems`; returns `None` if there is one.
pub(super) fn read(text: &str, problems: &mut Vec<Problem>) -> Option<Settings> {
    let mut wrong = Vec::new();
    let settings = match text.parse::<Table>() {
        Ok(table) => tables(table, &mut wrong),
        Err(e) => {
            let at = e.span().map_or(0, |s| s.start);
            let line = text.get(..at).unwrap_or(text).matches('\n').count() + 1;
            let what = e.message().replace('\n', ", ");
            wrong.push(format!("line {line}: this is no TOML: {what}; see https://toml.io"));
            Settings::default()
        }
    };
    let good = wrong.is_empty();
    problems
        .extend(wrong.into_iter().map(|message| Problem { subject: Subject::Settings, message }));
    good.then_some(settings)
}

fn tables(table: Table, wrong: &mut Vec<String>) -> Settings {
    let mut settings = Settings::default();
    for (name, value) in table {
        let Value::Table(mut value) = value else {
            wrong.push(format!(
                "`{name}` is no table: write [mesh], [policy] and [kubernetes] only"
            ));
            continue;
        };
        match name.as_str() {
            "mesh" => {
                if value.remove("generation").is_some() {
                    wrong.push("`mesh.generation`: remove it, leaderd counts by itself".to_owned());
                }
                settings.mesh.extend(value);
            }
            "policy" => settings.policy = value,
            "kubernetes" => kubernetes(value, &mut settings, wrong),
            "locations" | "nodes" => wrong.push(format!(
                "[{name}] does not belong here: it follows from the cluster's nodes and from LocationPools; remove it"
            )),
            _ => wrong.push(format!("unknown table [{name}]: known are [mesh], [policy] and [kubernetes]")),
        }
    }
    settings
}

fn kubernetes(table: Table, settings: &mut Settings, wrong: &mut Vec<String>) {
    for (key, value) in table {
        match (key.as_str(), value.as_str()) {
            ("overlay", Some(o)) if OVERLAYS.contains(&o) => settings.overlay = o.to_owned(),
            ("overlay", _) => {
                wrong.push(format!(
                    "`kubernetes.overlay`: write one of \"{}\"",
                    OVERLAYS.join("\", \"")
                ));
            }
            ("node_addresses", _) => match value.as_bool() {
                Some(carried) => settings.node_addresses = carried,
                None => wrong.push("`kubernetes.node_addresses`: write true or false".to_owned()),
            },
            ("steering", Some("native")) => settings.steering = Steering::Native,
            ("steering", Some("kilo")) => settings.steering = Steering::Kilo,
            ("steering", Some("observe")) => settings.steering = Steering::Observe,
            ("steering", _) => {
                wrong.push(
                    "`kubernetes.steering`: write \"native\", \"kilo\" or \"observe\"".to_owned(),
                );
            }
            ("prefixes", name) => match name.and_then(PrefixSource::of) {
                Some(source) => settings.prefixes = source,
                None => {
                    let all = PrefixSource::ALL.map(|(name, _)| name).join("\", \"");
                    wrong.push(format!("`kubernetes.prefixes`: write one of \"{all}\""));
                }
            },
            ("revision", _) => match value.as_integer().map(u64::try_from) {
                Some(Ok(revision)) => settings.revision = revision,
                _ => wrong.push("`kubernetes.revision`: write a whole number".to_owned()),
            },
            _ => wrong.push(format!(
                "unknown field `kubernetes.{key}`: known are `overlay`, `node_addresses`, `steering`, `prefixes` and `revision`"
            )),
        }
    }
}
