//! Times between log lines of daemons in the lab: from the commit to all nodes, and from the start to the first decision.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::median;
use crate::markdown::table;

/// The location in which `kilo-489` breaks the leader.
const LOCATION: &str = "cloud";

/// A log line of a daemon.
#[derive(Clone, Debug)]
struct Line {
    /// Seconds of the day.
    at: f64,
    message: String,
    location: String,
    epoch: u64,
}

fn lines(file: &Path) -> Result<Vec<Line>> {
    let text = std::fs::read_to_string(file)?;
    let parse = |line: &str| -> Option<Line> {
        let value: Value = serde_json::from_str(line).ok()?;
        let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
        let (_, time) = value["timestamp"].as_str()?.trim_end_matches('Z').split_once('T')?;
        let mut parts = time.split(':').map(|p| p.parse::<f64>().ok());
        let (hours, minutes, seconds) = (parts.next()??, parts.next()??, parts.next()??);
        Some(Line {
            at: (hours * 60.0 + minutes) * 60.0 + seconds,
            message: text("message"),
            location: text("location.name"),
            epoch: text("decision.epoch").parse().unwrap_or(0),
        })
    };
    Ok(text.lines().filter_map(parse).collect())
}

/// From `from` to `to` in milliseconds, over midnight as well.
fn between(from: f64, to: f64) -> f64 {
    (to - from).rem_euclid(86_400.0) * 1e3
}

/// Of one run: milliseconds from the start of the location's first daemon to its first decision in force there; from the commit
/// of the failover to its being in force on each member of the location, and on each candidate elsewhere.
fn of_run(logs: &Path) -> Result<(f64, Vec<f64>, Vec<f64>)> {
    let (mut started, mut first) = (Vec::new(), Vec::new());
    let (mut committed, mut members, mut elsewhere) = (Vec::new(), Vec::new(), Vec::new());
    for entry in std::fs::read_dir(logs)? {
        let path = entry?.path();
        let Some(node) = path.file_name().and_then(|n| n.to_str()?.strip_suffix(".log")) else {
            continue;
        };
        let here = node.starts_with(LOCATION);
        for line in lines(&path)? {
            let in_force = line.message == "decision in force" && line.location == LOCATION;
            match line.epoch {
                _ if here && line.message == "starting" => started.push(line.at),
                1 if here && in_force => first.push(line.at),
                2 if in_force && here => members.push(line.at),
                2 if in_force => elsewhere.push(line.at),
                // Whoever applies the committed entry says so; the raft leader is the first.
                2 if here && line.message.contains(" locations: ") => committed.push(line.at),
                _ => {}
            }
        }
    }
    let earliest = |all: &[f64]| {
        all.iter().copied().min_by(f64::total_cmp).context("no such line in the logs")
    };
    let (started, first, committed) =
        (earliest(&started)?, earliest(&first)?, earliest(&committed)?);
    let since = |all: Vec<f64>| all.into_iter().map(|at| between(committed, at)).collect();
    Ok((between(started, first), since(members), since(elsewhere)))
}

pub fn measure(bin: &Path, runs: u32) -> Result<String> {
    let logs = tempfile::tempdir()?;
    Command::new(bin.join("wgctl"))
        .args(["lab", "run", "kilo-489", "--keep-going", "--runs", &runs.to_string(), "--logs"])
        .arg(logs.path())
        .env("LEADERD_BIN", bin.join("leaderd"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context("wgctl lab run")?;
    let (mut starts, mut members, mut elsewhere, mut last) = (vec![], vec![], vec![], vec![]);
    for run in 1..=runs {
        // A run in which another node was replaced first says nothing.
        let Ok((start, here, there)) = of_run(&logs.path().join(format!("kilo-489-{run}"))) else {
            continue;
        };
        starts.push(start);
        last.extend(here.iter().chain(&there).copied().max_by(f64::total_cmp));
        members.extend(here);
        elsewhere.extend(there);
    }
    ensure!(!starts.is_empty(), "no run of kilo-489 has the lines that are looked for");
    let good = starts.len();
    let row = |what: &str, values: &mut Vec<f64>| {
        let worst = values.iter().copied().fold(f64::NAN, f64::max);
        vec![what.to_owned(), format!("**{:.0} ms**", median(values)), format!("{worst:.0} ms")]
    };
    let rows = [
        row("commit of the failover → in force on a node of the location", &mut members),
        row("commit → in force on a candidate elsewhere", &mut elsewhere),
        row("commit → in force on the last of all", &mut last),
        row("start of the daemons → first decision in force", &mut starts),
    ];
    Ok(format!(
        "From the log lines of all daemons, {good} of {runs} runs of `kilo-489`; `in force` is programmed in the kernel.\n\n{}",
        table(&["time", "median", "longest"], &rows)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_taken_between_the_lines_of_a_failover() {
        let dir = tempfile::tempdir().unwrap();
        let line = |time: &str, message: &str, epoch: &str| {
            format!(
                "{{\"timestamp\":\"2026-11-21T{time}Z\",\"message\":\"{message}\",\"location.name\":\"cloud\",\"decision.epoch\":\"{epoch}\"}}\n"
            )
        };
        let cloud = line("23:59:59.000000", "starting", "")
            + &line("23:59:59.500000", "decision in force", "1")
            + &line(
                "23:59:59.990000",
                "cloud-0 drops (1 of 1 locations: onprem, as onprem-0 sees it); x",
                "2",
            )
            + &line("00:00:00.000000", "decision in force", "2");
        std::fs::write(dir.path().join("cloud-2.log"), cloud).unwrap();
        let onprem = line("00:00:00.020000", "decision in force", "2") + "no JSON\n";
        std::fs::write(dir.path().join("onprem-0.log"), onprem).unwrap();
        let (start, here, there) = of_run(dir.path()).unwrap();
        let near = |a: f64, b: f64| (a - b).abs() < 0.1;
        assert!(
            near(start, 500.0) && near(here[0], 10.0) && near(there[0], 30.0),
            "{here:?} {there:?}"
        );
        std::fs::remove_file(dir.path().join("cloud-2.log")).unwrap();
        assert!(of_run(dir.path()).is_err());
    }
}
