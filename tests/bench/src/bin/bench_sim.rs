//! `make bench-sim`: the figures of `docs/bench-sim.md` and its pictures, from virtual time.
//!
//! `bench_sim [--quick] [--docs DIR] [PART…]`, parts: `detection`, `scale`, `election`; all by default. Each part stands
//! between markers of its own file section, so one can be taken again alone.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use ::tests::memory::Counting;
use anyhow::{Context, Result};
use leaderd_bench::markdown;
use leaderd_bench::sim::{Effort, election, false_failovers, report, scale};

/// As the markers in the file have it.
const TOOL: &str = "bench-sim";

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (mut quick, mut docs, mut parts) = (false, PathBuf::from("docs"), Vec::new());
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--quick" => quick = true,
            "--docs" => docs = arguments.next().context("--docs needs a directory")?.into(),
            "detection" | "scale" | "election" => parts.push(argument),
            other => anyhow::bail!("{other}: usage: bench_sim [--quick] [--docs DIR] [PART…]"),
        }
    }
    let effort = Effort { quick };
    let started = Instant::now();
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|p| p == part);
    let command = |part: &str| {
        let quick = if quick { " QUICK=1" } else { "" };
        format!(
            "\nCommand: `make bench-sim{quick} PART={part}` (all parts: `make bench-sim{quick}`).\n"
        )
    };
    if wanted("election") {
        let seconds = election::length(effort);
        eprintln!("election: {seconds} simulated seconds each");
        let ours = election::ours(seconds, 1);
        let ticks = [100, 50, 30].map(Duration::from_millis);
        let fixed: Vec<_> = ticks.iter().map(|t| (*t, election::fixed(*t, seconds, 1))).collect();
        let text = report::election(ours, &fixed) + &command("election");
        markdown::write_between_markers(&docs.join("bench-sim.md"), TOOL, "election", &text)?;
        println!("{text}");
    }
    if wanted("detection") {
        let weighed = false_failovers::weigh(effort);
        let found = false_failovers::detect(effort);
        let counted = false_failovers::count(effort);
        let text = [
            report::claim(&counted, &weighed, &found),
            report::false_failovers(&counted, &weighed),
            report::detection(&found),
            command("detection"),
        ]
        .join("\n");
        markdown::write_between_markers(&docs.join("bench-sim.md"), TOOL, "detection", &text)?;
        let chart = report::false_failover_chart(&counted, &weighed);
        std::fs::write(docs.join("bench-sim-false-failovers.svg"), chart.svg())?;
        std::fs::write(
            docs.join("bench-sim-detection.svg"),
            report::detection_chart(&found).svg(),
        )?;
        println!("{text}");
    }
    if wanted("scale") {
        let mut costs = Vec::new();
        for size in scale::sizes(effort) {
            eprintln!("scale: {size:?}, {:.0} s so far", started.elapsed().as_secs_f64());
            costs.push(scale::measure(size, effort));
        }
        let text = report::scale(&costs) + &command("scale");
        markdown::write_between_markers(&docs.join("bench-sim.md"), TOOL, "scale", &text)?;
        std::fs::write(docs.join("bench-sim-scale.svg"), report::scale_chart(&costs).svg())?;
        println!("{text}");
    }
    eprintln!("took {:.0} s", started.elapsed().as_secs_f64());
    Ok(())
}
