//! A new mesh, taken without forgetting what is known.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rand_chacha::rand_core::Rng;

use crate::ids::LocationName;
use crate::mesh::Mesh;
use crate::time::Now;

use super::watch::Watch;
use super::{Observer, ObserverOutput, REPORT_EVERY, Timer};

impl Observer {
    /// Takes a new mesh. What is known of a candidate that keeps its slot and key is kept.
    pub fn set_mesh(&mut self, now: Now, mesh: Arc<Mesh>) {
        let flying = std::mem::take(&mut self.flying);
        for (id, f) in flying {
            self.forget(id, &f);
        }
        for (id, _) in std::mem::take(&mut self.asked) {
            self.emit(ObserverOutput::Forget(id));
        }
        (self.by_seq, self.by_ssid, self.by_name) = Default::default();
        self.timers.clear();
        let mut old: BTreeMap<LocationName, Watch> = std::mem::take(&mut self.watches)
            .into_iter()
            .map(|w| (w.location.clone(), w))
            .collect();
        self.mesh = mesh.clone();
        let Some(me) = mesh.node(&self.me).filter(|n| n.slot.is_some()) else { return };
        for location in mesh.locations.keys().filter(|l| **l != me.location) {
            let mut ssids = Vec::new();
            let mut watch = Watch::new(&mesh, me, location, now.mono, || {
                self.next_ssid = self.next_ssid.wrapping_add(1);
                ssids.push(self.next_ssid);
                self.next_ssid
            });
            if watch.paths.is_empty() {
                continue;
            }
            for foreign in watch.targets.iter_mut().filter(|t| t.key.is_none()) {
                foreign.seq = self.rng.next_u32();
            }
            if let Some(old) = old.remove(location) {
                watch.inherit(old);
            }
            let at = self.watches.len();
            for (target, ssid) in ssids.into_iter().enumerate() {
                self.by_ssid.insert(ssid, (at, target));
            }
            self.by_name.insert(location.clone(), at);
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
            self.watches.push(watch);
        }
        let peers: BTreeSet<_> = mesh.nodes.values().map(|n| n.wireguard_key).collect();
        self.keys.retain(|k| peers.contains(k));
        self.tokens = self.tokens.min(self.bucket());
    }
}
