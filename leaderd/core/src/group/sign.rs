//! Which decisions this voter may sign, and when.
//!
//! Signatures of a majority of the voters say that a decision stands. That holds in two cases: each of them has the decision on
//! its disk as an entry of its present term, so Raft counts it as committed; or it was applied, so it is committed. The first
//! case costs no time: the signature leaves together with the acknowledgement to the raft leader.
//!
//! If followers signed whatever is proposed, signatures would prove nothing against a compromised raft leader. So a voter
//! refuses what no honest raft leader proposes, and what its own evidence contradicts.

use std::collections::VecDeque;
use std::time::Duration;

use protobuf::Message as _;
use raft::eraftpb::{Entry, EntryType};

use super::{Group, GroupOutput, id_of};
use crate::fault::Fault;
use crate::ids::{Epoch, NodeName, Slot};
use crate::io::{LogLevel, Persist};
use crate::state::{Command, Decision};
use crate::time::{Instant, Now};

/// Logged decisions that are remembered.
const MAX_LOGGED: usize = 16;
/// A voter signs this many decisions at once, and afterwards one in [`SIGNATURE_EVERY`]. The hold-down of an honest raft leader
/// begins far earlier.
const SIGNATURE_BURST: u32 = 10;
const SIGNATURE_EVERY: Duration = Duration::from_secs(1);
/// How long a decision may be unsigned before this voter acts, and how much later each further voter does.
const UNSIGNED_FOR: Duration = Duration::from_secs(2);
const VOTER_TURN: Duration = Duration::from_millis(1500);

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
    #[error("every location that watches it sees the leader forward")]
    Contradicted,
}

impl Refusal {
    /// The level to log it at. A decision that this voter cannot explain may only be ahead of what it knows, or follow a newer mesh
    /// file.
    pub const fn level(self) -> LogLevel {
        match self {
            Self::Drained => LogLevel::Error,
            Self::NoCandidates => LogLevel::Warn,
            Self::Epoch | Self::TooMany | Self::Contradicted => LogLevel::Debug,
        }
    }
}

/// What supports the decision that a node follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Without a proof.
    Claimed,
    /// Proved by the voters before the last change. A node that knows only those after it does not accept the proof.
    ProvedBefore,
    Proved,
}

/// A decision in the log of this node, on disk or not.
#[derive(Debug)]
struct LoggedDecision {
    index: u64,
    term: u64,
    /// On disk once this ticket is.
    ticket: u64,
    expected: Epoch,
    decision: Decision,
    /// It makes a drained candidate lead.
    drained: bool,
    /// Leaders that it replaces for a fault that observers saw.
    failed: Vec<Slot>,
}

#[derive(Debug, Default)]
pub(super) struct Signing {
    logged: VecDeque<LoggedDecision>,
    /// Indexes of changes of the voters that are not applied yet.
    changes: VecDeque<u64>,
    /// When [`SIGNATURE_BURST`] decisions may be signed at once again, and the epoch of the last one signed.
    paid_at: Option<Instant>,
    signed: Epoch,
    /// The decision that this node follows.
    pub(super) in_force: Option<(Decision, Standing)>,
    /// The epoch of a decision that this voter refuses to sign, and since when; or when it last did something about that.
    refused: Option<(Epoch, Instant)>,
}

impl Signing {
    /// The log was replaced from this index on.
    fn cut(&mut self, from: u64) {
        self.logged.retain(|d| d.index < from);
        self.changes.retain(|index| *index < from);
    }

    /// A snapshot has taken the place of the log.
    pub(super) fn forget(&mut self) {
        self.cut(0);
    }

