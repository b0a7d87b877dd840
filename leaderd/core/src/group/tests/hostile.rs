use super::cluster::{Cluster, mesh, name};
use proptest::prelude::*;
use protobuf::Message as _;
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState, Entry,
    EntryType, Message, MessageType, Snapshot,
};

fn kind() -> impl Strategy<Value = MessageType> {
    prop::sample::select(MessageType::values().to_vec())
}

use protobuf::ProtobufEnum as _;

/// A number of a message, in terms of what its receiver has when it comes.
#[derive(Clone, Copy, Debug)]
enum Number {
    Term(i64),
    Last(i64),
    Committed(i64),
    Snapshot(i64),
    Is(u64),
}

fn number() -> impl Strategy<Value = Number> {
    let near = || prop_oneof![8 => -2..=2i64, 1 => -80..80i64, 1 => Just(1 << 40), 1 => Just((1 << 40) + 2)];
    prop_oneof![
        6 => near().prop_map(Number::Term),
        4 => near().prop_map(Number::Last),
        4 => near().prop_map(Number::Committed),
        4 => near().prop_map(Number::Snapshot),
        2 => (0..60u64).prop_map(Number::Is),
        1 => any::<u64>().prop_map(Number::Is),
        1 => (0..4u32, 0..2u64).prop_map(|(bits, less)| Number::Is((u64::MAX >> bits) - less)),
    ]
}

fn resolve(number: Number, (term, last, committed, snapshot): (u64, u64, u64, u64)) -> u64 {
    match number {
        Number::Term(d) => term.saturating_add_signed(d),
        Number::Last(d) => last.saturating_add_signed(d),
        Number::Committed(d) => committed.saturating_add_signed(d),
        Number::Snapshot(d) => snapshot.saturating_add_signed(d),
        Number::Is(n) => n,
    }
}

/// Terms that are mostly such that the message is heard.
fn term() -> impl Strategy<Value = Number> {
    prop_oneof![8 => (0..3i64).prop_map(Number::Term), 1 => number()]
}

/// What kinds of entries hold: nothing, nonsense, changes of voters of all kinds.
fn entry_data() -> impl Strategy<Value = (usize, Vec<u8>)> {
    let single = (0..6u64, 0..3usize).prop_map(|(node_id, ty)| {
        let mut single = ConfChangeSingle { node_id, ..Default::default() };
        single.set_change_type(ConfChangeType::values()[ty]);
        single
    });
    let change = (prop::collection::vec(single, 0..4), 0..3usize, any::<bool>());
    let change = change.prop_map(|(changes, transition, context)| {
        let mut change = ConfChangeV2::default();
        change.set_transition(ConfChangeTransition::values()[transition]);
        change.set_changes(changes.into());
        if context {
            change.context = vec![1; 8].into();
        }
        change.write_to_bytes().unwrap()
    });
    prop_oneof![
        3 => Just((0, Vec::new())),
        1 => (0..3usize, prop::collection::vec(any::<u8>(), 0..12)),
        2 => (1..3usize, change),
    ]
}

#[derive(Clone, Debug)]
struct Sent {
    message: Message,
    numbers: Vec<Number>,
    /// Entries: their terms, and whether they follow each other as they should.
    entries: Vec<(Number, (usize, Vec<u8>))>,
    in_order: bool,
    /// Milliseconds that pass after it.
    then: u64,
    target: usize,
    /// The receiver's disk: goes on, hangs, or takes what waits.
    disk: u8,
}

