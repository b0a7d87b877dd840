//! Recordings: the same inputs give the same outputs, byte for byte, without a key, and what is not so is found.

use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::time::Duration;

use leaderd::record::{Ended, FileWriter, Header, Reader, Record, Tail};
use leaderd::replay::{Outcome, Replay, What, play};
use leaderd_core::fault::{Fault as Found, MoveReason};
use leaderd_core::ids::NodeName;
use leaderd_core::io::{Effect, Input, ProbeId};
use leaderd_core::mesh::Policy;
use tests::sim::meshes::{Site, mesh_of};
use tests::sim::{Fault, World, WorldConfig};

fn name(s: &str) -> NodeName {
    s.parse().expect("a name")
}

fn replay(bytes: &[u8]) -> Replay {
    let mut reader = Reader::new(BufReader::new(bytes)).expect("a recording");
    let header = reader.header().expect("a header");
    play(header, &mut reader)
}

fn all(bytes: &[u8]) -> (Header, Vec<Record>) {
    let mut reader = Reader::new(BufReader::new(bytes)).expect("a recording");
    let header = reader.header().expect("a header");
    let mut records = Vec::new();
    while let Some(record) = reader.next_record().expect("no damage") {
        records.push(record);
    }
    assert_eq!(reader.tail(), Some(Tail::Ended(Ended::Stopped)));
    (header, records)
}

fn file(header: &Header, records: &[Record]) -> Vec<u8> {
    let mut file = FileWriter::new(Vec::new(), header).expect("memory takes everything");
    records.iter().for_each(|r| file.record(r).expect("memory takes everything"));
    file.finish(Ended::Stopped).expect("memory takes everything")
}

/// The leader of cloud drops new flows; `node` is recorded, from a restart with a store before it to long after it.
fn recorded(node: &str) -> Vec<u8> {
    let sites = [Site::new("cloud", 3, 0), Site::new("home", 3, 0)];
    let (mesh, secrets) = mesh_of(&sites, Policy::default());
    let mut world = World::new(mesh, &secrets, WorldConfig::default());
    world.run_for(Duration::from_secs(15));
    world.record(&name(node));
    world.run_for(Duration::from_secs(15));
    let cloud = "cloud".parse().expect("a name");
    let leader = |world: &World| {
        let slot =
            world.core(&name(node)).and_then(|c| c.decision(&cloud)).expect("one").leaders[0];
        world.mesh.candidate(&cloud, slot).expect("a candidate").name.clone()
    };
    let sick = leader(&world);
    world.fault(&sick, &Fault::VxlanNewFlows, true);
    // Not of a node of the mesh, and with a wrong HMAC: refused, and refused again in the replay.
    let forged = Input::ProbeRequest {
        from: "10.1.1.1:4000".parse().expect("an address"),
        local: "10.1.0.1:8620".parse().expect("an address"),
        ttl: 60,
        bytes: vec![7; 200],
    };
    world.input(&name(node), forged);
    world.input(&name(node), Input::ProbeReply { probe: ProbeId(1), bytes: vec![9; 112] });
    world.run_for(Duration::from_secs(10));
    assert_ne!(leader(&world), sick, "a failover is in the recording");
    world.recorded()
}

#[test]
fn a_fresh_recording_is_reproduced_byte_for_byte_and_tells_the_failover() {
    for node in ["cloud-0", "cloud-1", "cloud-2", "home-0"] {
        let bytes = recorded(node);
        let replay = replay(&bytes);
        assert_eq!(replay.outcome, Outcome::AsRecorded, "{node}");
        let account = &replay.account;
        assert_eq!(account.ended, Some(Ended::Stopped));
        assert!(account.inputs > 2_000 && account.effects > 2_000, "{node}: {account:?}");
        let failover = account.entries.iter().find_map(|e| match &e.what {
            What::Decision {
                location,
                cause: MoveReason::Fault(Found::NewFlow),
                before,
                leaders,
                ..
            } => Some((location.as_str(), before != leaders)),
            _ => None,
        });
        assert_eq!(failover, Some(("cloud", true)), "{node}");
        println!("{node}: {} inputs in {} bytes", account.inputs, bytes.len());
    }
}

#[test]
fn a_recording_holds_no_authentication_tag() {
    let (header, records) = all(&recorded("home-0"));
    assert!(!header.restored.is_empty(), "the store is in it");
    let (mut probes, mut forged) = (0, 0);
    let mut check = |packet: &[u8]| match packet.get(96..112) {
        Some(tag) if tag == [0; 16] => probes += 1,
        Some(tag) if tag == [0xff; 16] => forged += 1,
        Some(tag) => panic!("a tag: {tag:?}"),
        None => {}
    };
    for record in &records {
        let (input, effects) = match record {
            Record::Input { input, effects, .. } => (Some(&**input), effects),
            Record::Started { effects } => (None, effects),
            Record::Ended(_) => unreachable!("the reader keeps it"),
        };
        if let Some(Input::ProbeReply { bytes, .. } | Input::ProbeRequest { bytes, .. }) = input {
            check(bytes);
        }
        for effect in effects {
            match effect {
                Effect::SendProbe(probe) => probe.packet().into_iter().for_each(&mut check),
                Effect::Reflect { bytes, .. } | Effect::ReflectThrough { bytes, .. } => {
                    check(bytes)
                }
                _ => {}
            }
        }
    }
    assert!(probes > 1_000, "{probes}");
    assert!(forged >= 1, "{forged}");
}

