//! `make bench-peers`: leaderd beside FRR, keepalived and Kilo's rule, on real packets; writes `docs/bench-peers.md` and its picture.
//!
//! `bench_peers [--quick] [--runs N] [--provisional] [--logs DIR] [--docs DIR | --no-docs] [SYSTEM…] [CASE…]`, all systems and cases by default.
//! leaderd is `$LEADERD_BIN`, else beside this program. Needs root, and what `tests/setup peers` installs.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use leaderd_bench::markdown;
use leaderd_bench::peers::cases::Case;
use leaderd_bench::peers::play;
use leaderd_bench::peers::report::Results;
use leaderd_bench::peers::systems::Contender;
use wgctl_lab::find_leaderd;

const USAGE: &str = "bench_peers [--quick] [--runs N] [--provisional] [--logs DIR] [--docs DIR | --no-docs] [SYSTEM…] [CASE…]";
/// As the markers in the file have it.
const TOOL: &str = "bench-peers";
/// A world that the lab could not play is built again so often: a busy machine may start daemons too slowly.
const TRIES: u32 = 2;

struct Wanted {
    quick: bool,
    runs: u32,
    provisional: bool,
    docs: Option<PathBuf>,
    logs: Option<PathBuf>,
    systems: Vec<Contender>,
    cases: Vec<Case>,
}

impl Wanted {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut w = Self {
            quick: false,
            runs: 0,
            provisional: false,
            docs: Some(PathBuf::from("docs")),
            logs: None,
            systems: Vec::new(),
            cases: Vec::new(),
        };
        while let Some(argument) = arguments.next() {
            let system = Contender::ALL.into_iter().find(|s| s.key() == argument);
            let case = Case::ALL.into_iter().find(|c| c.key() == argument);
            match (argument.as_str(), system, case) {
                ("--quick", ..) => w.quick = true,
                ("--provisional", ..) => w.provisional = true,
                ("--no-docs", ..) => w.docs = None,
                ("--logs", ..) => w.logs = Some(arguments.next().context(USAGE)?.into()),
                ("--docs", ..) => w.docs = Some(arguments.next().context(USAGE)?.into()),
                ("--runs", ..) => {
                    w.runs = arguments.next().context(USAGE)?.parse().context(USAGE)?
                }
                (_, Some(system), _) => w.systems.push(system),
                (_, _, Some(case)) => w.cases.push(case),
                (other, ..) => bail!("{other}: usage: {USAGE}"),
            }
        }
        if w.runs == 0 {
            w.runs = if w.quick { 1 } else { 2 };
        }
        if w.systems.is_empty() {
            w.systems = Contender::ALL.to_vec();
        }
        if w.cases.is_empty() {
            w.cases = Case::ALL.to_vec();
        }
        // A part would overwrite the whole.
        if w.systems.len() < Contender::ALL.len() || w.cases.len() < Case::ALL.len() {
            w.docs = None;
        }
        w.cases.sort_unstable();
        Ok(w)
    }

    fn command(&self) -> String {
        let quick = if self.quick { " QUICK=1" } else { "" };
        format!("make bench-peers RUNS={}{quick}", self.runs)
    }
}

fn main() -> Result<()> {
    let wanted = Wanted::parse(std::env::args().skip(1))?;
    let leaderd = find_leaderd()?;
    let started = Instant::now();
    let mut results = Results::default();
    // Runs outermost, so that a busy spell of the machine does not hit one system alone.
    for run in 0..wanted.runs {
        for who in &wanted.systems {
            eprintln!(
                "run {} of {}: {}, {:.0} s so far",
                run + 1,
                wanted.runs,
                who.name(),
                started.elapsed().as_secs_f64()
            );
            let mut idle =
                (run == 0).then(|| Duration::from_secs(if wanted.quick { 5 } else { 10 }));
            let mut left: Vec<Case> = wanted.cases.clone();
            if wanted.quick && *who == Contender::Kilo {
                // A minute and a half by design, which a quick look can do without.
                left.retain(|c| *c != Case::NodeCrash);
            }
            while !left.is_empty() {
                let logs = wanted.logs.as_ref().map(|d| d.join(format!("{run}-{}", left[0].key())));
                let mut tries = 0;
                let played = loop {
                    tries += 1;
                    match play::world(*who, run, &left, idle, &leaderd, logs.as_deref()) {
                        Err(e) if tries < TRIES => eprintln!("  again: {e:#}"),
                        played => break played?,
                    }
                };
                results.idle.extend(played.idle);
                idle = None;
                left.drain(..played.outcomes.len());
                results.outcomes.extend(played.outcomes);
            }
        }
    }
    let minutes = started.elapsed().as_secs_f64() / 60.0;
    let provisional = if wanted.provisional {
        "**Provisional: taken while compilers ran on the same two cores. BFD at 3 × 50 ms took that for dead gateways: its \
         column says nothing of it.** "
    } else {
        ""
    };
    let kilo = if wanted.quick {
        "Kilo's rule: 35 s for the tunnel, and no crash, as it needs up to 90 s by design"
    } else {
        "Kilo's rule: 100 s after a crash, 35 s for the tunnel"
    };
    let conditions = format!(
        "{provisional}Command: `{}`, {minutes:.0} minutes. Runs of each: {}; a case lasts 15 s at most ({kilo}).\n",
        wanted.command(),
        wanted.runs
    );
    let text = results.text(&conditions);
    println!("{text}");
    if let Some(docs) = &wanted.docs {
        markdown::write_between_markers(&docs.join("bench-peers.md"), TOOL, "results", &text)?;
        std::fs::write(docs.join("bench-peers.svg"), results.chart().svg())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Wanted> {
        Wanted::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn a_part_of_the_cases_leaves_the_docs_alone_and_unknown_words_are_refused() {
        let all = parse("--quick").unwrap();
        assert_eq!((all.runs, all.systems.len(), all.cases.len()), (1, 6, Case::ALL.len()));
        assert!(all.docs.is_some());
        let part = parse("--runs 3 bfd-50 node-crash vxlan-new-flows").unwrap();
        assert_eq!(part.systems, [Contender::Bfd50]);
        assert_eq!(part.cases, [Case::VxlanNewFlows, Case::NodeCrash]);
        assert!(part.docs.is_none() && part.runs == 3);
        assert!(parse("bird").is_err() && parse("--runs").is_err());
    }
}
