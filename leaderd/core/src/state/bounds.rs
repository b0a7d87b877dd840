//! How large an event and a location's whole state may be: what replaces a voter's store fits one frame, always.
//!
//! Sizes are counted by rules of our own, which give at least what postcard writes. They are part of the replicated state: every
//! voter must cut the same, so they change only together with the commands.

use crate::admin::Author;
use crate::ids::NodeName;
use crate::text::shortened;
use crate::verdict::{EvidenceRow, SlotReport};
use crate::wire::limits::{MAX_SLOTS, MAX_TEXT, MAX_TEXTS};

use super::{Event, LocationState, MAX_ASKED, MAX_EVENTS, surplus};

/// Observers whose evidence an event keeps: enough to explain it, few enough to replicate.
pub const MAX_EVENT_OBSERVERS: usize = 8;
/// Rows of evidence about one candidate that an event keeps: the classes, and the first of the targets.
pub const MAX_EVENT_ROWS: usize = 16;
/// Characters of an event's summary.
pub const MAX_SUMMARY: usize = 300;
/// Size of one event.
pub const MAX_EVENT: usize = 32 << 10;
/// Size of all events of a location together. With it a snapshot has room to spare in a frame of 4 MiB.
pub const MAX_STATE: usize = 5 << 18;
/// Longest command in the log, encoded: a decision with its event, and room.
pub const MAX_COMMAND: usize = 64 << 10;
/// Nodes that are drained at once. A location has fewer candidates, but a mesh file may change while some are drained.
pub const MAX_DRAINED: usize = 256;

/// A list's length, and the numbers, times and flags of an event, a candidate's report and a row, at their longest.
const LENGTH: usize = 5;
const EVENT: usize = 160;
const REPORT: usize = 72;
const ROW: usize = 48;

fn name(name: &NodeName) -> usize {
    LENGTH + name.as_str().len()
}

fn names(names: &[NodeName]) -> usize {
    LENGTH + names.iter().map(name).sum::<usize>()
}

fn row(row: &EvidenceRow) -> usize {
    ROW + row.target.as_ref().map_or(0, name)
}

fn report(report: &SlotReport) -> usize {
    REPORT + LENGTH + report.evidence.iter().map(row).sum::<usize>()
}

impl Event {
    /// At least the bytes that it has in the log, in a snapshot and in a frame.
    pub fn size(&self) -> usize {
        let why = |(who, why): (&NodeName, &Vec<String>)| {
            name(who) + LENGTH + why.iter().map(|t| LENGTH + t.len()).sum::<usize>()
        };
        let seen = |(who, slots): (&NodeName, &Vec<SlotReport>)| {
            name(who) + LENGTH + slots.iter().map(report).sum::<usize>()
        };
        let author = |a: &Author| {
            let user = a.user.as_ref().map_or(0, String::len);
            name(&a.node) + LENGTH + user + a.through.as_ref().map_or(0, name)
        };
        EVENT
            + self.author.as_ref().map_or(0, author)
            + LENGTH
            + self.location.as_str().len()
            + names(&self.leaders_before)
            + names(&self.leaders_after)
            + LENGTH
            + self.summary.len()
            + LENGTH
            + self.blocked_by.iter().map(why).sum::<usize>()
            + LENGTH
            + self.evidence.iter().map(seen).sum::<usize>()
    }

    /// True for what [`Self::bounded`] leaves as it is.
    pub fn is_within_bounds(&self) -> bool {
        let rows = |s: &SlotReport| s.evidence.len() <= MAX_EVENT_ROWS;
        let slots = |r: &Vec<SlotReport>| r.len() <= MAX_SLOTS && r.iter().all(rows);
        let why = |w: &Vec<String>| w.len() <= MAX_TEXTS && w.iter().all(|t| t.len() <= MAX_TEXT);
        self.author.as_ref().is_none_or(Author::is_bounded)
            && self.summary.chars().count() <= MAX_SUMMARY
            && self.leaders_before.len() <= MAX_SLOTS
            && self.leaders_after.len() <= MAX_SLOTS
            && self.blocked_by.len() <= MAX_SLOTS
            && self.blocked_by.values().all(why)
            && self.evidence.len() <= MAX_EVENT_OBSERVERS
            && self.evidence.values().all(slots)
            && self.size() <= MAX_EVENT
    }

    /// Cut to its bounds: the evidence first, of the last observers first. What is left says who leads and why.
    pub fn bounded(mut self) -> Self {
        if self.is_within_bounds() {
            return self;
        }
        let before = self.rows();
        self.author = self.author.map(Author::bounded);
        self.summary = shortened(&self.summary, MAX_SUMMARY);
        while self.evidence.len() > MAX_EVENT_OBSERVERS {
            self.evidence.pop_last();
        }
        for slots in self.evidence.values_mut() {
            slots.truncate(MAX_SLOTS);
            slots.iter_mut().for_each(|s| s.evidence.truncate(MAX_EVENT_ROWS));
        }
        self.leaders_before.truncate(MAX_SLOTS);
        self.leaders_after.truncate(MAX_SLOTS);
        while self.blocked_by.len() > MAX_SLOTS {
            self.blocked_by.pop_last();
        }
        for why in self.blocked_by.values_mut() {
            why.truncate(MAX_TEXTS);
            why.iter_mut().for_each(|t| *t = shortened(t, MAX_TEXT / 4));
        }
        // An observer's counts go before its verdicts, and these before it.
        let room = MAX_EVENT - CUT.len() - '…'.len_utf8();
        for who in self.evidence.keys().rev().cloned().collect::<Vec<_>>() {
            if self.size() > room
                && let Some(slots) = self.evidence.get_mut(&who)
            {
                slots.iter_mut().for_each(|s| s.evidence.clear());
            }
        }
        while self.size() > room && self.evidence.pop_last().is_some() {}
        while self.size() > room && self.blocked_by.pop_last().is_some() {}
        if self.rows() < before {
            self.summary = shortened(&self.summary, MAX_SUMMARY - CUT.chars().count()) + CUT;
        }
        self
    }

    fn rows(&self) -> usize {
        let rows = |s: &SlotReport| 1 + s.evidence.len();
        self.evidence.values().map(|slots| 1 + slots.iter().map(rows).sum::<usize>()).sum()
    }
}

/// What the summary says of an event whose evidence was cut.
const CUT: &str = "; not all of the evidence is kept";

impl LocationState {
    /// Size of all its events.
    fn size(&self) -> usize {
        self.events.iter().map(Event::size).sum()
    }

    /// After an event was added: the evidence of the oldest goes first, then why they passed others over. What is left of an event
    /// is a sentence and some names, and has room [`MAX_EVENTS`] times.
    pub(super) fn shed(&mut self) {
        while let Some(seq) = surplus(self.events.iter()) {
            self.events.retain(|e| e.seq != seq);
        }
        let mut size = self.size();
        let sheds: [fn(&mut Event); 2] = [|e| e.evidence.clear(), |e| e.blocked_by.clear()];
        for shed in sheds {
            for event in &mut self.events {
                if size <= MAX_STATE {
                    return;
                }
                let before = event.size();
                shed(event);
                size -= before - event.size();
            }
        }
    }

    /// True for a state that voters of ours can have come to. One that came in a snapshot is looked at before it is taken.
    pub fn is_within_bounds(&self) -> bool {
        self.events.len() <= MAX_EVENTS + MAX_ASKED
            && self.drained.len() <= MAX_DRAINED
            && self.events.iter().all(Event::is_within_bounds)
            && self.size() <= MAX_STATE
    }
}

#[cfg(test)]
mod tests;