prop_compose! {
    fn sent()(
        kind in prop_oneof![1 => kind().boxed(), 3 => prop::sample::select(vec![
            MessageType::MsgAppend, MessageType::MsgSnapshot, MessageType::MsgTimeoutNow, MessageType::MsgHeartbeat,
            MessageType::MsgRequestVote, MessageType::MsgRequestVoteResponse, MessageType::MsgRequestPreVoteResponse,
            MessageType::MsgAppendResponse,
        ]).boxed()],
        term in term(), numbers in prop::collection::vec(number(), 9),
        flags in (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()),
        request in prop_oneof![9 => Just(0u64), 1 => any::<u64>()],
        entries in prop::collection::vec((number(), entry_data()), 0..4),
        conf in (voters(), prop_oneof![3 => Just(Vec::new()).boxed(), 1 => voters().boxed()], small(), small()),
        priority in prop_oneof![3 => Just(0i64), 1 => any::<i64>()],
        from in 1..4u64, then in prop::sample::select(vec![0u64, 0, 0, 0, 1, 5, 40, 700]),
        target in 0..4usize, disk in 0..8u8,
    ) -> Sent {
        let (reject, transfer, in_order, sound_state, auto_leave) = flags;
        let mut m = Message { reject, from, priority, request_snapshot: request, ..Default::default() };
        m.set_msg_type(kind);
        if transfer {
            m.context = b"CampaignTransfer"[..].into();
        }
        let mut s = Snapshot::default();
        let (voters, voters_outgoing, learners, learners_next) = conf;
        let conf = ConfState { voters, voters_outgoing, learners, learners_next, auto_leave: auto_leave && !sound_state, ..Default::default() };
        s.mut_metadata().set_conf_state(conf);
        if kind == MessageType::MsgSnapshot {
            let state = crate::state::LocationState::new("cloud".parse().unwrap());
            s.data = state.encode().into();
        }
        m.set_snapshot(s);
        Sent { message: m, numbers: [vec![term], numbers].concat(), entries, in_order, then, target, disk }
    }
}

/// Mostly the three that vote, sometimes nonsense.
fn voters() -> impl Strategy<Value = Vec<u64>> {
    prop_oneof![2 => Just(vec![1, 2, 3]), 1 => prop::collection::vec(0..5u64, 0..4)]
}

fn small() -> impl Strategy<Value = Vec<u64>> {
    prop_oneof![9 => Just(Vec::new()), 1 => prop::collection::vec(0..5u64, 0..3)]
}

impl Sent {
    fn message(&self, to: u64, ends: (u64, u64, u64, u64)) -> Message {
        let mut m = self.message.clone();
        let mut numbers = self.numbers.iter().map(|n| resolve(*n, ends));
        let mut next = || numbers.next().unwrap();
        m.to = to;
        m.term = next();
        m.index = next();
        m.log_term = next();
        m.commit = next();
        m.commit_term = next();
        m.reject_hint = next();
        m.mut_snapshot().mut_metadata().index = next();
        m.mut_snapshot().mut_metadata().term = next();
        let (mut index, mut least) = (m.index, m.log_term);
        for (term, (kind, data)) in &self.entries {
            let mut term = resolve(*term, ends);
            if self.in_order {
                term = term.clamp(least, m.term.max(least));
                least = term;
            }
            index = if self.in_order { index.wrapping_add(1) } else { term };
            let mut e = Entry { index, term, data: data.clone().into(), ..Default::default() };
            e.set_entry_type(EntryType::values()[*kind]);
            m.entries.push(e);
        }
        m
    }
}

/// Three voters, of which one may have lost its disk just now, or all not have elected anybody yet.
fn receivers(seed: u64) -> Cluster {
    let mut c = Cluster::new(mesh(3, 0, 0), seed);
    c.disk_ms = (1, 1 + 40 * (seed % 4));
    c.run([0, 300, 4000, 9000][seed as usize % 4]);
    if seed.is_multiple_of(3) {
        let lost = name("cloud-2");
        c.crash(&lost);
        c.disks.remove(&lost);
        c.start(&lost);
    }
    c
}

