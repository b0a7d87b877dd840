//! The account of one case in virtual time: `story SEED` or `story FILE` (of `tests/regressions`).
//!
//! Seconds of virtual time; `***` what was broken and mended; `===` what the reference model knows: who could have
//! carried traffic, who led, what was promised and not kept; all else is what the daemons logged.

use std::process::ExitCode;

use anyhow::{Context, Result};
use tests::sim::case::Case;

fn main() -> Result<ExitCode> {
    let of = std::env::args().nth(1).context("usage: story SEED|FILE")?;
    let case = match of.parse() {
        Ok(seed) => Case::of_seed(seed),
        Err(_) => {
            let text = std::fs::read_to_string(&of).with_context(|| format!("cannot read {of}"))?;
            serde_json::from_str(&text).with_context(|| format!("{of} is no case"))?
        }
    };
    for site in &case.sites {
        println!("{site:?}");
    }
    println!("wan {:?}", case.config.wan);
    let outcome = case.run();
    outcome.story.iter().for_each(|line| println!("{line}"));
    println!("{} violations", outcome.violations.len());
    outcome.violations.iter().for_each(|line| println!("{line}"));
    let unkept = outcome.unkept.through.iter().chain(&outcome.unkept.mirror);
    println!("{} promises to pairs of workloads are not kept yet", unkept.clone().count());
    unkept.for_each(|line| println!("{line}"));
    Ok(if outcome.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
