//! The reference model: what must hold, from the true state of the world, written without the rules by which the cores decide.
//!
//! [`truth::quality`] says of every candidate whether it could have carried traffic between the nodes that work
//! themselves. `after_step` checks the decisions of the core that ran last, `tick` the whole world.
//! Broken promises go to `violations`, one sentence each, its kind before the colon.
//!
//! What is owed to each pair of workloads is in [`pairs`]. These promises are new: what breaks them goes to `unkept`, and each test says
//! how many of its worlds break them ([`known`](super::known)).

pub mod pairs;
#[cfg(test)]
mod tests;
pub mod truth;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use leaderd_core::fault::MoveReason;
use leaderd_core::ids::{Epoch, LocationName, NodeName, Slot};
use leaderd_core::io::LogLevel;
use leaderd_core::mesh::Node;
use leaderd_core::state::Decision;
use leaderd_core::time::Instant;

use super::World;
use super::path::Fate;
pub use pairs::Unkept;
use truth::{
    KNOWN_LIMIT_FIRST_CLAIM, Quality, has_observers, has_quorum, is_outvoted, is_provable,
    slowest_round_trip, some_dead,
};

/// How often the whole world is checked.
const TICK: Duration = Duration::from_millis(20);
/// How often all pairs of workloads are walked, to find loops.
const WALK: Duration = Duration::from_millis(200);
/// How often the ways of all pairs of workloads are compared with what is owed to them: often enough for bounds of a second and more.
const LOOK_AT_PAIRS: Duration = Duration::from_millis(400);
/// A location with all it needs replaces a broken leader within this, plus what slow paths and hold-down add.
const FAILOVER_WITHIN: Duration = Duration::from_secs(3);
/// A raft leader whose disk takes no writes hands over within 3 s, and a successor that does not answer may cost as much again.
const HAND_OVER_WITHIN: Duration = Duration::from_secs(6);
/// Reports and hellos of a node that has just died count for this long.
const STALE: Duration = Duration::from_secs(4);
/// A failover may answer a fault that ended this long ago.
const FAULT_EXPLAINS_FOR: Duration = Duration::from_secs(15);
/// Violations that are kept: the first says enough.
const MAX_VIOLATIONS: usize = 20;
/// Observers know within this time that a candidate is broken, at short round trips.
const KNOWN_BROKEN: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, Default)]
struct History {
    quality: Option<Quality>,
    last_not_good: Option<Instant>,
    broken_since: Option<Instant>,
    good_since: Option<Instant>,
    last_asleep: Option<Instant>,
}

/// What a daemon has followed since it started.
#[derive(Debug)]
struct Followed {
    incarnation: u32,
    since: Instant,
    epochs: BTreeMap<LocationName, Epoch>,
    /// Forged decisions that it took when it could not know better.
    first_claims: Vec<Decision>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Model {
    pub violations: Vec<String>,
    /// Broken promises to pairs of workloads.
    pub unkept: Unkept,
    /// Changes in the true state of the world, for the story of a run.
    pub notes: Vec<(Instant, String)>,
    /// All decisions that any core ever knew.
    pub decisions: BTreeMap<(LocationName, Epoch), (Instant, Decision)>,
    followed: BTreeMap<NodeName, Followed>,
    histories: BTreeMap<NodeName, History>,
    /// Since when a location has a broken leader and everything that it needs to replace it.
    failover_due_since: BTreeMap<LocationName, Instant>,
    /// Reported already: node, and since when its disk was stuck.
    led_without_disk: BTreeSet<(NodeName, Instant)>,
    /// When a leader was last one of two leaders between which some workloads do not get through that others relays serve.
    last_crooked: BTreeMap<NodeName, Instant>,
    /// What is owed to pairs of workloads since the world's last change, and when that was.
    owed: pairs::Owed,
    owed_at: Option<Instant>,
    /// The ways of each pair of workloads, and since when they are these.
    ways: BTreeMap<pairs::Pair, pairs::Ways>,
    next_tick: Instant,
    next_walk: Instant,
    next_look: Instant,
    log_seen: usize,
}

impl Model {
    /// Lets time pass, and checks everything that happens.
    pub fn run(&mut self, world: &mut World, time: Duration) {
        let end = world.now().mono + time;
        loop {
            let until = end.min(self.next_tick.max(world.now().mono));
            let went_on = world.step(until);
            self.after_step(world);
            if world.now().mono >= self.next_tick {
                self.tick(world);
                self.next_tick = world.now().mono + TICK;
            }
            if !went_on && world.now().mono >= end {
                return;
            }
        }
    }