proptest! {
    #![proptest_config(ProptestConfig { cases: std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(500), ..Default::default() })]

    /// Whatever an authenticated peer sends, raft-rs is never brought to panic, now or in what follows: messages come back to
    /// back and while the disk is slow, to followers, candidates, raft leaders and voters with an empty store.
    #[test]
    fn no_message_of_a_peer_panics(messages in prop::collection::vec(sent(), 1..32), seed in 0..24u64) {
        let mut c = receivers(seed);
        for sent in messages {
            let target = match sent.target {
                3 => c.raft_leader().unwrap_or(name("cloud-0")),
                n => name(&format!("cloud-{n}")),
            };
            match sent.disk {
                0 => drop(c.hung.entry(target.clone()).or_default()),
                1 | 2 => c.thaw(&target),
                3 => drop(c.hung.contains_key(&target) && c.write_one(&target)),
                _ => {}
            }
            let id = u64::from(c.mesh.nodes[&target].index.0);
            let from = name(&format!("cloud-{}", sent.message.from - 1));
            let message = sent.message(id, c.groups[&target].raft.ends());
            c.receive(&target, &from, &message.write_to_bytes().unwrap());
            c.run(sent.then);
        }
        for n in 0..3 {
            c.thaw(&name(&format!("cloud-{n}")));
        }
        c.run(2000);
    }

    #[test]
    fn arbitrary_bytes_are_counted_and_ignored(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut c = Cluster::new(mesh(3, 0, 0), 1);
        let now = c.now();
        c.groups.get_mut(&name("cloud-1")).unwrap().handle_raft(now, &name("cloud-2"), &bytes);
        c.run(100);
    }
}

/// `cloud-1` (Raft id 2) hears these from `cloud-0`, one right after the other, while its disk hangs; then it goes on.
fn back_to_back(messages: impl FnOnce((u64, u64, u64, u64)) -> Vec<Message>) -> Cluster {
    let mut c = Cluster::settled(mesh(3, 0, 0), 5);
    let victim = name("cloud-1");
    c.hung.entry(victim.clone()).or_default();
    for m in messages(c.groups[&victim].raft.ends()) {
        c.receive(&victim, &name("cloud-0"), &m.write_to_bytes().unwrap());
    }
    c.run(3000);
    c.thaw(&victim);
    c.run(3000);
    c
}

fn of_kind(kind: MessageType, term: u64) -> Message {
    let mut m = Message { from: 1, to: 2, term, ..Default::default() };
    m.set_msg_type(kind);
    m
}

fn snapshot(term: u64, index: u64, auto_leave: bool) -> Message {
    let mut m = of_kind(MessageType::MsgSnapshot, term);
    let state = crate::state::LocationState::new("cloud".parse().unwrap());
    m.mut_snapshot().data = state.encode().into();
    let meta = m.mut_snapshot().mut_metadata();
    (meta.index, meta.term) = (index, term);
    meta.set_conf_state(ConfState { voters: vec![1, 2, 3], auto_leave, ..Default::default() });
    m
}

#[test]
fn a_snapshot_with_a_configuration_that_ends_by_itself_is_refused() {
    back_to_back(|(term, last, ..)| vec![snapshot(term + 1, last + 9, true)]);
}

#[test]
fn a_snapshot_on_a_slow_disk_and_a_call_to_take_over_do_no_harm() {
    back_to_back(|(term, last, ..)| {
        vec![snapshot(term + 1, last + 9, false), of_kind(MessageType::MsgTimeoutNow, term + 1)]
    });
}

#[test]
fn entries_on_a_slow_disk_a_call_to_take_over_and_an_unrequested_vote_do_no_harm() {
    back_to_back(|(term, last, ..)| {
        let (term, index) = (term + 1, last + 9);
        let mut append = of_kind(MessageType::MsgAppend, term);
        (append.index, append.log_term, append.commit) = (index, term, index);
        append.set_entries(vec![Entry { index: index + 1, term, ..Default::default() }].into());
        let vote = of_kind(MessageType::MsgRequestVoteResponse, term + 1);
        vec![snapshot(term, index, false), append, of_kind(MessageType::MsgTimeoutNow, term), vote]
    });
}

