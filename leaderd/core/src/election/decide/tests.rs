//! `testdata/decide.txt`: a situation a line, and after `=>` what is chosen.

mod meshes;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::super::situation::CandidateFacts;
use super::super::votes::{Ballot, ObserverView};
use super::*;
use crate::ids::LocationName;
use crate::relay_pair::{TunnelRow, TunnelState};
use crate::time::WallTime;
use crate::verdict::{SlotReport, Verdict};

const NAMES: &str = "abcd";

fn slot(letter: char) -> Slot {
    Slot(NAMES.find(letter).expect("a to d") as u8)
}

/// A candidate against which its own location knows nothing.
fn healthy(name: &str) -> CandidateFacts {
    CandidateFacts {
        name: name.parse().unwrap(),
        drained: false,
        broken: None,
        silent: Duration::ZERO,
        heard: true,
        unreachable: false,
        ejected: false,
    }
}

fn letters(slots: &[Slot]) -> String {
    slots.iter().map(|s| NAMES.as_bytes()[usize::from(s.0)] as char).collect()
}

fn verdict(letter: char) -> Verdict {
    match letter {
        'f' => Verdict::Forwarding,
        's' => Verdict::Suspected,
        '?' => Verdict::Unknown,
        'l' => Verdict::Degraded { cause: Fault::Loss, direction: None },
        'n' => Verdict::Degraded { cause: Fault::NewFlow, direction: None },
        't' => Verdict::Degraded { cause: Fault::TunnelDown, direction: None },
        other => panic!("no verdict {other}"),
    }
}

/// `d=nff,fff`: what each candidate of a location says; after the name `@1` its candidate 1 relays for a while, `~` it watches slowly,
/// `!` its vote turned too often.
fn ballot(word: &str) -> (LocationName, Ballot) {
    let (head, words) = word.split_once('=').unwrap();
    let relay = head.split_once('@').map_or(0, |(_, slot)| slot[..1].parse().unwrap());
    let view = |(place, word): (usize, &str)| {
        let letters = || word.chars().enumerate().map(|(i, letter)| (Slot(i as u8), letter));
        let report = |(slot, letter): (Slot, char)| {
            SlotReport::new(slot, verdict(letter.to_ascii_lowercase()), WallTime(0))
        };
        ObserverView {
            observer: format!("{}-{place}", &head[..1]).parse().unwrap(),
            place: Slot(place as u8),
            slots: letters().map(report).collect(),
            standing: letters().filter(|(_, l)| l.is_uppercase()).map(|(slot, _)| slot).collect(),
        }
    };
    let speak = words.split(',').enumerate().filter(|(_, word)| *word != "-");
    let ballot = Ballot {
        observers: speak.map(view).collect(),
        candidates: (0..words.split(',').count() as u8).map(Slot).collect(),
        leaders: vec![Slot(0)],
        relays: vec![Slot(relay)],
        fully: !head.contains('~'),
        discounted: head.contains('!'),
        ..Ballot::default()
    };
    (head[..1].parse().unwrap(), ballot)
}

fn parse(line: &str) -> Situation {
    let parts: Vec<&str> = line.split('|').collect();
    let leaders: Vec<Slot> = parts[0]
        .trim()
        .strip_prefix("leader ")
        .unwrap()
        .chars()
        .filter(|c| *c != '-')
        .map(slot)
        .collect();
    let mut candidates: BTreeMap<Slot, CandidateFacts> =
        (0..3).map(|i| (Slot(i as u8), healthy(&NAMES[i..=i]))).collect();
    let mut ballots: BTreeMap<LocationName, Ballot> =
        parts[2].split_whitespace().map(ballot).collect();
    for word in parts[1].split_whitespace() {
        let (who, what) = word.split_once('=').unwrap();
        if let Some((us, them)) = who.split_once('>') {
            // Its own word about its tunnel to the first candidate of a location.
            let state = match what {
                "good" => TunnelState::Good,
                "lossy" => TunnelState::Lossy,
                "bad" | "avoid" => TunnelState::Bad,
                other => panic!("no state {other}"),
            };
            let ballot = ballots.get_mut(&them.parse().unwrap()).unwrap();
            let row = TunnelRow::UNKNOWN.with(Slot(0), state).avoiding(what == "avoid");
            ballot.rows.insert(slot(us.chars().next().unwrap()), row);
            continue;
        }
        let facts = candidates.get_mut(&slot(who.chars().next().unwrap())).unwrap();
        match what {
            "drained" => facts.drained = true,
            "broken" => facts.broken = Some(Fault::SelfReported),
            "silent" => facts.silent = Duration::from_secs(6),
            "unheard" => facts.heard = false,
            "unreachable" => facts.unreachable = true,
            "ejected" => facts.ejected = true,
            other => panic!("no fact {other}"),
        }
    }
    let other: Vec<&str> = parts[3].split_whitespace().collect();
    Situation {
        location: "m".parse().unwrap(),
        ranking: vec![Slot(0), Slot(1), Slot(2)],
        candidates,
        ballots,
        decided: !leaders.is_empty(),
        leaders,
        last_cause: None,
        frozen: other.contains(&"frozen"),
        hold_down: Duration::from_secs(u64::from(other.contains(&"hold-down"))),
        up_for: Duration::from_secs(if other.contains(&"young") { 1 } else { 60 }),
        daemon_dead_after: Duration::from_secs(5),
        fail_back: other.contains(&"fail-back"),
        want: if other.contains(&"want=2") { 2 } else { 1 },
    }
}

#[test]
fn the_table_in_testdata_holds() {
    let text = include_str!("../../../testdata/decide.txt");
    let mut told = String::new();
    for line in text.lines() {
        let Some((situation, _)) = line.split_once("=>") else {
            writeln!(told, "{line}").unwrap();
            continue;
        };
        let choice = match parse(situation).decide() {
            Choice::Keep => "keep".to_owned(),
            Choice::Move { leaders, cause, wait, .. } => {
                let when = match wait {
                    Wait::No => "",
                    Wait::Soon => " soon",
                    Wait::Late => " late",
                };
                format!("{} ({cause}){when}", letters(&leaders))
            }
            Choice::FailStatic { cause } => format!("keep, nobody better ({cause})"),
            Choice::Blocked { cause } => format!("keep, blocked ({cause})"),
        };
        writeln!(told, "{}=> {choice}", situation).unwrap();
    }
    assert!(told == text, "the table now says:\n{told}");
}
