//! How each fault is begun and undone on a node of the lab.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{Carrier, Fault, Pair};
use crate::topology::Vxlan;
use crate::wan::Link;
use crate::world::World;

/// Routing table and rule priority of `route-loop`.
const LOOP_TABLE: u32 = 4890;
/// Priority of a chain before those that switch connection tracking off.
const BEFORE_TRACKING: i32 = -310;
/// Rule priority and routing table of `foreign-rule`: those of a well-known VPN client.
const FOREIGN_RULE: u32 = 5270;
const FOREIGN_TABLE: u32 = 52;

impl Fault {
    /// Begins the fault on a node.
    ///
    /// # Errors
    /// The node cannot have it, or a command fails.
    pub fn inject(&self, world: &World, node: usize) -> Result<()> {
        self.switch(world, node, true)
    }

    /// Ends the fault on a node.
    ///
    /// # Errors
    /// A command fails.
    pub fn undo(&self, world: &World, node: usize) -> Result<()> {
        self.switch(world, node, false)
    }

    fn switch(&self, world: &World, node: usize, on: bool) -> Result<()> {
        let n = &world.nodes[node];
        match self {
            Self::VxlanNewFlows(carrier) => {
                let dying = if on { vxlan_ports(world, node, *carrier)? } else { Vec::new() };
                n.ns.nft(&world.flows(node).chain(&dying))
            }
            Self::VxlanAll => {
                let ports = vxlan_ports(world, node, None)?;
                let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
                let rule = format!("udp dport {{ {} }} drop", ports.join(", "));
                table(world, node, "vxlan_all", on, &[("output", &rule), ("input", &rule)])
            }
            Self::CniRestart => world.cni(node).restart(&world.topology, n, !on),
            Self::Ipv6ForwardingOff => {
                forward(world, node, "ipv6_forwarding_off", on, "meta nfproto ipv6 drop")
            }
            Self::ForwardingOff => forward(world, node, "forwarding_off", on, "drop"),
            Self::MtuBlackhole(size) => {
                forward(world, node, "mtu_blackhole", on, &format!("meta length > {size} drop"))
            }
            Self::SizeWindow(from, to) => {
                forward(world, node, "size_window", on, &format!("meta length {from}-{to} drop"))
            }
            Self::RelayLoss(share) => {
                let lost = (share * 1000.0).round() as u32;
                let some = format!("numgen random mod 1000 < {lost} drop");
                let rule = if lost < 1000 { &some } else { "drop" };
                forward(world, node, "relay_loss", on, rule)
            }
            Self::FlowHash(of) => {
                // Packets that are too short for ports do not match, and pass.
                let hash = |ip: &str| {
                    format!(
                        "iifname \"wgl*\" jhash {ip} saddr . {ip} daddr . th sport . th dport mod {of} 0 drop"
                    )
                };
                let rules = format!("{}\n  {}", hash("ip"), hash("ip6"));
                forward(world, node, "flow_hash", on, &rules)
            }
            Self::OutwardNewFlows => {
                // Connection tracking, which the lab's own chains and leaderd's switch off: a packet that was given a zone before is tracked
                // all the same.
                let rules = "ct state established,related accept\n  oifname \"wgl*\" drop";
                table(
                    world,
                    node,
                    "outward_new_flows",
                    on,
                    &[("prerouting", "ct zone set 1"), ("forward", rules)],
                )
            }
            Self::TcpBlackhole(port) => {
                forward(world, node, "tcp_blackhole", on, &format!("tcp dport {port} drop"))
            }
            Self::ServiceDown => {
                let mut here = world.services.iter().filter(|s| s.node == node).peekable();
                if here.peek().is_none() {
                    bail!("{} has no service", n.node.name);
                }
                here.for_each(|s| s.switch(!on));
                Ok(())
            }
            Self::SysctlForwarding => {
                n.ns.sysctl("ipv4/ip_forward", if on { "0" } else { "1" })?;
                n.ns.sysctl("ipv6/conf/all/forwarding", if on { "0" } else { "1" })
            }
            Self::FdbGhost(target) => fdb_ghost(world, node, target.as_deref(), on),
            Self::FdbGhostHeld(target) => fdb_ghost_held(world, node, target.as_deref(), on),
            Self::NodeCrash | Self::MemberDown if on => world.crash(node),
            Self::NodeCrash | Self::MemberDown => world.boot(node),
            Self::DaemonKill if on => world.kill_daemon(node),
            Self::DaemonKill => world.start_daemon(node),
            Self::DaemonPause => world.pause_daemon(node, on),
            Self::WireguardDown => {
                let state = if on { "down" } else { "up" };
                let links = world.planes_of(node)?;
                if on && links.is_empty() {
                    bail!("{} has no wgl interface", n.node.name);
                }
                n.ns.ip(&links.iter().fold(String::new(), |mut s, l| {
                    let _ = writeln!(s, "link set {l} {state}");
                    s
                }))
            }
            Self::WanCut => {
                world.wan.change_uplink(node, |u| u.cut = on);
                Ok(())
            }
            Self::WanLoss(share) => {
                world.wan.change_uplink(node, |u| u.loss = if on { *share } else { 0.0 });
                Ok(())
            }
            Self::WanLatency(delay) => {
                world
                    .wan
                    .change_uplink(node, |u| u.delay = if on { *delay } else { Duration::ZERO });
                Ok(())
            }
            Self::PairCut(pair) => pair.change(world, node, |l| l.cut = on),
            Self::PairLoss(pair, share) => {
                pair.change(world, node, |l| l.loss = if on { *share } else { 0.0 })
            }
            Self::PairLatency(pair, delay) => {
                pair.change(world, node, |l| l.delay = if on { *delay } else { Duration::ZERO })
            }
            Self::PlaneForwardingOff(slot) => plane_forwarding(world, node, *slot, on),
            Self::LocationCut => {
                world.wan.cut_location(n.node.location, on);
                Ok(())
            }
            Self::LanPartition => world.lan_link(node, !on),
            Self::Masquerade => n.ns.nft(&source_nat(&world.vxlan(node), n.node.gateway(), on)),
            Self::RouteLoop(target) => route_loop(world, node, target.as_deref(), on),
            Self::ForeignRule(target) => {
                let table = FOREIGN_TABLE;
                foreign_routes(world, node, target.as_deref(), on, &format!("table {table}"))?;
                let verb = if on { "add" } else { "del" };
                n.ns.ip(&format!("rule {verb} pref {FOREIGN_RULE} lookup {table}"))
            }
            Self::ForeignRoute(target) => {
                foreign_routes(world, node, target.as_deref(), on, "metric 50")
            }
            Self::RouterAddress(host) => {
                let (own, other) = (n.node.gateway(), n.node.workload(*host));
                let (old, new) = if on { (own, other) } else { (other, own) };
                n.ns.sysctl("ipv4/conf/pods/promote_secondaries", "1")?;
                n.ns.ip(&format!("addr add {new}/24 dev pods"))?;
                n.pod.ip(&format!("route replace default via {new}"))?;
                n.ns.ip(&format!("addr del {old}/24 dev pods"))
            }
        }
    }
}

