//! What nodes tell each other of tunnels and detours.

use std::collections::BTreeSet;

use super::{Node, REPEAT_EVERY, REPEATS};
use crate::ids::{LocationName, NodeName, Slot};
use crate::node::ignored::Ignored;
use crate::relay_pair::{Detour, TunnelRow, Who};
use crate::time::{Instant, Now};
use crate::wire::Frame;
use crate::wire::limits::MAX_DETOURS;

impl Node {
    /// Sends what this node knows if that is new, while there is trouble and when it ends.
    pub(super) fn send_new_tunnels(&mut self, now: Now, location: &LocationName) {
        let Some(mine) = self.slot() else { return };
        let Some(pair) = self.relays.pairs.get_mut(location) else { return };
        let knows = pair.table.is_trouble().then(|| {
            let row = pair.table.row(Who::Near(mine)).unwrap_or_default();
            (row, pair.table.heard_first_hand().collect::<Vec<_>>())
        });
        if pair.sent != knows {
            pair.sent = knows;
            self.send_tunnels(location);
            self.repeat_tunnels(location, Some((now.mono + REPEAT_EVERY, REPEATS)));
        }
    }

    pub(super) fn repeat_tunnels(
        &mut self,
        location: &LocationName,
        repeat: Option<(Instant, u8)>,
    ) {
        if let Some(pair) = self.relays.pairs.get_mut(location) {
            pair.repeat = repeat;
            self.relays.set_timer(location);
        }
    }

    /// Sends this node's row to whom it concerns.
    pub(super) fn send_tunnels(&mut self, location: &LocationName) {
        let Some(mine) = self.slot() else { return };
        let Some(pair) = self.relays.pairs.get(location) else { return };
        let row = pair.table.row(Who::Near(mine)).unwrap_or_default();
        let heard: Vec<(Slot, TunnelRow)> = pair.table.heard_first_hand().collect();
        let to_far = Frame::Tunnels { location: location.clone(), row, heard: Vec::new() };
        let to_near = Frame::Tunnels { location: location.clone(), row, heard };
        self.send_to_candidates(location, &to_far);
        let mesh = self.mesh.clone();
        let candidates = mesh.candidates_of(&self.location);
        let candidates = candidates.values().map(|n| n.name.clone());
        let mut near: BTreeSet<NodeName> = candidates.collect();
        near.extend(mesh.voters_of(&self.location));
        near.remove(&self.me);
        for node in near {
            self.send(&node, to_near.clone());
        }
    }

    /// Tells the members of this location by which relays each other location is reached, where that is not by the leaders.
    pub(super) fn send_detours(&mut self, to_connected: bool) {
        let detours = self.relays.pairs.iter().filter_map(|(location, pair)| {
            let shown = pair.shown.as_ref().filter(|s| s.detour)?;
            let (near, far) = (*shown.relays.near.first()?, *shown.relays.far.first()?);
            Some(Detour { location: location.clone(), near, far })
        });
        let frame = Frame::Detours(detours.take(MAX_DETOURS).collect());
        let mesh = self.mesh.clone();
        let members = mesh.nodes_of(&self.location).filter(|n| n.slot.is_none());
        for member in members {
            if !to_connected || self.peers.is_connected(&member.name) {
                self.send(&member.name, frame.clone());
            }
        }
    }

    pub(in crate::node) fn handle_tunnels(
        &mut self,
        now: Now,
        from: &NodeName,
        location: LocationName,
        row: TunnelRow,
        heard: Vec<(Slot, TunnelRow)>,
    ) {
        let sender = self.mesh.node(from).and_then(|n| Some((n.location.clone(), n.slot?)));
        let Some((of, slot)) = sender else {
            return self.ignored(now, from.as_str(), Ignored::TunnelsOfNoCandidate);
        };
        if let Some(group) = self.groups.get_mut(&of).filter(|_| of != location) {
            // Voters weigh this row together with the observers' reports.
            group.handle_tunnel_row(now, &location, slot, row);
            if of != self.location && location != self.location {
                return;
            }
        }
        let near = of == self.location;
        let other = if near { location.clone() } else { of };
        if other == self.location
            || !(near || location == self.location)
            || !self.mesh.locations.contains_key(&other)
        {
            return self.ignored(now, from.as_str(), Ignored::TunnelsOfNoCandidate);
        }
        if self.observer.is_none() {
            // A plain member chooses no relays.
            return;
        }
        let mesh = self.mesh.clone();
        let table = &mut self.relays.pairs.entry(other.clone()).or_default().table;
        let mut changed =
            table.hear(now.mono, if near { Who::Near(slot) } else { Who::Far(slot) }, row, true);
        // A candidate that is connected sends its row itself. Only for the others does a second-hand row count.
        let silent = |s: &Slot| {
            mesh.candidate(&other, *s).is_some_and(|n| !self.peers.is_connected(&n.name))
        };
        for (slot, row) in heard.into_iter().filter(|(s, _)| near && silent(s)) {
            changed |= table.hear(now.mono, Who::Far(slot), row, false);
        }
        self.relays.set_timer(&other);
        if changed {
            self.review_relays(now, [other]);
        }
    }

    pub(in crate::node) fn handle_detours(
        &mut self,
        now: Now,
        from: &NodeName,
        detours: Vec<Detour>,
    ) {
        let near = |n: &crate::mesh::Node| n.location == self.location && n.slot.is_some();
        if !self.mesh.node(from).is_some_and(near) || self.observer.is_some() {
            return self.ignored(now, from.as_str(), Ignored::DetoursOfNoCandidate);
        }
        let by_location = detours.into_iter().map(|d| (d.location.clone(), d)).collect();
        let before = self.relays.told.insert(from.clone(), (now.mono, by_location));
        // Who speaks for the first time may be the one to believe from now on.
        let first = before.is_none().then(|| self.relays.exceptions.keys()).into_iter().flatten();
        let told = &self.relays.told[from].1;
        let before = before.map(|(_, detours)| detours).unwrap_or_default();
        let changed = before.keys().chain(told.keys()).filter(|l| before.get(*l) != told.get(*l));
        let changed: BTreeSet<LocationName> = changed.chain(first).cloned().collect();
        self.review_relays(now, changed);
    }
}
