//! `make bench-cost`: what a failover, a watched location and a packet cost, for `docs/benchmarks.md`.
//!
//! `bench_cost [--quick] [--docs DIR] [PART…]`, parts: `programming`, `scale`, `throughput`, `times`; all by default. Programs
//! from `$LEADERD_BIN_DIR`, else beside this one. Each part stands between markers, so one can be taken again alone. Never a
//! test: figures depend on the machine.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use leaderd_bench::cost::{lab, programming, throughput, times};
use leaderd_bench::markdown;

const PARTS: [&str; 4] = ["programming", "scale", "throughput", "times"];

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["inside", "programming"] => return programming::inside(),
        ["inside", "failovers", prefixes, times] => return programming::failovers(prefixes, times),
        ["inside", role @ ..] => return throughput::inside(role),
        _ => {}
    }
    let (mut quick, mut docs, mut parts) = (false, PathBuf::from("docs"), Vec::new());
    let mut arguments = words.into_iter();
    while let Some(argument) = arguments.next() {
        match argument {
            "--quick" => quick = true,
            "--docs" => docs = arguments.next().context("--docs needs a directory")?.into(),
            part if PARTS.contains(&part) => parts.push(part),
            other => anyhow::bail!("{other}: usage: bench_cost [--quick] [--docs DIR] [PART…]"),
        }
    }
    let bin = match std::env::var_os("LEADERD_BIN_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => std::env::current_exe()?.parent().context("no directory")?.to_owned(),
    };
    let bin = bin.canonicalize().context("the directory of programs")?;
    let pick = |full: u32, less: u32| if quick { less } else { full };
    let seconds = |full, less| Duration::from_secs(pick(full, less).into());
    let began = Instant::now();
    for part in PARTS.into_iter().filter(|p| parts.is_empty() || parts.contains(p)) {
        eprintln!("{part}: {:.0} s so far", began.elapsed().as_secs_f64());
        let text = match part {
            "programming" => programming::compare()?,
            "scale" => lab::scale(&bin, &[2, 3, 5], seconds(60, 15))?,
            "throughput" => throughput::compare(&bin, pick(7, 3), seconds(5, 2))?,
            _ => times::measure(&bin, pick(20, 3))?,
        };
        let less = if quick { " QUICK=1" } else { "" };
        let text = format!("{text}\nCommand: `make bench-cost{less} PART={part}`.\n");
        markdown::write_between_markers(&docs.join("benchmarks.md"), "bench-cost", part, &text)?;
        println!("{text}");
    }
    eprintln!("took {:.0} s", began.elapsed().as_secs_f64());
    Ok(())
}
