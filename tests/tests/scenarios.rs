//! Every scenario of `tests/scenarios`, played by `wgctl lab run` with real daemons on real packets.
//!
//! One after the other: they share the machine's cores, and the meters send 4,000 packets a second. Not under
//! libtest, which would run them at once. Arguments that do not start with `-` choose by name, or by a part of it that is no name. Without any,
//! those of [`NIGHTLY`] are left out; `--ignored` plays only these, `--include-ignored` all. Programs are found in `$LEADERD_BIN_DIR`, else beside this test's target directory. A missing program is a failure, never a skip.
//! `$LAB_BACKEND` (`kernel`, `wireguard-go` or `leaderd`) makes them run on that WireGuard, and fails those that do not; without
//! it the scenarios of [`ALSO_ON`] are played a second time. `$LAB_OPTIONS` has more options of `wgctl lab run`, separated by spaces.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use serde_json::Value;
use wgctl_lab::Failed;

/// Scenarios that are played again with another WireGuard: setting a link down differs where that closes the UDP port.
const ALSO_ON: [(&str, &str); 1] = [("wireguard-down", "leaderd")];

/// Scenarios that `make nightly` plays, and what of theirs `make test` proves meanwhile.
const NIGHTLY: [(&str, &str); 9] = [
    ("daemon-kill", "daemon-pause here, the same on kernel WireGuard"),
    ("dual-stack", "ipv6-forwarding here, the same on kernel WireGuard"),
    (
        "fabric-489",
        "cilium-489 and cilium-planned here: the fabric, its MTU, a CNI, full-size packets",
    ),
    ("flow-hash", "the same loss in virtual time and in the core's tests"),
    ("mtu-blackhole", "the same on kernel WireGuard, and in virtual time"),
    ("planned-promotion", "planned-stateful here, the same on kernel WireGuard"),
    ("relay-loss", "wan-loss here, the same in virtual time"),
    ("slow-paths", "the same in virtual time"),
    ("vxlan-all", "forwarding-off and lan-partition here, the same in virtual time"),
];

/// A shared machine may starve a whole mesh of its cores for seconds, so a scenario that was late or not played at all gets a second
/// try, which is reported. A wrong decision gets none. One scenario in this many may need it: with more, either the
/// machine is no place for this test, or the daemon has become slow.
const MOST_AGAIN: usize = 8;

/// Scenarios test what is decided, and not how fast: `make bench` measures that. On two cores a whole mesh stands still for more than the
/// 20 ms after which a probe counts as lost by default, and whatever it then decides is right for a mesh that stands still. So daemons wait
/// longer here, unless the scenario says how long.
const PATIENCE: (&str, &str) = ("min_probe_timeout", "\"100ms\"");

/// Why a scenario failed.
struct Miss {
    failed: Failed,
    why: String,
}

impl Miss {
    fn not_played(why: String) -> Self {
        Self { failed: Failed::NotPlayed, why }
    }
}

fn main() -> ExitCode {
    let filters: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let asks = |flag: &str| std::env::args().any(|a| a == flag);
    let listing = asks("--list");
    let asked = std::env::var("LAB_BACKEND").ok();
    let mut names: Vec<(String, Option<String>)> =
        scenario_names().into_iter().map(|name| (name, asked.clone())).collect();
    for (name, _) in NIGHTLY {
        assert!(names.iter().any(|(n, _)| n == name), "NIGHTLY: there is no scenario {name}");
    }
    if asked.is_none() {
        names.extend(ALSO_ON.map(|(name, on)| (name.to_owned(), Some(on.to_owned()))));
    }
    let exists = |f: &String| names.iter().any(|(n, _)| n == f);
    let exact: Vec<bool> = filters.iter().map(exists).collect();
    let chosen = |n: &str| {
        let matches = |(f, exact): (&String, &bool)| n == f || (!exact && n.contains(f.as_str()));
        filters.iter().zip(&exact).any(matches)
    };
    let nightly = |n: &str| NIGHTLY.iter().any(|(name, _)| *name == n);
    names.retain(|(n, _)| match (filters.is_empty(), asks("--ignored")) {
        (false, _) => chosen(n),
        (true, true) => nightly(n),
        (true, false) => asks("--include-ignored") || !nightly(n),
    });
    if listing {
        names.iter().for_each(|(name, on)| println!("{}: test", title(name, on.as_deref())));
        return ExitCode::SUCCESS;
    }
    let bin = match prerequisites() {
        Ok(bin) => bin,
        Err(missing) => {
            println!("\nrunning {} tests\ntest prerequisites ... FAILED\n", names.len());
            missing.iter().for_each(|m| println!("  missing: {m}"));
            return end(0, names.len(), Instant::now());
        }
    };
    println!("\nrunning {} tests", names.len());
    let start = Instant::now();
    let (mut passed, mut again, mut backends) = (0, 0usize, Vec::new());
    let most_again = names.len().div_ceil(MOST_AGAIN);
    for (name, on) in &names {
        let on = on.as_deref();
        let title = title(name, on);
        let outcome = play(&bin, name, on).or_else(|first| {
            if !first.failed.may_be_tried_again() {
                return Err(first);
            }
            println!(
                "scenario {title}: first try failed ({:?}), trying again: {}",
                first.failed,
                first.why.replace('\n', "\n    ")
            );
            again += 1;
            play(&bin, name, on)
        });
        match outcome {
            Ok((backend, line)) => {
                passed += 1;
                println!("test {title} ... ok ({line})");
                if !backends.contains(&backend) {
                    backends.push(backend);
                }
            }
            Err(Miss { why, .. }) => {
                println!("test {title} ... FAILED\n    {}", why.replace('\n', "\n    "));
            }
        }
    }
    println!(
        "\nWireGuard backend: {}; scenarios run: {}; needed a second try: {again}, at most {most_again} may",
        backends.join(", "),
        names.len()
    );
    let failed = names.len() - passed;
    end(passed, failed + again.saturating_sub(most_again), start)
}

