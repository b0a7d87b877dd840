//! Which decisions this voter may sign, and when.
//!
//! A signature tells other nodes that the decision stands. Of a majority of the voters it is true in two cases: each has the
//! decision on its disk, as an entry of its present term (then Raft counts it as committed); or it was applied, so it is
//! committed. The first costs no time: the signature leaves together with the acknowledgement that goes to the raft leader.
//!
//! Signatures would prove nothing against a raft leader that was broken into, if its followers signed whatever it
//! proposes. So a voter refuses what no honest raft leader proposes, and what its own evidence contradicts.

use std::collections::VecDeque;
use std::time::Duration;

use protobuf::Message as _;
use raft::eraftpb::{Entry, EntryType};

use super::{Group, GroupOutput, id_of};
use crate::ids::{Epoch, NodeName, Slot};
use crate::io::{LogLevel, Persist};
use crate::state::{Command, Decision};
use crate::time::{Instant, Now};
use crate::verdict::Verdict;

/// Decisions in the log that are remembered.
const MAX_JUDGED: usize = 16;
/// A voter signs so many decisions at once, and afterwards one in this time. Honest raft leaders hold down far earlier.
const BURST: u32 = 10;
const EVERY: Duration = Duration::from_secs(1);
/// So long a decision may be unsigned before this voter does something about it, and between the voters that do.
const DISOWNED: Duration = Duration::from_secs(2);
const TURN: Duration = Duration::from_millis(1500);

/// Why a voter does not sign a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("its leaders are no candidates by this node's mesh file")]
    NoCandidates,
    #[error("it makes a drained candidate lead")]
    Drained,
    #[error("its epoch is not the next")]
    Epoch,
    #[error("too many decisions in a short time")]
    TooMany,
    #[error("every other location sees the leader forward")]
    Contradicted,
}

impl Refusal {
    /// How loudly to say so. What this voter's own knowledge speaks against may only be ahead of it, as may a newer mesh file.
    pub const fn level(self) -> LogLevel {
        match self {
            Self::Drained => LogLevel::Error,
            Self::NoCandidates => LogLevel::Warn,
            Self::Epoch | Self::TooMany | Self::Contradicted => LogLevel::Debug,
        }
    }
}

/// Why a node follows what it follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Without a proof.
    Claimed,
    /// Proved by the voters before the last change. Who knows only those after it does not believe it.
    ProvedBefore,
    Proved,
}

/// A decision in the log of this node, on disk or not.
#[derive(Debug)]
struct Judged {
    index: u64,
    term: u64,
    /// On disk once this ticket is.
    ticket: u64,
    expected: Epoch,
    decision: Decision,
    /// A drained candidate would lead by it. That was wrong when it came, and always will be.
    drained: bool,
    /// Leaders that it takes leadership from for a fault that observers saw.
    condemned: Vec<Slot>,
}

#[derive(Debug, Default)]
pub(super) struct Signing {
    judged: VecDeque<Judged>,
    /// Indexes of changes of the voters that are not applied yet.
    changes: VecDeque<u64>,
    /// When the decisions that were signed will have been paid for, and the epoch of the last of them.
    paid_at: Option<Instant>,
    signed: Epoch,
    /// The decision that this node follows.
    pub(super) in_force: Option<(Decision, Standing)>,
    /// The epoch of a decision that this voter refuses to sign, and since when; or when it last did something about that.
    refused: Option<(Epoch, Instant)>,
}

impl Signing {
    /// What is in the log from there on was replaced.
    fn cut(&mut self, from: u64) {
        self.judged.retain(|j| j.index < from);
        self.changes.retain(|index| *index < from);
    }

    /// A snapshot has taken the place of the log.
    pub(super) fn forget(&mut self) {
        self.cut(0);
    }

    /// What a proof says of a decision: it stands, and may be signed for other voters whatever has become of its reasons; or
    /// another stands for its epoch or a later one. Two proofs for one epoch would part the mesh.
    fn settled(&self, decision: &Decision) -> Option<Result<(), Refusal>> {
        let (proved, _) = self.in_force.as_ref().filter(|(_, s)| *s != Standing::Claimed)?;
        if decision.epoch > proved.epoch {
            return None;
        }
        Some(if proved.says_the_same(decision) { Ok(()) } else { Err(Refusal::Epoch) })
    }

