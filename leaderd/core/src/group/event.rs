//! Decisions and events in words.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use super::decide::Situation;
use crate::ids::{Epoch, LocationName, NodeName, Slot};
use crate::mesh::Mesh;
use crate::state::{Decision, Event, EventKind, EventTimes, LocationState, MAX_WITNESSES};
use crate::time::WallTime;
use crate::verdict::{Cause, Direction, EvidenceRow, ProbeClass, SlotReport};

fn names(mesh: &Mesh, state: &LocationState, slots: &[Slot]) -> Vec<NodeName> {
    slots
        .iter()
        .filter_map(|&s| mesh.candidate(&state.location, s))
        .map(|n| n.name.clone())
        .collect()
}

fn join(names: &[NodeName]) -> String {
    if names.is_empty() {
        return "nobody".into();
    }
    names.iter().map(NodeName::as_str).collect::<Vec<_>>().join(", ")
}

fn evidence(situation: &Situation, about: &[Slot]) -> BTreeMap<NodeName, Vec<SlotReport>> {
    let rows = situation.observers.iter().take(MAX_WITNESSES).map(|o| {
        let slots = o.slots.iter().filter(|s| about.contains(&s.slot)).cloned().collect();
        (o.observer.clone(), slots)
    });
    rows.collect()
}

/// The decision that moves leadership to `leaders`, and its event.
pub(super) fn decision(
    mesh: &Mesh,
    state: &LocationState,
    situation: &Situation,
    epoch: Epoch,
    leaders: Vec<Slot>,
    (cause, direction): (Cause, Option<Direction>),
    now: WallTime,
) -> (Decision, Event) {
    let before = names(mesh, state, &situation.leaders);
    let after = names(mesh, state, &leaders);
    let fallen: Vec<Slot> =
        situation.leaders.iter().copied().filter(|s| !leaders.contains(s)).collect();
    let kind = if cause.is_fault() { EventKind::Failover } else { EventKind::Move };
    let mut times = EventTimes { condemned: Some(now), ..Default::default() };
    if kind == EventKind::Failover {
        let reports = || {
            situation
                .observers
                .iter()
                .flat_map(|o| &o.slots)
                .filter(|s| fallen.contains(&s.slot) && s.verdict.is_degraded())
        };
        times.first_loss = reports().filter_map(|s| s.first_loss).min();
        times.suspected = reports().filter_map(|s| s.suspected).min();
    }
    let accusers = fallen.first().map_or(0, |&s| {
        situation
            .observers
            .iter()
            .filter(|o| o.slot(s).is_some_and(|r| r.verdict.is_degraded()))
            .count()
    });
    let of = situation.observers.len();
    let what =
        fallen.first().and_then(|s| what_fails(situation, *s, cause, mesh.inner.v6.is_some()));
    // Of several leaders only those that go are to blame.
    let gone = names(mesh, state, &fallen);
    let old = if gone.is_empty() || cause == Cause::Promoted { &before } else { &gone };
    let mut summary = summary(cause, old, &after, (accusers, of), what);
    summary.extend(unchanged(mesh, &state.location, &after));
    let against = fallen.iter().copied().find(|s| situation.condemned(*s));
    let mut about = situation.leaders.clone();
    about.extend(leaders.iter().filter(|s| !situation.leaders.contains(s)));
    let decision = Decision { location: state.location.clone(), epoch, leaders, cause, at: now };
    let event = Event {
        seq: 0,
        location: state.location.clone(),
        kind,
        epoch,
        cause: Some(cause),
        direction,
        leaders_before: before,
        leaders_after: after,
        summary,
        times,
        blackout: None,
        blocked_by: passed_over(situation, &about, against),
        evidence: evidence(situation, &about),
        author: None,
    };
    // Whatever the observers sent: what does not fit cannot be replicated.
    (decision, event.bounded())
}

