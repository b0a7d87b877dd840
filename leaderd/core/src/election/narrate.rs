//! Decisions and events in words.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use super::situation::Situation;
use super::votes::Opinion;
use crate::fault::{Fault, MoveReason};
use crate::ids::{Epoch, LocationName, NodeName, Slot};
use crate::mesh::Mesh;
use crate::state::{Decision, Event, EventKind, EventTimes, LocationState, MAX_EVENT_OBSERVERS};
use crate::time::WallTime;
use crate::verdict::{Direction, EvidenceRow, SlotReport};

/// Locations that are named with their observers, and those that are named at all.
const MAX_TOLD: usize = 3;
const MAX_NAMED: usize = 8;

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
    let rows = situation.observers().take(MAX_EVENT_OBSERVERS).map(|o| {
        let slots = o.slots.iter().filter(|s| about.contains(&s.slot)).cloned().collect();
        (o.observer.clone(), slots)
    });
    rows.collect()
}

/// The decision that moves leadership to `leaders`, and its event.
pub(crate) fn decision(
    mesh: &Mesh,
    state: &LocationState,
    situation: &Situation,
    epoch: Epoch,
    leaders: Vec<Slot>,
    (cause, direction): (MoveReason, Option<Direction>),
    now: WallTime,
) -> (Decision, Event) {
    let before = names(mesh, state, &situation.leaders);
    let after = names(mesh, state, &leaders);
    let fallen: Vec<Slot> =
        situation.leaders.iter().copied().filter(|s| !leaders.contains(s)).collect();
    let kind = if cause.is_failover() { EventKind::Failover } else { EventKind::Move };
    let mut times = EventTimes { condemned: Some(now), ..Default::default() };
    if kind == EventKind::Failover {
        let reports = || {
            let observers = situation.ballots.values().flat_map(|b| &b.observers);
            let slots = observers.flat_map(|o| &o.slots);
            slots.filter(|s| fallen.contains(&s.slot) && s.verdict.is_degraded())
        };
        times.first_loss = reports().filter_map(|s| s.first_loss).min();
        times.suspected = reports().filter_map(|s| s.suspected).min();
    }
    let seen = fallen.first().map(|s| who_finds_fault(situation, *s)).unwrap_or_default();
    let what =
        fallen.first().and_then(|s| what_fails(situation, *s, cause, mesh.inner.v6.is_some()));
    // Of several leaders only the outgoing ones are named.
    let gone = names(mesh, state, &fallen);
    let old = if gone.is_empty() || cause == MoveReason::Promoted { &before } else { &gone };
    let mut summary = summary(cause, old, &after, &seen, what.as_deref());
    summary.extend(unchanged(mesh, &state.location, &after));
    let mut about = situation.leaders.clone();
    about.extend(leaders.iter().filter(|s| !situation.leaders.contains(s)));
    let decision = Decision { location: state.location.clone(), epoch, leaders, cause, at: now };
    let event = Event {
        cause: Some(cause),
        direction,
        leaders_before: before,
        leaders_after: after,
        summary,
        times,
        blocked_by: passed_over(situation, &about),
        evidence: evidence(situation, &about),
        ..Event::new(state.location.clone(), kind, epoch)
    };
    // An event that is too large cannot be replicated.
    (decision, event.bounded())
}

/// The addition for traffic that is only observed, so that the decision changes nothing for it.
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

