//! The replicated state of a location: who leads, who is drained, what is frozen, what happened.
//!
//! [`LocationState::apply`] is deterministic and knows no evidence and no clock: a [`Command`] carries what it needs,
//! and a decision whose `expected_epoch` is not the present epoch is a no-op.

mod apply;
mod bounds;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::admin::Author;
use crate::capability::{self, Capabilities, Unreadable};
use crate::fault::MoveReason;
use crate::ids::{Epoch, Generation, LocationName, NodeName, Slot};
use crate::mesh::Mesh;
use crate::time::WallTime;
use crate::verdict::{Direction, SlotReport};
use crate::wire::bounded;
use crate::wire::limits::MAX_SLOTS;

pub use apply::Applied;
pub use bounds::{
    MAX_COMMAND, MAX_EVENT, MAX_EVENT_OBSERVERS, MAX_EVENT_ROWS, MAX_STATE, MAX_SUMMARY,
};

/// How many events a location remembers of what happened by itself.
pub const MAX_EVENTS: usize = 256;
/// The same of what operators asked for.
pub const MAX_ASKED: usize = 64;

/// The event to forget, if there are too many. Events with an author and those without have limits of their own, so that neither
/// displaces the other. Of the former the oldest event of the most frequent author goes, so that no author displaces another's.
pub fn surplus<'a>(events: impl Iterator<Item = &'a Event> + Clone) -> Option<EventSeq> {
    let (asked, other) = (|e: &&Event| e.author.is_some(), |e: &&Event| e.author.is_none());
    if events.clone().filter(other).count() > MAX_EVENTS {
        return events.clone().find(other).map(|e| e.seq);
    }
    if events.clone().filter(asked).count() <= MAX_ASKED {
        return None;
    }
    let node = |e: &'a Event| e.author.as_ref().map(|a| &a.node);
    let mut by: BTreeMap<_, usize> = BTreeMap::new();
    events.clone().filter(asked).for_each(|e| *by.entry(node(e)).or_default() += 1);
    let most = by.into_iter().max_by_key(|(_, n)| *n)?.0;
    events.clone().find(|e| asked(e) && node(e) == most).map(|e| e.seq)
}

/// Who leads.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Decision {
    pub location: LocationName,
    pub epoch: Epoch,
    /// In order of preference, never empty. More than one: ECMP.
    #[serde(deserialize_with = "bounded::list::<_, _, MAX_SLOTS>")]
    pub leaders: Vec<Slot>,
    pub cause: MoveReason,
    /// When the raft leader proposed it (its wall clock).
    pub at: WallTime,
}

impl Decision {
    /// True if it is the same decision as far as it is signed.
    pub fn says_the_same(&self, other: &Self) -> bool {
        let signed = |d: &Self| (d.location.clone(), d.epoch, d.leaders.clone());
        signed(self) == signed(other)
    }

    /// True if it names leaders, each once, and all of them are candidates of its location by this mesh file.
    pub fn fits(&self, mesh: &Mesh) -> bool {
        let candidates = mesh.candidates_of(&self.location);
        let distinct: BTreeSet<&Slot> = self.leaders.iter().collect();
        !distinct.is_empty()
            && distinct.len() == self.leaders.len()
            && distinct.iter().all(|slot| candidates.contains_key(*slot))
    }
}

/// An entry of the replicated log.
///
/// Written by position: new kinds go at the end with a [`Capability`](crate::capability::Capability) of their own
/// ([`Command::needs`]), none is moved or removed, and no field of one is added, moved or removed.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Command {
    /// Who leads from now on. A no-op unless the state's epoch is `expected_epoch`.
    Decide {
        expected_epoch: Epoch,
        decision: Decision,
        event: Box<Event>,
    },
    /// Leadership may not go to this candidate, and leaves it.
    Drain {
        node: NodeName,
    },
    Undrain {
        node: NodeName,
    },
    /// No automatic failover until then (`None`: until `unfreeze`).
    Freeze {
        until: Option<FreezeEnd>,
    },
    Unfreeze,
    /// An event without a new decision (all candidates sick, quorum back, …).
    Record {
        event: Box<Event>,
    },
    /// Adds times that came later to the event of an epoch: programmed, verified, blackout. Only sets what is not set.
    Complete {
        epoch: Epoch,
        times: EventTimes,
        blackout: Option<Duration>,
    },
}

