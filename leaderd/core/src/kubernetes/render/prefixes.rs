//! The sources of nodes' workload prefixes.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::settings::Settings;
use super::{Problem, Subject};
use crate::kubernetes::view::{ClusterNode, ClusterView, names};

/// Source of nodes' prefixes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum PrefixSource {
    /// Cilium's objects if they name prefixes, else Calico's if there are any, else the Nodes.
    #[default]
    Auto,
    Node,
    Cilium,
    Calico,
    Annotation,
}

impl PrefixSource {
    pub const ALL: [(&str, Self); 5] = [
        ("auto", Self::Auto),
        ("node", Self::Node),
        ("cilium", Self::Cilium),
        ("calico", Self::Calico),
        ("annotation", Self::Annotation),
    ];

    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find_map(|(n, source)| (n == name).then_some(source))
    }

    /// Returns the name of the CNI whose objects this source reads.
    pub(super) fn cni(self) -> Option<&'static str> {
        let (name, _) = Self::ALL.into_iter().find(|(_, source)| *source == self)?;
        matches!(self, Self::Cilium | Self::Calico).then_some(name)
    }
}

/// Current prefixes of every node, by name. Nodes that name none are absent.
pub(super) struct NodePrefixes(BTreeMap<String, Vec<IpNet>>);

impl NodePrefixes {
    pub fn of(view: &ClusterView, settings: &Settings, problems: &mut Vec<Problem>) -> Self {
        let source = resolve(settings.prefixes, view);
        let objects = match source {
            PrefixSource::Cilium => Some(("CiliumNode", view.cni.cilium.as_ref())),
            PrefixSource::Calico => Some(("BlockAffinity", view.cni.calico.as_ref())),
            _ => None,
        };
        if let Some((kind, None)) = objects {
            let message = format!(
                "the settings ask for prefixes from {kind} objects, and the cluster has none: install that CNI, or write another \
                 `prefixes` in [kubernetes]"
            );
            problems.push(Problem { subject: Subject::Mesh, message });
        }
        let mut all = BTreeMap::new();
        for node in view.nodes.values() {
            let found = match annotated(node) {
                Some(Ok(list)) => Some(list),
                other => {
                    if let Some(Err(message)) = other {
                        let subject = Subject::Node(node.name.clone());
                        problems.push(Problem { subject, message });
                    }
                    let list = match objects {
                        Some((_, objects)) => objects.and_then(|o| o.get(&node.name)).cloned(),
                        None if source == PrefixSource::Annotation => None,
                        None => Some(node.pod_cidrs.clone()),
                    };
                    // A node that names none (any more) keeps its previous prefixes.
                    list.filter(|l| !l.is_empty())
                }
            };
            if let Some(mut list) = found {
                list.iter_mut().for_each(|p| *p = p.trunc());
                all.insert(node.name.clone(), whole(list));
            }
        }
        Self(all)
    }

    /// Returns the node's current prefixes; else its previous ones, without those that other nodes have now.
    pub fn or_kept(&self, name: &str, kept: &[IpNet]) -> Vec<IpNet> {
        if let Some(list) = self.0.get(name) {
            return list.clone();
        }
        let others = || self.0.values().flatten();
        kept.iter().filter(|k| !others().any(|o| overlap(o, k))).copied().collect()
    }
}

/// True if the mesh file was made by a daemon that sees objects of a CNI that this one does not see (yet): daemons notice a CNI that is
/// installed later one after the other, and must not overwrite each other in the meantime.
pub(super) fn is_behind(
    asked: PrefixSource,
    view: &ClusterView,
    was: Option<PrefixSource>,
) -> bool {
    let unseen = match was {
        Some(PrefixSource::Cilium) => view.cni.cilium.is_none(),
        Some(PrefixSource::Calico) => view.cni.calico.is_none(),
        _ => false,
    };
    asked == PrefixSource::Auto && unseen
}

pub(super) fn resolve(asked: PrefixSource, view: &ClusterView) -> PrefixSource {
    let names_some = |objects: &Option<BTreeMap<String, Vec<IpNet>>>| {
        objects.iter().flat_map(BTreeMap::values).any(|list| !list.is_empty())
    };
    match asked {
        PrefixSource::Auto if names_some(&view.cni.cilium) => PrefixSource::Cilium,
        PrefixSource::Auto if names_some(&view.cni.calico) => PrefixSource::Calico,
        PrefixSource::Auto => PrefixSource::Node,
        asked => asked,
    }
}

/// Sorted, without those that lie in others.
fn whole(mut list: Vec<IpNet>) -> Vec<IpNet> {
    list.sort();
    let mut all: Vec<IpNet> = Vec::new();
    for net in list {
        if !all.iter().any(|a| a.contains(&net)) {
            all.push(net);
        }
    }
    all
}

/// Returns the prefixes in annotation `leaderd.io/prefixes`; empty: the node has none.
pub(super) fn annotated(node: &ClusterNode) -> Option<Result<Vec<IpNet>, String>> {
    let text = node.annotations.get(names::PREFIXES)?;
    let words = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|w| !w.is_empty());
    let list: Result<Vec<IpNet>, _> = words.map(str::parse).collect();
    Some(list.map_err(|_| {
        format!(
            "annotation {} is {text:?} and is ignored: write prefixes with commas between them, such as 10.42.1.0/24",
            names::PREFIXES
        )
    }))
}

pub(super) fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}
