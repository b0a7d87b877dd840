//! How long it takes to move prefixes to another relay: one nexthop group, route by route, or WireGuard's allowed-IPs.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};
use wgctl::net::{Kernel, Reconciler};
use wgctl::wireguard::PrivateKey;
use wgctl_plan::{
    Family, InterfaceName, NEXTHOP_ID_BASE, Network, Nexthop, NexthopId, RouteKey, RouteVia, Shared,
};

use super::path::{self, Took};
use super::{median, millis};
use crate::markdown::table;

/// Prefixes that are moved.
const PREFIXES: [u32; 3] = [10, 1_000, 10_000];
/// Moves of each kind; the median is reported.
const MOVES: usize = 21;

/// Milliseconds, by number of prefixes.
#[derive(Serialize, Deserialize, Debug, Default)]
struct Measured {
    nexthop: BTreeMap<u32, f64>,
    routes: BTreeMap<u32, f64>,
    allowed_ips: BTreeMap<u32, f64>,
    daemon: BTreeMap<u32, Took>,
}

/// Runs this program again in namespaces of its own (`inside programming`), and makes a table of what it found.
pub fn compare() -> Result<String> {
    let valgrind = Command::new("valgrind").arg("--version").stdout(Stdio::null()).status();
    ensure!(valgrind.is_ok_and(|s| s.success()), "valgrind is missing: it counts instructions");
    let out = Command::new("unshare")
        .args(["-Urnm", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .arg(std::env::current_exe()?)
        .args(["inside", "programming"])
        .stderr(Stdio::inherit())
        .output()
        .context("unshare (util-linux)")?;
    ensure!(out.status.success(), "measuring in namespaces failed");
    let found: Measured = serde_json::from_slice(&out.stdout).context("what it found")?;
    let whole = whole(&found)?;
    let rows = PREFIXES.map(|n| {
        let (nexthop, routes, allowed) =
            (found.nexthop[&n], found.routes[&n], found.allowed_ips[&n]);
        let times = |time: f64| format!("{time:.2} ms ({:.0}×)", time / nexthop);
        let flat = nexthop / found.nexthop[&PREFIXES[0]];
        vec![
            n.to_string(),
            format!("**{nexthop:.2} ms** ({flat:.1}× of 10)"),
            times(routes),
            times(allowed),
        ]
    });
    let head = [
        "prefixes",
        "ours: one nexthop group replaced",
        "each route replaced (× ours)",
        "allowed-IPs moved to another peer of `wireguard-go` (× ours)",
    ];
    Ok(format!(
        "From the wanted network to the kernel's (or `wireguard-go`'s) acknowledgement, medians of {MOVES} moves. The first two go \
         through the same code, leaderd's own, which compares what it wants with what it last programmed; the third is one \
         UAPI request.\n\n{}\n{whole}",
        table(&head, &rows)
    ))
}

/// A failover's whole way through the daemon.
fn whole(found: &Measured) -> Result<String> {
    let mut counts = BTreeMap::new();
    for n in PREFIXES {
        counts.insert(n, path::instructions(n)?);
    }
    let first = PREFIXES[0];
    let rows = PREFIXES.map(|n| {
        let (took, least) = (found.daemon[&n], found.daemon[&first]);
        let flat = |value: f64, least: f64| format!("({:.2}× of {first})", value / least);
        vec![
            n.to_string(),
            format!("{:.3} ms", took.core),
            format!("**{:.2} ms** {}", took.whole, flat(took.whole, least.whole)),
            format!("{:.0} {}", counts[&n], flat(counts[&n], counts[&first])),
        ]
    });
    let head = [
        "prefixes",
        "decision heard → core asks",
        "decision heard → in the kernel, and the core's thread knows",
        "instructions of ours",
    ];
    Ok(format!(
        "The whole way through one daemon: the core hears a decision about another location, which has all these prefixes, and asks \
         for a network; the network thread compares and programs it (two planes, VXLAN, userspace WireGuard with these allowed-IPs \
         for each peer). Instructions by callgrind, without the kernel's: a busy machine does not change them.\n\n{}",
        table(&head, &rows)
    ))
}

/// In namespaces of our own: measures, and says what it found on standard output.
pub fn inside() -> Result<()> {
    let runtime = set_up()?;
    let mut found = Measured::default();
    for n in PREFIXES {
        found.nexthop.insert(n, runtime.block_on(moves(n, by_group))?);
        found.routes.insert(n, runtime.block_on(moves(n, by_route))?);
        found.allowed_ips.insert(n, allowed_ips(n)?);
        found.daemon.insert(n, runtime.block_on(path::failovers(n))?);
    }
    println!("{}", serde_json::to_string(&found)?);
    Ok(())
}

/// In namespaces of our own: this many failovers, to count instructions.
pub fn failovers(prefixes: &str, times: &str) -> Result<()> {
    set_up()?.block_on(path::alone(prefixes.parse()?, times.parse()?))
}

fn set_up() -> Result<tokio::runtime::Runtime> {
    let setup = "mount -t tmpfs none /run && mkdir -p /run/wireguard && { mountpoint -q /var/run || [ -L /var/run ] || mount --bind /run /var/run; } \
        && ip link set lo up && for n in 0 1; do ip link add d$n type veth peer name p$n && ip link set d$n up && ip link set p$n up; done";
    ensure!(
        Command::new("sh").args(["-c", setup]).status()?.success(),
        "cannot set up the namespaces"
    );
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

fn prefix(n: u32) -> IpNet {
    let address = Ipv4Addr::from(0x0a00_0000 + (n << 8));
    IpNet::V4(Ipv4Net::new(address, 24).expect("24 bits"))
}

fn device(plane: u32) -> InterfaceName {
    format!("d{plane}").parse().expect("a name")
}

fn routes(n: u32, via: &RouteVia) -> Shared<BTreeMap<RouteKey, RouteVia>> {
    let key = |n| RouteKey { table: 254, prefix: prefix(n), metric: 100 };
    (0..n).map(|n| (key(n), via.clone())).collect()
}

/// All prefixes through a group, as `leaderd_core::topology` does.
fn by_group(n: u32, plane: u32) -> Network {
    let id = |offset: u32| NexthopId(NEXTHOP_ID_BASE + offset);
    let group = id(0x1000);
    let single =
        |plane| (id(2 * plane), Nexthop::Device { dev: device(plane), family: Family::V4 });
    let members = Nexthop::Group { members: [id(2 * plane)].into() };
    Network {
        nexthops: [single(0), single(1), (group, members)].into(),
        routes: routes(n, &RouteVia::Nexthop { id: group, source: None }),
        sysctls: [("net/ipv4/nexthop_compat_mode".to_owned(), "0".to_owned())].into(),
        ..Network::default()
    }
}

/// The same without a nexthop object.
fn by_route(n: u32, plane: u32) -> Network {
    let via = RouteVia::Device { dev: device(plane), source: None };
    Network { routes: routes(n, &via), ..Network::default() }
}

/// Moves all prefixes to the other plane and back.
async fn moves(n: u32, network: fn(u32, u32) -> Network) -> Result<f64> {
    let mut reconciler = Reconciler::new(Kernel::open()?, PrivateKey::from_bytes([7; 32]));
    let mut last = network(n, 0);
    reconciler.program(last.clone()).await?;
    let mut times = Vec::new();
    for turn in 1..=MOVES as u32 {
        let mut wanted = network(n, turn % 2);
        // As the core does it.
        wanted.share(&last);
        last = wanted.clone();
        let began = Instant::now();
        let changes = reconciler.program(wanted).await?;
        times.push(millis(began.elapsed()));
        ensure!(!changes.is_empty(), "nothing was moved");
    }
    reconciler.program(Network::default()).await?;
    Ok(median(&mut times))
}

/// Moves as many allowed-IPs between two peers of a userspace interface.
fn allowed_ips(n: u32) -> Result<f64> {
    let interface = format!("wgb{n}");
    ensure!(
        Command::new("wireguard-go").arg(&interface).stderr(Stdio::null()).status()?.success(),
        "wireguard-go does not start"
    );
    let path = format!("/var/run/wireguard/{interface}.sock");
    let began = Instant::now();
    let ask = |text: &str| -> Result<()> {
        let mut stream = loop {
            match UnixStream::connect(&path) {
                Ok(stream) => break stream,
                Err(_) if began.elapsed() < Duration::from_secs(10) => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(error) => return Err(error).context("wireguard-go's socket"),
            }
        };
        stream.write_all(text.as_bytes())?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer)?;
        ensure!(answer == "errno=0\n", "wireguard-go says {answer:?}");
        Ok(())
    };
    ask(&format!("set=1\nprivate_key={}\n\n", "07".repeat(32)))?;
    let to_peer = |peer: usize| {
        let mut text = format!("set=1\npublic_key={}\n", format!("{:02x}", peer + 1).repeat(32));
        (0..n).for_each(|n| text += &format!("allowed_ip={}\n", prefix(n)));
        text + "\n"
    };
    let requests = [to_peer(0), to_peer(1)];
    ask(&requests[0])?;
    let mut times = Vec::new();
    for turn in 1..=MOVES {
        let began = Instant::now();
        ask(&requests[turn % 2])?;
        times.push(millis(began.elapsed()));
    }
    Ok(median(&mut times))
}
