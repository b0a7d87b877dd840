//! `wgctl net`: shows leaderd's part of the kernel's network and how it differs from the desired one, or removes it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Subcommand;
use leaderd_core::ids::{LocationName, NodeIndex};
use leaderd_core::status::Status;
use leaderd_core::topology::{NexthopRole, TableRole, nexthop_role, table_role};
use wgctl::net::{Kernel, Scope};
use wgctl_plan::{Change, Network, NexthopId, diff};

use super::client::Client;
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

/// Runs the verb. The daemon is asked for the desired network, where no file is given, and for the names of locations.
pub fn run(args: Args, out: &Output, client: &Client) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let kernel = Kernel::open()?;
    match args.verb {
        Verb::Show { desired } => {
            // Without a desired network, observe still finds the devices that carry our alias.
            let scope = match desired {
                Some(file) => Scope::of(&read(file)?),
                None => client.network().map(|desired| Scope::of(&desired)).unwrap_or_default(),
            };
            let network =
                runtime.block_on(kernel.observe(&scope)).context("cannot read the network")?;
            if out.json {
                out.print_json(&network)?;
            } else {
                let locations = client.status().map(|s| numbered(&s)).unwrap_or_default();
                out.print(&table(&network, &locations).render(out, 0))?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Verb::Diff { desired } => {
            let desired = match desired {
                Some(file) => read(file)?,
                None => client
                    .network()
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

/// Returns the location behind each number of nexthop groups and tables.
fn numbered(status: &Status) -> BTreeMap<NodeIndex, LocationName> {
    let numbers = status.locations.iter().filter_map(|l| Some((l.lowest_index?, l.name.clone())));
    numbers.collect()
}

/// Returns a table with one object a line, in the order in which objects depend on each other. The last column says what it is for.
fn table(network: &Network, locations: &BTreeMap<NodeIndex, LocationName>) -> Table {
    let mut table = Table::new(&["OBJECT", "NAME", "IS", "FOR"]);
    let mut row = |object: &str, name: String, is: String, what_for: String| {
        let cells = [object.to_owned(), name, is].map(|cell| (Style::Plain, cell));
        table.row(cells.into_iter().chain([(Style::Dim, what_for)]).collect());
    };
    let nothing = String::new;
    let up = |up: bool| if up { "up" } else { "down" };
    for (name, w) in &network.wireguard {
        let is =
            format!("port {} mtu {} {}, {} peers", w.listen_port, w.mtu, up(w.up), w.peers.len());
        row("wireguard", name.to_string(), is, nothing());
        for (key, peer) in &w.peers {
            let endpoint =
                peer.endpoint.map_or("no endpoint yet".to_owned(), |e| format!("at {e}"));
            let is = format!("{endpoint}, {} allowed-ips", peer.allowed_ips.len());
            row("peer", format!("{name} {key}"), is, nothing());
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
        row("vxlan", name.to_string(), is, nothing());
    }
    for (name, address) in &network.addresses {
        row("address", address.to_string(), format!("on {name}"), nothing());
    }
    for ((dev, address), mac) in &network.neighbours {
        row("neighbour", format!("{dev} {address}"), mac.to_string(), nothing());
    }
    for ((dev, mac), endpoint) in &network.fdb {
        row("fdb", format!("{dev} {mac}"), format!("at {endpoint}"), nothing());
    }
    let words = Words { relays: !network.wireguard.is_empty(), locations };
    for (id, nexthop) in &network.nexthops {
        row("nexthop", id.to_string(), nexthop.to_string(), words.of_nexthop(*id));
    }
    for rule in &network.rules {
        let what_for = words.of_table(rule.table);
        row("rule", rule.priority.to_string(), rule.to_string(), what_for);
    }
    for (key, via) in &network.routes {
        row("route", key.to_string(), via.to_string(), words.of_table(key.table));
    }
    for (path, value) in &network.sysctls {
        row("sysctl", path.clone(), value.clone(), nothing());
    }
    if let Some(transit) = &*network.untracked {
        row("untracked", "inet leaderd".to_owned(), transit.to_string(), nothing());
    }
    table
}

/// Says what numbered objects are for.
struct Words<'a> {
    /// This node is a candidate: it has planes.
    relays: bool,
    locations: &'a BTreeMap<NodeIndex, LocationName>,
}

impl Words<'_> {
    fn location(&self, lowest: NodeIndex) -> String {
        let named = self.locations.get(&lowest).map(ToString::to_string);
        named.unwrap_or_else(|| format!("the location whose lowest index is {lowest}"))
    }

    fn of_nexthop(&self, id: NexthopId) -> String {
        match nexthop_role(id) {
            Some(NexthopRole::Plane(slot)) => format!("out of plane wgl{slot}"),
            Some(NexthopRole::Candidate(slot)) => format!("to the candidate here in slot {slot}"),
            // On a leader its own object leads to the next candidate, and is not used.
            Some(NexthopRole::Leader(0)) => {
                "to the leader here (on it: to the next candidate)".into()
            }
            Some(NexthopRole::Leader(n)) => format!("to leader number {} here", n + 1),
            Some(NexthopRole::Location(l)) if self.relays => {
                format!("in transit to {}, by the relays there", self.location(l))
            }
            Some(NexthopRole::Location(l)) => {
                format!("to {}, by the relays here", self.location(l))
            }
            Some(NexthopRole::OwnSources(l)) => {
                format!("what this node itself sends to {}, as a standby", self.location(l))
            }
            None => String::new(),
        }
    }

    fn of_table(&self, table: u32) -> String {
        match table_role(table) {
            Some(TableRole::OwnSources) => "what this node itself sends, as a standby".into(),
            Some(TableRole::LastHop) => "what comes in on a plane: the last hop".into(),
            Some(TableRole::Location(l)) => {
                format!("to {}, ahead of a CNI's or Kilo's routes", self.location(l))
            }
            None => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use ipnet::IpNet;
    use wgctl_plan::{Family, Nexthop, RouteKey, RouteVia, Rule, WgInterface};

    use super::*;

    /// What leaderd makes beside a CNI on the candidate in slot 1 while it stands by, without its devices' details.
    fn network(candidate: bool) -> Network {
        let id = |offset: u32| NexthopId(wgctl_plan::NEXTHOP_ID_BASE + offset);
        let device = |dev: &str| Nexthop::Device { dev: dev.parse().unwrap(), family: Family::V4 };
        let group = |offset: u32| Nexthop::Group { members: [id(offset)].into() };
        let mut network = Network::default();
        if candidate {
            let plane = WgInterface {
                public_key: None,
                listen_port: 51900,
                mtu: 1420,
                up: true,
                peers: BTreeMap::new(),
            };
            network.wireguard.insert("wgl0".parse().unwrap(), plane);
        }
        let nexthops = [
            (0x0, device("wgl0")),
            (0x20, device("lvx0")),
            (0x60, device("lvx0")),
            (0x62, device("lvx0")),
            (0x1000 + 2 * 5, group(0)),
            (0x1000 + 2 * 9, group(0)),
            (0x4000 + 2 * 5, group(0x60)),
        ];
        network.nexthops.extend(nexthops.map(|(offset, nexthop)| (id(offset), nexthop)));
        let prefix: IpNet = "10.42.5.0/24".parse().unwrap();
        for (priority, from, table) in [
            (70, Some("10.42.1.0/24".parse().unwrap()), 759_998),
            (76, None, 759_999),
            (76, None, 760_005),
        ] {
            let family = Family::V4;
            network.rules.insert(Rule { family, priority, from, to: None, iif: None, table });
        }
        for (table, offset) in [(759_998, 0x4000 + 10), (760_005, 0x1000 + 10)] {
            let via = RouteVia::Nexthop { id: id(offset), source: None };
            network.routes.insert(RouteKey { table, prefix, metric: 76 }, via);
        }
        network
    }

    #[test]
    fn numbered_objects_are_told_in_words() {
        let locations = [(NodeIndex(5), "cloud".parse().unwrap())].into();
        let plain = Output { json: false, color: false };
        insta::assert_snapshot!("net", table(&network(true), &locations).render(&plain, 0));
        let member = table(&network(false), &locations).render(&plain, 0);
        assert!(member.contains("to cloud, by the relays here"), "{member}");
    }
}
