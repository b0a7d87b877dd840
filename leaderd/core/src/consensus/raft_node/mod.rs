//! raft-rs without its clock, its randomness and its disk.
//!
//! * **Time.** raft-rs counts ticks; we decide when one passes. An election timeout is 10 to 20 units, a unit is the
//!   round trip to a quorum (p99, at least 50 ms), so that a mesh with slow paths does not flap and one far voter slows
//!   nobody. The raft leader's heartbeats leave every 150 ms whatever its unit, so voters near to it may replace it fast.
//! * **Randomness.** raft-rs would draw election timeouts from a thread's generator. Its range is set to exactly 10
//!   ticks, and the random part is added here, from our seeded generator, by counting the last ticks ourselves.
//! * **Disk.** What `ready` asks to be written leaves as `Persist` with a ticket; messages that depend on it wait in
//!   `awaiting_sync` until the ticket comes back (raft-rs: asynchronous ready). Until then the node does not campaign: raft-rs
//!   panics if one with entries or a snapshot that are not on disk becomes a candidate or wins.
//! * **Non-voting.** A node without a hard state on disk may have voted and forgotten it. Until it has caught up with a
//!   raft leader, or is known to be part of a new location, it neither votes nor campaigns and writes no hard state.

mod ready;
mod voters;

pub(super) use voters::{MAX_VOTERS, is_ours};

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use raft::eraftpb::{Message, MessageType};
use raft::{Config, ProgressState, RawNode, SnapshotStatus, StateRole};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};

use super::check::{Checked, check};
use super::storage::{Beginning, LogStore};
use crate::capability::{Capabilities, Unreadable};
use crate::io::{Persist, StoredGroup};
use crate::state::{Applied, Command, LocationState, MAX_COMMAND};
use crate::stored::{StoredError, Tail};
use crate::time::Instant;

/// Ticks of the least election timeout; the longest is twice that.
const ELECTION_TICKS: usize = 10;
/// Shortest unit: an election timeout of 0.5 to 1 s on a LAN.
const MIN_UNIT: Duration = Duration::from_millis(50);
/// Longest unit, however slow a path claims to be.
const MAX_UNIT: Duration = Duration::from_secs(3);
/// Time between heartbeats: three fit in the shortest election timeout.
const HEARTBEAT: Duration = Duration::from_millis(150);
/// Entries applied since the last snapshot that make a new one due.
const SNAPSHOT_EVERY: u64 = 256;
/// Bytes of such entries that make a new one due earlier: about twice the limit of a snapshot, so that writing it costs no more than
/// they did.
const SNAPSHOT_BYTES: usize = 2 << 20;
/// Entries kept behind a snapshot for voters that lag a little, and their bytes.
const KEEP_BEHIND: u64 = 64;
const KEEP_BYTES: usize = 512 << 10;
/// Round trips remembered per voter for the p99.
const RTT_SAMPLES: usize = 64;
/// Largest Raft message that we make, bytes (one entry may exceed it).
const MAX_MESSAGE: u64 = 256 << 10;
/// Uncommitted proposals, bytes: beyond it proposals are refused.
const MAX_UNCOMMITTED: u64 = 4 << 20;

/// An entry of the log. A raft leader's entry may be replaced by another of the same index and a later term.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct EntryId {
    pub index: u64,
    pub term: u64,
}