impl Pair {
    /// Changes its directions on the WAN.
    fn change(&self, world: &World, node: usize, change: impl Fn(&mut Link)) -> Result<()> {
        let far = world.topology.node(&self.with)?;
        let [own, other] = [node, far].map(|n| &world.nodes[n].node);
        for n in [own, other] {
            n.wan().with_context(|| format!("{} is no candidate: it has no WAN", n.name))?;
        }
        if own.location == other.location {
            bail!("{} and {} are in one location: no WAN is between them", own.name, other.name);
        }
        if self.outward {
            world.wan.change_pair(node, far, &change);
        }
        if self.inward {
            world.wan.change_pair(far, node, &change);
        }
        Ok(())
    }
}

/// The rules of `masquerade`, in the manner of Cilium's and flannel's. NAT needs connection tracking, which the lab's own
/// chains switch off: a packet that was given a zone before is tracked all the same. Only what is forwarded between tunnels
/// and overlay is given one, as the replies to what this node sends itself would not be found there.
fn source_nat(vxlan: &Vxlan, own: Ipv4Addr, on: bool) -> String {
    let mut rules = "add table ip lab_masquerade\ndelete table ip lab_masquerade\n".to_owned();
    if on {
        let device = vxlan.device;
        let _ = write!(
            rules,
            "table ip lab_masquerade {{\n chain tracked {{\n  type filter hook prerouting priority -310;\n  \
             iifname \"wgl*\" ct zone set 1\n  iifname \"{device}\" ct zone set 1\n }}\n chain out {{\n  \
             type nat hook postrouting priority srcnat;\n  \
             iifname \"wgl*\" oifname \"{device}\" snat to {own}\n }}\n}}\n"
        );
    }
    rules
}

