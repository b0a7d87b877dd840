//! What the groups of a cluster know.

use std::collections::{BTreeMap, BTreeSet};

use super::Cluster;
use crate::group::Group;
use crate::ids::NodeName;
use crate::state::{Event, LocationState};

impl Cluster {
    /// (epoch, leaders) as each living node has applied it.
    pub fn leaders(&self) -> BTreeMap<NodeName, (u64, Vec<u8>)> {
        let of = |g: &Group| {
            let d = g.state().decision.as_ref();
            (
                d.map_or(0, |d| d.epoch.0),
                d.map_or(vec![], |d| d.leaders.iter().map(|s| s.0).collect()),
            )
        };
        self.groups.iter().map(|(n, g)| (n.clone(), of(g))).collect()
    }

    /// The replicated state as each living node has it.
    pub fn states(&self) -> BTreeMap<NodeName, LocationState> {
        self.groups.iter().map(|(n, g)| (n.clone(), g.state().clone())).collect()
    }

    pub fn all_follow(&self, slot: u8) -> bool {
        self.leaders().values().all(|(_, l)| l.first() == Some(&slot))
    }

    /// The raft leader; of several, of which all but one do not know yet that they lead no more, that of the newest term.
    pub fn raft_leader(&self) -> Option<NodeName> {
        let leading = self.groups.iter().filter(|(_, g)| g.is_raft_leader());
        leading.max_by_key(|(_, g)| g.raft.term()).map(|(n, _)| n.clone())
    }

    /// The voters that the raft leader has committed.
    pub fn committed_voters(&self) -> BTreeSet<NodeName> {
        let Some(leader) = self.raft_leader() else { return BTreeSet::new() };
        let voters = self.groups[&leader].raft.voters();
        let all = self.mesh.nodes.values();
        all.filter(|n| voters.contains(&u64::from(n.index.0))).map(|n| n.name.clone()).collect()
    }

    pub fn event(&self) -> Event {
        let group = &self.groups[&self.raft_leader().unwrap()];
        let state = group.state();
        state.event_of(state.epoch()).unwrap().clone()
    }
}
