//! `wgctl net`: shows leaderd's part of the kernel's network and how it differs from the desired one, or removes it.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Subcommand;
use wgctl::net::{Kernel, Scope};
use wgctl_plan::{Change, Network, diff};

use super::output::{Output, Style, Table};

/// leaderd's part of the kernel's network on this node
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wgctl net show
  wgctl net diff        exit 1 if the kernel differs from what the daemon wants")]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show what leaderd has put into the kernel
    Show {
        /// Also look for the objects that this network names (JSON)
        #[arg(long, value_name = "FILE")]
        desired: Option<PathBuf>,
    },
    /// Show what would change to reach the desired network; exit 1 if anything would
    Diff {
        /// The desired network (JSON); from the daemon when absent
        #[arg(long, value_name = "FILE")]
        desired: Option<PathBuf>,
    },
    /// Remove everything that leaderd made in the kernel
    Cleanup,
}

/// Runs the verb. `ask_daemon` fetches the desired network from the daemon, for when no file is given.
pub fn run(
    args: Args,
    out: &Output,
    ask_daemon: impl FnOnce() -> anyhow::Result<Network>,
) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let kernel = Kernel::open()?;
    match args.verb {
        Verb::Show { desired } => {
            // Without a desired network, observe still finds the devices that carry our alias.
            let scope = match desired {
                Some(file) => Scope::of(&read(file)?),
                None => ask_daemon().map(|desired| Scope::of(&desired)).unwrap_or_default(),
            };
            let network =
                runtime.block_on(kernel.observe(&scope)).context("cannot read the network")?;
            if out.json {
                out.print_json(&network)?;
            } else {
                out.print(&table(&network).render(out, 0))?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Verb::Diff { desired } => {
            let desired = match desired {
                Some(file) => read(file)?,
                None => ask_daemon()
                    .context("no --desired FILE is given, and the daemon does not answer")?,
            };
            let observed = runtime
                .block_on(kernel.observe(&Scope::of(&desired)))
                .context("cannot read the network")?;
            let changes = diff(&desired, &observed);
            print_changes(&changes, out, "Nothing differs.")?;
            Ok(if changes.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Verb::Cleanup => {
            let removed = runtime.block_on(kernel.cleanup())?;
            print_changes(&removed, out, "Nothing of leaderd's was there.")?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn print_changes(changes: &[Change], out: &Output, none: &str) -> anyhow::Result<()> {
    if out.json {
        return out.print_json(&changes);
    }
    let text = match changes {
        [] => format!("{none}\n"),
        changes => changes.iter().map(|change| format!("{change}\n")).collect(),
    };
    Ok(out.print(&text)?)
}

/// Reads a file as written by `wgctl net show --json`.
fn read(file: PathBuf) -> anyhow::Result<Network> {
    let text = std::fs::read_to_string(&file)
        .with_context(|| format!("cannot read {}", file.display()))?;
    match serde_json::from_str(&text) {
        Ok(network) => Ok(network),
        Err(e) => bail!("{} holds no network: {e}", file.display()),
    }
}

/// Returns a table with one object a line, in the order in which objects depend on each other.
fn table(network: &Network) -> Table {
    let mut table = Table::new(&["OBJECT", "NAME", "IS"]);
    let mut row = |object: &str, name: String, is: String| {
        table.row([object.to_owned(), name, is].map(|cell| (Style::Plain, cell)).into());
    };
    let up = |up: bool| if up { "up" } else { "down" };
    for (name, w) in &network.wireguard {
        let is =
            format!("port {} mtu {} {}, {} peers", w.listen_port, w.mtu, up(w.up), w.peers.len());
        row("wireguard", name.to_string(), is);
        for (key, peer) in &w.peers {
            let endpoint =
                peer.endpoint.map_or("no endpoint yet".to_owned(), |e| format!("at {e}"));
            let is = format!("{endpoint}, {} allowed-ips", peer.allowed_ips.len());
            row("peer", format!("{name} {key}"), is);
        }
    }
    for (name, v) in &network.vxlan {
        let is = format!(
            "vni {} local {} port {} mac {} mtu {} {}",
            v.vni,
            v.local,
            v.port,
            v.mac,
            v.mtu,
            up(v.up)
        );
        row("vxlan", name.to_string(), is);
    }
    for (name, address) in &network.addresses {
        row("address", address.to_string(), format!("on {name}"));
    }
    for ((dev, address), mac) in &network.neighbours {
        row("neighbour", format!("{dev} {address}"), mac.to_string());
    }
    for ((dev, mac), endpoint) in &network.fdb {
        row("fdb", format!("{dev} {mac}"), format!("at {endpoint}"));
    }
    for (id, nexthop) in &network.nexthops {
        row("nexthop", id.to_string(), nexthop.to_string());
    }
    for rule in &network.rules {
        row("rule", rule.priority.to_string(), rule.to_string());
    }
    for (key, via) in &network.routes {
        row("route", key.to_string(), via.to_string());
    }
    for (path, value) in &network.sysctls {
        row("sysctl", path.clone(), value.clone());
    }
    if let Some(transit) = &*network.untracked {
        row("untracked", "inet leaderd".to_owned(), transit.to_string());
    }
    table
}