/// The kernel asks the device that a packet came in by, for IPv4. IPv6 has one switch for the whole host, so a rule does it there.
fn plane_forwarding(world: &World, node: usize, slot: u16, off: bool) -> Result<()> {
    let (n, device) = (&world.nodes[node], format!("wgl{slot}"));
    if !world.planes_of(node)?.contains(&device) {
        bail!("{} has no {device}", n.node.name);
    }
    n.ns.sysctl(&format!("ipv4/conf/{device}/forwarding"), if off { "0" } else { "1" })?;
    let rule = format!("iifname \"{device}\" meta nfproto ipv6 drop");
    table(world, node, &format!("plane_forwarding_{slot}"), off, &[("forward", &rule)])
}

/// Makes or removes the table of a fault that drops some of what the node forwards.
fn forward(world: &World, node: usize, name: &str, on: bool, rule: &str) -> Result<()> {
    table(world, node, name, on, &[("forward", rule)])
}

/// Switches an nftables table with one chain per hook. That of `prerouting` comes before connection tracking.
fn table(world: &World, node: usize, name: &str, on: bool, chains: &[(&str, &str)]) -> Result<()> {
    let mut rules = format!("add table inet lab_{name}\ndelete table inet lab_{name}\n");
    if on {
        writeln!(rules, "table inet lab_{name} {{")?;
        for (hook, rule) in chains {
            let priority = if *hook == "prerouting" { BEFORE_TRACKING } else { 0 };
            writeln!(
                rules,
                " chain {hook} {{\n  type filter hook {hook} priority {priority};\n  {rule}\n }}"
            )?;
        }
        rules.push_str("}\n");
    }
    world.nodes[node].ns.nft(&rules)
}

/// UDP ports of a node's VXLANs.
fn vxlan_ports(world: &World, node: usize, carrier: Option<Carrier>) -> Result<Vec<u16>> {
    Ok(match carrier {
        None => world.flows(node).ports,
        Some(Carrier::Leaderd) => vec![Vxlan::OWN.port],
        Some(Carrier::Cni) => {
            let cni = world.cni(node).vxlan();
            vec![cni.with_context(|| format!("no CNI on {}", world.nodes[node].node.name))?.port]
        }
    })
}

/// The nodes of the same location that a fault on `node` is about.
fn peers(world: &World, node: usize, target: Option<&str>) -> Result<Vec<usize>> {
    if let Some(name) = target {
        return Ok(vec![world.topology.node(name)?]);
    }
    let location = world.nodes[node].node.location;
    Ok((0..world.nodes.len())
        .filter(|i| *i != node && world.nodes[*i].node.location == location)
        .collect())
}

/// Rewrites the entries as `bridge fdb` shows them. The undo does nothing: only leaderd repairs them.
fn fdb_ghost(world: &World, node: usize, target: Option<&str>, on: bool) -> Result<()> {
    let n = &world.nodes[node];
    let wanted: Vec<String> = peers(world, node, target)?
        .into_iter()
        .map(|p| world.nodes[p].node.lan().to_string())
        .collect();
    let device = world.vxlan(node).device;
    let shown = n.ns.output("bridge", &["fdb", "show", "dev", device])?;
    let (mut lines, dead) = (String::new(), n.node.dead_lan().to_string());
    for line in shown.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let Some(dst) = words.iter().position(|w| *w == "dst").and_then(|i| words.get(i + 1))
        else {
            continue;
        };
        let ours = if on { wanted.iter().any(|w| w == dst) } else { false };
        if ours && words[0] != "00:00:00:00:00:00" {
            writeln!(lines, "fdb replace {} dev {device} dst {dead} self permanent", words[0])?;
        }
    }
    if on && lines.is_empty() {
        bail!("{} has no FDB entry for {}", n.node.name, wanted.join(", "));
    }
    crate::ns::feed(n.ns.command("bridge").args(["-batch", "-"]), &lines)
}

