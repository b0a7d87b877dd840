//! What people see of relay pairs: the status, the log, and the changes that are kept.

use super::super::{outward, overridden};
use super::{Node, Pair, Shown};
use crate::ids::{LocationName, NodeName, Slot};
use crate::io::LogLevel;
use crate::mesh;
use crate::relay_pair::{Relays, Who};
use crate::status::{RelayChange, RelayChangeKind, RelayPairStatus, TunnelStatus};
use crate::time::{Duration, Now};

/// How long no tunnel between two locations must be good until that is an error: a fault of the one in use is mended sooner.
const CUT_OFF_AFTER: Duration = Duration::from_secs(3);
/// A detour of this age is an error: something is broken for good, and the standby carries without a reserve.
const LONG_DETOUR: Duration = Duration::from_secs(15 * 60);

impl Node {
    /// Returns a sentence that names the tunnel at fault and the node that reports it.
    pub(super) fn why_detour(&self, location: &LocationName, leaders: &Relays) -> Option<String> {
        let (i, j) = (*leaders.near.first()?, *leaders.far.first()?);
        let table = &self.relays.pairs.get(location)?.table;
        let name = |l: &LocationName, s| self.mesh.candidate(l, s).map(|n| &n.name);
        let (near, far) = (name(&self.location, i)?, name(location, j)?);
        if self.slot() == Some(i)
            && let Some(route) = self.overridden.transit_with(location)
        {
            return Some(overridden::describe(route));
        }
        if self.slot() == Some(i)
            && let Some(node) = self.outward_words.against(location)
        {
            return Some(outward::describe(node, location));
        }
        let state = table.state(i, j).as_str();
        let accuser = &self.end_of_tunnel(location, table.accuser(i, j)?)?.name;
        Some(format!("the tunnel {near}–{far} is {state}, as {accuser} sees it"))
    }

    /// Returns the candidate at one end of a tunnel to a location.
    fn end_of_tunnel(&self, location: &LocationName, end: Who) -> Option<&mesh::Node> {
        match end {
            Who::Near(slot) => self.mesh.candidate(&self.location, slot),
            Who::Far(slot) => self.mesh.candidate(location, slot),
        }
    }

    /// Notes what people see, and tells them of changes.
    pub(super) fn show_relays(&mut self, now: Now, location: &LocationName, mut shown: Shown) {
        let pair = self.relays.pairs.entry(location.clone()).or_default();
        let before = pair.shown.take();
        if let Some(old) = &before
            && (&old.relays, old.detour) == (&shown.relays, shown.detour)
        {
            shown.since = old.since;
            shown.long = old.long;
            // The reason that began it, unless there was none.
            shown.why = old.why.clone().or(shown.why);
        }
        let was_detour = before.as_ref().is_some_and(|s| s.detour);
        let same = before.as_ref().is_some_and(|s| s.relays == shown.relays);
        let long = shown.detour && !shown.long && now.mono.since(shown.since) >= LONG_DETOUR;
        shown.long |= long;
        pair.shown = Some(shown.clone());
        if shown.detour && !(was_detour && same) {
            self.count("detours");
            self.relays_changed(now, location, RelayChangeKind::Detour, &shown);
        } else if was_detour && !shown.detour {
            self.relays_changed(now, location, RelayChangeKind::DetourEnded, &shown);
        } else if long {
            self.relays_changed(now, location, RelayChangeKind::LongDetour, &shown);
        }
    }

    /// Notes whether no tunnel to a location is known to be good.
    pub(super) fn note_cut_off(&mut self, now: Now, location: &LocationName, cut_off: bool) {
        let Some(pair) = self.relays.pairs.get_mut(location) else { return };
        let kind = match (&mut pair.cut_off, cut_off) {
            (None, true) => {
                pair.cut_off = Some((now.mono, false));
                return;
            }
            (Some((since, told @ false)), true) if now.mono.since(*since) >= CUT_OFF_AFTER => {
                *told = true;
                RelayChangeKind::CutOff
            }
            (Some((_, told)), false) => {
                let told = *told;
                pair.cut_off = None;
                if !told {
                    return;
                }
                RelayChangeKind::Reached
            }
            _ => return,
        };
        let relays = self.leaders_of_both(location);
        let shown = Shown { relays, detour: false, since: now.mono, long: false, why: None };
        self.relays_changed(now, location, kind, &shown);
    }