impl Command {
    /// What a voter must understand to apply it. The raft leader proposes it only where all voters do.
    pub const fn needs(&self) -> Capabilities {
        match self {
            Self::Decide { .. }
            | Self::Drain { .. }
            | Self::Undrain { .. }
            | Self::Freeze { .. }
            | Self::Unfreeze
            | Self::Record { .. }
            | Self::Complete { .. } => Capabilities::NONE,
        }
    }

    /// As an entry of the log.
    pub fn encode(&self, needs: Capabilities) -> Vec<u8> {
        capability::encode(needs, self)
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        capability::decode(bytes)
    }
}

/// When a freeze ends: at a time by the clock of the raft leader that proposed it, and after a span, whichever comes first.
/// So it does not last longer where a clock is behind.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FreezeEnd {
    pub until: WallTime,
    pub span: Duration,
}

/// Number of an event within its location, from 1.
pub type EventSeq = u64;

/// Something that happened to a location. `cloud#7` on the command line.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Event {
    /// Set by `apply`.
    pub seq: EventSeq,
    pub location: LocationName,
    pub kind: EventKind,
    /// The epoch after it.
    pub epoch: Epoch,
    pub cause: Option<MoveReason>,
    pub direction: Option<Direction>,
    pub leaders_before: Vec<NodeName>,
    pub leaders_after: Vec<NodeName>,
    /// One sentence for people.
    pub summary: String,
    pub times: EventTimes,
    /// Measured by as-workload probes: last delivered before, to first delivered after.
    pub blackout: Option<Duration>,
    /// Why the other candidates were passed over, in words; the leaders before and after are not among them, but for an event
    /// that changed nothing.
    pub blocked_by: BTreeMap<NodeName, Vec<String>>,
    /// What the observers saw, by observer.
    pub evidence: BTreeMap<NodeName, Vec<SlotReport>>,
    /// Who asked for it, if an operator did.
    #[serde(default)]
    pub author: Option<Author>,
}

impl Event {
    /// An event with all but these fields empty.
    pub fn new(location: LocationName, kind: EventKind, epoch: Epoch) -> Self {
        Self {
            seq: 0,
            location,
            kind,
            epoch,
            cause: None,
            direction: None,
            leaders_before: Vec::new(),
            leaders_after: Vec::new(),
            summary: String::new(),
            times: EventTimes::default(),
            blackout: None,
            blocked_by: BTreeMap::new(),
            evidence: BTreeMap::new(),
            author: None,
        }
    }
}

/// Written by position: new ones go at the end, none is moved or removed (`docs/compatibility.md`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// Leadership moved because the leader was degraded.
    Failover,
    /// Leadership moved for another reason (operator, drain, fail-back, dead daemon, first decision).
    Move,
    /// The leader is degraded and no eligible candidate forwards: kept.
    FailStatic,
    /// An operator changed something (drain, freeze, …).
    Operator,
    /// Anything else.
    Notice,
}

/// When each step happened, on the clock of the node that took it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct EventTimes {
    /// The first lost probe was sent.
    pub first_loss: Option<WallTime>,
    /// The first observer suspected the leader.
    pub suspected: Option<WallTime>,
    /// The raft leader found by the votes that another should lead.
    pub condemned: Option<WallTime>,
    /// The decision was committed.
    pub committed: Option<WallTime>,
    /// A quorum of the observers had programmed it.
    pub programmed: Option<WallTime>,
    /// As-workload probes passed under the new decision.
    pub verified: Option<WallTime>,
}

/// The replicated state of one location.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct LocationState {
    pub location: LocationName,
    /// `None` until the first decision.
    pub decision: Option<Decision>,
    pub drained: BTreeSet<NodeName>,
    /// `Some(None)`: until unfrozen.
    pub frozen: Option<Option<FreezeEnd>>,
    /// The newest last.
    pub events: VecDeque<Event>,
    pub last_seq: EventSeq,
    /// Generation of the mesh file that the voters come from.
    pub voters_generation: Generation,
}

impl LocationState {
    /// As the data of a snapshot.
    pub fn encode(&self) -> Vec<u8> {
        capability::encode(Capabilities::NONE, self)
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        capability::decode(bytes)
    }
}
