//! Limits of frames: the most bytes of each kind, the most elements of its lists, and which values make sense.
//!
//! Bytes and lists are limited while a frame is read, so a refused frame was never large in memory. [`Frame::check`] checks the
//! values before any other code sees the frame: all that follows relies on them, and adds and multiplies without checks.
//! What an honest node sends passes. A frame that does not fit is refused whole, and counted by [`Nonsense`].

use std::time::Duration;

use super::{Frame, Hello};
use crate::admin::{AdminRequest, AdminResponse, MAX_FREEZE};
use crate::ids::{Epoch, Slot};
use crate::proof::{MAX_SIGNATURES, Proof};
use crate::relay_pair::Detour;
use crate::state::{Command, Decision, Event, EventTimes, FreezeEnd, LocationState};
use crate::status::CandidateStatus;
use crate::time::WallTime;
use crate::verdict::{EvidenceRow, Report, SlotReport};

/// Longest frame of most kinds, in bytes. Reports and hellos of the largest locations have a few thousand.
pub const MAX_MESSAGE: usize = 64 << 10;
/// Longest announcement: a decision with the event that explains it, which is [`crate::state::MAX_EVENT`] at most.
pub const MAX_ANNOUNCE: usize = 128 << 10;
/// Longest command or answer to one: some names and a sentence.
pub const MAX_COMMAND: usize = 8 << 10;

/// Slots in a list: there are no more.
pub const MAX_SLOTS: usize = Slot::MAX.0 as usize + 1;
/// Rows of evidence about one candidate, and in one report. One row a class, and one for each target or service that fails alone.
pub const MAX_ROWS: usize = 128;
pub const MAX_REPORT_ROWS: usize = 256;
/// Decisions of other locations in one hello.
pub const MAX_DECISIONS: usize = 16;
/// Nodes in one frame of addresses.
pub const MAX_ADDRESSED: usize = 128;
/// Addresses of one node: one of each family, and room for more to come.
const MAX_NODE_ADDRESSES: usize = 8;
/// Locations in one list: as many as a mesh can have nodes.
pub const MAX_LOCATIONS: usize = 4094;
/// Detours that a candidate tells its members, of locations with the longest names too.
pub const MAX_DETOURS: usize = 512;
/// Sentences in a list, and the bytes of each.
pub const MAX_TEXTS: usize = 16;
pub const MAX_TEXT: usize = 1 << 10;

/// Longest round trip that is accepted. Probes are given up much sooner.
pub const MAX_RTT: Duration = Duration::from_secs(60);
/// The end of the year 9999: beyond it a time has no name in RFC 3339.
pub const MAX_TIME: WallTime = WallTime(253_402_300_799_999_999);
/// Longest blackout: ten years.
const MAX_BLACKOUT: Duration = Duration::from_secs(10 * 366 * 86_400);
/// Epochs and sequence numbers stay below this, so that adding to them never overflows. No mesh lives long enough to reach it.
pub const MAX_NUMBER: u64 = 1 << 62;
/// Probes in one row of evidence. A window has some hundred.
const MAX_PROBES: u32 = 1 << 24;
/// Milliseconds, as digests have them.
const MAX_RTT_MS: f64 = 60_000.0;

/// Why a frame that was read makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum Nonsense {
    #[error("a round trip of more than 60 s")]
    RoundTrip,
    #[error("a share of lost packets that is none")]
    Loss,
    #[error("a time beyond the year 9999")]
    Time,
    #[error("a duration of more than ten years")]
    Duration,
    #[error("a number out of range")]
    Number,
    #[error("a slot that cannot be, or one twice")]
    Slot,
    #[error("a decision without a leader")]
    NoLeader,
    #[error("counts that do not fit each other")]
    Counts,
    #[error("a list that is too long")]
    Length,
    #[error("a text that is too long")]
    Text,
    #[error("an event that is larger than any of ours")]
    Event,
}

impl Nonsense {
    /// As in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RoundTrip => "round-trip",
            Self::Loss => "loss",
            Self::Time => "time",
            Self::Duration => "duration",
            Self::Number => "number",
            Self::Slot => "slot",
            Self::NoLeader => "no-leader",
            Self::Counts => "counts",
            Self::Length => "length",
            Self::Text => "text",
            Self::Event => "event",
        }
    }
}

/// Signatures of one voter: of its present set of voters and the one before.
pub const MAX_SIGNED: usize = 2;

fn check_proof(proof: &Proof) -> Check {
    ensure(proof.len() <= MAX_SIGNATURES, Nonsense::Length)
}

type Check = Result<(), Nonsense>;

fn ensure(holds: bool, otherwise: Nonsense) -> Check {
    if holds { Ok(()) } else { Err(otherwise) }
}

