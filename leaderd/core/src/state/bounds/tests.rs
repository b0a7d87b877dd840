use std::net::IpAddr;
use std::time::Duration;

use super::*;
use crate::admin::MAX_USER;
use crate::fault::{Fault, MoveReason};
use crate::ids::{Epoch, Slot};
use crate::state::{Applied, Command, EventKind, EventTimes};
use crate::time::WallTime;
use crate::verdict::{Direction, ProbeClass, Verdict};

const LONGEST: u64 = u64::MAX;

fn long(n: usize) -> NodeName {
    format!("{n:0>63}").parse().unwrap()
}

/// Every number as long as it can be.
fn largest_row(n: usize) -> EvidenceRow {
    EvidenceRow {
        class: ProbeClass::Service,
        target: Some(long(n)),
        address: Some(IpAddr::from([0xffff; 8])),
        port: Some(u16::MAX),
        sent: u32::MAX,
        lost: u32::MAX,
        time_exceeded: u32::MAX,
    }
}

fn largest_report(slot: u8, rows: usize) -> SlotReport {
    SlotReport {
        slot: Slot(slot),
        verdict: Verdict::Degraded { cause: Fault::Loss, direction: Some(Direction::Return) },
        first_loss: Some(WallTime(LONGEST)),
        suspected: Some(WallTime(LONGEST)),
        since: WallTime(LONGEST),
        rtt: Some(Duration::MAX),
        loss: 1.0,
        path_mtu: Some(u16::MAX),
        services: (255, 255),
        evidence: (0..rows).map(largest_row).collect(),
    }
}

fn largest(observers: usize, slots: u8, rows: usize, why: usize) -> Event {
    let at = Some(WallTime(LONGEST));
    let reports: Vec<SlotReport> = (0..slots).map(|s| largest_report(s, rows)).collect();
    Event {
        seq: LONGEST,
        location: "l".repeat(63).parse().unwrap(),
        kind: EventKind::Notice,
        epoch: Epoch(LONGEST),
        cause: Some(MoveReason::Reconfigured),
        direction: Some(Direction::Return),
        leaders_before: (0..why).map(long).collect(),
        leaders_after: (0..why).map(long).collect(),
        summary: "…".repeat(why * 100),
        times: EventTimes {
            first_loss: at,
            suspected: at,
            condemned: at,
            committed: at,
            programmed: at,
            verified: at,
        },
        blackout: Some(Duration::MAX),
        author: Some(Author {
            node: long(1),
            user: Some("…".repeat(MAX_USER)),
            through: Some(long(2)),
        }),
        blocked_by: (0..why).map(|n| (long(n), vec!["…".repeat(why * 10); why])).collect(),
        evidence: (0..observers).map(|n| (long(n), reports.clone())).collect(),
    }
}

fn encoded<T: serde::Serialize>(what: &T) -> usize {
    postcard::to_stdvec(what).unwrap().len()
}

#[test]
fn an_events_size_is_never_less_than_its_bytes() {
    for (observers, slots, rows, why) in [
        (0, 0, 0, 0),
        (1, 1, 1, 1),
        (8, 15, 16, 15),
        (3, 2, 128, 3),
        (0, 0, 0, 40),
        (40, 15, 40, 0),
    ] {
        let event = largest(observers, slots, rows, why);
        let (size, bytes) = (event.size(), encoded(&event));
        assert!(bytes <= size, "{size} for {bytes} bytes");
        assert!(size <= bytes * 2 + 400, "{size} for {bytes} bytes is a waste");
    }
}

#[test]
fn an_event_of_any_size_is_cut_to_its_bounds_and_says_so() {
    for (observers, slots, rows, why) in
        [(60, 15, 300, 0), (8, 15, 16, 15), (1, 1, 17, 0), (0, 0, 0, 60), (300, 0, 0, 16)]
    {
        let event = largest(observers, slots, rows, why);
        assert!(!event.is_within_bounds());
        let cut = event.clone().bounded();
        assert!(cut.is_within_bounds(), "{} bytes of {}", cut.size(), event.size());
        assert!(encoded(&cut) <= MAX_EVENT);
        assert_eq!(cut.summary.ends_with(CUT), observers > 0, "{}", cut.summary);
        assert_eq!(cut.clone().bounded(), cut, "cut once");
    }
    let fits = largest(1, 3, 16, 2);
    assert!(fits.is_within_bounds());
    assert_eq!(fits.clone().bounded(), fits);
    // The counts of the last observers go first.
    let cut = largest(8, 3, 16, 0).bounded();
    let kept: Vec<usize> = cut.evidence.values().map(|s| s[0].evidence.len()).collect();
    assert!(kept.first() == Some(&16) && kept.last() == Some(&0), "{kept:?}");
}

fn state() -> LocationState {
    LocationState::new("l".repeat(63).parse().unwrap())
}

/// As many are asked for by somebody as there are places for.
fn by(n: usize, mut event: Event) -> Event {
    event.author = event.author.filter(|_| n.is_multiple_of(1 + MAX_EVENTS / MAX_ASKED));
    event
}

#[test]
fn the_largest_state_fits_a_frame_and_keeps_its_newest_events_whole() {
    let mut state = state();
    for n in 0..2 * (MAX_EVENTS + MAX_ASKED) {
        let event = by(n, largest(8, 15, n % 20, n % 4));
        state.apply(&Command::Record { event: Box::new(event) });
        assert!(state.is_within_bounds(), "after {n} events");
    }
    for n in 0..2 * MAX_DRAINED {
        state.apply(&Command::Drain { node: long(n) });
    }
    assert!(state.is_within_bounds());
    let snapshot = encoded(&state);
    assert!(snapshot <= MAX_STATE + MAX_DRAINED * 70 + 200, "{snapshot} bytes");
    let location = state.location.clone();
    let frame = crate::wire::Frame::Raft { location, message: vec![0; snapshot + 4096] };
    assert!(frame.encode().len() * 2 < crate::wire::MAX_FRAME);
    assert_eq!(state.events.len(), MAX_EVENTS + MAX_ASKED, "old ones are told in short");
    assert!(!state.events.back().unwrap().evidence.is_empty());
    assert!(state.events.front().unwrap().evidence.is_empty());
}

#[test]
fn what_is_left_of_events_fits_as_many_times_as_are_kept() {
    let mut state = state();
    let names = (0..MAX_SLOTS).map(long).collect::<Vec<_>>();
    let summary = char::MAX.to_string().repeat(MAX_SUMMARY);
    for n in 0..MAX_EVENTS + MAX_ASKED {
        let (leaders_before, leaders_after) = (names.clone(), names.clone());
        let summary = summary.clone();
        let event = Event { leaders_before, leaders_after, summary, ..largest(8, 15, 16, n % 16) };
        let event = Box::new(by(n, event));
        assert!(matches!(state.apply(&Command::Record { event }), Applied::Recorded(_)));
        assert!(state.is_within_bounds(), "after {n} events");
    }
    let first = state.events.front().unwrap();
    assert!(first.blocked_by.is_empty() && first.leaders_before == names);
    assert_eq!(state.events.len(), MAX_EVENTS + MAX_ASKED);
}
