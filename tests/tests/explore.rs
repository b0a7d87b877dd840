//! Random worlds, random faults: the reference model must find nothing. `make sim SEEDS=1000..1200` runs chosen seeds,
//! `make sim FRESH=2000` as many that were never run, and `make story OF=…` gives the account of one that failed.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use tests::sim::campaign;
use tests::sim::case::Case;
use tests::sim::generate::Kind;
use tests::sim::known;

/// Seeds of each kind that an ordinary run explores. A number and no time limit, so that what passes on one machine passes on
/// another: new seeds are for `make sim FRESH=2000` and the nightly run. Twelve of one kind take about 20 s on two cores.
const ORDINARY: u64 = 12;

/// Each test takes all cores: one at a time.
static CORES: Mutex<()> = Mutex::new(());

fn regressions() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions")
}

#[test]
fn what_once_failed_holds() {
    let mut files: Vec<PathBuf> = std::fs::read_dir(regressions())
        .expect("tests/regressions")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no regression files");
    for file in files {
        let case: Case = serde_json::from_str(&std::fs::read_to_string(&file).expect("a file"))
            .unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let outcome = case.run();
        assert!(
            outcome.violations.is_empty(),
            "{}: {:#?}\n{}",
            file.display(),
            outcome.violations,
            outcome.story.join("\n")
        );
    }
}

#[test]
fn no_seed_breaks_a_promise() {
    explore(Kind::Plain);
}

#[test]
fn no_seed_breaks_a_promise_while_the_mesh_file_changes() {
    explore(Kind::Richer);
}

#[test]
fn no_seed_breaks_a_promise_while_disks_fill_and_power_is_cut() {
    explore(Kind::Disks);
}

#[test]
fn no_seed_breaks_a_promise_while_the_mesh_file_changes_amid_a_failover() {
    explore(Kind::RollOuts);
}

#[test]
fn no_seed_breaks_a_promise_while_a_node_lies() {
    explore(Kind::Hostile);
}

#[test]
fn no_seed_breaks_a_promise_while_all_goes_wrong_at_once() {
    explore(Kind::Everything);
}

#[test]
fn no_seed_breaks_a_promise_while_paths_fail() {
    explore(Kind::Paths);
}

#[test]
fn no_seed_breaks_a_promise_while_hosts_do_odd_things() {
    explore(Kind::Hosts);
}

#[test]
fn no_seed_breaks_a_promise_while_relays_drop_parts_of_the_traffic() {
    explore(Kind::Parts);
}

#[test]
fn each_kind_of_world_draws_all_its_kinds_of_trouble() {
    let richer = [
        "AddMember",
        "AddCandidate",
        "GiveSlot",
        "RotateKey",
        "ProbeInterval",
        "HoldDown",
        "DiskCrash",
        "DiskLoss",
        "DaemonKill",
        "DaemonPause",
        "OneWay",
        "WanLatency",
        "MtuBlackhole",
        "\"duplicate\":0.01,\"reorder\":0.02",
        "\"late_ms\":{\"",
    ];
    let disks = [
        "\"hard_states_fit\":true",
        "\"hard_states_fit\":false",
        "DiskSlow",
        "PowerCut",
        "NodeCrash",
    ];
    let roll_outs =
        ["AddCandidate", "AddMember", "GiveSlot", "TakeSlot", "DropWitnesses", "NodeCrash"];
    let hostile =
        ["Hostile", "\"works\":true", "\"works\":false", "\"raft\":true", "\"raft\":false"];
    let paths = [
        "PairCut",
        "OneWay",
        "Weather",
        "Bursty",
        "\"slower_ms\":1",
        "PlaneOff",
        "FamilyOff",
        "\"ipv6\":true",
        "\"direct\":true",
    ];
    let hosts = [
        "MachinePause",
        "LanControlCut",
        "LanPacketsCut",
        "LinkDown",
        "\"Rule\"",
        "\"Route\"",
        "\"iif\"",
        "\"direct\":true",
    ];
    for (kind, drawn) in [
        (Kind::Paths, &paths[..]),
        (Kind::Parts, &["SizeWindow", "OutwardNewFlows", "WanLoss"]),
        (Kind::Hosts, &hosts),
        (Kind::Richer, &richer),
        (Kind::Disks, &disks),
        (Kind::RollOuts, &roll_outs),
        (Kind::Hostile, &hostile),
    ] {
        let from = kind.seeds().start;
        let cases: Vec<String> = (from..from + 200)
            .map(|seed| serde_json::to_string(&Case::of_seed(seed)).expect("plain data"))
            .collect();
        for what in drawn {
            let n = cases.iter().filter(|c| c.contains(what)).count();
            assert!(n >= 5, "{kind:?}: {what} in {n} of {}", cases.len());
        }
    }
}

/// A hostile node of each role, in worlds that are drawn.
#[test]
fn nodes_of_every_role_lie() {
    let mut roles = [0; 4];
    for seed in Kind::Hostile.seeds().take(200) {
        let case = Case::of_seed(seed);
        let (mesh, _) = tests::sim::meshes::mesh_of(&case.sites, Default::default());
        let liar = &case.faults.last().expect("there is one").node;
        let node = &mesh.nodes[liar];
        let elsewhere = mesh.locations.keys().filter(|l| **l != node.location);
        let witness = elsewhere.clone().any(|l| mesh.voters_of(l).contains(liar));
        let candidate = node.slot.is_some();
        for (n, is) in
            [candidate, !candidate, witness, candidate && !witness].into_iter().enumerate()
        {
            roles[n] += u32::from(is);
        }
    }
    assert!(roles.iter().all(|n| *n >= 5), "candidates, members, witnesses, observers: {roles:?}");
}

/// Explores the first seeds of a kind.
fn explore(kind: Kind) {
    let _alone = CORES.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let from = kind.seeds().start;
    let tally = campaign::run(from, |begun, _| begun < ORDINARY, |_, _| {});
    println!(
        "{}: explored {} seeds from {} in {:.1} s, {:.2} a second, {} of them twice; {} failed",
        kind.as_str(),
        tally.ran,
        from,
        tally.took.as_secs_f64(),
        tally.per_second(),
        tally.repeated,
        tally.failures.len()
    );
    let sentences = |failures: &[campaign::Failure]| {
        failures.iter().map(|f| format!("{}: {}", f.seed, f.what)).collect::<Vec<String>>()
    };
    let failed = sentences(&tally.failures);
    let row = |what: &str| format!("explore {}: {what}", kind.as_str());
    if failed.len() > known::fails(&row("promises")) {
        for failure in tally.failures.iter().take(3) {
            let file = campaign::save_regression(failure.seed, &regressions()).expect("a file");
            println!("seed {}: {}\n  {}", failure.seed, failure.what, file.display());
        }
    }
    assert_eq!(tally.ran, ORDINARY, "some seeds were not explored");
    let ran = ORDINARY as usize;
    known::judge_all(&[
        (&row("promises"), ran, &failed),
        (&row("through"), ran, &sentences(&tally.not_through)),
        (&row("mirror"), ran, &sentences(&tally.not_mirrored)),
    ]);
}