/// What to add where the decision changes nothing for some traffic, as it is only observed.
fn unchanged(mesh: &Mesh, location: &LocationName, after: &[NodeName]) -> Option<String> {
    let others = || mesh.locations.keys().filter(|l| *l != location);
    let observed: Vec<&str> =
        others().filter(|l| mesh.observed_between(location, l)).map(LocationName::as_str).collect();
    if observed.is_empty() {
        return None;
    }
    let of = if observed.len() == others().count() {
        String::new()
    } else {
        format!(" of {}", observed.join(", "))
    };
    Some(format!(
        "; steering is observe: nothing was changed; leadership would have moved the traffic{of} to {}",
        join(after)
    ))
}

/// Why each candidate that is not among `but` was not taken.
fn passed_over(
    situation: &Situation,
    but: &[Slot],
    against: Option<Slot>,
) -> BTreeMap<NodeName, Vec<String>> {
    let others = situation.candidates.iter().filter(|(s, _)| !but.contains(s));
    let against = against.filter(|s| situation.condemned(*s));
    let why = others.map(|(slot, facts)| {
        let mut why = situation.blocked_by(*slot, against);
        if why.is_empty() && facts.ejected {
            why.push("failed a short while ago".into());
        } else if why.is_empty() {
            why.push("later in the order of preference".into());
        }
        (facts.name.clone(), why)
    });
    why.collect()
}

/// What exactly fails through a candidate, where the evidence is narrower than the cause.
fn what_fails(situation: &Situation, slot: Slot, cause: Cause, dual_stack: bool) -> Option<String> {
    let reports = situation.observers.iter().filter_map(|o| o.slot(slot));
    let rows = reports.filter(|r| r.verdict.is_degraded()).flat_map(|r| &r.evidence);
    let lost: Vec<&EvidenceRow> = rows.filter(|r| r.lost > 0).collect();
    let services = || lost.iter().filter(|r| r.class == ProbeClass::Service);
    let packets = || lost.iter().filter(|r| r.class != ProbeClass::Service);
    // A stray packet is always lost; one target that misses them, or a good part of them all, is no stray.
    let strays = packets().all(|r| r.target.is_none() && r.lost.saturating_mul(4) <= r.sent);
    if services().next().is_some() && strays {
        let all = services().filter_map(|r| Some(SocketAddr::new(r.address?, r.port?)));
        let names: BTreeSet<String> = all.map(|a| a.to_string()).collect();
        let names: Vec<String> = names.into_iter().collect();
        return Some(format!("service {}", names.join(", ")));
    }
    if cause != Cause::Partial || !dual_stack {
        return None;
    }
    // Workloads have both families, and those of one alone are missed.
    let missed: BTreeSet<bool> = lost.iter().filter_map(|r| Some(r.address?.is_ipv6())).collect();
    match missed.into_iter().collect::<Vec<_>>()[..] {
        [v6] => {
            let family = if v6 { "IPv6" } else { "IPv4" };
            Some(format!("some of the nodes behind it over {family}"))
        }
        _ => None,
    }
}

