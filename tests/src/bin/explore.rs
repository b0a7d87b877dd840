//! Many random worlds in virtual time, more than a test has time for.
//!
//! `explore --fresh N` runs N seeds that were never run, shared among the kinds of worlds, and goes on where it stopped;
//! `explore FROM..TO` runs these. `--kind NAME` keeps to one kind. What ran stands in `$TARGET/sim/explored.json`; with
//! `--note` a line about it is added to `docs/bench-sim.md`. What fails is made small, and kept in `$TARGET/sim`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use tests::sim::campaign::{self, Tally};
use tests::sim::generate::Kind;

const USAGE: &str = "usage: explore (--fresh N | FROM..TO) [--kind NAME] [--note]";
/// Failures that are made small, which takes many runs each.
const KEPT: usize = 5;
/// Seeds between two lines about how far it is, and between two writes of the record.
const STEP: u64 = 20;

/// What was run, by kind of world.
#[derive(Default, Serialize, Deserialize)]
struct Record {
    kinds: BTreeMap<String, Explored>,
}

#[derive(Default, Serialize, Deserialize)]
struct Explored {
    /// The next fresh seed.
    next: Option<u64>,
    ran: u64,
    /// Seeds that broke a promise, what they broke, and with which commit.
    failed: Vec<(u64, String, String)>,
}

struct Args {
    fresh: Option<u64>,
    seeds: Option<(u64, u64)>,
    kind: Option<Kind>,
    note: bool,
}

fn args() -> Result<Args> {
    let mut args = Args { fresh: None, seeds: None, kind: None, note: false };
    let mut given = std::env::args().skip(1);
    while let Some(arg) = given.next() {
        let mut value = || given.next().context(USAGE);
        match arg.as_str() {
            "--fresh" => args.fresh = Some(value()?.parse().context(USAGE)?),
            "--kind" => {
                let name = value()?;
                let kind = Kind::ALL.into_iter().find(|k| k.as_str() == name);
                args.kind = Some(kind.with_context(|| format!("no kind of world: {name}"))?);
            }
            "--note" => args.note = true,
            range => {
                let (from, to) = range.split_once("..").context(USAGE)?;
                args.seeds = Some((from.parse().context(USAGE)?, to.parse().context(USAGE)?));
            }
        }
    }
    if args.fresh.is_some() == args.seeds.is_some() {
        bail!(USAGE);
    }
    Ok(args)
}

