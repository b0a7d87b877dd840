//! Every file of the fuzzing corpus, run through what the fuzzer runs.

use std::path::Path;

use tests::fuzz::TARGETS;

#[test]
fn what_fuzzing_found_stays_harmless() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (name, run) in TARGETS {
        let mut replayed = 0;
        for file in corpus.join(name).read_dir().unwrap_or_else(|e| panic!("corpus of {name}: {e}"))
        {
            let path = file.expect("a directory that can be read").path();
            println!("{}", path.display());
            run(&std::fs::read(&path).expect("a file that can be read"));
            replayed += 1;
        }
        assert!(replayed >= 3, "the corpus of {name} has {replayed} files");
    }
}

#[test]
fn every_target_of_the_fuzzer_is_replayed() {
    let targets = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
    let mut found: Vec<String> = targets
        .read_dir()
        .expect("the targets are there")
        .map(|f| f.expect("a directory that can be read").path())
        .map(|p| p.file_stem().expect("a file name").to_string_lossy().into_owned())
        .collect();
    found.sort();
    assert_eq!(found, TARGETS.map(|(name, _)| name));
}

/// Writes good and damaged stores: `make corpus`.
#[test]
#[ignore = "writes files"]
fn write_the_corpus_of_store_records() {
    use leaderd_core::io::StoredGroup;
    use leaderd_core::state::LocationState;
    use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/store_record");
    let seed = |name: &str, stored: StoredGroup| {
        let bytes = postcard::to_stdvec(&stored).expect("plain data");
        std::fs::write(dir.join(name), bytes).expect("a directory that can be written");
    };
    let bytes = |m: &dyn protobuf::Message| m.write_to_bytes().expect("protobuf writes to memory");
    let snapshot = |index, term| {
        let state = LocationState::new("cloud".parse().expect("a name"));
        let mut snapshot = Snapshot { data: state.encode().into(), ..Snapshot::default() };
        let meta = snapshot.mut_metadata();
        (meta.index, meta.term) = (index, term);
        meta.set_conf_state(ConfState { voters: vec![1, 2, 3], ..ConfState::default() });
        Some((index, bytes(&snapshot)))
    };
    let hard_state =
        |term, commit| Some(bytes(&HardState { term, vote: 1, commit, ..HardState::default() }));
    let entry = |index, term| (index, bytes(&Entry { index, term, ..Entry::default() }));
    seed("empty", StoredGroup::default());
    let log = StoredGroup {
        hard_state: hard_state(2, 2),
        entries: [entry(2, 2), entry(3, 2)].into(),
        snapshot: snapshot(1, 1),
        decision: None,
    };
    seed("log", log.clone());
    seed("without-vote", StoredGroup { hard_state: None, ..log.clone() });
    seed("without-snapshot", StoredGroup { snapshot: None, ..log.clone() });
    seed(
        "stale-tail",
        StoredGroup { snapshot: snapshot(2, 9), hard_state: hard_state(9, 2), ..log.clone() },
    );
    seed("falling-term", StoredGroup { entries: [entry(2, 2), entry(3, 1)].into(), ..log.clone() });
    seed("gap", StoredGroup { entries: [entry(2, 2), entry(5, 2)].into(), ..log.clone() });
    seed("commit-beyond", StoredGroup { hard_state: hard_state(2, 90), ..log.clone() });
    seed("no-protobuf", StoredGroup { hard_state: Some(vec![0xff; 5]), ..log.clone() });
    let no_state = Some((9, vec![0x12, 2, 0x10, 9]));
    seed("snapshot-without-state", StoredGroup { snapshot: no_state, ..log.clone() });
    seed("decision", StoredGroup { decision: Some(vec![1, 2, 3]), ..log });
}

/// Writes good and damaged probes with TLVs: `make corpus`.
#[test]
#[ignore = "writes files"]
fn write_the_corpus_of_probes() {
    use leaderd_core::ids::NodeIndex;
    use leaderd_core::probe::keys::HmacKey;
    use leaderd_core::probe::stamp::{
        AUTHENTICATED_LEN, ERROR_ESTIMATE, Location, Ntp, REQUEST_LEN, ReflectorPacket,
        SenderPacket,
    };

    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/stamp");
    let write = |name: &str, bytes: &[u8]| {
        std::fs::write(dir.join(name), bytes).expect("a directory that can be written");
    };
    let key = HmacKey::new([0; 32]);
    let packet = SenderPacket { seq: 7, timestamp: Ntp(9), ssid: 5 };
    let request = packet.encode_from(NodeIndex(3), &key, 180);
    write("named", &request);
    write("named-cut", &request[..REQUEST_LEN - 9]);
    let changed = |at: usize, to: u8| {
        let mut bytes = request.clone();
        bytes[at] = to;
        bytes
    };
    write("named-wrong-hmac", &changed(REQUEST_LEN - 1, 0));
    write("named-overlong", &changed(AUTHENTICATED_LEN + 2, 0xff));
    write("named-location-short", &changed(AUTHENTICATED_LEN + 11, 3));
    write(
        "named-hmac-twice",
        &[&request[..REQUEST_LEN], &request[REQUEST_LEN - 20..REQUEST_LEN]].concat(),
    );
    let reply = ReflectorPacket {
        seq: 1,
        timestamp: Ntp(1),
        ssid: 5,
        received: Ntp(1),
        sender_seq: 7,
        sender_timestamp: Ntp(9),
        sender_error: ERROR_ESTIMATE,
        sender_ttl: 63,
        location: Some(Location { source: ([10, 42, 4, 0], 40_000).into(), port: 8620 }),
    };
    write("told", &reply.encode(Some(&key), &request));
}

/// Writes whole and damaged short recordings: `make corpus`.
#[test]
#[ignore = "writes files"]
fn write_the_corpus_of_recordings() {
    use std::io::{Read, Write};
    use std::time::Duration;

    use leaderd_core::mesh::Policy;
    use tests::sim::meshes::{Site, mesh_of};
    use tests::sim::{World, WorldConfig};

    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/recording");
    let (mesh, secrets) = mesh_of(&[Site::new("a", 1, 1), Site::new("b", 1, 0)], Policy::default());
    let mut world = World::new(mesh, &secrets, WorldConfig::default());
    world.record(&"a-0".parse().expect("a name"));
    world.run_for(Duration::from_millis(400));
    let whole = world.recorded();
    let write = |name: &str, bytes: &[u8]| {
        std::fs::write(dir.join(name), bytes).expect("a directory that can be written");
    };
    write("whole", &whole);
    write("cut", &whole[..whole.len() / 2]);
    let line = whole.iter().position(|b| *b == b'\n').expect("a line") + 1;
    write("another-version", &[b"leaderd recording 99\n", &whole[line..]].concat());
    let mut damaged = whole.clone();
    damaged[line + 40] ^= 0x55;
    write("damaged", &damaged);
    // Without the compression the fuzzer gets further.
    let mut records = Vec::new();
    flate2::read::GzDecoder::new(&whole[line..]).read_to_end(&mut records).expect("gzip");
    write("records", &records[..records.len().min(6_000)]);
    let mut gzip =
        flate2::write::GzEncoder::new(whole[..line].to_vec(), flate2::Compression::best());
    gzip.write_all(&u32::MAX.to_le_bytes()).expect("memory takes everything");
    write("longest-length", &gzip.finish().expect("memory takes everything"));
}
