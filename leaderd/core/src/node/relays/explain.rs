//! Which relays carry between two locations, and why, for `wgctl explain A B`; and what changed, for `wgctl events`.

use super::{Node, Pair};
use crate::ids::{LocationName, NodeName, Slot};
use crate::relay_pair::{Relays, TunnelState, Who};
use crate::status::{NextRelays, RelayChanges, RelayExplanation};
use crate::time::Now;

/// What the operator named: a location, or a node of it.
struct Named {
    location: LocationName,
    node: Option<NodeName>,
}

impl Node {
    /// Returns the changes of relay pairs with who saw them: this node.
    pub fn seen_relay_changes(&self) -> RelayChanges {
        let changes = self.relay_changes();
        RelayChanges { node: self.me.clone(), location: self.location.clone(), changes }
    }

    /// Explains which relays carry between two locations, or the locations of two nodes.
    ///
    /// # Errors
    /// If the mesh has no such location or node, or this node does not know the tunnels between them. The text says where to ask.
    pub fn explain_relays(&self, now: Now, a: &str, b: &str) -> Result<RelayExplanation, String> {
        let (a, b) = (self.named(a)?, self.named(b)?);
        if a.location == b.location {
            return Err(format!("both are in {}: nothing is relayed between them", a.location));
        }
        let other = match (a.location == self.location, b.location == self.location) {
            (true, _) => &b.location,
            (_, true) => &a.location,
            _ => {
                return Err(format!(
                    "{} is in {} and knows nothing of the tunnels between {} and {}: ask {}",
                    self.me,
                    self.location,
                    a.location,
                    b.location,
                    self.whom_to_ask(&a.location, &b.location)
                ));
            }
        };
        if self.observer.is_none() {
            return Err(format!(
                "{} is a plain member and knows nothing of tunnels: ask {}",
                self.me,
                self.whom_to_ask(&self.location, other)
            ));
        }
        let explained = self.relays.pairs.get(other).and_then(|pair| {
            let status = self.relay_pair_status(now, other, pair)?;
            Some((pair, status))
        });
        let Some((pair, status)) = explained else {
            return Err(format!("one of {} and {other} has no candidate", self.location));
        };
        let leaders = self.leaders_of_both(other);
        Ok(RelayExplanation {
            node: self.me.clone(),
            location: self.location.clone(),
            way: self.way(&a, &b, &status.near, &status.far),
            pair: status,
            near_leaders: self.names(&self.location, &leaders.near),
            far_leaders: self.names(other, &leaders.far),
            next: self.next_relays(other, pair, &leaders),
            avoided: self.candidates_where(other, |who| pair.table.avoids(who)),
            accused: self.candidates_where(other, |who| pair.table.is_accused(who)),
            carried: self.steered_beside(other).then(|| self.handover.carries(other)),
        })
    }

    fn named(&self, name: &str) -> Result<Named, String> {
        let location = self.mesh.locations.keys().find(|l| l.as_str() == name);
        if let Some(location) = location {
            return Ok(Named { location: location.clone(), node: None });
        }
        let node = self.mesh.nodes.values().find(|n| n.name.as_str() == name);
        let named = |n: &crate::mesh::Node| Named {
            location: n.location.clone(),
            node: Some(n.name.clone()),
        };
        node.map(named).ok_or_else(|| {
            let all: Vec<&str> = self.mesh.locations.keys().map(LocationName::as_str).collect();
            format!(
                "the mesh has no location and no node {name}: its locations are {}",
                all.join(", ")
            )
        })
    }

    /// The candidates of two locations, in words.
    fn whom_to_ask(&self, a: &LocationName, b: &LocationName) -> String {
        let of = |l: &LocationName| -> Vec<String> {
            self.mesh.candidates_of(l).values().map(|n| n.name.to_string()).collect()
        };
        let all: Vec<String> = of(a).into_iter().chain(of(b)).collect();
        match all.split_last() {
            Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
            Some((only, _)) => only.clone(),
            None => "a candidate of one of the two, once there is one".to_owned(),
        }
    }

    fn steered_beside(&self, other: &LocationName) -> bool {
        self.mesh.observed_between(&self.location, other)
            || self.mesh.kilo_between(&self.location, other)
    }

    /// Who would carry if all tunnels in use were bad.
    fn next_relays(
        &self,
        location: &LocationName,
        pair: &Pair,
        leaders: &Relays,
    ) -> Option<NextRelays> {
        let used = &pair.shown.as_ref()?.relays;
        let table = &pair.table;
        let state = |i: Slot, j: Slot| match used.near.contains(&i) && used.far.contains(&j) {
            true => TunnelState::Bad,
            false => table.state(i, j),
        };
        let (i, j, state) = self.choose_pair(location, table, leaders, state)?;
        (state != TunnelState::Bad).then_some(())?;
        Some(NextRelays {
            near: self.mesh.candidate(&self.location, i)?.name.clone(),
            far: self.mesh.candidate(location, j)?.name.clone(),
            state,
        })
    }

    /// The candidates of both locations of which this is true.
    fn candidates_where(&self, location: &LocationName, is: impl Fn(Who) -> bool) -> Vec<NodeName> {
        let of = |l: &LocationName, who: fn(Slot) -> Who| -> Vec<Slot> {
            self.mesh.ranking(l).into_iter().filter(|s| is(who(*s))).collect()
        };
        let mut all = self.names(&self.location, &of(&self.location, Who::Near));
        all.extend(self.names(location, &of(location, Who::Far)));
        all
    }

    /// The nodes on the way between two nodes, if there is one way only.
    fn way(&self, a: &Named, b: &Named, near: &[NodeName], far: &[NodeName]) -> Vec<NodeName> {
        let (Some(from), Some(to)) = (&a.node, &b.node) else { return Vec::new() };
        let ([near], [far]) = (near, far) else { return Vec::new() };
        let (first, second) = if a.location == self.location { (near, far) } else { (far, near) };
        let mut way = vec![from.clone(), first.clone(), second.clone(), to.clone()];
        way.dedup();
        way
    }
}