fn title(name: &str, on: Option<&str>) -> String {
    on.map_or(name.to_owned(), |on| format!("{name} on {on}"))
}

fn end(passed: usize, failed: usize, start: Instant) -> ExitCode {
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {word}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out; finished in {:.2}s\n",
        start.elapsed().as_secs_f64()
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(101) }
}

fn scenario_names() -> Vec<String> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let entries = std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut names: Vec<String> = entries
        .filter_map(|e| e.ok()?.file_name().to_str()?.strip_suffix(".toml").map(str::to_owned))
        .collect();
    names.sort();
    names
}

/// The directory with `wgctl` and `leaderd`, or all that is missing.
fn prerequisites() -> Result<PathBuf, Vec<String>> {
    let dir = std::env::var_os("LEADERD_BIN_DIR").map(PathBuf::from).or_else(|| {
        // target/PROFILE/deps/scenarios-HASH
        Some(std::env::current_exe().ok()?.parent()?.parent()?.to_owned())
    });
    let dir = dir.unwrap_or_default();
    let mut missing = Vec::new();
    for program in ["wgctl", "leaderd"] {
        if !dir.join(program).is_file() {
            missing.push(format!(
                "{program} in {} (cargo build -p {program}, or set LEADERD_BIN_DIR)",
                dir.display()
            ));
        }
    }
    for (program, package) in [("ip", "iproute2"), ("bridge", "iproute2"), ("nft", "nftables")] {
        if !in_path(program) {
            missing.push(format!("{program} (apt-get install {package})"));
        }
    }
    if !Path::new("/dev/net/tun").exists() {
        missing.push("/dev/net/tun (modprobe tun; in a container, pass the device)".into());
    }
    if missing.is_empty() { Ok(dir) } else { Err(missing) }
}

fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|d| d.join(program).is_file())
}

/// Plays a scenario once, on a certain WireGuard if one is named. Ok: backend and a line about what was measured. Err: why it failed.
fn play(bin: &Path, name: &str, on: Option<&str>) -> Result<(String, String), Miss> {
    let (key, value) = PATIENCE;
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios").join(format!("{name}.toml"));
    let text = std::fs::read_to_string(&file)
        .map_err(|e| Miss::not_played(format!("cannot read {}: {e}", file.display())))?;
    let patience = (!text.contains(key)).then(|| format!("--policy={key}={value}"));
    let out = Command::new(bin.join("wgctl"))
        .envs(on.map(|on| ("LEADERD_WIREGUARD", on)))
        .args(["lab", "run", name, "--json", "-"])
        .args(patience)
        .args(std::env::var("LAB_OPTIONS").unwrap_or_default().split_whitespace())
        .env("LEADERD_BIN", bin.join("leaderd"))
        .stdin(Stdio::null())
        .output()
        .map_err(|e| Miss::not_played(format!("cannot run wgctl: {e}")))?;
    let errors = String::from_utf8_lossy(&out.stderr).into_owned();
    let report: Value = serde_json::from_slice(&out.stdout)
        .map_err(|e| Miss::not_played(format!("no result ({e})\n{errors}")))?;
    let run = &report["runs"][0];
    if !out.status.success() || run["outcome"] != "pass" {
        let why = format!("{}\n{errors}", run["why"].as_str().unwrap_or("no reason given"));
        // A failure that says no kind is taken for the worst.
        let failed = serde_json::from_value(run["failed"].clone()).unwrap_or(Failed::Wrong);
        return Err(Miss { failed, why });
    }
    let line = format!(
        "{} -> {}, cause {}, condemned after {} ms, blackout {} ms new, {} ms old",
        run["leader"]["before"].as_str().unwrap_or("-"),
        run["leader"]["after"].as_str().unwrap_or("-"),
        run["cause"].as_str().unwrap_or("-"),
        run["ms"]["condemned"],
        run["blackout_ms"]["new_flows"],
        run["blackout_ms"]["established"]
    );
    let backend = report["backend"].as_str().unwrap_or("unknown");
    match on {
        Some(on) if on != backend => Err(Miss {
            failed: Failed::Wrong,
            why: format!("it ran on {backend} WireGuard, not {on}"),
        }),
        _ => Ok((backend.to_owned(), line)),
    }
}