fn summary(
    cause: Cause,
    before: &[NodeName],
    after: &[NodeName],
    (accusers, of): (usize, usize),
    what: Option<String>,
) -> String {
    let (old, new) = (join(before), join(after));
    let seen = format!("{accusers} of {of} observers say so");
    match cause {
        Cause::TunnelDown => format!(
            "{old} no longer answers through its tunnels: {seen}; {new} forwards and leads now"
        ),
        Cause::Forwarding => {
            format!("{old} answers but relays nothing: {seen}; {new} forwards and leads now")
        }
        Cause::NewFlow => format!("{old} drops new flows: {seen}; {new} forwards and leads now"),
        Cause::Mtu => {
            let to = what.map(|w| format!(" of {w}")).unwrap_or_default();
            format!("{old} drops large packets{to}: {seen}; {new} forwards and leads now")
        }
        Cause::Loop => format!(
            "packets through {old} go round in a loop: {seen}; {new} forwards and leads now"
        ),
        Cause::Partial => {
            let what = what.unwrap_or_else(|| "some of the nodes behind it".into());
            format!("{old} does not reach {what}: {seen}; {new} does and leads now")
        }
        Cause::Loss => {
            format!("{old} loses more packets than its standbys: {seen}; {new} leads now")
        }
        Cause::SelfReported => format!("{old} says that it cannot relay; {new} leads now"),
        Cause::DaemonDead => {
            format!("the daemon on {old} is silent; {new} leads now, traffic was not interrupted")
        }
        Cause::Unreachable => {
            format!("most nodes of the location do not reach {old}; {new} leads now")
        }
        Cause::Promoted => format!("an operator promoted {new}; {old} led before"),
        Cause::Drained => format!("{old} was drained; {new} leads now"),
        Cause::FailBack => format!("{new} forwards and is preferred to {old}: it leads now"),
        Cause::Initial if before.is_empty() => format!("first decision: {new} leads"),
        Cause::Initial => format!(
            "others know of a later decision, which this location's stores have lost: {new} leads, told again"
        ),
        Cause::Reconfigured => {
            format!("the mesh file no longer has a leader's slot; {new} leads now")
        }
    }
}

/// An event without a decision.
pub(super) fn notice(
    mesh: &Mesh,
    state: &LocationState,
    situation: Option<&Situation>,
    kind: EventKind,
    cause: Option<Cause>,
    summary: String,
    now: WallTime,
) -> Event {
    let leaders = state.decision.as_ref().map(|d| d.leaders.clone()).unwrap_or_default();
    let slots = mesh.ranking(&state.location);
    let condemned = (kind == EventKind::FailStatic).then_some(now);
    let event = Event {
        seq: 0,
        location: state.location.clone(),
        kind,
        epoch: state.epoch(),
        cause,
        direction: None,
        leaders_before: names(mesh, state, &leaders),
        leaders_after: names(mesh, state, &leaders),
        summary,
        times: EventTimes { condemned, committed: Some(now), ..Default::default() },
        blackout: None,
        blocked_by: situation
            .map(|s| passed_over(s, &leaders, leaders.first().copied()))
            .unwrap_or_default(),
        evidence: situation.map(|s| evidence(s, &slots)).unwrap_or_default(),
        author: None,
    };
    event.bounded()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decision_about_what_is_only_observed_says_what_it_would_have_done() {
        let said = |steering: [&str; 3]| {
            let mut text = "[mesh]\nname = \"m\"\ngeneration = 1\n".to_owned();
            for (i, location) in ["a", "b", "c"].into_iter().enumerate() {
                let steering = steering[i];
                let key = |n: usize| {
                    base64::Engine::encode(
                        &base64::engine::general_purpose::STANDARD,
                        [n as u8 + 1; 32],
                    )
                };
                text += &format!(
                    "[locations.{location}]\noverlay = \"direct\"\nsteering = \"{steering}\"\n[nodes.{location}-0]\nlocation = \"{location}\"\n\
                     index = {}\nslot = 0\nendpoint = \"203.0.113.{i}\"\naddress = \"10.0.{i}.1\"\nprefixes = [\"10.42.{i}.0/24\"]\n\
                     wireguard_key = \"{}\"\ncontrol_key = \"{}\"\n",
                    i + 1,
                    key(i),
                    key(i + 100)
                );
            }
            let mesh = crate::mesh::parse(&text).unwrap_or_else(|e| panic!("{e:?}"));
            let to = ["a-0".parse().unwrap()];
            unchanged(&mesh, &"a".parse().unwrap(), &to)
        };
        assert_eq!(said(["native", "native", "kilo"]), None);
        let all = "; steering is observe: nothing was changed; leadership would have moved the traffic to a-0";
        assert_eq!(said(["observe", "native", "native"]).as_deref(), Some(all));
        assert_eq!(said(["kilo", "observe", "observe"]).as_deref(), Some(all));
        let one = all.replace("traffic to", "traffic of c to");
        assert_eq!(said(["kilo", "kilo", "observe"]), Some(one));
    }
}