impl Frame {
    /// Returns the most bytes of a frame, by its number in [`Frame`]. A kind that is not named here has the usual limit.
    pub(super) const fn longest(kind: u8) -> usize {
        match kind {
            0 => super::MAX_FRAME,
            2 => MAX_ANNOUNCE,
            7 | 8 => MAX_COMMAND,
            _ => MAX_MESSAGE,
        }
    }

    /// Returns the most bytes of a frame that begins with these two; for another version, enough bytes to refuse it. A reader asks
    /// after the first two bytes.
    pub const fn limit(first: [u8; 2]) -> usize {
        if first[0] == super::FRAME_VERSION { Self::longest(first[1]) } else { MAX_MESSAGE }
    }

    /// Checks whether the values make sense. The caller checks whether the sender may say them.
    pub fn check(&self) -> Check {
        match self {
            // Checked where Raft's own state is known.
            Self::Raft { .. } => Ok(()),
            Self::Report(report) => check_report(report),
            Self::Announce { decision, proof, event } => {
                check_decision(decision)?;
                check_proof(proof)?;
                event.as_deref().map_or(Ok(()), check_event)
            }
            Self::Ack { epoch, programmed_at, .. } => {
                check_epoch(*epoch)?;
                check_time(*programmed_at)
            }
            Self::Verified { epoch, at, blackout_micros, .. } => {
                check_epoch(*epoch)?;
                check_time(*at)?;
                check_blackout(blackout_micros.map(Duration::from_micros))
            }
            Self::Hello(hello) => check_hello(hello),
            Self::Relayed { frame, .. } => match **frame {
                // It is read so that none stands in another; nor may one that was made here.
                Self::Relayed { .. } => Err(Nonsense::Length),
                _ => frame.check(),
            },
            Self::Signed { epoch, signatures, .. } => {
                check_epoch(*epoch)?;
                ensure(signatures.len() <= MAX_SIGNED, Nonsense::Length)
            }
            Self::Forward { author, request, .. } => {
                ensure(author.clone().bounded() == *author, Nonsense::Text)?;
                check_request(request)
            }
            Self::Forwarded { response, .. } => check_response(response),
            Self::Addresses(list) => {
                let few = |(_, addresses): &(_, Vec<_>)| addresses.len() <= MAX_NODE_ADDRESSES;
                ensure(list.len() <= MAX_ADDRESSED && list.iter().all(few), Nonsense::Length)
            }
            Self::Uncarried { locations, .. } => {
                ensure(locations.len() <= MAX_LOCATIONS, Nonsense::Length)
            }
            Self::Tunnels { heard, .. } => check_slots(heard.iter().map(|(slot, _)| *slot)),
            Self::Detours(detours) => {
                ensure(detours.len() <= MAX_DETOURS, Nonsense::Length)?;
                let slots = |d: &Detour| d.near <= Slot::MAX && d.far <= Slot::MAX;
                ensure(detours.iter().all(slots), Nonsense::Slot)
            }
        }
    }
}

impl Command {
    /// Checks a command for a replicated log: what it changes is sent to other nodes, which would refuse it.
    pub fn check(&self) -> Check {
        match self {
            Self::Decide { decision, event, .. } => {
                check_decision(decision)?;
                check_event(event)
            }
            Self::Record { event } => check_event(event),
            Self::Freeze { until } => until.map_or(Ok(()), check_freeze),
            Self::Complete { epoch, times, blackout } => {
                check_epoch(*epoch)?;
                check_times(times)?;
                check_blackout(*blackout)
            }
            Self::Drain { .. } | Self::Undrain { .. } | Self::Unfreeze => Ok(()),
        }
    }
}

impl LocationState {
    /// Checks a state that came in a snapshot.
    pub fn check(&self) -> Check {
        ensure(self.is_within_bounds(), Nonsense::Event)?;
        ensure(self.last_seq < MAX_NUMBER, Nonsense::Number)?;
        self.decision.iter().try_for_each(check_decision)?;
        self.frozen.flatten().map_or(Ok(()), check_freeze)?;
        self.events.iter().try_for_each(check_event)
    }
}

fn check_time(at: WallTime) -> Check {
    ensure(at <= MAX_TIME, Nonsense::Time)
}

fn check_freeze(end: FreezeEnd) -> Check {
    check_time(end.until)?;
    ensure(end.span <= MAX_FREEZE, Nonsense::Duration)
}

fn check_epoch(epoch: Epoch) -> Check {
    ensure(epoch.0 < MAX_NUMBER, Nonsense::Number)
}

fn check_blackout(blackout: Option<Duration>) -> Check {
    ensure(blackout.is_none_or(|b| b <= MAX_BLACKOUT), Nonsense::Duration)
}

