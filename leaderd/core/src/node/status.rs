//! What this node knows, for `wgctl status` and `wgctl events`.

use std::collections::BTreeMap;

use super::Node;
use crate::group::Group;
use crate::ids::{Epoch, LocationName, Slot};
use crate::state::Event;
use crate::status::{CandidateStatus, LocationStatus, Status};
use crate::time::Now;
use crate::verdict::{Report, Verdict};

impl Node {
    pub fn status(&self, now: Now) -> Status {
        let others = self.peers.hellos().filter(|(_, hello)| {
            hello.generation != self.mesh.generation || hello.mesh_hash[..] != self.mesh.hash[..8]
        });
        Status {
            mesh: self.mesh.name.clone(),
            node: self.me.clone(),
            location: self.location.clone(),
            generation: self.mesh.generation,
            mesh_hash: self.mesh.hash.iter().map(|b| format!("{b:02x}")).collect(),
            other_generations: others
                .map(|(name, hello)| (name.clone(), hello.generation))
                .collect(),
            backend: self.facts.backend.clone(),
            probe_addresses: self.probed_at(),
            locations: self.mesh.locations.keys().map(|l| self.location_status(now, l)).collect(),
            relay_pairs: self.relay_pairs(now),
        }
    }

    fn location_status(&self, now: Now, location: &LocationName) -> LocationStatus {
        // A plain member takes no part in other locations' decisions, and shows what its leader passes on.
        let decision = self.decisions.get(location).or_else(|| self.decisions.shown(location));
        let leaders = self.shown_leaders(location);
        let group = self.voting(location);
        let judging = group.filter(|g| self.hears_observers(location, g));
        let raft_leader_elsewhere = || {
            self.mesh
                .nodes_of(location)
                .filter(|n| self.peers.is_fresh(&n.name, now.mono))
                .find_map(|n| self.peers.hello(&n.name)?.raft_leader.clone())
        };
        let raft_leader = match group {
            Some(group) => group.raft_leader().cloned(),
            None => raft_leader_elsewhere(),
        };
        let candidates = self.candidates_status(now, location);
        let next = match judging {
            Some(group) => group
                .next_leader(now)
                .and_then(|s| self.mesh.candidate(location, s))
                .map(|n| n.name.clone()),
            None => self.mesh.ranking(location).into_iter().find_map(|slot| {
                let c = candidates.iter().find(|c| c.slot == slot)?;
                (!c.leading && c.verdict == Verdict::Forwarding && c.blocked_by.is_empty())
                    .then(|| c.name.clone())
            }),
        };
        let mut notes = group.map(|g| g.notes(now)).unwrap_or_default();
        notes.extend(judging.map(|g| g.notes_of_election(now)).unwrap_or_default());
        let fallback = self.fallback.is_active(location);
        if fallback {
            notes.push(
                "this node follows its own ranking, for want of a quorum, until the location decides again or its leader is \
                 seen to forward"
                    .to_owned(),
            );
        }
        if *location == self.location {
            if let Some((cause, why)) = &self.facts.broken {
                notes.push(format!("this node cannot relay ({cause}): {why}"));
            }
            if self.observer.as_ref().is_some_and(|o| o.is_short_of_probes(now.mono)) {
                notes.push(format!(
                    "probes are left out: this node watches more than {} probes a second (half of `probe_budget`) can; raise \
                     `probe_budget` or `probe_interval` in [policy]",
                    self.mesh.policy.probe_budget / 2
                ));
            }
            notes.extend(self.notes.iter().chain(self.host_notes.values().flatten()).cloned());
            notes.extend(self.overridden.notes());
            notes.extend(self.outward_words.notes());
        }
        notes.extend(self.proof_note(location));
        notes.extend(self.address_notes(location));
        let observed = self.mesh.observed_between(&self.location, location);
        let carried = (observed || self.mesh.kilo_between(&self.location, location))
            .then(|| self.handover.carries(location));
        if observed {
            notes.push(
                "steering is observe: traffic with this location goes as it would without leaderd"
                    .to_owned(),
            );
        } else if carried == Some(false) {
            notes.push(
                "Kilo carries the workload: leaderd's tunnels are not known to forward".to_owned(),
            );
        }
        let hidden_sources =
            self.observer.as_ref().map(|o| o.hidden_sources(location)).unwrap_or_default();
        notes.extend(hidden_sources.iter().map(ToString::to_string));
        let unreached = self.observer.as_ref().map(|o| o.unreached(location)).unwrap_or_default();
        notes.extend(unreached.iter().map(ToString::to_string));
        LocationStatus {
            name: location.clone(),
            lowest_index: self.mesh.nodes_of(location).map(|n| n.index).min(),
            leaders: leaders
                .iter()
                .filter_map(|s| self.mesh.candidate(location, *s))
                .map(|n| n.name.clone())
                .collect(),
            epoch: decision.map_or(Epoch(0), |d| d.epoch),
            since: decision.map(|d| d.at),
            cause: decision.map(|d| d.cause),
            frozen: group.and_then(|g| g.freeze_end(now)),
            raft_leader,
            quorum: group.map(|g| g.has_quorum(now)),
            disk_stuck: group.is_some_and(|g| g.disk_is_stuck(now)),
            fallback,
            candidates,
            next,
            carried,
            hidden_sources,
            unreached,
            notes,
        }
    }