fn fdb_ghost_held(world: &World, node: usize, target: Option<&str>, on: bool) -> Result<()> {
    let n = &world.nodes[node];
    let mut rules = "add table inet lab_ghost\ndelete table inet lab_ghost\n".to_owned();
    if on {
        rules.push_str(
            "table inet lab_ghost {\n chain out {\n  type route hook output priority 0;\n",
        );
        for p in peers(world, node, target)? {
            let (lan, dead) = (world.nodes[p].node.lan(), n.node.dead_lan());
            let port = world.vxlan(node).port;
            writeln!(rules, "  ip daddr {lan} udp dport {port} ip daddr set {dead}")?;
        }
        rules.push_str(" }\n}\n");
    }
    n.ns.nft(&rules)
}

/// A pair of veth ends on the relay, each of whose packets comes in again at the other until its TTL is spent.
fn route_loop(world: &World, node: usize, target: Option<&str>, on: bool) -> Result<()> {
    let n = &world.nodes[node];
    if !on {
        return n
            .ns
            .ip(&format!("rule del pref {LOOP_TABLE} lookup {LOOP_TABLE}\nlink del labloop0"));
    }
    n.ns.ip("link add labloop0 type veth peer name labloop1\nlink set labloop0 up\nlink set labloop1 up")?;
    for end in ["labloop0", "labloop1"] {
        n.ns.sysctl(&format!("ipv4/conf/{end}/rp_filter"), "0")?;
        n.ns.sysctl(&format!("ipv4/conf/{end}/forwarding"), "1")?;
        n.ns.sysctl(&format!("ipv4/conf/{end}/send_redirects"), "0")?;
    }
    let mac =
        n.ns.run(|| std::fs::read_to_string("/proc/thread-self/net/dev").map_err(Into::into))
            .and_then(|_| {
                let shown = n.ns.output("ip", &["-o", "link", "show", "labloop1"])?;
                let mut words = shown.split_whitespace().skip_while(|w| *w != "link/ether");
                words.nth(1).map(str::to_owned).context("labloop1 has no MAC")
            })?;
    let mut lines = format!("neigh replace 169.254.48.9 lladdr {mac} dev labloop0 nud permanent\n");
    for p in peers(world, node, target)? {
        let prefix = world.nodes[p].node.prefix();
        writeln!(
            lines,
            "route add {prefix} via 169.254.48.9 dev labloop0 onlink table {LOOP_TABLE}"
        )?;
    }
    writeln!(lines, "rule add pref {LOOP_TABLE} lookup {LOOP_TABLE}")?;
    n.ns.ip(&lines)
}

/// Adds routes to nodes of other locations through a device that leads nowhere.
fn foreign_routes(
    world: &World,
    node: usize,
    target: Option<&str>,
    on: bool,
    place: &str,
) -> Result<()> {
    let n = &world.nodes[node];
    if !on {
        return n.ns.ip("link del labvpn0");
    }
    let mut lines =
        "link add labvpn0 type veth peer name labvpn1\nlink set labvpn0 up\nlink set labvpn1 up\n\
         neigh replace 169.254.52.9 lladdr 02:00:00:00:52:09 dev labvpn0 nud permanent\n"
            .to_owned();
    let far = match target {
        Some(name) => vec![world.topology.node(name)?],
        None => (0..world.nodes.len()).collect(),
    };
    let far = far.into_iter().map(|i| &world.nodes[i].node);
    for other in far.filter(|other| other.location != n.node.location) {
        writeln!(
            lines,
            "route add {} via 169.254.52.9 dev labvpn0 onlink {place}",
            other.prefix()
        )?;
    }
    n.ns.ip(&lines)
}
