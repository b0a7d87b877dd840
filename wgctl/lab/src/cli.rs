//! The verbs of `wgctl lab`.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};

use crate::control::{self, Reply, Request};
use crate::faults::FAULTS;
use crate::machine::Machine;
use crate::report::Report;
use crate::sandbox::{LabDir, run_inside};
use crate::scenario::{Scenario, Span};
use crate::world::{World, find_leaderd, wait_ready};
use crate::{catalog, demo, play};

/// Exit status of `lab exec` when the lab ends before the command: a shell's for a command that SIGKILL ended.
const ENDED_WITH_THE_LAB: u8 = 128 + 9;

/// How often `lab up` says that the machine starves it, at most.
const STARVED_EVERY: Duration = Duration::from_secs(10);

/// A whole mesh of network namespaces on this machine: try things, break things, measure
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wgctl lab demo
  wgctl lab run kilo-489 --runs 10
  wgctl lab up kilo-489, then: wgctl lab fault cloud-0 vxlan-new-flows")]
pub struct LabArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Start a mesh and keep it running until Ctrl-C or `lab down`
    Up {
        /// A name from `lab list`, or a path to a TOML file
        scenario: String,
        /// Name of this lab, for several at once [default: the scenario's]
        #[arg(long)]
        name: Option<String>,
        /// Only the network: no leaderd
        #[arg(long)]
        no_daemons: bool,
    },
    /// Run a command on a node of the running lab
    Exec {
        node: String,
        /// In the node's workload (its pod) instead of the node
        #[arg(long)]
        pod: bool,
        #[arg(long)]
        name: Option<String>,
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Break something on a node of the running lab, or mend it
    Fault {
        node: String,
        /// A name from `lab list`
        fault: String,
        arg: Vec<String>,
        /// Undo it
        #[arg(long)]
        off: bool,
        #[arg(long)]
        name: Option<String>,
    },
    /// Show the nodes of the running lab
    Status {
        #[arg(long)]
        name: Option<String>,
        #[arg(long)]
        json: bool,
    },
    /// Stop the running lab
    Down {
        #[arg(long)]
        name: Option<String>,
    },
    /// Play a scenario and measure
    Run(RunArgs),
    /// Name the scenarios and the faults
    List {
        #[arg(long)]
        json: bool,
    },
    /// A leader that looks Ready but drops traffic, and what leaderd does about it: 30 seconds
    Demo {
        /// Keep the daemons' logs in this directory
        #[arg(long)]
        logs: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
struct RunArgs {
    /// A name from `lab list`, or a path to a TOML file
    scenario: String,
    /// Play it this many times, each in a fresh mesh
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Write the result as JSON to this file, or `-` for standard output
    #[arg(long, value_name = "FILE")]
    json: Option<String>,
    /// Go on after a failed run
    #[arg(long)]
    keep_going: bool,
    /// Keep mesh file and daemon logs of each run in this directory
    #[arg(long)]
    logs: Option<PathBuf>,
    /// Keep a recording of each daemon there as well, for `leaderd replay`
    #[arg(long, requires = "logs")]
    record: bool,
    /// Time between two packets of each meter, in place of the scenario's (1ms): for slow machines
    #[arg(long, value_name = "TIME", value_parser = meter_every)]
    meter_every: Option<Span>,
    /// A policy of the mesh file, in place of the scenario's, as in `--policy 'probe_interval="200ms"'`
    #[arg(long, value_name = "KEY=VALUE", value_parser = policy)]
    policy: Vec<toml::Table>,
}

fn meter_every(text: &str) -> Result<Span> {
    let every = humantime::parse_duration(text)?;
    anyhow::ensure!(!every.is_zero(), "a meter needs time between its packets");
    Ok(Span(every))
}

/// One `key = value` of TOML.
fn policy(text: &str) -> Result<toml::Table> {
    toml::from_str(text).with_context(|| format!("{text:?} is not KEY=VALUE as in a mesh file"))
}

/// Runs a verb. Must be called before the program has a second thread.
pub fn run(args: LabArgs) -> Result<ExitCode> {
    match args.verb {
        Verb::Up { scenario, name, no_daemons } => up(&scenario, name, no_daemons),
        Verb::Exec { node, pod, name, command } => {
            match ask(name.as_deref(), &Request::Exec { node, pod, command })? {
                Reply::Exit(code) => Ok(ExitCode::from(code as u8)),
                // With the lab's processes ended, by SIGKILL.
                Reply::Gone => {
                    eprintln!("the lab ended, and the command with it");
                    Ok(ExitCode::from(ENDED_WITH_THE_LAB))
                }
                other => bail!("unexpected answer {other:?}"),
            }
        }
        Verb::Fault { node, fault, arg, off, name } => {
            let arg = (!arg.is_empty()).then(|| arg.join(" "));
            ask(name.as_deref(), &Request::Fault { node, fault, arg, off })?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Status { name, json } => status(name.as_deref(), json),
        Verb::Down { name } => {
            let dir = LabDir::running(name.as_deref())?;
            control::ask(&dir, &Request::Down)?;
            // Its starter removes the directory; wait, so that what follows finds a clean place.
            for _ in 0..100 {
                if !dir.control_socket().exists() {
                    return Ok(ExitCode::SUCCESS);
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            bail!("the lab does not end")
        }
        Verb::Run(args) => run_scenario(&args),
        Verb::List { json } => list(json),
        Verb::Demo { logs } => demo::demo(logs.as_deref()),
    }
}

fn ask(name: Option<&str>, request: &Request) -> Result<Reply> {
    match control::ask(&LabDir::running(name)?, request)? {
        Reply::Failed(why) => bail!("{why}"),
        Reply::Gone if !matches!(request, Request::Exec { .. }) => {
            bail!("the lab ended before it answered")
        }
        reply => Ok(reply),
    }
}

fn up(scenario: &str, name: Option<String>, no_daemons: bool) -> Result<ExitCode> {
    let scenario = Scenario::load(scenario)?;
    let leaderd = if no_daemons { None } else { Some(find_leaderd()?) };
    let dir = LabDir::create(&name.unwrap_or_else(|| scenario.name.clone()))?;
    let (code, _) = run_inside(&dir, move |dir, _| {
        let world = Arc::new(World::build(&scenario, dir, leaderd)?);
        let listener = UnixListener::bind(dir.control_socket()).context("control socket")?;
        let server = Arc::clone(&world);
        let serving = std::thread::spawn(move || control::serve(listener, server));
        if !no_daemons {
            world.start_daemons()?;
            eprintln!("lab {}: {} nodes are starting", dir.name(), world.nodes.len());
            if let Err(e) = wait_ready(&world) {
                // Kept up: whoever started it wants to look.
                eprintln!("lab {}: {e:#}", dir.name());
            }
        }
        eprintln!(
            "lab {} is up; in another shell: wgctl lab status | exec NODE -- CMD | fault NODE FAULT | down",
            dir.name()
        );
        let machine = Machine::watch();
        while !serving.is_finished() {
            std::thread::sleep(STARVED_EVERY);
            let seen = machine.take();
            if seen.starved() {
                eprintln!("lab {}: {seen}", dir.name());
            }
        }
        Ok(0)
    })?;
    Ok(ExitCode::from(code))
}

fn status(name: Option<&str>, json: bool) -> Result<ExitCode> {
    let Reply::Status(lines) = ask(name, &Request::Status)? else { bail!("unexpected answer") };
    if json {
        println!("{}", serde_json::to_string_pretty(&lines)?);
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "{:<14} {:<10} {:<10} {:<7} {:<6} {:<14} {:<14} {:<12} FAULTS",
        "NODE", "LOCATION", "ROLE", "DAEMON", "LEADS", "LAN", "WAN", "POD"
    );
    for l in lines {
        println!(
            "{:<14} {:<10} {:<10} {:<7} {:<6} {:<14} {:<14} {:<12} {}",
            l.node,
            l.location,
            l.role,
            l.daemon,
            if l.leads { "yes" } else { "-" },
            l.lan,
            l.wan,
            l.pod,
            l.faults.join(", ")
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn run_scenario(args: &RunArgs) -> Result<ExitCode> {
    let mut scenario = Scenario::load(&args.scenario)?;
    scenario.meter.every = args.meter_every.or(scenario.meter.every);
    scenario.policy.extend(args.policy.iter().flatten().map(|(k, v)| (k.clone(), v.clone())));
    let leaderd = find_leaderd()?;
    let mut report = Report::new(&scenario.name);
    for number in 1..=args.runs {
        let logs = args.logs.as_ref().map(|d| d.join(format!("{}-{number}", scenario.name)));
        eprintln!("{} run {number} of {}", scenario.name, args.runs);
        let (backend, result) = play::once(&scenario, &leaderd, logs.as_deref(), args.record)?;
        report.add(backend, result);
        if report.failed() > 0 && !args.keep_going {
            break;
        }
    }
    report.finish();
    match args.json.as_deref() {
        Some("-") => println!("{}", serde_json::to_string(&report)?),
        Some(file) => {
            let text = serde_json::to_string_pretty(&report)? + "\n";
            std::fs::write(file, text).with_context(|| format!("cannot write {file}"))?;
            print!("{report}");
        }
        None => print!("{report}"),
    }
    Ok(if report.failed() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn list(json: bool) -> Result<ExitCode> {
    let scenarios: Vec<Scenario> = catalog::SCENARIOS
        .iter()
        .map(|(n, text)| Scenario::parse(n, text))
        .collect::<Result<_>>()?;
    if json {
        let scenarios: Vec<_> = scenarios
            .iter()
            .map(|s| serde_json::json!({"name": s.name, "title": s.title, "about": s.about.trim()}))
            .collect();
        let faults: Vec<_> = FAULTS
            .iter()
            .map(|(name, arg, text)| serde_json::json!({"name": name, "arg": arg, "title": text}))
            .collect();
        println!("{}", serde_json::json!({"scenarios": scenarios, "faults": faults}));
        return Ok(ExitCode::SUCCESS);
    }
    println!("Scenarios (wgctl lab run NAME):");
    for s in &scenarios {
        println!("  {:<22} {}", s.name, s.title);
    }
    println!("\nFaults (wgctl lab fault NODE NAME [ARG…] [--off]):");
    for (name, arg, text) in FAULTS {
        println!("  {:<30} {text}", format!("{name} {arg}"));
    }
    Ok(ExitCode::SUCCESS)
}
