//! Takes a new mesh without forgetting what is known.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rand_chacha::rand_core::Rng;

use crate::ids::LocationName;
use crate::mesh::{Mesh, Node};
use crate::time::Now;

use super::index::WatchIdx;
use super::location::LocationWatch;
use super::outward;
use super::{Observer, REPORT_EVERY, Timer};

impl Observer {
    /// Takes a new mesh, and keeps what is known of each candidate whose slot and key stay.
    pub fn set_mesh(&mut self, now: Now, mesh: Arc<Mesh>) {
        for id in self.in_flight.all() {
            self.abandon(id);
        }
        self.by_name.clear();
        // Targets keep their session numbers.
        let in_use: BTreeSet<u16> = std::mem::take(&mut self.by_ssid).into_keys().collect();
        self.timers.clear();
        let mut old: BTreeMap<LocationName, LocationWatch> = std::mem::take(&mut self.watches)
            .into_iter()
            .map(|w| (w.location.clone(), w))
            .collect();
        self.mesh = mesh.clone();
        let Some(me) = mesh.node(&self.me).filter(|n| n.slot.is_some()) else { return };
        for location in mesh.locations.keys().filter(|l| **l != me.location) {
            let watch = self.watches.next_index();
            let before = old.remove(location);
            if let Some(new) = self.start_watch(now, me, location, watch, before, &in_use) {
                self.by_name.insert(location.clone(), watch);
                self.watches.push(new);
            }
        }
        let peers: BTreeSet<_> = mesh.nodes.values().map(|n| n.wireguard_key).collect();
        self.keys.retain(|k| peers.contains(k));
        self.budget.mesh_changed(&mesh);
    }

    /// Sets whether nodes have yet to say where they are probed: a relay without targets is then not taken for one that has none.
    pub fn targets_are_awaited(&mut self, awaited: bool) {
        self.watches.iter_mut().for_each(|w| w.targets_awaited = awaited);
    }

    /// Takes the same mesh with other addresses of its nodes: where those of a location are the same, nothing is disturbed.
    pub fn readdress(&mut self, now: Now, mesh: Arc<Mesh>) {
        let old = std::mem::replace(&mut self.mesh, mesh.clone());
        self.budget.mesh_changed(&mesh);
        let Some(me) = mesh.node(&self.me).filter(|n| n.slot.is_some()) else { return };
        for watch in self.watches.indices() {
            let location = self.watches[watch].location.clone();
            let of = |m: &Mesh| -> Vec<_> {
                m.nodes_of(&location).map(|n| n.probe_addresses.clone()).collect()
            };
            if of(&old) == of(&mesh) {
                self.watches[watch].find_sources(&mesh, me);
                continue;
            }
            self.abandon_all(watch);
            let before = self.watches.remove(watch);
            let in_use = before.targets.iter().map(|t| t.ssid).collect();
            // Its candidates are the same.
            if let Some(new) = self.start_watch(now, me, &location, watch, Some(before), &in_use) {
                self.watches.insert(watch, new);
            }
        }
    }

    /// Gives up all probes to a location, and its timers.
    fn abandon_all(&mut self, watch: WatchIdx) {
        for id in self.in_flight.of(watch) {
            self.abandon(id);
        }
        self.by_ssid.retain(|_, (of, _)| *of != watch);
        self.timers.retain(|(_, timer)| timer.watch() != watch);
    }

    /// Begins to watch a location; `None` if it has no candidates. `in_use`: session numbers that targets may take over from
    /// before, and no new one gets.
    fn start_watch(
        &mut self,
        now: Now,
        me: &Node,
        location: &LocationName,
        watch: WatchIdx,
        old: Option<LocationWatch>,
        in_use: &BTreeSet<u16>,
    ) -> Option<LocationWatch> {
        let mesh = self.mesh.clone();
        let mut new = LocationWatch::new(&mesh, me, location, now.mono, || {
            // Other locations' are in use: there are far fewer targets than numbers.
            self.next_ssid = self.next_ssid.wrapping_add(1);
            while self.next_ssid == outward::SSID
                || self.by_ssid.contains_key(&self.next_ssid)
                || in_use.contains(&self.next_ssid)
            {
                self.next_ssid = self.next_ssid.wrapping_add(1);
            }
            self.next_ssid
        });
        if new.paths.is_empty() {
            return None;
        }
        for foreign in new.targets.iter_mut().filter(|t| t.key.is_none()) {
            foreign.seq = self.rng.next_u32();
        }
        if let Some(old) = old {
            new.inherit(old);
        }
        for (number, target) in new.targets.enumerate() {
            self.by_ssid.insert(target.ssid, (watch, number));
        }
        let interval = new.interval(mesh.policy_of(&new.location), now.mono);
        // Observers are out of phase, so that together they look more often.
        new.next_round = now.mono + self.fraction(interval);
        let report = now.mono + self.fraction(REPORT_EVERY);
        new.next_report = report;
        self.timers.insert((new.next_round, Timer::Round(watch)));
        self.timers.insert((report, Timer::Report(watch)));
        if let Some(interval) = new.service_interval(&mesh) {
            new.next_service = now.mono + self.fraction(interval);
            self.timers.insert((new.next_service, Timer::Service(watch)));
        }
        if let Some(v) = new.verification.as_ref() {
            self.timers.insert((v.next(), Timer::Verify(watch)));
        }
        Some(new)
    }
}