/// Why each candidate but these was not chosen.
fn passed_over(situation: &Situation, but: &[Slot]) -> BTreeMap<NodeName, Vec<String>> {
    let others = situation.candidates.iter().filter(|(s, _)| !but.contains(s));
    let why = others.map(|(slot, facts)| {
        let mut why = situation.blocked_by(*slot);
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
fn what_fails(
    situation: &Situation,
    slot: Slot,
    cause: MoveReason,
    dual_stack: bool,
) -> Option<String> {
    let reports = situation.observers().filter_map(|o| o.slot(slot));
    let rows = reports.filter(|r| r.verdict.is_degraded()).flat_map(|r| &r.evidence);
    let lost: Vec<&EvidenceRow> = rows.filter(|r| r.lost > 0).collect();
    let services = || lost.iter().filter(|r| r.class.is_service());
    let packets = || lost.iter().filter(|r| !r.class.is_service());
    // A stray packet is always lost; one target that misses them, or a good part of them all, is no stray.
    let strays = packets().all(|r| r.target.is_none() && r.lost.saturating_mul(4) <= r.sent);
    if services().next().is_some() && strays {
        let all = services().filter_map(|r| Some(SocketAddr::new(r.address?, r.port?)));
        let names: BTreeSet<String> = all.map(|a| a.to_string()).collect();
        let names: Vec<String> = names.into_iter().collect();
        return Some(format!("service {}", names.join(", ")));
    }
    if cause != Fault::Partial.into() || !dual_stack {
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

/// On how much evidence a candidate is found at fault: '1 of 2 locations: onprem, as onprem-0 sees it'.
fn who_finds_fault(situation: &Situation, slot: Slot) -> String {
    let mut of = 0;
    let mut accusers: Vec<(&LocationName, Vec<&str>)> = Vec::new();
    for (location, ballot) in &situation.ballots {
        let Some(vote) = ballot.straight(slot) else { continue };
        of += 1;
        if vote == Opinion::Yes {
            continue;
        }
        let faulty = ballot.opinions(slot).filter(|(_, word)| *word != Opinion::Yes);
        // Where no observer finds fault with it, it finds fault with its own tunnel.
        let own = situation.candidates.get(&slot).map_or("nobody", |c| c.name.as_str());
        let mut by: Vec<&str> = faulty
            .map(|(o, _)| if o.finds_fault(slot) { o.observer.as_str() } else { own })
            .collect();
        by.dedup();
        accusers.push((location, by));
    }
    let told: Vec<String> = match accusers.len() {
        ..=MAX_TOLD => accusers.iter().map(|(l, by)| format!("{l}, as {} it", see(by))).collect(),
        _ => accusers.iter().map(|(l, _)| l.to_string()).collect(),
    };
    let separator = if accusers.len() <= MAX_TOLD { "; " } else { ", " };
    let more = told.len().saturating_sub(MAX_NAMED);
    let named = told.into_iter().take(MAX_NAMED).collect::<Vec<_>>().join(separator);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{} of {of} locations: {named}{more}", accusers.len())
}

/// 'a sees', 'a and b see', 'a and 2 more see'.
fn see(names: &[&str]) -> String {
    match names {
        [] => "nobody sees".into(),
        [one] => format!("{one} sees"),
        [one, other] => format!("{one} and {other} see"),
        [one, others @ ..] => format!("{one} and {} more see", others.len()),
    }
}

fn summary(
    cause: MoveReason,
    before: &[NodeName],
    after: &[NodeName],
    seen: &str,
    what: Option<&str>,
) -> String {
    let (old, new) = (join(before), join(after));
    if cause == MoveReason::Initial && !before.is_empty() {
        return format!(
            "others know of a later decision, which this location's stores have lost: {new} leads, announced again"
        );
    }
    cause.summary(&old, &new, seen, what)
}

/// An event without a decision.
pub(crate) fn notice(
    mesh: &Mesh,
    state: &LocationState,
    situation: Option<&Situation>,
    kind: EventKind,
    cause: Option<MoveReason>,
    summary: String,
    now: WallTime,
) -> Event {
    let leaders = state.decision.as_ref().map(|d| d.leaders.clone()).unwrap_or_default();
    let slots = mesh.ranking(&state.location);
    let condemned = (kind == EventKind::FailStatic).then_some(now);
    let event = Event {
        cause,
        leaders_before: names(mesh, state, &leaders),
        leaders_after: names(mesh, state, &leaders),
        summary,
        times: EventTimes { condemned, committed: Some(now), ..Default::default() },
        blocked_by: situation.map(|s| passed_over(s, &leaders)).unwrap_or_default(),
        evidence: situation.map(|s| evidence(s, &slots)).unwrap_or_default(),
        ..Event::new(state.location.clone(), kind, state.epoch())
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