    fn candidates_status(&self, now: Now, location: &LocationName) -> Vec<CandidateStatus> {
        if let Some(group) = self.voting(location).filter(|g| self.hears_observers(location, g)) {
            return group.candidates_status(now);
        }
        if *location == self.location {
            let digests = self.mesh.nodes_of(location).filter_map(|n| {
                let (at, hello) = self.peers.timed_hello(&n.name)?;
                (!hello.digest.is_empty()).then_some((at, &hello.digest))
            });
            let newest = digests.max_by_key(|(at, _)| *at).map(|(_, digest)| digest.clone());
            return newest.unwrap_or_else(|| self.unobserved(location, None));
        }
        let view = self.observer.as_ref().and_then(|o| o.view(now, location));
        self.unobserved(location, view)
    }

    /// Returns the candidates of this location that are drained, as far as this node knows.
    pub(super) fn drained_here(&self, now: Now) -> std::collections::BTreeSet<Slot> {
        if let Some(group) = self.voting(&self.location) {
            let drained = |n: &crate::mesh::Node| group.state().drained.contains(&n.name);
            let candidates = self.mesh.candidates_of(&self.location).into_iter();
            return candidates.filter(|(_, n)| drained(n)).map(|(slot, _)| slot).collect();
        }
        let candidates = self.candidates_status(now, &self.location);
        candidates.into_iter().filter(|c| c.drained).map(|c| c.slot).collect()
    }

    /// Reports go to the candidates and to the raft leader. A plain member hears of them from the raft leader, and its own group
    /// judges nothing.
    fn hears_observers(&self, location: &LocationName, group: &Group) -> bool {
        *location != self.location || self.observer.is_some() || group.is_raft_leader()
    }

    fn shown_leaders(&self, location: &LocationName) -> Vec<Slot> {
        let shown = || self.decisions.shown(location).map(|d| d.leaders.clone());
        self.effective_leaders(location).or_else(shown).unwrap_or_default()
    }

    /// Returns the candidates of another location as this node alone sees them.
    fn unobserved(&self, location: &LocationName, view: Option<Report>) -> Vec<CandidateStatus> {
        let leaders = self.shown_leaders(location);
        let mut seen: BTreeMap<_, _> =
            view.into_iter().flat_map(|r| r.slots).map(|s| (s.slot, s)).collect();
        self.mesh
            .candidates_of(location)
            .into_iter()
            .map(|(slot, node)| {
                let report = seen.remove(&slot);
                let verdict = report.as_ref().map_or(Verdict::Unknown, |r| r.verdict.clone());
                CandidateStatus {
                    name: node.name.clone(),
                    slot,
                    leading: leaders.contains(&slot),
                    observers: if report.is_some() { (1, 1) } else { (0, 0) },
                    verdict,
                    rtt_ms: report.as_ref().and_then(|r| r.rtt).map(|d| d.as_secs_f64() * 1e3),
                    loss: report.as_ref().map(|r| r.loss),
                    path_mtu: report.as_ref().and_then(|r| r.path_mtu),
                    services: report.as_ref().map(|r| r.services).filter(|s| s.1 > 0),
                    drained: false,
                    blocked_by: Vec::new(),
                }
            })
            .collect()
    }

    /// Returns every event known here, oldest first: a copy of up to a mebibyte for each location.
    pub fn events(&self) -> Vec<Event> {
        let mut all: Vec<Event> =
            self.mesh.locations.keys().flat_map(|l| self.events_of(l)).cloned().collect();
        let when = |e: &Event| {
            e.times.condemned.or(e.times.committed).or(e.times.suspected).unwrap_or_default()
        };
        all.sort_by_key(|e| (when(e), e.location.clone(), e.seq));
        all
    }

    /// Returns those of one location, in no order.
    pub fn events_of(&self, location: &LocationName) -> impl Iterator<Item = &Event> {
        let kept = self.groups.get(location).into_iter().flat_map(|g| &g.state().events);
        let votes = self.voting(location).is_some();
        // What was announced, and what this node knows from when it had a vote.
        let announced = (!votes).then(|| self.decisions.events(location)).into_iter().flatten();
        kept.filter(move |e| votes || !self.decisions.has_event(location, e.seq)).chain(announced)
    }
}