#[test]
fn the_first_output_that_differs_is_found() {
    let (header, records) = all(&recorded("cloud-1"));
    let sends = |r: &Record| {
        matches!(r, Record::Input { effects, .. }
            if effects.iter().any(|e| matches!(e, Effect::SendFrame { .. })))
    };
    let at = (500..records.len()).find(|n| sends(&records[*n])).expect("it talks");

    // An output that the core did not want.
    let mut changed = records.clone();
    let Record::Input { effects, .. } = &mut changed[at] else { unreachable!() };
    let kept = effects.len();
    effects.push(Effect::ForgetProbe { probe: ProbeId(u64::MAX) });
    let Outcome::Diverged(found) = replay(&file(&header, &changed)).outcome else { panic!() };
    assert_eq!((found.record, found.effect, found.replayed), (at as u64 + 1, kept, None));

    // One that is missing.
    let mut changed = records.clone();
    let Record::Input { effects, .. } = &mut changed[at] else { unreachable!() };
    effects.pop();
    let Outcome::Diverged(found) = replay(&file(&header, &changed)).outcome else { panic!() };
    assert_eq!((found.record, found.effect, found.recorded), (at as u64 + 1, kept - 1, None));

    // Another seed: other probes from the very start.
    let other = Header { seed: header.seed + 1, ..header.clone() };
    assert!(matches!(replay(&file(&other, &records)).outcome, Outcome::Diverged(_)));

    // An input left out: sooner or later it shows.
    let mut changed = records.clone();
    changed.remove(at);
    assert!(matches!(replay(&file(&header, &changed)).outcome, Outcome::Diverged(_)));
}

#[test]
fn a_truncated_recording_is_valid_up_to_its_end() {
    let bytes = recorded("cloud-2");
    for part in [3, 2] {
        let replay = replay(&bytes[..bytes.len() - bytes.len() / part]);
        assert_eq!(replay.outcome, Outcome::AsRecorded);
        assert!(replay.account.cut_off && replay.account.ended.is_none());
        assert!(replay.account.inputs > 100, "{}", replay.account.inputs);
    }
}

#[test]
fn what_does_not_fit_together_is_refused_and_not_a_panic() {
    let (header, records) = all(&recorded("cloud-2"));
    let stranger = Header { me: name("nobody"), ..header };
    assert!(matches!(replay(&file(&stranger, &records)).outcome, Outcome::Refused { .. }));
}

/// A real failover on real packets: scenario kilo-489 of the lab, each daemon's own recording (`make recording`).
fn fixtures() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let mut files: Vec<PathBuf> = dir
        .read_dir()
        .expect("tests/fixtures")
        .map(|f| f.expect("an entry").path())
        .filter(|p| p.extension().is_some_and(|e| e == "recording"))
        .collect();
    files.sort();
    files
}

#[test]
fn the_daemons_of_a_real_failover_would_decide_the_same_again() {
    let files = fixtures();
    assert!(!files.is_empty(), "no recordings in tests/fixtures: run `make recording`");
    let (mut size, mut led, mut observed) = (0, 0, 0);
    for path in files {
        let shown = path.display();
        size += path.metadata().expect("a file").len();
        let mut reader = Reader::open(&path)
            .unwrap_or_else(|e| panic!("{shown}: {e}; if its format changed: `make recording`"));
        let header = reader.header().expect("a header");
        let replay = play(header, &mut reader);
        assert_eq!(
            replay.outcome,
            Outcome::AsRecorded,
            "{shown}: the core decides otherwise than when it was recorded. If that is meant: `make recording`"
        );
        let account = &replay.account;
        let moved = account.entries.iter().any(|e| {
            matches!(&e.what, What::Decision { cause: MoveReason::Fault(Found::NewFlow), location, before, leaders, .. }
                if location.as_str() == "cloud" && before != leaders)
        });
        assert!(moved, "{shown}: no failover because of new flows in it");
        let mut raft_leaders = account.entries.iter().filter_map(|e| match &e.what {
            What::Log { fields, .. } => fields.iter().find(|(k, _)| k == "raft.leader"),
            _ => None,
        });
        led += u32::from(raft_leaders.any(|(_, who)| who == account.node.as_str()));
        observed += u32::from(account.location.as_ref().is_some_and(|l| l.as_str() != "cloud"));
    }
    assert!(size < 1 << 20, "{size} bytes");
    assert!(led >= 1 && observed >= 1, "of a raft leader: {led}, of an observer: {observed}");
}