fn main() -> Result<ExitCode> {
    let args = args()?;
    // A core that panics breaks a promise, which one line reports.
    std::panic::set_hook(Box::new(|_| {}));
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let directory = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let directory = directory.unwrap_or_else(|| root.join("target")).join("sim");
    let commit = commit(root);
    let file = directory.join("explored.json");
    let mut record: Record = match std::fs::read(&file) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .with_context(|| format!("{} is no record: remove it", file.display()))?,
        Err(_) => Record::default(),
    };
    let kinds: Vec<Kind> =
        Kind::ALL.into_iter().filter(|k| args.kind.is_none_or(|only| only == *k)).collect();
    let mut ran = BTreeMap::new();
    let mut failed = 0;
    for (n, kind) in kinds.iter().enumerate() {
        let own = kind.seeds();
        let name = kind.as_str();
        let next = record.kinds.get(name).and_then(|e| e.next).unwrap_or(own.start);
        let (from, count) = match (args.fresh, args.seeds) {
            (Some(fresh), _) => {
                let share =
                    fresh / kinds.len() as u64 + u64::from((n as u64) < fresh % kinds.len() as u64);
                (next, share)
            }
            (None, Some((from, to))) => {
                let from = from.max(own.start);
                (from, to.min(own.end).saturating_sub(from))
            }
            (None, None) => unreachable!("checked in args"),
        };
        let mut done = 0;
        // In steps, so that what is stopped in the midst goes on there.
        while done < count {
            let step = STEP.min(count - done);
            let tally = explore(*kind, from + done, step);
            done += step;
            let explored = record.kinds.entry(name.to_owned()).or_default();
            if args.fresh.is_some() {
                explored.next = Some(from + done);
            }
            explored.ran += tally.ran;
            *ran.entry(*kind).or_insert(0) += tally.ran;
            for failure in &tally.failures {
                failed += 1;
                if failed <= KEPT {
                    let kept = campaign::save_regression(failure.seed, &directory)?;
                    println!("  made small: {}", kept.display());
                }
                explored.failed.push((failure.seed, failure.what.clone(), commit.clone()));
            }
            std::fs::create_dir_all(&directory)?;
            std::fs::write(&file, serde_json::to_string_pretty(&record)?)?;
        }
    }
    let total: u64 = ran.values().sum();
    println!("explored {total} seeds with {commit}; {failed} broke a promise");
    if args.note {
        note(root, &commit, &ran, failed)?;
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn explore(kind: Kind, from: u64, count: u64) -> Tally {
    let printing = Mutex::new(());
    let tally = campaign::run(
        from,
        |begun, _: Duration| begun < count,
        |seed, what| {
            let _whole_lines = printing.lock();
            if let Some(what) = what {
                println!("seed {seed} ({}): {what}", kind.as_str());
            }
        },
    );
    println!(
        "{}: {from}..{}, {:.2} seeds a second, {} of them twice, {} failed",
        kind.as_str(),
        from + count,
        tally.per_second(),
        tally.repeated,
        tally.failures.len()
    );
    tally
}

/// What is explored, as git names it.
fn commit(root: &Path) -> String {
    let git = |args: &[&str]| {
        let out = Command::new("git").current_dir(root).args(args).output().ok()?;
        out.status.success().then(|| String::from_utf8_lossy(&out.stdout).trim().to_owned())
    };
    let commit =
        git(&["rev-parse", "--short=10", "HEAD"]).unwrap_or_else(|| "no commit".to_owned());
    // Records and notes of runs are no change of what runs.
    match git(&["status", "--porcelain", "--", "leaderd", "wgctl", "tests/src", "Cargo.lock"]) {
        Some(changes) if !changes.is_empty() => format!("{commit} and changes"),
        _ => commit,
    }
}

const HEADING: &str = "| commit | command | seeds | of these | broke a promise |";
const TOTAL: &str = "**In all**: ";

/// Adds a line to the table in `docs/bench-sim.md`, and counts its seeds to the total.
fn note(root: &Path, commit: &str, ran: &BTreeMap<Kind, u64>, failed: usize) -> Result<()> {
    let path = root.join("docs/bench-sim.md");
    let text = std::fs::read_to_string(&path).context("cannot read docs/bench-sim.md")?;
    let count: u64 = ran.values().sum();
    let kinds: Vec<String> = ran.iter().map(|(k, n)| format!("{} {n}", k.as_str())).collect();
    let command: Vec<String> = std::env::args().skip(1).collect();
    let command = command.join(" ").replace("--fresh ", "FRESH=").replace(" --note", "");
    let line =
        format!("| {commit} | `make sim {command}` | {count} | {} | {failed} |", kinds.join(", "));
    let text =
        with_line(&text, &line).context("docs/bench-sim.md has no table of explored seeds")?;
    std::fs::write(&path, text).context("cannot write docs/bench-sim.md")
}

/// The text with a line more in its table, and the total of all lines.
fn with_line(text: &str, line: &str) -> Option<String> {
    let mut lines: Vec<&str> = text.lines().collect();
    let heading = lines.iter().position(|l| *l == HEADING)?;
    let end = heading + lines[heading..].iter().position(|l| !l.starts_with('|'))?;
    lines.insert(end, line);
    let cell = |l: &&str, n: usize| l.split('|').nth(n).and_then(|c| c.trim().parse::<u64>().ok());
    let sum = |n: usize| lines[heading..=end].iter().filter_map(|l| cell(l, n)).sum::<u64>();
    let total = format!("{TOTAL}{} seeds, {} of which broke a promise.", sum(3), sum(5));
    let at = end + lines[end..].iter().position(|l| l.starts_with(TOTAL))?;
    lines[at] = &total;
    Some(lines.join("\n") + "\n")
}

#[cfg(test)]
mod noting {
    use super::*;

    #[test]
    fn a_line_is_added_and_counted() {
        let text = format!(
            "Above.\n\n{HEADING}\n| --- | --- | --- | --- | --- |\n| a | `x` | 5 | plain 5 | 1 |\n\n{TOTAL}none.\n\nBelow.\n"
        );
        let text = with_line(&text, "| b | `y` | 7 | disks 7 | 0 |").unwrap();
        assert!(text.contains("| 1 |\n| b | `y` | 7 | disks 7 | 0 |\n\n"), "{text}");
        assert!(text.contains("**In all**: 12 seeds, 1 of which broke a promise."), "{text}");
        assert!(text.ends_with("Below.\n"), "{text}");
        assert_eq!(with_line("no table", "x"), None);
    }
}
