//! What leaderd asks of the API server when nothing happens: the figures of `docs/benchmarks.md`, by `make bench-api`.
//!
//! `bench_api [--minutes=5] [NODES…]` (default 10 100 1000): the real etcd and kube-apiserver, six real daemons in the lab, and made-up
//! Nodes up to the number, in the mesh, whose kubelets are played. Programs as for `make test-kilo`. Never a test.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ::tests::kilo::beside::pool_path;
use ::tests::kilo::control_plane::{Request, User};
use ::tests::kilo::made_up::{self, Kubelets};
use ::tests::kilo::programs::Programs;
use ::tests::kilo::rig::{Beside, Options, Rig, in_lab, wait_for};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use wgctl_lab::{LabNode, MANAGER, wait_ready};

const MESH: &str = "/api/v1/namespaces/leaderd/configmaps/leaderd-mesh";
/// Until all have followed the mesh to its last node.
const SETTLE: Duration = Duration::from_secs(30);

/// What the measurement is to do: it runs in a fork of this process.
static TIME: OnceLock<Duration> = OnceLock::new();
static NODES: AtomicUsize = AtomicUsize::new(0);

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("bench_api: {why:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let (options, numbers): (Vec<String>, Vec<String>) =
        std::env::args().skip(1).partition(|a| a.starts_with("--"));
    let mut minutes = 5.0;
    for option in &options {
        let value =
            option.strip_prefix("--minutes=").context("bench_api [--minutes=5] [NODES…]")?;
        minutes = value.parse().context("--minutes")?;
    }
    TIME.get_or_init(|| Duration::from_secs_f64(60.0 * minutes));
    let mut all: Vec<usize> = numbers.iter().map(|n| n.parse()).collect::<Result<_, _>>()?;
    if all.is_empty() {
        all = vec![10, 100, 1000];
    }
    ensure!(all.iter().all(|n| *n >= 10), "six of the nodes are real, and some others are members");
    let programs = Programs::find()?;
    println!("Each in requests per daemon and minute, over {minutes} minutes.\n");
    println!(
        "| nodes | daemons | all | watch | list | get | patch, update, create | received, KiB/min |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for nodes in all {
        NODES.store(nodes, Ordering::Relaxed);
        let name = format!("bench-api-{nodes}");
        let logs = programs.kilo.with_file_name("logs").join(&name);
        let rows = in_lab(&name, Beside::Leaderd, &programs, Options::default(), &logs, measure)?;
        println!("{rows}");
    }
    Ok(())
}

fn measure(rig: &mut Rig) -> Result<String> {
    let nodes = NODES.load(Ordering::Relaxed);
    let time = *TIME.get().context("no time")?;
    wait_ready(&rig.world)?;
    let regions: Vec<String> =
        rig.world.topology.locations.iter().map(|l| l.name.clone()).collect();
    for pool in &regions {
        rig.api.merge_patch(&pool_path(pool), &json!({"spec": {"steering": "native"}}))?;
    }
    let made_up = nodes - rig.world.nodes.len();
    made_up::create(&rig.api, made_up, &regions)?;
    wait_for("the made-up nodes are in the mesh", String::new, || {
        let mesh = rig.api.get(MESH)?;
        let text = mesh["data"]["mesh.toml"].as_str().unwrap_or_default();
        Ok((0..made_up).all(|n| text.contains(&format!("[nodes.{}]", made_up::name(n)))))
    })?;
    // An `Api` of the thread's own.
    let _kubelets = Kubelets::start(&rig.control.api(User::Admin)?, made_up);
    std::thread::sleep(SETTLE);
    let before = rig.control.requests()?.len();
    let bytes_before: Vec<_> = rig.world.nodes.iter().map(received).collect::<Result<_>>()?;
    std::thread::sleep(time);
    let all = rig.control.requests()?;
    let asked = &all[before..];
    let bytes = rig.world.nodes.iter().zip(&bytes_before).map(|(n, before)| {
        let now = received(n)?;
        Ok(now.iter().map(|(s, b)| b - before.get(s).unwrap_or(&0)).sum())
    });
    let bytes: Vec<u64> = bytes.collect::<Result<_>>()?;
    let of = |n: &LabNode| n.node.management().to_string();
    let narrow = |n: &LabNode| {
        let own = format!("metadata.name%3D{}", n.node.name);
        let last =
            all.iter().rfind(|r| r.from == of(n) && r.verb == "watch" && r.resource == "nodes");
        last.is_some_and(|r| r.uri.contains(&own))
    };
    let mut rows = Vec::new();
    for (what, wanted) in [("that see their own Node", true), ("that see all Nodes", false)] {
        let these: Vec<usize> =
            (0..bytes.len()).filter(|n| narrow(&rig.world.nodes[*n]) == wanted).collect();
        if these.is_empty() {
            continue;
        }
        let from: Vec<String> = these.iter().map(|n| of(&rig.world.nodes[*n])).collect();
        let asked: Vec<&Request> = asked.iter().filter(|r| from.contains(&r.from)).collect();
        let rate = |verbs: &[&str]| {
            let count =
                asked.iter().filter(|r| verbs.is_empty() || verbs.contains(&r.verb.as_str()));
            count.count() as f64 / these.len() as f64 / time.as_secs_f64() * 60.0
        };
        let kib = these.iter().map(|n| bytes[*n]).sum::<u64>() as f64 / 1024.0;
        rows.push(format!(
            "| {nodes} | {} {what} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {:.0} |",
            these.len(),
            rate(&[]),
            rate(&["watch"]),
            rate(&["list"]),
            rate(&["get"]),
            rate(&["patch", "update", "create"]),
            kib / these.len() as f64 / time.as_secs_f64() * 60.0
        ));
    }
    Ok(rows.join("\n"))
}

/// Bytes that the daemon has received from the API server, by connection.
fn received(n: &LabNode) -> Result<BTreeMap<String, u64>> {
    let text = n.ns.output("ss", &["-tinHOp", "dst", &MANAGER.to_string()])?;
    let mut all = BTreeMap::new();
    for line in text.lines().filter(|l| l.contains("\"leaderd\"")) {
        let local = line.split_whitespace().nth(3).context("ss: no address")?;
        let word = line.split_whitespace().find_map(|w| w.strip_prefix("bytes_received:"));
        all.insert(local.to_owned(), word.unwrap_or("0").parse().context("ss: no number")?);
    }
    Ok(all)
}