    /// The answer that a proof gives: a proved decision may be signed for other voters whatever has become of its reasons, and none
    /// other of its epoch or an earlier one may. Two proofs for one epoch would split the mesh.
    fn answer_by_proof(&self, decision: &Decision) -> Option<Result<(), Refusal>> {
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
    /// Remembers the decisions among what is about to be written, with what this voter knows about them now.
    pub(super) fn note_logged(&mut self, ticket: u64, write: &Persist) {
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
                let logged = self.logged((*index, entry.term, ticket), expected_epoch, decision);
                self.signing.logged.push_back(logged);
                while self.signing.logged.len() > MAX_LOGGED {
                    self.signing.logged.pop_front();
                }
            }
        }
    }

    fn logged(
        &self,
        (index, term, ticket): (u64, u64, u64),
        expected: Epoch,
        decision: Decision,
    ) -> LoggedDecision {
        let drained = |slot: &Slot| {
            let node = self.mesh.candidate(&self.location, *slot);
            node.is_some_and(|n| self.state().drained.contains(&n.name))
        };
        let before = self.state().decision.as_ref().map(|d| &d.leaders[..]).unwrap_or_default();
        let others = || self.mesh.candidates_of(&self.location).into_keys().any(|s| !drained(&s));
        // Where no leader is left, a drained candidate may lead.
        let some_stay = before.iter().any(|s| self.mesh.candidate(&self.location, *s).is_some());
        let made_to_lead = |s: &Slot| drained(s) && !before.contains(s);
        let drained = some_stay && others() && decision.leaders.iter().any(made_to_lead);
        let gone = before.iter().filter(|s| !decision.leaders.contains(s));
        let seen_by_observers = decision.cause.fault().is_some_and(Fault::is_seen_by_observers);
        let failed = gone.copied().filter(|_| seen_by_observers).collect();
        LoggedDecision { index, term, ticket, expected, decision, drained, failed }
    }

    /// Writes up to this ticket are on disk: outputs the decision among them that may be signed now.
    pub(super) fn sign_written(&mut self, ticket: u64) {
        let mut ids: Vec<u64> = self.voters.iter().map(|n| id_of(&self.mesh, n)).collect();
        ids.sort_unstable();
        // A proof by other voters than those of the mesh file would be accepted nowhere.
        let usual = !self.raft.is_joint() && self.raft.voters() == ids && self.raft.is_settled();
        if !usual || self.raft.is_non_voting() {
            return;
        }
        let epoch = self.state().epoch();
        let undecided = |j: &&LoggedDecision| j.decision.epoch > epoch;
        // A change of the voters or another decision in between may void it.
        let Some(first) = self.signing.logged.iter().find(undecided) else { return };
        let alone = self.signing.changes.front().is_none_or(|change| *change > first.index);
        let stands = first.expected == epoch && first.term == self.raft.term();
        if alone && stands && first.ticket <= ticket {
            let decision = first.decision.clone();
            self.outputs.push_back(GroupOutput::Written { decision });
        }
    }

    /// Whether this voter signs a decision that is on its disk or committed. The answer may change with time.
    pub fn may_sign(&mut self, now: Now, decision: &Decision) -> Result<(), Refusal> {
        let answer = self.signature_allowed(now, decision);
        let refused = self.signing.refused.filter(|(epoch, _)| *epoch == decision.epoch);
        self.signing.refused = match answer {
            // It is signed a little later.
            Ok(()) | Err(Refusal::TooMany) => None,
            Err(Refusal::NoCandidates) if self.is_behind(now) => None,
            Err(_) => refused.or(Some((decision.epoch, now.mono))),
        };
        answer
    }

    /// Most voters have a newer mesh file, and so know better who is a candidate.
    fn is_behind(&self, now: Now) -> bool {
        let newer = |v: &&NodeName| {
            self.reports.generation(now.mono, v).is_some_and(|g| g > self.mesh.generation)
        };
        self.voters.iter().filter(newer).count() * 2 > self.voters.len()
    }

    /// True if the present decision has been in force nowhere for `after`, as voters refuse to sign it.
    fn is_unsigned(&self, now: Now, after: Duration) -> bool {
        let epoch = self.state().epoch();
        let in_force = self.signing.in_force.as_ref();
        let followed = in_force.map_or(Epoch(0), |(d, _)| d.epoch);
        // The raft leader may be one with an empty store, which cannot check what proves this one wrong.
        let contradicts = in_force.is_some_and(|(_, s)| *s == Standing::ProvedBefore);
        let refused = self.signing.refused.filter(|(refused, _)| *refused == epoch);
        self.reports.proof_required()
            && (followed < epoch || contradicts)
            && refused.is_some_and(|(_, since)| now.mono.since(since) >= after)
    }

    /// A raft leader whose decision is not signed should be replaced. The voters take turns, so that only one takes over.
    pub(super) fn ask_for_another_raft_leader(&mut self, now: Now) {
        let place = self.voters.iter().position(|v| *v == self.me).unwrap_or_default();
        if !self.raft.is_leader() && self.is_unsigned(now, UNSIGNED_FOR + VOTER_TURN * place as u32)
        {
            self.signing.refused = Some((self.state().epoch(), now.mono));
            self.log(
                LogLevel::Error,
                "the raft leader's decision is not signed: asking for another raft leader",
                &[("decision.epoch", self.state().epoch().to_string())],
            );
            self.raft.take_over();
        }
    }

    /// The leaders to decide anew, in place of those that were not signed.
    pub(super) fn replace_unsigned(&mut self, now: Now) -> Option<Vec<Slot>> {
        if !self.is_unsigned(now, UNSIGNED_FOR) {
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
        if let Some(answer) = self.signing.answer_by_proof(decision) {
            return answer;
        }
        if let Some(logged) = self.signing.logged.iter().rev().find(|j| j.decision == *decision) {
            if logged.drained {
                return Err(Refusal::Drained);
            }
            let next = decision.epoch == logged.expected.next();
            if !next && decision.epoch > self.reports.highest_epoch().next() {
                return Err(Refusal::Epoch);
            }
            if logged.failed.iter().any(|slot| self.contradicts(now, *slot)) {
                return Err(Refusal::Contradicted);
            }
        }
        if decision.epoch > self.signing.signed {
            let paid_at = self.signing.paid_at.filter(|at| *at > now.mono).unwrap_or(now.mono);
            if paid_at.since(now.mono) >= SIGNATURE_EVERY * SIGNATURE_BURST {
                return Err(Refusal::TooMany);
            }
            self.signing.paid_at = Some(paid_at + SIGNATURE_EVERY);
            self.signing.signed = decision.epoch;
        }
        Ok(())
    }

    /// True if every location that watches at full rate has fresh reports here, and all of these vouch for the candidate.
    fn contradicts(&self, now: Now, slot: Slot) -> bool {
        let situation = self.reports.situation(now, &self.mesh, self.raft.state(), &self.me);
        let ballots = || self.reports.watchers().iter().map(|l| situation.ballots.get(l));
        ballots().next().is_some() && ballots().all(|b| b.is_some_and(|b| b.is_sure_of(slot)))
    }
}
