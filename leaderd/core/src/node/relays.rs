//! Which candidates carry the traffic of this node's location with each other one: computed on candidates, told to members.
//!
//! ```text
//! own verdicts ──▶ own row ─┐                       ┌─▶ network
//! rows of the other end ────┼─▶ table ─▶ relay pair ┼─▶ detours, to members
//! rows of other candidates ─┘                       └─▶ status, log, changes
//! ```
//!
//! A candidate sends its row to the candidates of both locations as soon as it changes, and once a second while anything is in trouble.
//! In a calm mesh nothing is sent. A member believes its own default relay; if that is silent, the next candidate in order.

mod exchange;
mod explain;
mod show;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::Node;
use crate::ids::{LocationName, NodeName, Slot};
use crate::mesh::Mesh;
use crate::relay_pair::{
    Chosen, Detour, End, OwnTunnels, Relays, TunnelRow, TunnelState, TunnelTable, Who, choose,
};
use crate::status::RelayChange;
use crate::time::{Duration, Instant, Now};
use crate::wire::HELLO_STALE;

/// What changed is sent again this often: a frame may get lost, and a flow whose ends disagree crosses different relays.
const REPEATS: u8 = 4;
const REPEAT_EVERY: Duration = Duration::from_millis(100);
/// Changes that are kept.
const MAX_CHANGES: usize = 256;

/// What this node knows of relay pairs.
#[derive(Debug, Default)]
pub(super) struct RelayPairs {
    /// By the other location.
    pairs: BTreeMap<LocationName, Pair>,
    /// On a member: what candidates of its location said last.
    told: BTreeMap<NodeName, (Instant, BTreeMap<LocationName, Detour>)>,
    /// Where the relays are not the leaders of both locations: what the network is made from.
    exceptions: BTreeMap<LocationName, Relays>,
    /// The timers of pairs.
    timers: BTreeSet<(Instant, LocationName)>,
    changes: VecDeque<RelayChange>,
    /// This node asks not to be chosen.
    avoid: bool,
}

/// Between this node's location and another one.
#[derive(Debug, Default)]
struct Pair {
    own: OwnTunnels,
    table: TunnelTable,
    /// The last row and what was passed on with it, while they are of interest to others.
    sent: Option<(TunnelRow, Vec<(Slot, TunnelRow)>)>,
    shown: Option<Shown>,
    /// When to send the row again, and how often.
    repeat: Option<(Instant, u8)>,
    /// Its entry in `RelayPairs::timers`.
    timer: Option<Instant>,
    /// Since when no tunnel is known to be good, and whether that was told.
    cut_off: Option<(Instant, bool)>,
}

/// The relays as people see them.
#[derive(Debug, Clone, PartialEq)]
struct Shown {
    relays: Relays,
    detour: bool,
    since: Instant,
    /// It has been an error for long enough.
    long: bool,
    why: Option<String>,
}

impl RelayPairs {
    pub(super) fn exceptions(&self) -> &BTreeMap<LocationName, Relays> {
        &self.exceptions
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// To be called after whatever changes a pair: there may be a thousand, and this is asked after every input.
    fn set_timer(&mut self, location: &LocationName) {
        let Some(pair) = self.pairs.get_mut(location) else { return };
        let repeat = pair.repeat.map(|(at, _)| at);
        let timers = [pair.table.poll_timeout(), pair.own.poll_timeout(), repeat];
        let next = timers.into_iter().flatten().min();
        if next == pair.timer {
            return;
        }
        if let Some(old) = std::mem::replace(&mut pair.timer, next) {
            self.timers.remove(&(old, location.clone()));
        }
        self.timers.extend(next.map(|at| (at, location.clone())));
    }

    pub(super) fn changes(&self) -> impl Iterator<Item = &RelayChange> {
        self.changes.iter()
    }

    /// Locations whose tunnels or rows have a timer that has passed.
    fn due(&self, now: Instant) -> Vec<LocationName> {
        self.timers.iter().take_while(|(at, _)| *at <= now).map(|(_, l)| l.clone()).collect()
    }

    fn remember(&mut self, change: RelayChange) {
        self.changes.push_back(change);
        while self.changes.len() > MAX_CHANGES {
            self.changes.pop_front();
        }
    }
}

impl Node {
    pub(super) fn relay_timers(&mut self, now: Now) {
        let due = self.relays.due(now.mono);
        if due.is_empty() {
            return;
        }
        self.review_relays(now, due.clone());
        let mut again = false;
        for location in due {
            let repeat = self.relays.pairs.get(&location).and_then(|p| p.repeat);
            if let Some((_, left)) = repeat.filter(|(at, _)| *at <= now.mono) {
                let next = (left > 1).then(|| (now.mono + REPEAT_EVERY, left - 1));
                self.send_tunnels(&location);
                self.repeat_tunnels(&location, next);
                again = true;
            }
        }
        if again {
            self.send_detours(true);
        }
    }