    pub(super) fn voters_changed(&mut self) {
        self.changes.pop_front();
    }
}

impl Group {
    /// Judges the decisions among what is about to be written.
    pub(super) fn judge(&mut self, ticket: u64, write: &Persist) {
        if let Some((first, _)) = write.entries.first() {
            self.signing.cut(*first);
        }
        for (index, bytes) in &write.entries {
            let Ok(entry) = Entry::parse_from_bytes(bytes) else { continue };
            if entry.get_entry_type() != EntryType::EntryNormal {
                self.signing.changes.push_back(*index);
                continue;
            }
            if let Ok(Command::Decide { expected_epoch, decision, .. }) =
                Command::decode(&entry.data)
            {
                let judged = self.judged((*index, entry.term, ticket), expected_epoch, decision);
                self.signing.judged.push_back(judged);
                while self.signing.judged.len() > MAX_JUDGED {
                    self.signing.judged.pop_front();
                }
            }
        }
    }

    fn judged(
        &self,
        (index, term, ticket): (u64, u64, u64),
        expected: Epoch,
        decision: Decision,
    ) -> Judged {
        let drained = |slot: &Slot| {
            let node = self.mesh.candidate(&self.location, *slot);
            node.is_some_and(|n| self.state().drained.contains(&n.name))
        };
        let before = self.state().decision.as_ref().map(|d| &d.leaders[..]).unwrap_or_default();
        let others = || self.mesh.candidates_of(&self.location).into_keys().any(|s| !drained(&s));
        // Where no leader is left, somebody has to lead.
        let some_stay = before.iter().any(|s| self.mesh.candidate(&self.location, *s).is_some());
        let made_to_lead = |s: &Slot| drained(s) && !before.contains(s);
        let drained = some_stay && others() && decision.leaders.iter().any(made_to_lead);
        let gone = before.iter().filter(|s| !decision.leaders.contains(s));
        let seen_by_observers = decision.cause.is_seen_by_observers();
        let condemned = gone.copied().filter(|_| seen_by_observers).collect();
        Judged { index, term, ticket, expected, decision, drained, condemned }
    }

    /// Writes up to this ticket are on disk: tells the decisions among them that may be signed now.
    pub(super) fn sign_written(&mut self, ticket: u64) {
        let mut ids: Vec<u64> = self.voters.iter().map(|n| id_of(&self.mesh, n)).collect();
        ids.sort_unstable();
        // By other voters than those of the mesh file it would be no proof to anybody.
        let usual = !self.raft.is_joint() && self.raft.voters() == ids && self.raft.is_settled();
        if !usual || self.raft.is_mute() {
            return;
        }
        let epoch = self.state().epoch();
        let undecided = |j: &&Judged| j.decision.epoch > epoch;
        // A change of the voters or another decision in between may make it come to nothing.
        let Some(first) = self.signing.judged.iter().find(undecided) else { return };
        let alone = self.signing.changes.front().is_none_or(|change| *change > first.index);
        let stands = first.expected == epoch && first.term == self.raft.term();
        if alone && stands && first.ticket <= ticket {
            let decision = first.decision.clone();
            self.outputs.push_back(GroupOutput::Written { decision });
        }
    }

    /// Whether this voter signs a decision that is on its disk or committed. Asked again later, another answer may come.
    pub fn may_sign(&mut self, now: Now, decision: &Decision) -> Result<(), Refusal> {
        let answer = self.signature_allowed(now, decision);
        let refused = self.signing.refused.filter(|(epoch, _)| *epoch == decision.epoch);
        self.signing.refused = match answer {
            // That many are signed a little later.
            Ok(()) | Err(Refusal::TooMany) => None,
            Err(Refusal::NoCandidates) if self.is_behind(now) => None,
            Err(_) => refused.or(Some((decision.epoch, now.mono))),
        };
        answer
    }

    /// Most voters have a newer mesh file, and so know better who is a candidate.
    fn is_behind(&self, now: Now) -> bool {
        let newer = |v: &&NodeName| {
            self.ledger.generation(now.mono, v).is_some_and(|g| g > self.mesh.generation)
        };
        self.voters.iter().filter(newer).count() * 2 > self.voters.len()
    }