/// What happened in the log.
pub(crate) enum LogEvent {
    Send {
        to: u64,
        message: Vec<u8>,
    },
    Persist {
        ticket: u64,
        write: Persist,
    },
    /// A command was committed and applied here.
    Applied {
        entry: EntryId,
        applied: Applied,
    },
    /// The state came as a snapshot, and may have a decision made elsewhere.
    Restored,
    /// This node's log goes on with an entry that it cannot read: it has stopped.
    Unreadable {
        index: u64,
        why: Unreadable,
    },
    /// The voters are now these.
    Voters(Vec<u64>),
    Ignored(&'static str),
}

/// Why a node cannot start from what it has on disk.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error(transparent)]
    Stored(#[from] StoredError),
    #[error("{0}")]
    Raft(#[from] raft::Error),
}

/// Messages that wait for a write.
struct AwaitingSync {
    number: u64,
    /// Released when this ticket is on disk.
    ticket: u64,
    messages: Vec<Message>,
}

pub(crate) struct RaftNode {
    raw: RawNode<LogStore>,
    state: LocationState,
    rng: ChaCha8Rng,
    /// Ticks after which we campaign, 10 to 20, drawn anew each time.
    timeout: usize,
    next_tick: Instant,
    next_heartbeat: Instant,
    awaiting_sync: VecDeque<AwaitingSync>,
    last_ticket: u64,
    persisted: u64,
    applied: u64,
    rtts: BTreeMap<u64, VecDeque<Duration>>,
    /// Ticks for which a voter has owed the answer to a snapshot.
    snapshots: BTreeMap<u64, usize>,
    /// True while the disk confirms no writes: this node does not campaign.
    campaign_barred: bool,
    /// `Some`: this node does not vote; the highest commit index that a raft leader has shown.
    non_voting: Option<u64>,
    /// The entry that this version cannot read. A state that skips a command differs from the others': this node applies nothing
    /// more, and neither votes nor leads, until a leaderd that can read it is started here.
    stopped: Option<u64>,
    events: VecDeque<LogEvent>,
}

impl RaftNode {
    pub fn new(
        id: u64,
        voters: &[u64],
        genesis: &LocationState,
        stored: &StoredGroup,
        seed: u64,
        now: Instant,
    ) -> Result<Self, StartError> {
        let (store, state, beginning) = LogStore::restore(stored, genesis, voters)?;
        let applied = store.snapshot_index();
        let config = Config {
            id,
            election_tick: ELECTION_TICKS,
            // Heartbeats are sent by our own timer.
            heartbeat_tick: ELECTION_TICKS - 1,
            min_election_tick: ELECTION_TICKS,
            max_election_tick: ELECTION_TICKS + 1,
            applied,
            max_size_per_msg: MAX_MESSAGE,
            max_inflight_msgs: 64,
            check_quorum: true,
            pre_vote: true,
            max_uncommitted_size: MAX_UNCOMMITTED,
            ..Default::default()
        };
        let logger = raft_logger();
        let raw = RawNode::new(&config, store, &logger)?;
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ id);
        let timeout = draw(&mut rng);
        let mut node = Self {
            raw,
            state,
            rng,
            timeout,
            next_tick: now + MIN_UNIT,
            next_heartbeat: now,
            awaiting_sync: VecDeque::new(),
            last_ticket: 0,
            persisted: 0,
            applied,
            rtts: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            campaign_barred: false,
            non_voting: (beginning != Beginning::Voter).then_some(0),
            stopped: None,
            events: VecDeque::new(),
        };
        if beginning == Beginning::New {
            let first = node.raw.store().current_snapshot().clone();
            node.persist_snapshot(&first, Tail::Dropped);
        }
        if voters == [id] {
            node.start_voting();
        }
        node.pump();
        if let Some((index, why)) = node.raw.store().first_unreadable() {
            node.stop(index, why);
        }
        Ok(node)
    }

    /// The next thing that happened in the log.
    pub fn poll_event(&mut self) -> Option<LogEvent> {
        self.events.pop_front()
    }

    /// Drops what the store brought: an earlier run of this node has announced it.
    pub fn forget_restored(&mut self) {
        self.events.retain(|e| !matches!(e, LogEvent::Applied { .. } | LogEvent::Restored));
    }

    /// The replicated state as far as it is applied here.
    pub fn state(&self) -> &LocationState {
        &self.state
    }

    /// Whether this node must not campaign, because its disk confirms no writes.
    pub fn bar_campaigns(&mut self, barred: bool) {
        self.campaign_barred = barred;
    }

    pub fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    /// True once this raft leader has applied an entry of its own term, so that its state is not behind.
    pub fn is_settled_leader(&self) -> bool {
        self.is_leader() && self.is_settled()
    }

    /// True once this node has applied an entry of its present term, and so all that was committed before it.
    pub fn is_settled(&self) -> bool {
        self.raw.raft.apply_to_current_term()
    }

    /// Raft id of the raft leader, 0 if unknown.
    pub fn leader(&self) -> u64 {
        self.raw.raft.leader_id
    }

    /// A follower with a raft leader it heard within the least election timeout.
    pub fn follows(&self) -> bool {
        self.leader() != 0 && self.raw.raft.election_elapsed < ELECTION_TICKS
    }

    pub(super) fn stop(&mut self, index: u64, why: Unreadable) {
        if self.stopped.is_some() {
            return;
        }
        self.stopped = Some(index);
        let term = self.raw.raft.term;
        self.raw.raft.become_follower(term, raft::INVALID_ID);
        self.events.push_back(LogEvent::Unreadable { index, why });
    }

    /// True once this node has met a command that it cannot read.
    pub fn is_stopped(&self) -> bool {
        self.stopped.is_some()
    }

    /// (index, term) of the snapshot and of each entry after it.
    #[cfg(test)]
    pub fn log(&self) -> Vec<(u64, u64)> {
        use raft::Storage as _;
        let store = self.raw.store();
        let from = store.snapshot_index();
        let to = store.last_index().expect("the log is in memory");
        (from..=to).map(|i| (i, store.term(i).expect("it is in the log"))).collect()
    }

    /// Bytes of all entries in it.
    #[cfg(test)]
    pub fn log_bytes(&self) -> usize {
        self.raw.store().bytes(0, u64::MAX)
    }

    pub fn is_non_voting(&self) -> bool {
        self.non_voting.is_some()
    }

    pub fn term(&self) -> u64 {
        self.raw.raft.term
    }

    /// The round trip to a quorum: an election needs no more, however far the other voters are.
    pub fn unit(&self) -> Duration {
        let conf = self.raw.store().conf();
        let halves = [&conf.voters, &conf.voters_outgoing].map(|half| self.quorum_rtt(half));
        halves.into_iter().max().unwrap_or_default().clamp(MIN_UNIT, MAX_UNIT)
    }

    /// The round trip within which a majority of these voters answers, as far as it is known.
    fn quorum_rtt(&self, voters: &[u64]) -> Duration {
        let me = self.raw.raft.id;
        let others = || voters.iter().filter(|id| **id != me);
        let mut rtts: Vec<Duration> =
            others().filter_map(|id| self.rtts.get(id)?.iter().max().copied()).collect();
        rtts.sort_unstable();
        // This node counts itself at once.
        let needed = voters.len() / 2 + usize::from(!voters.contains(&me));
        match needed.checked_sub(1) {
            Some(last) => rtts.get(last).or(rtts.last()).copied().unwrap_or_default(),
            None => Duration::ZERO,
        }
    }

    /// The least time without a raft leader after which one is elected.
    pub fn election_timeout(&self) -> Duration {
        self.unit() * ELECTION_TICKS as u32
    }

    /// A round trip to a voter. With 64 samples the largest is a p99 that errs on the slow side.
    pub fn rtt(&mut self, id: u64, rtt: Duration) {
        let samples = self.rtts.entry(id).or_default();
        samples.push_back(rtt);
        if samples.len() > RTT_SAMPLES {
            samples.pop_front();
        }
    }

    pub fn forget_rtts_but(&mut self, ids: &[u64]) {
        self.rtts.retain(|id, _| ids.contains(id));
    }

    /// Lets a node with an empty store vote. From here on its store binds it.
    pub fn start_voting(&mut self) {
        if self.non_voting.take().is_none() {
            return;
        }
        let hard_state = Some(encode(&self.raw.raft.hard_state()));
        self.persist(Persist { hard_state, ..Persist::default() });
    }

    pub fn receive(&mut self, from: u64, bytes: &[u8]) {
        if self.is_stopped() {
            return;
        }
        match check(&self.raw.raft, from, bytes, &self.state) {
            Checked::Ignore(why) => self.events.push_back(LogEvent::Ignored(why)),
            Checked::Step(m) => self.step(*m),
            Checked::StepAndReject(m, reply) => {
                self.note_commit(reply.index);
                self.step(*m);
                self.send(&reply);
            }
        }
        self.pump();
    }

    fn step(&mut self, m: Message) {
        let kind = m.get_msg_type();
        if self.non_voting.is_some() {
            match kind {
                MessageType::MsgAppend | MessageType::MsgHeartbeat => self.note_commit(m.commit),
                MessageType::MsgSnapshot => self.note_commit(m.get_snapshot().get_metadata().index),
                // Neither vote nor campaign.
                _ => return,
            }
        }
        // Nothing makes a candidate, or a raft leader, of a node that waits for its disk: see the module.
        let elects = matches!(
            kind,
            MessageType::MsgTimeoutNow
                | MessageType::MsgRequestVoteResponse
                | MessageType::MsgRequestPreVoteResponse
        );
        if elects && !self.may_campaign() {
            return;
        }
        if kind == MessageType::MsgAppendResponse
            && m.reject
            && m.term == self.raw.raft.term
            && self.is_leader()
        {
            // The peer has less than it once acknowledged: its disk was lost. raft-rs would call this answer stale for
            // ever. Taking a really stale one for it only costs sending some entries again.
            if let Some(progress) = self.raw.raft.mut_prs().get_mut(m.from)
                && m.reject_hint < progress.matched
            {
                progress.matched = 0;
                progress.become_probe();
                progress.next_idx = m.reject_hint + 1;
                self.raw.raft.send_append(m.from);
                return;
            }
        }
        let _ = self.raw.step(m);
    }

    /// True if this node may become a candidate or win as one: it votes, its log is on disk, and what it has of a
    /// snapshot is applied.
    fn may_campaign(&self) -> bool {
        let log = &self.raw.raft.raft_log;
        self.non_voting.is_none()
            && !self.is_stopped()
            && !self.campaign_barred
            && self.awaiting_sync.is_empty()
            && log.persisted == log.last_index()
            && log.applied() + 1 >= log.first_index()
    }

    /// Term, last index, commit index and index of the snapshot.
    #[cfg(test)]
    pub fn ends(&self) -> (u64, u64, u64, u64) {
        let log = &self.raw.raft.raft_log;
        (self.raw.raft.term, log.last_index(), log.committed, self.raw.store().snapshot_index())
    }

    fn note_commit(&mut self, commit: u64) {
        if let Some(seen) = &mut self.non_voting {
            *seen = (*seen).max(commit);
        }
    }

    /// True if a non-voting node now has all that was committed when it first heard of the group.
    pub fn caught_up(&self) -> bool {
        self.non_voting.is_some_and(|seen| seen > 1 && self.applied >= seen && self.follows())
    }

    pub fn next_timeout(&self) -> Instant {
        if self.is_leader() { self.next_tick.min(self.next_heartbeat) } else { self.next_tick }
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        if now >= self.next_tick {
            self.next_tick = now + self.unit();
            if !self.is_stopped() {
                self.tick();
            }
        }
        if self.is_leader() && now >= self.next_heartbeat {
            self.next_heartbeat = now + HEARTBEAT;
            self.raw.ping();
        }
        self.pump();
    }

    fn tick(&mut self) {
        self.repeat_snapshots();
        let may_campaign = self.may_campaign();
        let raft = &mut self.raw.raft;
        if raft.state == StateRole::Leader || raft.election_elapsed + 1 < ELECTION_TICKS {
            self.raw.tick();
        } else if raft.election_elapsed + 1 < self.timeout || !may_campaign {
            raft.election_elapsed = (raft.election_elapsed + 1).min(2 * ELECTION_TICKS);
        } else {
            self.timeout = draw(&mut self.rng);
            self.raw.tick();
        }
    }

    /// raft-rs sends nothing more to a voter until it has answered a snapshot, and never learns that one was lost on the
    /// way: after an election timeout it is sent again, to a voter that is heard.
    fn repeat_snapshots(&mut self) {
        let progress = self.raw.raft.prs().iter();
        let waiting: Vec<u64> = progress
            .filter(|(_, p)| p.state == ProgressState::Snapshot)
            .map(|(id, _)| *id)
            .collect();
        self.snapshots.retain(|id, _| waiting.contains(id));
        if !self.is_leader() {
            return;
        }
        for id in waiting {
            let ticks = self.snapshots.entry(id).or_default();
            *ticks += 1;
            if *ticks > ELECTION_TICKS {
                *ticks = 0;
                self.raw.report_snapshot(id, SnapshotStatus::Failure);
            }
        }
    }

    /// Returns the entry that the command is once it is committed, or `None` if this node cannot propose it.
    pub fn propose(&mut self, needs: Capabilities, command: &Command) -> Option<EntryId> {
        if !self.is_leader() || self.is_leaving() {
            return None;
        }
        if self.raw.raft.lead_transferee.is_some() {
            // raft-rs drops proposals during a transfer; a decision does not wait for housekeeping.
            self.raw.raft.abort_leader_transfer();
        }
        let data = command.encode(needs);
        if data.len() > MAX_COMMAND {
            // It might never reach the others, and all that follows would wait behind it.
            return None;
        }
        self.raw.propose(Vec::new(), data).ok()?;
        let raft = &self.raw.raft;
        let entry = EntryId { index: raft.raft_log.last_index(), term: raft.term };
        self.pump();
        Some(entry)
    }

    /// Takes Raft leadership from the one that has it, if most voters agree and all that this node has is on its disk.
    pub fn take_over(&mut self) {
        if self.is_leader() || self.is_stopped() {
            return;
        }
        let raft = &self.raw.raft;
        let mut m = Message { from: raft.id, to: raft.id, term: raft.term, ..Default::default() };
        m.set_msg_type(MessageType::MsgTimeoutNow);
        self.step(m);
        self.pump();
    }
}

fn encode<M: protobuf::Message>(m: &M) -> Vec<u8> {
    m.write_to_bytes().expect("protobuf writes to memory")
}

fn draw(rng: &mut ChaCha8Rng) -> usize {
    ELECTION_TICKS + (rng.next_u32() as usize) % (ELECTION_TICKS + 1)
}

/// raft-rs wants a logger; what matters of its doings is logged by the group.
fn raft_logger() -> slog::Logger {
    slog::Logger::root(slog::Discard, slog::o!())
}