    /// With every round of hellos: rows and detours again, and what has become old.
    pub(super) fn relay_round(&mut self, now: Now) {
        if self.observer.is_none() {
            let told = self.relays.told.values().flat_map(|(_, detours)| detours.keys());
            let locations: BTreeSet<LocationName> =
                told.chain(self.relays.exceptions.keys()).cloned().collect();
            return self.review_relays(now, locations);
        }
        let avoid = self.facts.broken.is_some()
            || self.slot().is_some_and(|mine| self.drained_here(now).contains(&mine));
        let unsaid = self.outward_words.expire(now.mono);
        let all = std::mem::replace(&mut self.relays.avoid, avoid) != avoid || unsaid;
        let troubled = |(l, p): (&LocationName, &Pair)| {
            let some = p.table.is_trouble() || p.sent.is_some() || p.cut_off.is_some();
            (some || p.shown.as_ref().is_some_and(|s| s.detour)).then(|| l.clone())
        };
        let troubled: Vec<LocationName> = if all {
            self.other_locations()
        } else {
            self.relays.pairs.iter().filter_map(troubled).collect()
        };
        self.review_relays(now, troubled.clone());
        for location in troubled {
            if self.relays.pairs.get(&location).is_some_and(|p| p.sent.is_some()) {
                self.send_tunnels(&location);
            }
        }
        self.send_detours(true);
    }

    pub(super) fn slot(&self) -> Option<Slot> {
        self.mesh.node(&self.me).and_then(|n| n.slot)
    }

    pub(super) fn other_locations(&self) -> Vec<LocationName> {
        self.mesh.locations.keys().filter(|l| **l != self.location).cloned().collect()
    }

    /// Another mesh: what is known of locations that are gone is forgotten.
    pub(super) fn relays_of_mesh(&mut self, now: Now) {
        let mesh = self.mesh.clone();
        let candidate = self.observer.is_some();
        let relays = &mut self.relays;
        relays.pairs.retain(|l, _| candidate && mesh.locations.contains_key(l));
        let pairs = &relays.pairs;
        relays.timers.retain(|(_, l)| pairs.contains_key(l));
        relays.exceptions.retain(|l, _| mesh.locations.contains_key(l));
        relays.told.retain(|n, _| !candidate && mesh.nodes.contains_key(n));
        self.find_relays(now, self.other_locations());
        for location in mesh.locations.keys() {
            self.tell_groups_of_relays(now, location);
        }
    }

    /// Tells the groups in which this node votes who relays at another location. Detours are known towards this node's own location;
    /// towards others, of which it is a witness, the decision is.
    pub(super) fn tell_groups_of_relays(&mut self, now: Now, location: &LocationName) {
        // A plain member knows what its leader passes on.
        let shown = || self.decisions.shown(location).map(|d| d.leaders.clone());
        let leaders = self.decided_leaders(location).or_else(shown).unwrap_or_default();
        let pair = self.relays.pairs.get(location).and_then(|p| p.shown.as_ref());
        let detour = pair.filter(|s| s.detour).map(|s| &s.relays.far);
        for (of, group) in self.groups.iter_mut().filter(|(of, _)| *of != location) {
            let relays = detour.filter(|_| *of == self.location).unwrap_or(&leaders);
            group.handle_relays(now, location, &leaders, relays);
        }
    }

    /// Finds the relays of these locations again, and programs what changed.
    pub(super) fn review_relays(
        &mut self,
        now: Now,
        locations: impl IntoIterator<Item = LocationName>,
    ) {
        let changed = self.find_relays(now, locations);
        if !changed.is_empty() {
            self.reprogram_relays(&changed, false);
        }
    }

