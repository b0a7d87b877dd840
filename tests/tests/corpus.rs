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

/// Good and damaged stores to begin with: `cargo test -p tests --test corpus write_the_corpus -- --ignored`.
#[test]
#[ignore = "writes files"]
fn write_the_corpus_of_store_records() {
    use leaderd_core::io::Restored;
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/store_record");
    let seed = |name: &str, restored: Restored| {
        let bytes = postcard::to_stdvec(&restored).expect("plain data");
        std::fs::write(dir.join(name), bytes).expect("a directory that can be written");
    };
    // Protobuf: HardState { term: 2, vote: 1, commit: 2 }, and Entry { term: 2, index }.
    let hard_state = Some(vec![0x08, 2, 0x10, 1, 0x18, 2]);
    let entry = |index: u8| (u64::from(index), vec![0x10, 2, 0x18, index]);
    seed("empty", Restored::default());
    let log = Restored { hard_state, entries: vec![entry(2), entry(3)], ..Restored::default() };
    seed("log", log.clone());
    seed("gap", Restored { entries: vec![entry(2), entry(5)], ..log.clone() });
    seed("commit-beyond", Restored { hard_state: Some(vec![0x18, 90]), ..log.clone() });
    seed("no-protobuf", Restored { hard_state: Some(vec![0xff; 5]), ..log.clone() });
    let no_snapshot = Some((9, vec![0x12, 2, 0x10, 9]));
    seed("snapshot-without-state", Restored { snapshot: no_snapshot, ..log.clone() });
    seed("decision", Restored { decision: Some(vec![1, 2, 3]), ..log });
}

/// Probes with TLVs, good and damaged: `cargo test -p tests --test corpus write_the_corpus -- --ignored`.
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

/// Short recordings, whole and not: `cargo test -p tests --test corpus write_the_corpus -- --ignored`.
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