    fn violated(&mut self, world: &World, what: String) {
        if self.violations.len() < MAX_VIOLATIONS {
            self.note(world, format!("VIOLATION {what}"));
            self.violations.push(format!("{what} (at {:?})", world.now().mono));
        }
    }

    fn note(&mut self, world: &World, what: String) {
        self.notes.push((world.now().mono, what));
    }

    /// Returns the latest decision of a location.
    pub fn decision(&self, location: &LocationName) -> Option<&Decision> {
        let range = (location.clone(), Epoch(0))..=(location.clone(), Epoch(u64::MAX));
        self.decisions.range(range).next_back().map(|(_, (_, d))| d)
    }

    /// Returns the number of a location's decisions that answered a fault.
    pub fn failovers(&self, location: &LocationName) -> u32 {
        let moved = |d: &Decision| d.cause.fault().is_some();
        self.decisions.iter().filter(|((l, _), (_, d))| l == location && moved(d)).count() as u32
    }

    pub(super) fn after_step(&mut self, world: &World) {
        let Some(name) = world.last_run.clone() else { return };
        // No promise is made about what a hostile node believes.
        let Some(core) = world.core(&name).filter(|_| world.faults[&name].hostile.is_none()) else {
            return;
        };
        let incarnation = world.incarnation(&name);
        let now = world.now().mono;
        let fresh = || Followed {
            incarnation,
            since: now,
            epochs: BTreeMap::new(),
            first_claims: Vec::new(),
        };
        let followed = self.followed.entry(name.clone()).or_insert_with(fresh);
        if followed.incarnation != incarnation {
            *followed = fresh();
        }
        let knows_nobody = now.since(followed.since) < KNOWN_LIMIT_FIRST_CLAIM;
        let mut news = Vec::new();
        for location in world.mesh.locations.keys() {
            let Some(decision) = core.decision(location) else { continue };
            if followed.first_claims.contains(decision) {
                continue;
            }
            if knows_nobody && world.forged_decisions.contains(decision) {
                followed.first_claims.push(decision.clone());
                continue;
            }
            let before = followed.epochs.insert(location.clone(), decision.epoch);
            if before != Some(decision.epoch) {
                news.push((before, decision.clone()));
            }
        }
        for (before, decision) in news {
            if before.is_some_and(|b| b > decision.epoch) {
                let what = format!("lower epoch: {name} went back to {decision:?}");
                self.violated(world, what);
            }
            if world.forged_decisions.contains(&decision) {
                let what = format!("believed a forged decision: {name} {decision:?}");
                self.violated(world, what);
                // It is no decision of the location's voters.
                continue;
            }
            let key = (decision.location.clone(), decision.epoch);
            match self.decisions.get(&key) {
                Some((_, known)) if *known != decision => {
                    let what = format!("two decisions in one epoch: {known:?}, {decision:?}");
                    self.violated(world, what);
                }
                Some(_) => {}
                None => {
                    let Decision { location, epoch, leaders, cause, .. } = &decision;
                    let leaders: Vec<String> = leaders.iter().map(ToString::to_string).collect();
                    let what = format!(
                        "{location} is led by {}: {cause}, {epoch:?}, first known to {name}",
                        leaders.join(",")
                    );
                    self.note(world, what);
                    self.decided(world, &decision);
                    self.decisions.insert(key, (world.now().mono, decision));
                }
            }
        }
    }

    fn decided(&mut self, world: &World, decision: &Decision) {
        let now = world.now().mono;
        let location = &decision.location;
        let before = self.decision(location).cloned();
        if before.as_ref().is_some_and(|b| b.epoch > decision.epoch) {
            return; // Learnt late.
        }
        let before: Vec<Slot> = before.map(|d| d.leaders).unwrap_or_default();
        let commanded = matches!(decision.cause, MoveReason::Promoted | MoveReason::Drained);
        let may_command = world.commandable.values().any(|locations| locations.contains(location));
        if commanded && !world.commandable.is_empty() && !may_command {
            // Only hostile nodes give commands here, and none of them may command this location.
            let what = format!("obeyed a command without the right: {decision:?}");
            self.violated(world, what);
        }
        if is_outvoted(world, location) {
            return;
        }
        let node = |slot: &Slot| world.mesh.candidate(location, *slot);
        if decision.cause.fault().is_some() {
            for old in before.iter().filter(|s| !decision.leaders.contains(s)).filter_map(node) {
                let h = self.histories.get(&old.name).copied().unwrap_or_default();
                let lately =
                    |at: Option<Instant>| at.is_some_and(|at| now.since(at) < FAULT_EXPLAINS_FOR);
                let hostile = world.faults[&old.name].hostile.is_some();
                // Of a dead pair of leaders one may move, though each forwards for all others.
                let crooked = lately(self.last_crooked.get(&old.name).copied())
                    || self.has_crooked_pair(world, old);
                if !lately(h.last_not_good) && !lately(h.last_asleep) && !hostile && !crooked {
                    let what = format!(
                        "needless failover: {} forwarded all along, but {decision:?}",
                        old.name
                    );
                    self.violated(world, what);
                }
            }
        }
        let free = matches!(
            decision.cause,
            MoveReason::Initial | MoveReason::Promoted | MoveReason::Reconfigured
        );
        let slow = slowest_round_trip(world) * 4;
        for new in decision.leaders.iter().filter(|s| !before.contains(s)).filter_map(node) {
            let broken = self.histories.get(&new.name).and_then(|h| h.broken_since);
            if !free && broken.is_some_and(|at| now.since(at) >= KNOWN_BROKEN + slow) {
                let what = format!(
                    "promoted a broken candidate: {} is broken since {broken:?}, {decision:?}",
                    new.name
                );
                self.violated(world, what);
            }
        }
    }