/// No malice: its snapshot waits for the disk, and the raft leader goes.
#[test]
fn a_voter_whose_snapshot_waits_for_the_disk_outlives_its_raft_leader() {
    let mut c = Cluster::settled(mesh(3, 0, 0), 6);
    let lost = name("cloud-0");
    c.crash(&lost);
    c.disks.remove(&lost);
    c.start(&lost);
    c.run(3000);
    c.crash(&lost);
    for _ in 0..400 {
        if c.raft_leader().is_some() {
            c.ask(&crate::admin::AdminRequest::Drain { node: name("cloud-1") });
            c.ask(&crate::admin::AdminRequest::Undrain { node: name("cloud-1") });
        }
        c.run(20);
    }
    c.start(&lost);
    // A new term fits, and the snapshot does not.
    c.full.insert(lost.clone());
    c.run(2000);
    let snapshot_waits = c.hung[&lost].iter().any(|(_, write)| write.snapshot.is_some());
    assert!(snapshot_waits);
    let leader = c.raft_leader().unwrap();
    c.crash(&leader);
    c.run(20_000);
    c.thaw(&lost);
    c.until(5000, "a raft leader", |c| c.raft_leader().is_some());
}

#[test]
fn changes_of_voters_that_no_raft_leader_of_ours_makes_are_refused() {
    let mut learner = ConfChangeSingle { node_id: 3, ..Default::default() };
    learner.set_change_type(ConfChangeType::AddLearnerNode);
    let mut change = ConfChangeV2::default();
    change.set_transition(ConfChangeTransition::Explicit);
    change.set_changes(vec![learner].into());
    change.context = vec![1; 8].into();
    for kind in [EntryType::EntryConfChange, EntryType::EntryConfChangeV2] {
        let mut c = Cluster::settled(mesh(3, 0, 0), 7);
        let victim = name("cloud-1");
        let (term, last, ..) = c.groups[&victim].raft.ends();
        let data = change.write_to_bytes().unwrap();
        let index = last + 1;
        let mut entry = Entry { index, term: term + 1, data: data.into(), ..Default::default() };
        entry.set_entry_type(kind);
        let log_term = (1..=term).find(|log_term| {
            let mut append = of_kind(MessageType::MsgAppend, term + 1);
            (append.index, append.log_term, append.commit) = (last, *log_term, index);
            append.set_entries(vec![entry.clone()].into());
            c.receive(&victim, &name("cloud-0"), &append.write_to_bytes().unwrap());
            c.groups[&victim].raft.ends().1 == index
        });
        assert_eq!(log_term, None, "{kind:?}");
        assert_eq!(c.groups[&victim].ignored(), term);
    }
}

/// A rejection hint at the end of all numbers, to a raft leader that does not know yet what a voter has.
#[test]
fn a_hint_at_the_end_of_all_numbers_is_refused() {
    let mut c = Cluster::settled(mesh(3, 0, 0), 8);
    let silent = name("cloud-0");
    c.crash(&silent);
    c.run(3000);
    let leader = c.raft_leader().unwrap();
    c.crash(&leader);
    c.start(&leader);
    c.until(5000, "a raft leader", |c| c.raft_leader().is_some());
    let leader = c.raft_leader().unwrap();
    let (term, last, ..) = c.groups[&leader].raft.ends();
    for index in 0..=last {
        let mut reject = of_kind(MessageType::MsgAppendResponse, term);
        reject.to = u64::from(c.mesh.nodes[&leader].index.0);
        (reject.index, reject.reject, reject.reject_hint) = (index, true, u64::MAX);
        c.receive(&leader, &silent, &reject.write_to_bytes().unwrap());
    }
    c.run(1000);
}

/// One message leaves a group numbers to go on with.
#[test]
fn a_term_at_the_end_of_all_numbers_does_not_end_elections() {
    for term in [u64::MAX, (1 << 62) - 1, 1 << 61] {
        let c = back_to_back(|_| {
            let mut beat = of_kind(MessageType::MsgHeartbeat, term);
            beat.commit = 1;
            vec![beat, snapshot(term, term, false)]
        });
        let mut c = c;
        c.until(5000, "a raft leader", |c| c.raft_leader().is_some());
        let leader = c.raft_leader().unwrap();
        c.crash(&leader);
        c.until(5000, "another", |c| c.raft_leader().is_some());
    }
}

