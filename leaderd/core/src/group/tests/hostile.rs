use super::cluster::{Cluster, mesh, name};
use proptest::prelude::*;
use protobuf::Message as _;
use raft::eraftpb::{ConfState, Entry, EntryType, Message, MessageType, Snapshot};

fn kind() -> impl Strategy<Value = MessageType> {
    prop::sample::select(MessageType::values().to_vec())
}

use protobuf::ProtobufEnum as _;

prop_compose! {
    fn number()(pick in 0..6u8, small in 0..40u64, any in any::<u64>()) -> u64 {
        match pick { 0 => 0, 1 => any, 2 => u64::MAX, _ => small }
    }
}

prop_compose! {
    fn entry()(index in number(), term in number(), kind in 0..3usize, data in prop::collection::vec(any::<u8>(), 0..12))
        -> Entry
    {
        let mut e = Entry { index, term, data: data.into(), ..Default::default() };
        e.set_entry_type(EntryType::values()[kind]);
        e
    }
}

prop_compose! {
    fn message()(
        kind in kind(), term in number(), log_term in number(), index in number(), commit in number(),
        hint in number(), request in prop_oneof![Just(0u64), any::<u64>()], reject in any::<bool>(),
        entries in prop::collection::vec(entry(), 0..4), voters in prop::collection::vec(0..5u64, 0..4),
        snap in (number(), number()), from in 1..4u64,
    ) -> Message {
        let mut m = Message { term, log_term, index, commit, reject, from, to: 2, ..Default::default() };
        m.reject_hint = hint;
        m.request_snapshot = request;
        m.set_msg_type(kind);
        m.set_entries(entries.into());
        let mut s = Snapshot::default();
        s.mut_metadata().index = snap.0;
        s.mut_metadata().term = snap.1;
        s.mut_metadata().set_conf_state(ConfState { voters, ..Default::default() });
        if kind == MessageType::MsgSnapshot {
            let state = crate::state::LocationState::new("cloud".parse().unwrap());
            s.data = state.encode().into();
        }
        m.set_snapshot(s);
        m
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(64), ..Default::default() })]

    /// Whatever an authenticated peer sends, raft-rs is never brought to panic, now or in what follows.
    #[test]
    fn no_message_of_a_peer_panics(messages in prop::collection::vec((message(), 0..3usize), 1..24), seed in 0..4u64) {
        let mut c = Cluster::new(mesh(3, 0, 0), seed);
        c.run(1000 + seed * 2000);
        for (mut m, target) in messages {
            let target = name(&format!("cloud-{target}"));
            m.to = u64::from(c.mesh.nodes[&target].index.0);
            let from = name(&format!("cloud-{}", m.from - 1));
            let now = c.now();
            c.groups.get_mut(&target).unwrap().handle_raft(now, &from, &m.write_to_bytes().unwrap());
            c.run(30);
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

#[test]
fn messages_of_others_and_in_others_names_are_counted() {
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
