//! Removes what is not desired, in the reverse order of additions: routes, rules, nexthops, entries, addresses, peers, links, and
//! last untracked transit.

use std::collections::{BTreeMap, BTreeSet};

use crate::change::Change;
use crate::model::*;

use super::Plan;

impl Plan<'_> {
    pub(super) fn remove_routes(&mut self) {
        let routes = self.state.routes.keys().filter(|key| !self.desired.routes.contains_key(key));
        self.extend(routes.map(|key| Change::RemoveRoute { key: key.clone() }).collect());
    }

    /// Removes the nexthops that are not desired, and the old objects of those parked: groups first.
    pub(super) fn remove_nexthops(&mut self, parked: &BTreeMap<NexthopId, NexthopId>) {
        let spare: BTreeSet<NexthopId> = parked.values().copied().collect();
        for groups in [true, false] {
            let gone: Vec<NexthopId> = self
                .state
                .nexthops
                .iter()
                .filter(|(id, n)| {
                    let wanted = self.desired.nexthops.contains_key(id) || spare.contains(id);
                    n.is_group() == groups && (!wanted || parked.contains_key(id))
                })
                .map(|(id, _)| *id)
                .collect();
            for id in gone {
                if self.state.nexthops.contains_key(&id) {
                    self.push(Change::RemoveNexthop { id });
                }
            }
        }
    }

    pub(super) fn remove_the_rest(&mut self) {
        self.remove_routes();
        let rules = self.state.rules.difference(&self.desired.rules);
        self.extend(rules.map(|r| Change::RemoveRule { rule: r.clone() }).collect());
        self.remove_nexthops(&BTreeMap::new());

        let doomed = |name: &InterfaceName| !self.desired.has_link(name);
        let mut out = Vec::new();
        for (dev, mac) in self.state.fdb.keys().filter(|key| !self.desired.fdb.contains_key(key)) {
            if !doomed(dev) {
                out.push(Change::RemoveFdb { dev: dev.clone(), mac: *mac });
            }
        }
        for (dev, address) in
            self.state.neighbours.keys().filter(|key| !self.desired.neighbours.contains_key(key))
        {
            if !doomed(dev) {
                out.push(Change::RemoveNeighbour { dev: dev.clone(), address: *address });
            }
        }
        self.extend(out);
        let addresses: Vec<_> =
            self.state.addresses.difference(&self.desired.addresses).cloned().collect();
        for (name, address) in addresses {
            if self.desired.has_link(&name)
                && self.state.addresses.contains(&(name.clone(), address))
            {
                self.push(Change::RemoveAddress { name, address });
            }
        }
        let mut out = Vec::new();
        for (name, have) in &self.state.wireguard {
            let Some(want) = self.desired.wireguard.get(name) else { continue };
            for key in have.peers.keys().filter(|key| !want.peers.contains_key(key)) {
                out.push(Change::RemovePeer { name: name.clone(), key: *key });
            }
        }
        let links = self.state.wireguard.keys().chain(self.state.vxlan.keys());
        out.extend(
            links
                .filter(|name| !self.desired.has_link(name))
                .map(|name| Change::DeleteLink { name: name.clone() }),
        );
        self.extend(out);
        if self.state.untracked.is_some() && self.desired.untracked.is_none() {
            self.push(Change::RemoveUntracked);
        }
    }
}