#[test]
fn messages_from_strangers_and_under_false_names_are_counted() {
    let mut c = Cluster::new(mesh(3, 0, 0), 1);
    let now = c.now();
    let mut m = Message { term: 3, from: 3, to: 2, ..Default::default() };
    m.set_msg_type(MessageType::MsgHeartbeat);
    let bytes = m.write_to_bytes().unwrap();
    let group = c.groups.get_mut(&name("cloud-1")).unwrap();
    group.handle_raft(now, &name("cloud-0"), &bytes);
    group.handle_raft(now, &name("home-2"), &bytes);
    assert_eq!(group.ignored(), 2);
}

/// Writes the seeds of the corpus of the fuzz target `frame`: `cargo test -p leaderd-core --lib write_the_corpus -- --ignored`.
#[test]
#[ignore = "writes files"]
fn write_the_corpus() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fuzz/corpus/frame");
    let raft = |m: &Message| crate::wire::Frame::Raft {
        location: "cloud".parse().unwrap(),
        message: m.write_to_bytes().unwrap(),
    };
    let base = |kind| {
        let mut m = Message {
            term: 2,
            from: 1,
            to: 2,
            index: 1,
            log_term: 1,
            commit: 1,
            ..Default::default()
        };
        m.set_msg_type(kind);
        m
    };
    let mut append = base(MessageType::MsgAppend);
    append.set_entries(vec![Entry { index: 2, term: 2, ..Default::default() }].into());
    let mut snapshot = base(MessageType::MsgSnapshot);
    snapshot.mut_snapshot().mut_metadata().index = 9;
    snapshot.mut_snapshot().mut_metadata().term = 2;
    snapshot.mut_snapshot().mut_metadata().mut_conf_state().voters = vec![1, 2, 3];
    let state = crate::state::LocationState::new("cloud".parse().unwrap());
    snapshot.mut_snapshot().data = state.encode().into();
    let ahead = Message { commit: 900, ..base(MessageType::MsgHeartbeat) };
    // Once brought raft-rs to panic: beyond our log, with the 'term 0' that is there.
    let beyond = Message { index: 17, log_term: 0, commit: 17, ..base(MessageType::MsgAppend) };
    let huge = Message { term: u64::MAX, ..base(MessageType::MsgRequestVote) };
    let hello = crate::wire::Frame::Hello(crate::wire::Hello {
        capabilities: crate::capability::Capabilities::OURS,
        node: name("cloud-0"),
        generation: crate::ids::Generation(1),
        mesh_hash: [1; 8],
        decision: None,
        raft_leader: Some(name("cloud-1")),
        broken: None,
        reaches: vec![crate::ids::Slot(1)],
        digest: Vec::new(),
        proof: Default::default(),
        remote: Vec::new(),
    });
    let messages = [
        ("append", append),
        ("append-beyond", beyond),
        ("snapshot", snapshot),
        ("heartbeat-ahead", ahead),
        ("huge-term", huge),
    ];
    for (file, m) in &messages {
        std::io::Write::write_all(
            &mut std::fs::File::create(format!("{dir}/{file}")).unwrap(),
            &raft(m).encode(),
        )
        .unwrap();
    }
    let hello = hello.encode();
    std::io::Write::write_all(&mut std::fs::File::create(format!("{dir}/hello")).unwrap(), &hello)
        .unwrap();
    let short = &hello[..hello.len() / 2];
    std::io::Write::write_all(
        &mut std::fs::File::create(format!("{dir}/hello-truncated")).unwrap(),
        short,
    )
    .unwrap();
}

/// RUSTSEC-2024-0437 (docs/decisions/0012-known-advisories.md).
#[test]
fn groups_within_groups_are_refused_and_use_no_stack() {
    // Field 100, which no message of ours has.
    const START: [u8; 2] = [0xa3, 0x06];
    const END: [u8; 2] = [0xa4, 0x06];
    let nested = START.repeat(1_000_000);
    assert!(Message::parse_from_bytes(&nested).is_err());
    // One alone is skipped, as any unknown field: so the million were refused for being nested.
    assert!(Message::parse_from_bytes(&[START, END].concat()).is_ok());
}