    /// The present decision is in force nowhere, as this voter and others refuse to sign it.
    fn is_disowned(&self, now: Now, after: Duration) -> bool {
        let epoch = self.state().epoch();
        let in_force = self.signing.in_force.as_ref();
        let followed = in_force.map_or(Epoch(0), |(d, _)| d.epoch);
        // The raft leader may be one with an empty store, which cannot check what proves this one wrong.
        let contradicts = in_force.is_some_and(|(_, s)| *s == Standing::ProvedBefore);
        let refused = self.signing.refused.filter(|(refused, _)| *refused == epoch);
        self.ledger.proof_required
            && (followed < epoch || contradicts)
            && refused.is_some_and(|(_, since)| now.mono.since(since) >= after)
    }

    /// Whoever proposed what is not signed should not lead Raft any more. The voters take turns, so that one takes over alone.
    pub(super) fn ask_for_another_raft_leader(&mut self, now: Now) {
        let place = self.voters.iter().position(|v| *v == self.me).unwrap_or_default();
        if !self.raft.is_leader() && self.is_disowned(now, DISOWNED + TURN * place as u32) {
            self.signing.refused = Some((self.state().epoch(), now.mono));
            self.log(
                LogLevel::Error,
                "the raft leader's decision is not signed: asking for another raft leader",
                &[("decision.epoch", self.state().epoch().to_string())],
            );
            self.raft.take_over();
        }
    }

    /// The leaders to decide anew, in place of those that nobody signed.
    pub(super) fn disowned(&mut self, now: Now) -> Option<Vec<Slot>> {
        if !self.is_disowned(now, DISOWNED) {
            return None;
        }
        let candidates = self.mesh.candidates_of(&self.location);
        let in_force = self.signing.in_force.as_ref();
        let before = in_force.map(|(d, _)| d.leaders.clone()).unwrap_or_default();
        let stay: Vec<Slot> = before.into_iter().filter(|s| candidates.contains_key(s)).collect();
        let first = || self.mesh.ranking(&self.location).into_iter().take(1).collect();
        Some(if stay.is_empty() { first() } else { stay })
    }

    fn signature_allowed(&mut self, now: Now, decision: &Decision) -> Result<(), Refusal> {
        if !decision.fits(&self.mesh) {
            return Err(Refusal::NoCandidates);
        }
        if let Some(answer) = self.signing.settled(decision) {
            return answer;
        }
        if let Some(judged) = self.signing.judged.iter().rev().find(|j| j.decision == *decision) {
            if judged.drained {
                return Err(Refusal::Drained);
            }
            let next = decision.epoch == judged.expected.next();
            if !next && decision.epoch > self.ledger.highest_epoch().next() {
                return Err(Refusal::Epoch);
            }
            if judged.condemned.iter().any(|slot| self.contradicts(now, *slot)) {
                return Err(Refusal::Contradicted);
            }
        }
        if decision.epoch > self.signing.signed {
            let paid_at = self.signing.paid_at.filter(|at| *at > now.mono).unwrap_or(now.mono);
            if paid_at.since(now.mono) >= EVERY * BURST {
                return Err(Refusal::TooMany);
            }
            self.signing.paid_at = Some(paid_at + EVERY);
            self.signing.signed = decision.epoch;
        }
        Ok(())
    }

    /// Every other location with observers has a fresh opinion here, and all of them see this candidate forward.
    fn contradicts(&self, now: Now, slot: Slot) -> bool {
        let others = self.mesh.locations.keys().filter(|l| **l != self.location);
        let watching: Vec<_> = others.filter(|l| !self.mesh.candidates_of(l).is_empty()).collect();
        let situation = self.ledger.situation(now, &self.mesh, &self.raft.state, &self.me);
        let of = |location: &crate::ids::LocationName| {
            let of_location = |node| self.mesh.node(node).is_some_and(|n| n.location == *location);
            let views = situation.observers.iter().filter(|o| of_location(&o.observer));
            let mut verdicts = views.filter_map(|o| o.slot(slot)).map(|s| &s.verdict).peekable();
            verdicts.peek().is_some() && verdicts.all(|v| *v == Verdict::Forwarding)
        };
        !watching.is_empty() && watching.into_iter().all(of)
    }
}
