//! Nodes that no candidate of their location reaches. They are held against none of them, so they are named instead.

use std::collections::BTreeMap;

use crate::ids::NodeName;
use crate::io::LogLevel;
use crate::observe::location::LocationWatch;
use crate::status::UnreachedNode;
use crate::time::{Duration, Instant};
use crate::verdict::Verdict;

/// A node that restarts is back within this time, and is not named.
const NAMED_AFTER: Duration = Duration::from_secs(10);

/// Since when nodes are reached through no path, and whether that was told.
#[derive(Debug, Default)]
pub struct Unreached(BTreeMap<NodeName, (Instant, bool)>);

impl LocationWatch {
    /// Notes which nodes are reached, and returns what to log. Call it about once a second.
    pub fn note_unreached(&mut self, now: Instant) -> Vec<(LogLevel, String)> {
        let quarantined = self.quarantined_nodes();
        let forwards = self.paths.iter().any(|p| *p.verdict.get() == Verdict::Forwarding);
        let mut told = Vec::new();
        self.unreached.0.retain(|node, (_, named)| {
            let stays = quarantined.contains_key(node);
            if !stays && *named {
                told.push((LogLevel::Info, format!("{node} is reached again")));
            }
            stays
        });
        for (node, daemon_absent) in quarantined {
            let (since, named) = self.unreached.0.entry(node.clone()).or_insert((now, false));
            // While nothing forwards it is not the node.
            if !*named && forwards && now.since(*since) >= NAMED_AFTER {
                *named = true;
                told.push((LogLevel::Warn, UnreachedNode { node, daemon_absent }.to_string()));
            }
        }
        told
    }

    pub fn unreached(&self) -> Vec<UnreachedNode> {
        let quarantined = self.quarantined_nodes().into_iter();
        let named = |node: &NodeName| self.unreached.0.get(node).is_some_and(|(_, named)| *named);
        quarantined
            .filter(|(node, _)| named(node))
            .map(|(node, daemon_absent)| UnreachedNode { node, daemon_absent })
            .collect()
    }

    /// Nodes of whose workloads no address is reached, and whether their daemons are absent.
    fn quarantined_nodes(&self) -> BTreeMap<NodeName, bool> {
        let mut all: BTreeMap<&NodeName, Option<bool>> = BTreeMap::new();
        for target in self.targets.iter().filter(|t| t.relay_of.is_none()) {
            let absent = target.health.is_daemon_absent();
            let state = target.health.is_quarantined().then_some(absent);
            let of_node = all.entry(&target.node).or_insert(Some(false));
            *of_node = of_node.zip(state).map(|(before, now)| before || now);
        }
        all.into_iter().filter_map(|(node, state)| Some((node.clone(), state?))).collect()
    }
}