/// Checks that each slot comes once and none is beyond the last.
fn check_slots(slots: impl IntoIterator<Item = Slot>) -> Check {
    let mut seen = 0u16;
    for slot in slots {
        ensure(slot <= Slot::MAX && seen & (1 << slot.0) == 0, Nonsense::Slot)?;
        seen |= 1 << slot.0;
    }
    Ok(())
}

fn check_share(loss: f32) -> Check {
    // NaN is in no range.
    ensure((0.0..=1.0).contains(&loss), Nonsense::Loss)
}

fn check_report(report: &Report) -> Check {
    check_epoch(report.epoch)?;
    ensure(report.seq < MAX_NUMBER, Nonsense::Number)?;
    check_slot_reports(&report.slots)?;
    let rows: usize = report.slots.iter().map(|s| s.evidence.len()).sum();
    ensure(rows <= MAX_REPORT_ROWS, Nonsense::Length)
}

fn check_slot_reports(slots: &[SlotReport]) -> Check {
    check_slots(slots.iter().map(|s| s.slot))?;
    slots.iter().try_for_each(check_slot_report)
}

fn check_slot_report(s: &SlotReport) -> Check {
    [s.first_loss, s.suspected, Some(s.since)].into_iter().flatten().try_for_each(check_time)?;
    ensure(s.rtt.is_none_or(|rtt| rtt <= MAX_RTT), Nonsense::RoundTrip)?;
    check_share(s.loss)?;
    ensure(s.services.0 <= s.services.1, Nonsense::Counts)?;
    ensure(s.evidence.len() <= MAX_ROWS, Nonsense::Length)?;
    let fits =
        |r: &EvidenceRow| r.sent <= MAX_PROBES && r.lost <= r.sent && r.time_exceeded <= r.sent;
    ensure(s.evidence.iter().all(fits), Nonsense::Counts)
}

fn check_decision(decision: &Decision) -> Check {
    check_epoch(decision.epoch)?;
    check_time(decision.at)?;
    ensure(!decision.leaders.is_empty(), Nonsense::NoLeader)?;
    check_slots(decision.leaders.iter().copied())
}

fn check_event(event: &Event) -> Check {
    check_epoch(event.epoch)?;
    ensure(event.seq < MAX_NUMBER, Nonsense::Number)?;
    check_times(&event.times)?;
    check_blackout(event.blackout)?;
    event.evidence.values().try_for_each(|slots| check_slot_reports(slots))?;
    ensure(event.is_within_bounds(), Nonsense::Event)
}

fn check_times(times: &EventTimes) -> Check {
    let EventTimes { first_loss, suspected, condemned, committed, programmed, verified } = *times;
    let times = [first_loss, suspected, condemned, committed, programmed, verified];
    times.into_iter().flatten().try_for_each(check_time)
}

fn check_hello(hello: &Hello) -> Check {
    check_proof(&hello.proof)?;
    ensure(hello.generation.0 < MAX_NUMBER, Nonsense::Number)?;
    check_slots(hello.reaches.iter().copied())?;
    check_slots(hello.digest.iter().map(|c| c.slot))?;
    hello.digest.iter().try_for_each(check_status)?;
    ensure(hello.remote.len() <= MAX_DECISIONS, Nonsense::Length)?;
    hello.decision.iter().chain(&hello.remote).try_for_each(check_decision)
}

fn check_status(status: &CandidateStatus) -> Check {
    ensure(status.observers.0 <= status.observers.1, Nonsense::Counts)?;
    ensure(status.services.is_none_or(|(up, of)| up <= of), Nonsense::Counts)?;
    ensure(status.rtt_ms.is_none_or(|ms| (0.0..=MAX_RTT_MS).contains(&ms)), Nonsense::RoundTrip)?;
    status.loss.map_or(Ok(()), check_share)?;
    ensure(status.blocked_by.len() <= MAX_TEXTS, Nonsense::Length)?;
    ensure(status.blocked_by.iter().all(|t| t.len() <= MAX_TEXT), Nonsense::Text)
}

fn check_request(request: &AdminRequest) -> Check {
    match request {
        AdminRequest::Freeze { duration, .. } => {
            ensure(duration.is_none_or(|d| d <= MAX_FREEZE), Nonsense::Duration)
        }
        AdminRequest::Promote { .. }
        | AdminRequest::Drain { .. }
        | AdminRequest::Undrain { .. }
        | AdminRequest::Unfreeze { .. } => Ok(()),
    }
}

fn check_response(response: &AdminResponse) -> Check {
    let (AdminResponse::Done { message, .. } | AdminResponse::Refused { message }) = response;
    ensure(message.len() <= MAX_TEXT, Nonsense::Text)?;
    match response {
        AdminResponse::Done { epoch, .. } => check_epoch(*epoch),
        AdminResponse::Refused { .. } => Ok(()),
    }
}

#[cfg(test)]
mod tests;