    fn relays_changed(
        &mut self,
        now: Now,
        location: &LocationName,
        kind: RelayChangeKind,
        shown: &Shown,
    ) {
        let change = RelayChange {
            at: now.wall,
            location: location.clone(),
            kind,
            near: self.names(&self.location, &shown.relays.near),
            far: self.names(location, &shown.relays.far),
            why: shown.why.clone(),
        };
        let join =
            |names: &[NodeName]| names.iter().map(NodeName::as_str).collect::<Vec<_>>().join(",");
        let level = match kind {
            RelayChangeKind::Detour => LogLevel::Warn,
            RelayChangeKind::DetourEnded | RelayChangeKind::Reached => LogLevel::Info,
            RelayChangeKind::CutOff | RelayChangeKind::LongDetour => LogLevel::Error,
        };
        let fields = [
            ("location.name", location.to_string()),
            ("relay.near", join(&change.near)),
            ("relay.far", join(&change.far)),
            ("why", change.why.clone().unwrap_or_default()),
        ];
        self.log(level, kind.message(), fields);
        self.relays.remember(change);
    }

    pub(super) fn names(&self, location: &LocationName, slots: &[Slot]) -> Vec<NodeName> {
        let nodes = slots.iter().filter_map(|s| self.mesh.candidate(location, *s));
        nodes.map(|n| n.name.clone()).collect()
    }

    /// Returns the relays of each other location, for the status.
    pub(in crate::node) fn relay_pairs(&self, now: Now) -> Vec<RelayPairStatus> {
        let pairs = self.relays.pairs.iter();
        pairs.filter_map(|(l, pair)| Some(self.relay_pair_status(now, l, pair))?).collect()
    }

    pub(super) fn relay_pair_status(
        &self,
        now: Now,
        location: &LocationName,
        pair: &Pair,
    ) -> Option<RelayPairStatus> {
        let shown = pair.shown.as_ref()?;
        let state_of = |near: Slot, far: Slot| {
            let accuser = pair.table.accuser(near, far);
            let accuser = accuser.and_then(|end| self.end_of_tunnel(location, end));
            let mine = self.slot() == Some(near);
            Some(TunnelStatus {
                near: self.mesh.candidate(&self.location, near)?.name.clone(),
                far: self.mesh.candidate(location, far)?.name.clone(),
                state: pair.table.state(near, far),
                seen_by: accuser.map(|n| n.name.clone()),
                since: pair.own.since(far).filter(|_| mine).map(|at| now.wall_at(at)),
            })
        };
        let (near, far) = (self.mesh.ranking(&self.location), self.mesh.ranking(location));
        let all = near.iter().flat_map(|i| far.iter().map(move |j| (*i, *j)));
        let tunnels = match self.observer {
            Some(_) => all.filter_map(|(i, j)| state_of(i, j)).collect(),
            None => Vec::new(),
        };
        Some(RelayPairStatus {
            location: location.clone(),
            near: self.names(&self.location, &shown.relays.near),
            far: self.names(location, &shown.relays.far),
            detour: shown.detour,
            long: shown.long,
            cut_off: pair.cut_off.is_some_and(|(_, told)| told),
            since: now.wall_at(shown.since),
            why: shown.why.clone(),
            tunnels,
        })
    }

    /// Returns the changes of relay pairs that this node has seen, oldest first.
    pub fn relay_changes(&self) -> Vec<RelayChange> {
        self.relays.changes().cloned().collect()
    }
}
