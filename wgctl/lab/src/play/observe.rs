//! Reads daemons and meters while a scenario runs.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::{Gauges, POLL, Session, TAIL, VERIFIED_WITHIN};
use crate::admin::{self, Event};
use crate::meter::{Meter, wall_micros};

/// All meters must have delivered for this long before what is expected has come.
const STEADY_AFTER: Duration = Duration::from_millis(500);

impl Session {
    /// Gathers events from every daemon of the location under test, and from one of each other location.
    pub(super) fn observe(&mut self) {
        let world = std::sync::Arc::clone(&self.world);
        for l in 0..world.topology.locations.len() {
            for n in world.nodes_in(l) {
                let Some(pid) = world.daemon_pid(n) else { continue };
                if world.daemon_paused(pid) {
                    continue;
                }
                let Ok(events) = admin::events(&world.nodes[n].admin()) else { continue };
                for e in events {
                    self.merge(e);
                }
                if l != self.tested {
                    break;
                }
            }
        }
    }

    /// Daemons learn of times at different moments: keeps every time that any of them knows.
    fn merge(&mut self, event: Event) {
        let key = (event.location.clone(), event.seq);
        match self.events.get_mut(&key) {
            Some(have) if have.epoch == event.epoch => {
                have.times.suspected = have.times.suspected.or(event.times.suspected);
                have.times.condemned = have.times.condemned.or(event.times.condemned);
                have.times.committed = have.times.committed.or(event.times.committed);
                have.times.programmed = have.times.programmed.or(event.times.programmed);
                have.times.verified = have.times.verified.or(event.times.verified);
            }
            _ => {
                self.events.insert(key, event);
            }
        }
    }

    /// Remembers the state before the first step.
    pub(super) fn remember(&mut self) {
        self.observe();
        for (location, seq) in self.events.keys() {
            let seen = self.seen_before.entry(location.clone()).or_default();
            *seen = (*seen).max(*seq);
        }
        for l in 0..self.world.topology.locations.len() {
            let name = self.world.topology.locations[l].name.clone();
            if let Some(status) = self.world.status_in(l) {
                self.backend.get_or_insert(status.backend.clone());
                if let Some(leader) = status.location(&name).and_then(|s| s.leaders.first()) {
                    self.leaders_before.insert(name, leader.clone());
                }
            }
        }
    }

    /// Events since [`Self::remember`] in a location, oldest first.
    pub(super) fn news<'a>(&'a self, location: &'a str) -> impl Iterator<Item = &'a Event> {
        let seen = self.seen_before.get(location).copied().unwrap_or(0);
        self.events.values().filter(move |e| e.location == location && e.seq > seen)
    }

    pub(super) fn count(&self, location: &str, kind: &str) -> u64 {
        self.news(location).filter(|e| e.kind == kind).count() as u64
    }

    /// Returns the leader of the location under test before the first step.
    pub fn leader(&self) -> Option<String> {
        self.leaders_before.get(&self.world.scenario.location).cloned()
    }

    /// The first failover since then, if there was one.
    pub fn first_failover(&mut self) -> Option<Event> {
        self.observe();
        let location = self.world.scenario.location.clone();
        self.news(&location).find(|e| e.kind == "failover").cloned()
    }

    /// Returns whether all meters delivered in both directions throughout the last `window`, apart from the WAN's own loss.
    pub(super) fn steady(&self, meters: &Gauges, window: Duration) -> bool {
        let wan = &self.world.scenario.wan;
        let transit =
            (wan.rtt.0 / 2 + wan.jitter.0 + Duration::from_millis(150)).as_micros() as u64;
        let until = wall_micros().saturating_sub(transit);
        let since = until.saturating_sub(window.as_micros() as u64);
        let share = self.lossy() * 1.5;
        meters.all().all(|meters| {
            [Meter::NewFlows, Meter::Established].into_iter().all(|m| {
                let t = meters.tally(m, since, until);
                t.sent > 0 && t.lost as f64 <= t.sent as f64 * share
            })
        })
    }

    /// Returns the loss that the scenario itself puts on the paths.
    pub(super) fn lossy(&self) -> f64 {
        let steps = self.world.scenario.steps.iter().filter_map(|s| s.wan.as_ref()).map(|w| w.loss);
        steps.fold(self.world.scenario.wan.loss, f64::max)
    }

    /// Waits until everything expected has come and the scenario's time is up. Returns the end of the measured window.
    pub(super) fn await_outcome(&mut self, meters: &Gauges) -> Result<u64> {
        let last_step = Instant::now();
        let scenario = self.world.scenario.clone();
        let mut came: Option<Instant> = None;
        loop {
            std::thread::sleep(POLL);
            self.observe();
            let e = &scenario.expect;
            let location = scenario.location.as_str();
            let here = self.count(location, "failover") >= e.failovers.least()
                && self.count(location, "move") >= e.moves.least()
                && e.kinds.iter().all(|k| self.count(location, k) > 0)
                && (!e.recovers || self.steady(meters, STEADY_AFTER))
                && (!e.recovers || meters.tcp_opens(STEADY_AFTER));
            match (here, came) {
                (true, None) => came = Some(Instant::now()),
                (false, Some(_)) => came = None,
                _ => {}
            }
            let verified = self
                .news(location)
                .filter(|e| e.kind == "failover" || e.kind == "move")
                .all(|e| e.times.verified.is_some());
            let enough = came.is_some_and(|c| {
                let tail = if verified { TAIL } else { VERIFIED_WITHIN };
                c.elapsed() >= tail && last_step.elapsed() >= scenario.duration.0
            });
            if enough || last_step.elapsed() >= scenario.within.0.max(scenario.duration.0) {
                return Ok(wall_micros());
            }
        }
    }
}
