//! The figures of `docs/benchmarks.md`: plays scenarios many times with `wgctl lab run` and prints a table.
//!
//! `bench [RUNS [ROW…]]` (default 50, and all rows: scenarios and `idle`), programs from `$LEADERD_BIN_DIR`, else beside
//! this one. Never a test: figures depend on the machine.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use leaderd_bench::cost::daemons;
use leaderd_bench::cost::lab::Lab;
use serde_json::Value;

/// Scenario, and p50 and p99 of the blackout of new flows to stay below (milliseconds), if there is a target.
const SCENARIOS: &[(&str, Option<(f64, f64)>)] = &[
    ("kilo-489", Some((300.0, 600.0))),
    ("node-crash", Some((300.0, 600.0))),
    ("planned-promotion", Some((0.0, 0.0))),
    ("pair-dead", Some((300.0, 600.0))),
    ("pair-dead-three", Some((300.0, 600.0))),
    ("pair-one-way", Some((300.0, 600.0))),
    ("plane-forwarding-off", Some((300.0, 600.0))),
    ("standby-pair-dead-489", Some((300.0, 600.0))),
    ("489-stateful", Some((300.0, 600.0))),
    ("member-down", None),
    ("location-cut", None),
    ("observer-sick", None),
    ("wan-brownout", None),
    ("wan-latency", None),
    ("slow-paths", None),
];

/// The row of what daemons cost with nothing to do.
const IDLE: &str = "idle";

fn main() -> Result<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    let runs = match arguments.next() {
        Some(n) => n.parse::<u32>().context("usage: bench [RUNS [ROW…]]")?,
        None => 50,
    };
    let only: Vec<String> = arguments.collect();
    if let Some(unknown) =
        only.iter().find(|row| *row != IDLE && !SCENARIOS.iter().any(|(name, _)| name == row))
    {
        anyhow::bail!("{unknown} is no row of this benchmark");
    }
    let wanted = |row: &str| only.is_empty() || only.iter().any(|r| r == row);
    let bin = match std::env::var_os("LEADERD_BIN_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => std::env::current_exe()?.parent().context("no directory")?.to_owned(),
    };
    println!(
        "| scenario | backend | runs | passed | blackout new flows p50 / p99 / max (ms) | failovers | lost new / old | target |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let mut missed = false;
    for (name, target) in SCENARIOS.iter().filter(|(name, _)| wanted(name)) {
        let out = Command::new(bin.join("wgctl"))
            .args(["lab", "run", name, "--keep-going", "--json", "-", "--runs", &runs.to_string()])
            .env("LEADERD_BIN", bin.join("leaderd"))
            .stderr(Stdio::inherit())
            .output()
            .with_context(|| format!("cannot run {}", bin.join("wgctl").display()))?;
        let report: Value =
            serde_json::from_slice(&out.stdout).with_context(|| format!("{name}: no result"))?;
        missed |= !row(name, &report, *target);
    }
    if wanted(IDLE) {
        missed |= !idle(&bin)?;
    }
    Ok(if missed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Prints a row; false if a target is missed or a run failed.
fn row(name: &str, report: &Value, target: Option<(f64, f64)>) -> bool {
    let empty = Vec::new();
    let runs = report["runs"].as_array().unwrap_or(&empty);
    let sum = |path: &str| runs.iter().filter_map(|r| r.pointer(path)?.as_u64()).sum::<u64>();
    let blackout = |p: &str| report["summary"]["blackout_ms"][p].as_f64().unwrap_or(f64::NAN);
    let (p50, p99) = (blackout("p50"), blackout("p99"));
    let met = target.is_none_or(|(a, b)| p50 <= a && p99 <= b);
    let passed = report["summary"]["passed"].as_u64().unwrap_or(0);
    println!(
        "| {name} | {} | {} | {passed} | {p50:.0} / {p99:.0} / {:.0} | {} | {} / {} | {} |",
        report["backend"].as_str().unwrap_or("-"),
        runs.len(),
        blackout("max"),
        sum("/failovers"),
        sum("/packets/new_flows/lost"),
        sum("/packets/established/lost"),
        match (target, met) {
            (None, _) => "-".to_owned(),
            (Some((a, b)), true) => format!("{a:.0} / {b:.0} met"),
            (Some((a, b)), false) => format!("{a:.0} / {b:.0} **missed**"),
        }
    );
    met && passed == runs.len() as u64
}

/// What a daemon costs while nothing happens: prints a line; false if a target is missed.
fn idle(bin: &Path) -> Result<bool> {
    const LAB: &str = "bench-idle";
    const MEASURE: Duration = Duration::from_secs(30);
    let lab = Lab::of(bin, LAB, Path::new("three-locations"), 9)?;
    let before = daemons::of_lab(LAB)?;
    std::thread::sleep(MEASURE);
    let after = daemons::of_lab(LAB)?;
    drop(lab);
    // Ticks are hundredths of a second (USER_HZ, `man 7 time`), so ticks a second are percent of a core.
    let share = |pid: &u32| {
        Some((after[pid].ticks - before.get(pid)?.ticks) as f64 / MEASURE.as_secs_f64())
    };
    let shares: Vec<f64> = after.keys().filter_map(share).collect();
    let cpu = shares.iter().copied().fold(0.0, f64::max);
    let mean = shares.iter().sum::<f64>() / shares.len().max(1) as f64;
    let rss = after.values().map(|d| d.rss as f64 / 1024.0).fold(0.0, f64::max);
    println!(
        "\nIdle, three-locations, {} daemons: CPU mean {mean:.2}% and at most {cpu:.2}% of a core (target 1.5%), RSS at most {rss:.1} MiB (target 40 MiB)",
        after.len()
    );
    Ok(cpu <= 1.5 && rss <= 40.0)
}