    /// Finds the relays of these locations again. Returns those for which this node's network changes.
    pub(super) fn find_relays(
        &mut self,
        now: Now,
        locations: impl IntoIterator<Item = LocationName>,
    ) -> BTreeSet<LocationName> {
        let mut changed = BTreeSet::new();
        let candidate = self.observer.is_some();
        for location in locations {
            if location == self.location || !self.mesh.locations.contains_key(&location) {
                continue;
            }
            let found = match candidate {
                true => self.find_relay_pair(now, &location),
                false => self.told_relays(now, &location),
            };
            let Some((relays, shown)) = found else { continue };
            let exception = Some(relays).filter(|r| *r != self.leaders_of_both(&location));
            if exception.as_ref() != self.relays.exceptions.get(&location) {
                match exception {
                    Some(relays) => {
                        self.relays.exceptions.insert(location.clone(), relays);
                    }
                    None => drop(self.relays.exceptions.remove(&location)),
                }
                changed.insert(location.clone());
            }
            self.show_relays(now, &location, shown);
            self.tell_groups_of_relays(now, &location);
            if candidate {
                self.send_new_tunnels(now, &location);
            }
        }
        if candidate && !changed.is_empty() {
            self.send_detours(false);
        }
        changed
    }

    fn known_leaders(&self, location: &LocationName) -> Vec<Slot> {
        self.effective_leaders(location)
            .unwrap_or_else(|| self.mesh.ranking(location).into_iter().take(1).collect())
    }

    fn leaders_of_both(&self, location: &LocationName) -> Relays {
        Relays { near: self.known_leaders(&self.location), far: self.known_leaders(location) }
    }

    /// On a candidate. Returns the relays for this node, and as people see them.
    fn find_relay_pair(&mut self, now: Now, location: &LocationName) -> Option<(Relays, Shown)> {
        let mine = self.slot()?;
        let observer = self.observer.as_ref()?;
        let (verdicts, silent) = (observer.tunnels(location), observer.is_silent(now, location));
        let unfit = self.overridden.transit_with(location).is_some()
            || self.outward_words.against(location).is_some();
        let avoid = self.relays.avoid || unfit;
        let pair = self.relays.pairs.entry(location.clone()).or_default();
        pair.own.update(now.mono, verdicts.iter().map(|(slot, verdict)| (*slot, verdict)), silent);
        pair.table.expire(now.mono);
        let mut row = pair.own.row().avoiding(avoid);
        if unfit && pair.table.has_good_way_without(mine) {
            row = verdicts.iter().fold(row, |row, (slot, _)| row.with(*slot, TunnelState::Bad));
        }
        pair.table.set_own(mine, row);
        if let Some(row) = pair.table.row(Who::Near(mine))
            && let Some(group) = self.groups.get_mut(&self.location)
        {
            group.handle_tunnel_row(now, location, mine, row);
        }
        self.relays.set_timer(location);
        let leaders = self.leaders_of_both(location);
        let table = &self.relays.pairs[location].table;
        let several = leaders.near.len() > 1 || leaders.far.len() > 1;
        let of_leaders = several.then(|| leaders_that_reach(table, &leaders)).flatten();
        let (pair, state) = match of_leaders {
            Some(relays) => (relays, TunnelState::Good),
            None => {
                let (i, j, state) =
                    self.choose_pair(location, table, &leaders, |i, j| table.state(i, j))?;
                (Relays { near: vec![i], far: vec![j] }, state)
            }
        };
        let detour = pair.near.iter().any(|s| !leaders.near.contains(s))
            || pair.far.iter().any(|s| !leaders.far.contains(s));
        let why = detour.then(|| self.why_detour(location, &leaders)).flatten();
        self.note_cut_off(now, location, state == TunnelState::Bad);
        let table = &self.relays.pairs[location].table;
        // Transit comes here from nodes that do not know better. It leaves by a tunnel that is good from here.
        let mut far_here: Vec<Slot> = pair
            .far
            .iter()
            .copied()
            .filter(|j| table.state(mine, *j) != TunnelState::Bad)
            .collect();
        if far_here.is_empty() {
            let far = self.order_there(location, table, &leaders);
            let good = far.iter().find(|j| table.state(mine, **j) == TunnelState::Good);
            far_here = good.map_or_else(|| pair.far.clone(), |j| vec![*j]);
        }
        let relays = Relays { near: pair.near.clone(), far: far_here };
        Some((relays, Shown { relays: pair, detour, since: now.mono, long: false, why }))
    }

