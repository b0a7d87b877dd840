//! A lab that runs while it is measured, and what daemons cost in labs of growing size.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::daemons;
use crate::markdown::table;

/// From the start of a lab until it is measured: first decisions, first reports.
const SETTLE: Duration = Duration::from_secs(20);

/// `wgctl lab up`, until it is dropped.
#[derive(Debug)]
pub struct Lab {
    bin: PathBuf,
    name: String,
    up: Child,
}

impl Lab {
    /// Starts a mesh of this many locations, `l0`, `l1`, …, with two candidates and a member each. Returns once it is ready.
    pub fn up(bin: &Path, locations: u32) -> Result<Self> {
        let name = format!("bench-cost-{locations}");
        let mut text =
            String::from("title = \"Cost\"\nabout = \"Nothing happens.\"\nlocation = \"l0\"\n");
        for l in 0..locations {
            text += &format!("[locations.l{l}]\ncandidates = 2\nmembers = 1\n");
        }
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("cost.toml");
        std::fs::write(&file, text)?;
        // It was read long before the lab has settled.
        Self::of(bin, &name, &file, 3 * locations as usize)
    }

    /// Starts a scenario's mesh, by its name or file, with this many daemons. Returns once it is ready.
    pub fn of(bin: &Path, name: &str, scenario: &Path, daemons: usize) -> Result<Self> {
        let up = Command::new(bin.join("wgctl"))
            .args(["lab", "up", "--name", name])
            .arg(scenario)
            .env("LEADERD_BIN", bin.join("leaderd"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("wgctl lab up")?;
        let lab = Self { bin: bin.to_owned(), name: name.to_owned(), up };
        let began = Instant::now();
        std::thread::sleep(SETTLE);
        ensure!(
            daemons::of_lab(name)?.len() == daemons,
            "the lab {name} did not come up with {daemons} daemons within {:?}",
            began.elapsed()
        );
        Ok(lab)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command in a node's workload.
    pub fn in_pod(&self, node: &str, program: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(self.bin.join("wgctl"));
        command.args(["lab", "exec", "--name", &self.name, "--pod", node, "--"]);
        command.arg(program).args(args);
        command
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = Command::new(self.bin.join("wgctl"))
            .args(["lab", "down", "--name", &self.name])
            .output();
        let _ = self.up.wait();
    }
}

/// What daemons cost in labs of these sizes.
pub fn scale(bin: &Path, sizes: &[u32], measure: Duration) -> Result<String> {
    let mut rows = Vec::new();
    let mut first = None;
    for &locations in sizes {
        let lab = Lab::up(bin, locations)?;
        let before = daemons::of_lab(lab.name())?;
        std::thread::sleep(measure);
        let after = daemons::of_lab(lab.name())?;
        drop(lab);
        // Percent of a core: ticks are hundredths of a second.
        let share = |pid: &u32| {
            Some((after[pid].ticks - before.get(pid)?.ticks) as f64 / measure.as_secs_f64())
        };
        let shares = |candidates: bool| -> Vec<f64> {
            let chosen = after.iter().filter(|(_, d)| d.node.ends_with("-2") != candidates);
            chosen.filter_map(|(pid, _)| share(pid)).collect()
        };
        let mean = |all: &[f64]| all.iter().sum::<f64>() / all.len().max(1) as f64;
        let (candidates, members) = (shares(true), shares(false));
        ensure!(candidates.len() as u32 == 2 * locations, "a daemon ended while it was measured");
        let cpu = mean(&candidates);
        let rss = after.values().map(|d| d.rss).max().unwrap_or(0) as f64 / 1024.0;
        let (cpu_first, rss_first) = *first.get_or_insert((cpu, rss));
        rows.push(vec![
            locations.to_string(),
            (locations - 1).to_string(),
            format!("{cpu:.2}% ({:.1}×)", cpu / cpu_first),
            format!("{:.2}%", candidates.iter().copied().fold(0.0, f64::max)),
            format!("{:.2}%", mean(&members)),
            format!("{rss:.1} MiB ({:.2}×)", rss / rss_first),
        ]);
    }
    let head = [
        "locations",
        "watched by each candidate",
        "CPU of a candidate, mean",
        "busiest",
        "CPU of a member, mean",
        "RSS at most",
    ];
    Ok(format!(
        "Idle daemons, each lab for {} s after {} s of settling; CPU in percent of a core, ratios to the first line.\n\n{}",
        measure.as_secs(),
        SETTLE.as_secs(),
        table(&head, &rows)
    ))
}
