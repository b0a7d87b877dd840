//! `testdata/decide.txt`: a situation a line, and after `=>` what is chosen.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::super::situation::{CandidateFacts, ObserverView};
use super::*;
use crate::time::WallTime;
use crate::verdict::{SlotReport, Verdict};

const NAMES: &str = "abcd";

fn slot(letter: char) -> Slot {
    Slot(NAMES.find(letter).expect("a to d") as u8)
}

fn letters(slots: &[Slot]) -> String {
    slots.iter().map(|s| NAMES.as_bytes()[usize::from(s.0)] as char).collect()
}

fn verdict(letter: char) -> Verdict {
    match letter {
        'f' => Verdict::Forwarding,
        's' => Verdict::Suspected,
        '?' => Verdict::Unknown,
        'n' => Verdict::Degraded { cause: Fault::NewFlow, direction: None },
        't' => Verdict::Degraded { cause: Fault::TunnelDown, direction: None },
        other => panic!("no verdict {other}"),
    }
}

fn view(number: usize, word: &str) -> ObserverView {
    let slots = word
        .chars()
        .enumerate()
        .map(|(i, letter)| SlotReport::new(Slot(i as u8), verdict(letter), WallTime(0)));
    ObserverView { observer: format!("o-{number}").parse().unwrap(), slots: slots.collect() }
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
    let mut candidates: BTreeMap<Slot, CandidateFacts> = (0..3)
        .map(|i| {
            let facts = CandidateFacts {
                name: NAMES[i..=i].parse().unwrap(),
                drained: false,
                broken: None,
                silent: Duration::ZERO,
                heard: true,
                unreachable: false,
                ejected: false,
            };
            (Slot(i as u8), facts)
        })
        .collect();
    for word in parts[1].split_whitespace() {
        let (who, what) = word.split_once('=').unwrap();
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
        ranking: vec![Slot(0), Slot(1), Slot(2)],
        candidates,
        observers: parts[2].split_whitespace().enumerate().map(|(i, w)| view(i, w)).collect(),
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
            Choice::Move { leaders, cause, .. } => format!("{} ({cause})", letters(&leaders)),
            Choice::FailStatic { cause } => format!("keep, nobody better ({cause})"),
            Choice::Blocked { cause } => format!("keep, blocked ({cause})"),
        };
        writeln!(told, "{}=> {choice}", situation).unwrap();
    }
    assert!(told == text, "the table now says:\n{told}");
}
