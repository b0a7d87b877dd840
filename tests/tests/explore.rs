//! Random worlds, random faults: the reference model must find nothing. `make sim SEEDS=1000..1200` runs chosen seeds,
//! those from a million on draw more ([`RICHER`]), and `make story OF=…` gives the account of one that failed.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tests::sim::explore::{Case, RICHER};

/// Seeds of an ordinary test run start here …
const FIRST_SEED: u64 = 1;
/// … and go on for this long, unless `SIM_SEEDS` names the seeds; those of the richer worlds, in which the mesh file
/// changes as well, again for so long.
const TIME: Duration = Duration::from_secs(25);

fn regressions() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions")
}

/// Two runs of one case: they must agree with each other, and with the model.
fn check(case: &Case) -> Result<(), String> {
    let first = case.run();
    if let Some(kind) = first.kind() {
        return Err(kind.to_owned());
    }
    let second = case.run();
    if first.digest != second.digest {
        return Err("not deterministic".to_owned());
    }
    Ok(())
}

fn seeds() -> Option<Range<u64>> {
    let text = std::env::var("SIM_SEEDS").ok().filter(|t| !t.is_empty())?;
    let (from, to) = text.split_once("..").expect("SIM_SEEDS is FROM..TO");
    Some(from.parse().expect("a number")..to.parse().expect("a number"))
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
    explore(FIRST_SEED..RICHER);
}

#[test]
fn no_seed_breaks_a_promise_while_the_mesh_file_changes() {
    if seeds().is_none() {
        explore(RICHER..u64::MAX);
    }
}

#[test]
fn the_richer_worlds_draw_all_kinds_of_trouble() {
    let cases: Vec<String> = (RICHER..RICHER + 200)
        .map(|seed| serde_json::to_string(&Case::of_seed(seed)).expect("plain data"))
        .collect();
    for kind in [
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
    ] {
        let drawn = cases.iter().filter(|c| c.contains(kind)).count();
        assert!(drawn >= 5, "{kind}: {drawn} of {}", cases.len());
    }
}

/// These seeds, for as long as an ordinary run may take; or those of `SIM_SEEDS`, all of them.
fn explore(range: Range<u64>) {
    let chosen = seeds();
    let range = chosen.clone().unwrap_or(range);
    let started = Instant::now();
    let mut failed = Vec::new();
    let mut ran = 0;
    for seed in range {
        if chosen.is_none() && started.elapsed() > TIME {
            break;
        }
        ran += 1;
        let case = Case::of_seed(seed);
        let Err(kind) = check(&case) else { continue };
        let small = if kind == "not deterministic" { case } else { case.shrink(&kind) };
        let file = regressions().join(format!("seed-{seed}.json"));
        let text = serde_json::to_string_pretty(&small).expect("plain data");
        std::fs::write(&file, text + "\n").expect("a file");
        let outcome = small.run();
        println!(
            "seed {seed}: {kind}\n{}\n{:#?}",
            serde_json::to_string(&small).expect("plain data"),
            outcome.violations
        );
        failed.push(format!("{seed}: {}", outcome.violations.first().cloned().unwrap_or(kind)));
    }
    println!("explored {ran} seeds in {:?}, {} failed", started.elapsed(), failed.len());
    assert!(failed.is_empty(), "{failed:#?}");
}
