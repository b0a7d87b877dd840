//! `testdata/state.txt` is a story: each line is a command and, after `=>`, what it did and what the state is then.

use std::fmt::Write as _;

use super::super::{FreezeEnd, MAX_ASKED, MAX_EVENTS};
use super::*;
use crate::admin::Author;
use crate::fault::{Fault, MoveReason};
use crate::ids::Slot;

fn name(s: &str) -> NodeName {
    s.parse().unwrap()
}

fn decide(expected: u64, epoch: u64, slot: u8, at: u64, cause: MoveReason) -> Command {
    let location: LocationName = "cloud".parse().unwrap();
    let at = WallTime(at * 1_000_000);
    let kind = if cause.is_failover() { EventKind::Failover } else { EventKind::Move };
    Command::Decide {
        expected_epoch: Epoch(expected),
        decision: Decision {
            location: location.clone(),
            epoch: Epoch(epoch),
            leaders: vec![Slot(slot)],
            cause,
            at,
        },
        event: Box::new(Event {
            cause: Some(cause),
            leaders_before: vec![name("other")],
            leaders_after: vec![name(&format!("cloud-{slot}"))],
            times: EventTimes { condemned: Some(at), ..Default::default() },
            ..Event::new(location, kind, Epoch(epoch))
        }),
    }
}

fn parse(line: &str) -> Command {
    let words: Vec<&str> = line.split_whitespace().collect();
    let n = |i: usize| words[i].parse::<u64>().unwrap();
    match words[0] {
        "failover" => decide(n(1), n(2), n(3) as u8, n(4), Fault::NewFlow.into()),
        "move" => decide(n(1), n(2), n(3) as u8, n(4), MoveReason::Promoted),
        "drain" => Command::Drain { node: name(words[1]) },
        "undrain" => Command::Undrain { node: name(words[1]) },
        "freeze" => Command::Freeze {
            until: words.get(1).map(|_| FreezeEnd {
                until: WallTime(n(1) * 1_000_000),
                span: Duration::from_secs(n(1)),
            }),
        },
        "unfreeze" => Command::Unfreeze,
        "programmed" => Command::Complete {
            epoch: Epoch(n(1)),
            times: EventTimes {
                programmed: Some(WallTime(n(2) * 1_000_000)),
                ..Default::default()
            },
            blackout: None,
        },
        other => panic!("unknown command {other}"),
    }
}

#[test]
fn the_story_in_testdata_unfolds_as_written() {
    let text = include_str!("../../../testdata/state.txt");
    let policy = Policy::default();
    let mut state = LocationState::new("cloud".parse().unwrap());
    let mut told = String::new();
    for line in text.lines() {
        let Some((command, _)) = line.split_once("=>") else {
            writeln!(told, "{line}").unwrap();
            if line.starts_with("# a new location") {
                state = LocationState::new("cloud".parse().unwrap());
            }
            continue;
        };
        let did = match state.apply(&parse(command)) {
            Applied::Decided(_) => "decided",
            Applied::Recorded(_) => "recorded",
            Applied::Completed(_) => "completed",
            Applied::Changed => "changed",
            Applied::Nothing => "nothing",
        };
        let leader = state.decision.as_ref().map_or("-".to_owned(), |d| d.leaders[0].to_string());
        let hold = state.hold_down(&policy).map_or(0, |(_, h)| h.as_secs());
        writeln!(
            told,
            "{:<22}=> {did}: epoch={} leader={leader} drained={:?} frozen={} events={} hold={hold}s",
            command.trim_end(),
            state.epoch(),
            state.drained,
            state.frozen.is_some(),
            state.events.len()
        )
        .unwrap();
    }
    assert!(told == text, "the state now tells:\n{told}");
}

#[test]
fn events_are_bounded_and_keep_counting() {
    let mut state = LocationState::new("cloud".parse().unwrap());
    for i in 0..MAX_EVENTS as u64 + 10 {
        state.apply(&decide(i, i + 1, 0, i, MoveReason::Promoted));
    }
    assert_eq!(state.events.len(), MAX_EVENTS);
    assert_eq!(state.last_seq, MAX_EVENTS as u64 + 10);
    assert_eq!(state.events.back().unwrap().seq, state.last_seq);
}

#[test]
fn a_flood_of_commands_washes_out_neither_failovers_nor_the_account_of_others() {
    let mut state = LocationState::new("cloud".parse().unwrap());
    let asked = |state: &mut LocationState, node: &str| {
        let Command::Decide { mut event, .. } = decide(0, 1, 0, 1, MoveReason::Promoted) else {
            unreachable!()
        };
        (event.kind, event.author) = (EventKind::Operator, Some(Author::new(name(node), None)));
        state.apply(&Command::Record { event });
    };
    state.apply(&decide(0, 1, 0, 1, Fault::NewFlow.into()));
    for _ in 0..MAX_ASKED {
        asked(&mut state, "cloud-0");
    }
    asked(&mut state, "home-0");
    for _ in 0..1000 {
        asked(&mut state, "cloud-0");
    }
    let of = |node: &str| {
        let by = |e: &&Event| e.author.as_ref().is_some_and(|a| a.node == name(node));
        state.events.iter().filter(by).count()
    };
    assert_eq!((of("home-0"), of("cloud-0")), (1, MAX_ASKED - 1));
    assert_eq!(state.events[0].kind, EventKind::Failover);
    assert_eq!(state.events.back().unwrap().seq, state.last_seq, "the newest is kept");
}

#[test]
fn state_survives_postcard() {
    let mut state = LocationState::new("cloud".parse().unwrap());
    state.apply(&decide(0, 1, 2, 5, MoveReason::Initial));
    state.apply(&Command::Freeze { until: None });
    let bytes = postcard::to_stdvec(&state).unwrap();
    assert_eq!(postcard::from_bytes::<LocationState>(&bytes).unwrap(), state);
}