    /// Applies the rule: returns the relay here, the one there, and the state of their tunnel. `state` may differ from the table's.
    fn choose_pair(
        &self,
        location: &LocationName,
        table: &TunnelTable,
        leaders: &Relays,
        state: impl Fn(Slot, Slot) -> TunnelState,
    ) -> Option<(Slot, Slot, TunnelState)> {
        let near = order(&self.mesh, &self.location, &leaders.near, |s| table.avoids(Who::Near(s)));
        let far = self.order_there(location, table, leaders);
        let here = End { leaders: &leaders.near, order: &near };
        let there = End { leaders: &leaders.far, order: &far };
        let doubted = |i, j| table.is_accused(Who::Near(i)) || table.is_accused(Who::Far(j));
        // Of a standby that is not there nobody knows anything: it may be dead.
        let state = |i, j| match state(i, j) {
            TunnelState::Unknown if !leaders.near.contains(&i) && !self.is_here(i) => {
                TunnelState::Bad
            }
            known => known,
        };
        if self.location < *location {
            let Chosen { low, high, state } = choose(here, there, state, doubted)?;
            Some((low, high, state))
        } else {
            let (state, doubted) = (|j, i| state(i, j), |j, i| doubted(i, j));
            let Chosen { low, high, state } = choose(there, here, state, doubted)?;
            Some((high, low, state))
        }
    }

    /// Returns whether a candidate of this location is this node, or connected with it.
    fn is_here(&self, slot: Slot) -> bool {
        let node = self.mesh.candidate(&self.location, slot);
        node.is_some_and(|n| n.name == self.me || self.peers.is_connected(&n.name))
    }

    fn order_there(
        &self,
        location: &LocationName,
        table: &TunnelTable,
        leaders: &Relays,
    ) -> Vec<Slot> {
        order(&self.mesh, location, &leaders.far, |s| table.avoids(Who::Far(s)))
    }

    /// On a member. Returns what the candidate that it believes says.
    fn told_relays(&mut self, now: Now, location: &LocationName) -> Option<(Relays, Shown)> {
        let leaders = self.leaders_of_both(location);
        let fresh = |name: &NodeName| {
            let (at, detours) = self.relays.told.get(name)?;
            let heard = now.mono.since(*at) < HELLO_STALE && self.peers.is_connected(name);
            heard.then_some(detours)
        };
        let order = order(&self.mesh, &self.location, &leaders.near, |_| false);
        let candidates = order.iter().filter_map(|s| self.mesh.candidate(&self.location, *s));
        let believed = candidates.filter_map(|n| fresh(&n.name)).next();
        let detour = believed.and_then(|detours| detours.get(location));
        let exist = |d: &&Detour| {
            self.mesh.candidate(&self.location, d.near).is_some()
                && self.mesh.candidate(location, d.far).is_some()
        };
        let relays = match detour.filter(exist) {
            Some(d) => Relays { near: vec![d.near], far: vec![d.far] },
            None => leaders.clone(),
        };
        let detour = relays != leaders;
        let shown =
            Shown { relays: relays.clone(), detour, since: now.mono, long: false, why: None };
        Some((relays, shown))
    }
}

/// Returns all candidates of a location: its leaders first, then by rank, those to be avoided last.
fn order(
    mesh: &Mesh,
    location: &LocationName,
    leaders: &[Slot],
    avoid: impl Fn(Slot) -> bool,
) -> Vec<Slot> {
    let ranking = mesh.ranking(location);
    let others = ranking.iter().filter(|s| !leaders.contains(s));
    let mut order: Vec<Slot> = leaders.iter().chain(others).copied().collect();
    order.sort_by_key(|s| avoid(*s));
    order
}

/// With several leaders: those of each location that have a tunnel to a leader of the other that is not bad. `None` if there are none.
fn leaders_that_reach(table: &TunnelTable, leaders: &Relays) -> Option<Relays> {
    let passes = |i: Slot, j: Slot| table.state(i, j) != TunnelState::Bad;
    let near = leaders.near.iter().filter(|i| leaders.far.iter().any(|j| passes(**i, *j)));
    let far = leaders.far.iter().filter(|j| leaders.near.iter().any(|i| passes(*i, **j)));
    let relays = Relays { near: near.copied().collect(), far: far.copied().collect() };
    (!relays.near.is_empty()).then_some(relays)
}