    fn tick(&mut self, world: &World) {
        let now = world.now().mono;
        for node in world.mesh.nodes.values().filter(|n| n.slot.is_some()) {
            let quality = truth::quality(world, node);
            let before = self.histories.get(&node.name).and_then(|h| h.quality);
            if before != Some(quality) && (before.is_some() || quality != Quality::Good) {
                self.note(world, format!("{} is {quality:?}", node.name));
            }
            let h = self.histories.entry(node.name.clone()).or_default();
            h.quality = Some(quality);
            match quality {
                Quality::Good => {
                    h.good_since.get_or_insert(now);
                    h.broken_since = None;
                }
                Quality::Grey => (h.broken_since, h.good_since) = (None, None),
                Quality::Broken => {
                    h.broken_since.get_or_insert(now);
                    h.good_since = None;
                }
            }
            if quality != Quality::Good {
                h.last_not_good = Some(now);
            }
            let f = &world.faults[&node.name];
            if !world.is_sound(&node.name) || f.lan_cut || f.lan_control_cut {
                h.last_asleep = Some(now);
            }
        }
        self.check_disks(world);
        let locations: Vec<LocationName> = world.mesh.locations.keys().cloned().collect();
        for location in locations {
            self.check_failover_due(world, &location);
        }
        self.check_log(world);
        if now >= self.next_walk {
            self.next_walk = now + WALK;
            self.check_loops(world);
        }
        if now >= self.next_look {
            self.next_look = now + LOOK_AT_PAIRS;
            self.check_pairs(world);
        }
    }

    /// A location with a forwarding candidate and a quorum has a forwarding leader within the bound.
    fn check_failover_due(&mut self, world: &World, location: &LocationName) {
        let now = world.now().mono;
        let Some(decision) = self.decision(location).cloned() else { return };
        let candidate = |s: &Slot| world.mesh.candidate(location, *s);
        let history = |n: &Node| self.histories.get(&n.name).copied().unwrap_or_default();
        let broken = decision
            .leaders
            .iter()
            .filter_map(candidate)
            .all(|n| history(n).broken_since.is_some());
        let helper = world.mesh.candidates_of(location).into_values().any(|n| {
            let good = history(n).good_since.is_some_and(|at| now.since(at) >= STALE);
            good && world.is_sound(&n.name)
                && history(n).last_asleep.is_none_or(|at| now.since(at) >= STALE)
        });
        let provable = decision.leaders.iter().filter_map(candidate).all(|n| is_provable(world, n));
        let due = provable
            && broken
            && helper
            && has_quorum(world, location)
            && has_observers(world, location);
        if !due {
            if self.failover_due_since.remove(location).is_some() {
                self.note(world, format!("{location} needs no failover any more"));
            }
            return;
        }
        if !self.failover_due_since.contains_key(location) {
            self.note(world, format!("{location} needs another leader"));
        }
        let since = *self.failover_due_since.entry(location.clone()).or_insert(now);
        let since = since.max(world.fault_changed);
        let policy = world.mesh.policy_of(location);
        let failovers = self.failovers(location).min(20);
        let hold =
            (policy.hold_down * 2u32.pow(failovers.saturating_sub(1))).min(policy.hold_down_max);
        let hold = if failovers == 0 { Duration::ZERO } else { hold };
        let stale = if some_dead(world) { STALE } else { Duration::ZERO };
        let disks = world.faults.values().map(|f| f.disk_slow * 10).max().unwrap_or_default();
        let bound = FAILOVER_WITHIN + hold + stale + disks + slowest_round_trip(world) * 20;
        if now.since(since) > bound {
            let what = format!(
                "broken leader kept: {:?} of {location} for {:?}, bound {bound:?}",
                decision.leaders,
                now.since(since)
            );
            self.violated(world, what);
            self.failover_due_since.insert(location.clone(), now + Duration::from_secs(3600));
        }
    }

