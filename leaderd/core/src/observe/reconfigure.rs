//! A new mesh, taken without forgetting what is known.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rand_chacha::rand_core::Rng;

use crate::ids::LocationName;
use crate::io::ProbeId;
use crate::mesh::{Mesh, Node};
use crate::time::Now;

use super::location::LocationWatch;
use super::{Observer, ObserverOutput, REPORT_EVERY, Timer};

impl Observer {
    /// Takes a new mesh. What is known of a candidate that keeps its slot and key is kept.
    pub fn set_mesh(&mut self, now: Now, mesh: Arc<Mesh>) {
        for (id, f) in std::mem::take(&mut self.in_flight) {
            self.forget(id, &f);
        }
        for (id, _) in std::mem::take(&mut self.requests) {
            self.emit(ObserverOutput::Forget(id));
        }
        (self.by_seq, self.by_name) = Default::default();
        // Numbers that targets had stay theirs.
        let in_use: BTreeSet<u16> = std::mem::take(&mut self.by_ssid).into_keys().collect();
        self.timers.clear();
        let mut old: BTreeMap<LocationName, LocationWatch> = std::mem::take(&mut self.watches)
            .into_iter()
            .map(|w| (w.location.clone(), w))
            .collect();
        self.mesh = mesh.clone();
        let Some(me) = mesh.node(&self.me).filter(|n| n.slot.is_some()) else { return };
        for location in mesh.locations.keys().filter(|l| **l != me.location) {
            let at = self.watches.len();
            if let Some(watch) = self.watched(now, me, location, at, old.remove(location), &in_use)
            {
                self.by_name.insert(location.clone(), at);
                self.watches.push(watch);
            }
        }
        let peers: BTreeSet<_> = mesh.nodes.values().map(|n| n.wireguard_key).collect();
        self.keys.retain(|k| peers.contains(k));
        self.budget.mesh_changed(&mesh);
    }

    /// Whether nodes have yet to say where they are probed: a relay without targets is not taken for one that has none.
    pub fn targets_are_awaited(&mut self, awaited: bool) {
        self.watches.iter_mut().for_each(|w| w.targets_awaited = awaited);
    }

    /// Takes the same mesh with other addresses of its nodes: where those of a location are the same, nothing is disturbed.
    pub fn readdress(&mut self, now: Now, mesh: Arc<Mesh>) {
        let old = std::mem::replace(&mut self.mesh, mesh.clone());
        self.budget.mesh_changed(&mesh);
        let Some(me) = mesh.node(&self.me).filter(|n| n.slot.is_some()) else { return };
        for at in 0..self.watches.len() {
            let location = self.watches[at].location.clone();
            let of = |m: &Mesh| -> Vec<_> {
                m.nodes_of(&location).map(|n| n.probe_addresses.clone()).collect()
            };
            if of(&old) == of(&mesh) {
                self.watches[at].find_sources(&mesh, me);
                continue;
            }
            self.drop_in_flight(at);
            let before = self.watches.remove(at);
            let in_use = before.targets.iter().map(|t| t.ssid).collect();
            // It has the candidates that it had.
            if let Some(watch) = self.watched(now, me, &location, at, Some(before), &in_use) {
                self.watches.insert(at, watch);
            }
        }
    }

    /// Nothing more is expected of what is under way to a location.
    fn drop_in_flight(&mut self, at: usize) {
        let in_flight: Vec<ProbeId> =
            self.in_flight.iter().filter(|(_, f)| f.watch == at).map(|(id, _)| *id).collect();
        for id in in_flight {
            if let Some(f) = self.take(id) {
                self.forget(id, &f);
            }
        }
        let asked: Vec<ProbeId> =
            self.requests.iter().filter(|(_, a)| a.watch == at).map(|(id, _)| *id).collect();
        for id in asked {
            self.take_request(id);
        }
        self.by_ssid.retain(|_, (watch, _)| *watch != at);
        self.timers.retain(|(_, timer)| !timer.is_of(at));
    }

    /// What a location is watched with, as number `at`; `None` if it has no candidates. `in_use`: session numbers that targets
    /// may take over from before, and no new one gets.
    fn watched(
        &mut self,
        now: Now,
        me: &Node,
        location: &LocationName,
        at: usize,
        old: Option<LocationWatch>,
        in_use: &BTreeSet<u16>,
    ) -> Option<LocationWatch> {
        let mesh = self.mesh.clone();
        let mut watch = LocationWatch::new(&mesh, me, location, now.mono, || {
            // Other locations' are in use: there are far fewer targets than numbers.
            self.next_ssid = self.next_ssid.wrapping_add(1);
            while self.by_ssid.contains_key(&self.next_ssid) || in_use.contains(&self.next_ssid) {
                self.next_ssid = self.next_ssid.wrapping_add(1);
            }
            self.next_ssid
        });
        if watch.paths.is_empty() {
            return None;
        }
        for foreign in watch.targets.iter_mut().filter(|t| t.key.is_none()) {
            foreign.seq = self.rng.next_u32();
        }
        if let Some(old) = old {
            watch.inherit(old);
        }
        for (number, target) in watch.targets.iter().enumerate() {
            self.by_ssid.insert(target.ssid, (at, number));
        }
        let interval = watch.interval(mesh.policy_of(&watch.location), now.mono);
        // Observers are out of phase, so that together they look more often.
        watch.next_round = now.mono + self.fraction(interval);
        let report = now.mono + self.fraction(REPORT_EVERY);
        watch.next_report = report;
        self.timers.insert((watch.next_round, Timer::Round(at)));
        self.timers.insert((report, Timer::Report(at)));
        if let Some(interval) = watch.service_interval(&mesh) {
            watch.next_service = now.mono + self.fraction(interval);
            self.timers.insert((watch.next_service, Timer::Service(at)));
        }
        if let Some(v) = watch.verify.as_ref() {
            self.timers.insert((v.next, Timer::Verify(at)));
        }
        Some(watch)
    }
}