    /// A node whose disk takes no writes must not lead a Raft group once another voter could.
    fn check_disks(&mut self, world: &World) {
        let now = world.now().mono;
        for (name, node) in &world.mesh.nodes {
            let location = &node.location;
            let Some(stuck) = world.nodes.get(name).and_then(|n| n.disk.stuck_since(location))
            else {
                continue;
            };
            let bound = HAND_OVER_WITHIN + slowest_round_trip(world) * 20;
            let since = stuck.max(world.fault_changed);
            if now.since(since) <= bound
                || !world.is_sound(name)
                || !has_quorum(world, location)
                || self.led_without_disk.contains(&(name.clone(), stuck))
            {
                continue;
            }
            let leads = world.core(name).is_some_and(|core| {
                let all = core.status(world.now()).locations;
                let own = all.into_iter().find(|l| l.name == *location);
                own.and_then(|l| l.raft_leader).as_ref() == Some(name)
            });
            if leads {
                self.led_without_disk.insert((name.clone(), stuck));
                let what =
                    format!("leads without a disk: {name}, whose writes wait since {stuck:?}");
                self.violated(world, what);
            }
        }
    }

    fn check_loops(&mut self, world: &World) {
        if world.faults.values().any(|f| f.route_loop) {
            return;
        }
        for from in world.mesh.nodes.keys() {
            for to in world.mesh.nodes.keys().filter(|n| *n != from) {
                if let Fate::TimeExceeded { at } = world.fate(from, to) {
                    let what = format!("loop: from {from} to {to}, ends at {at}");
                    self.violated(world, what);
                }
            }
        }
    }

    /// Errors are for what an operator must see: lost quorum, and a broken leader that no standby can replace.
    fn check_log(&mut self, world: &World) {
        let expected = [
            "no quorum: following",
            "no standby would be better",
            "this node cannot relay",
            "cut off: no tunnel",
            "disk",
        ];
        let faulty = world.fault_changed > Instant(1_000_000);
        let lines: Vec<String> = world.log[self.log_seen..]
            .iter()
            .filter(|l| l.level == LogLevel::Error)
            .filter(|l| !(faulty && expected.iter().any(|e| l.text.contains(e))))
            .map(|l| format!("unexpected error: {} {}", l.node, l.text))
            .collect();
        self.log_seen = world.log.len();
        for line in lines {
            self.violated(world, line);
        }
    }

    /// Some time after the last fault ended: all nodes agree, all traffic passes, no leader changes.
    pub fn check_convergence(&mut self, world: &World, calm: Duration) {
        let now = world.now().mono;
        for location in world.mesh.locations.keys() {
            let known: BTreeMap<_, _> = world
                .mesh
                .nodes
                .keys()
                .map(|n| (n, world.core(n).and_then(|c| c.decision(location)).map(|d| d.epoch)))
                .collect();
            let latest = self.decision(location).map(|d| d.epoch);
            for (name, epoch) in known {
                // Members know nothing of other locations: their leader routes for them.
                let needs = world.mesh.nodes[name].slot.is_some()
                    || world.mesh.nodes[name].location == *location;
                if needs && (epoch != latest || epoch.is_none()) {
                    let what = format!(
                        "not converged: {name} knows {epoch:?} of {location}, latest is {latest:?}"
                    );
                    self.violated(world, what);
                }
            }
        }
        let late: Vec<String> = self
            .decisions
            .values()
            .filter(|(at, _)| now.since(*at) < calm)
            .map(|(at, d)| format!("restless: at {at:?} {d:?}"))
            .collect();
        for what in late {
            self.violated(world, what);
        }
        for from in world.mesh.nodes.keys() {
            for to in world.mesh.nodes.keys().filter(|n| *n != from) {
                if !world.delivers(from, to) {
                    let what =
                        format!("does not arrive: {from} to {to} {:?}", world.fate(from, to));
                    self.violated(world, what);
                }
            }
            let fallback = world
                .core(from)
                .map(|c| c.status(world.now()))
                .into_iter()
                .flat_map(|s| s.locations)
                .find(|l| l.fallback);
            if let Some(l) = fallback {
                let what = format!("still in fallback: {from} about {}", l.name);
                self.violated(world, what);
            }
        }
    }

    /// All nodes have the newest mesh file.
    pub fn check_generations(&mut self, world: &World) {
        for name in world.mesh.nodes.keys() {
            let has = world.core(name).map(|c| c.mesh().generation);
            if has != Some(world.mesh.generation) {
                self.violated(world, format!("half rolled out: {name} has {has:?}"));
            }
        }
    }
}
