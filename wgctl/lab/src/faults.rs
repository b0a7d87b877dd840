//! Faults: what breaks, and how it is undone. leaderd hears of none of them from the lab.
//!
//! Each lives in a place of its own (an nftables table, a rule, a link state, the WAN emulator), so undoing one leaves
//! the others in place.

mod apply;

use std::time::Duration;

use anyhow::{Context, Result, bail};

#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    /// On which VXLAN; `None`: all of the node's.
    VxlanNewFlows(Option<Carrier>),
    VxlanAll,
    ForwardingOff,
    Ipv6ForwardingOff,
    SysctlForwarding,
    FdbGhost(Option<String>),
    FdbGhostHeld(Option<String>),
    MtuBlackhole(u16),
    /// The smallest and the largest size.
    SizeWindow(u16, u16),
    RelayLoss(f64),
    /// One of how many flows.
    FlowHash(u16),
    OutwardNewFlows,
    NodeCrash,
    DaemonKill,
    DaemonPause,
    WireguardDown,
    WanCut,
    WanLoss(f64),
    WanLatency(Duration),
    PairCut(Pair),
    PairLoss(Pair, f64),
    PairLatency(Pair, Duration),
    /// The plane of the far candidates with this slot.
    PlaneForwardingOff(u16),
    MemberDown,
    LocationCut,
    LanPartition,
    RouteLoop(Option<String>),
    /// To a node of another location, or to all.
    ForeignRule(Option<String>),
    ForeignRoute(Option<String>),
    TcpBlackhole(u16),
    ServiceDown,
    Masquerade,
    RouterAddress(u8),
    CniRestart,
}

/// What a fault of the WAN between two nodes is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The node at the other end.
    pub with: String,
    /// What goes from the fault's node to the other one.
    pub outward: bool,
    /// What comes from there.
    pub inward: bool,
}

impl Pair {
    /// Reads the words of an argument, `NODE [VALUE] [out|in]`: the pair, and the value.
    fn parse<'a>(name: &str, arg: Option<&'a str>, value: bool) -> Result<(Self, &'a str)> {
        let mut words = arg.unwrap_or_default().split_whitespace();
        let with = words.next().with_context(|| format!("fault {name} needs another node"))?;
        let value = match value {
            true => words.next().with_context(|| format!("fault {name} needs a number"))?,
            false => "",
        };
        let (outward, inward) = match words.next() {
            None => (true, true),
            Some("out") => (true, false),
            Some("in") => (false, true),
            Some(other) => bail!("fault {name}: {other:?} is neither \"out\" nor \"in\""),
        };
        if let Some(more) = words.next() {
            bail!("fault {name} has an argument too many ({more:?})");
        }
        Ok((Self { with: with.to_owned(), outward, inward }, value))
    }
}

/// Whose VXLAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    Cni,
    Leaderd,
}

/// Name, argument and meaning of every fault.
pub const FAULTS: &[(&str, &str, &str)] = &[
    (
        "vxlan-new-flows",
        "[cni|leaderd]",
        "VXLAN packets of new flows are dropped on the way out; old flows and ICMP pass (Kilo #489)",
    ),
    ("vxlan-all", "", "no VXLAN packet leaves or enters the node"),
    (
        "forwarding-off",
        "",
        "the node forwards nothing (a firewall's FORWARD policy), but answers for itself",
    ),
    ("ipv6-forwarding-off", "", "the node forwards no IPv6 (a firewall's rule); IPv4 passes"),
    ("sysctl-forwarding", "", "net.ipv4.ip_forward is set to 0, as another tool might"),
    ("fdb-ghost", "[NODE]", "FDB entries (of one node, or all) point at a dead address, once"),
    (
        "fdb-ghost-held",
        "[NODE]",
        "the same as a rewrite below leaderd, which repairing the FDB does not undo",
    ),
    ("mtu-blackhole", "BYTES", "forwarded packets larger than this vanish, without ICMP"),
    ("size-window", "FROM-TO", "forwarded packets of these sizes, in bytes, vanish"),
    ("relay-loss", "PERCENT", "the node loses packets that it forwards; its own pass"),
    (
        "flow-hash",
        "N",
        "one of N flows that the node forwards from its tunnels vanishes, always the same: a dead leg of a bond or of equal-cost routes",
    ),
    (
        "outward-new-flows",
        "",
        "the node drops what leaves its location by a tunnel, but for replies, as a firewall does that has just been started",
    ),
    (
        "node-crash",
        "",
        "power is cut: all processes die and all links go down; undo boots it again",
    ),
    ("daemon-kill", "", "SIGKILL to leaderd; undo starts it again"),
    ("daemon-pause", "", "SIGSTOP to leaderd"),
    ("wireguard-down", "", "every wgl interface is set down"),
    ("wan-cut", "", "the node's uplink is cut"),
    ("wan-loss", "PERCENT", "the node's uplink loses packets, each way"),
    ("wan-latency", "MS", "the node's uplink is slower by this much, each way"),
    (
        "pair-cut",
        "NODE [out|in]",
        "nothing passes between the node and this one of another location, or nothing that leaves the node for it (out), or comes from it (in); \
         all other pairs are well",
    ),
    ("pair-loss", "NODE PERCENT [out|in]", "packets between these two nodes are lost, each way"),
    (
        "pair-latency",
        "NODE MS [out|in]",
        "packets between these two nodes are slower by this much, each way",
    ),
    (
        "plane-forwarding-off",
        "SLOT",
        "net.ipv4.conf.wglSLOT.forwarding is set to 0: what comes by this tunnel is not forwarded; IPv6 is dropped by a rule, as the kernel has no \
         such switch for it",
    ),
    ("member-down", "", "a node that does not lead loses power"),
    ("location-cut", "", "the whole location of the node loses its WAN"),
    ("lan-partition", "", "the node's LAN cable is pulled; its WAN works"),
    ("route-loop", "[NODE]", "packets to a node behind the relay (default: all) loop on it"),
    (
        "foreign-rule",
        "[NODE]",
        "a policy rule of another program leads packets to a node of another location (default: all of them) into a dead tunnel, before our rules",
    ),
    (
        "foreign-route",
        "[NODE]",
        "a route of another program with a better metric does the same; where the CNI routes the location our rules come before it",
    ),
    ("tcp-blackhole", "PORT", "the node forwards no TCP to this port; all else passes"),
    ("service-down", "", "the services on the node's workload close their ports"),
    (
        "masquerade",
        "",
        "source NAT, as a CNI does it: what comes from a tunnel enters the overlay from the node's own address",
    ),
    (
        "cni-restart",
        "",
        "the CNI's daemon starts anew: flannel writes its routes and rules again, Cilium takes another router address",
    ),
    (
        "router-address",
        "HOST",
        "the node's own address within its prefix becomes another (its last byte), as after a restart of the CNI; no packet of \
         the workload is lost",
    ),
];

impl Fault {
    /// Reads a fault as a scenario or the command line names it.
    ///
    /// # Errors
    /// The name is unknown, or the argument is missing or wrong.
    pub fn parse(name: &str, arg: Option<&str>) -> Result<Self> {
        let read = |text: &str| -> Result<f64> {
            text.trim_end_matches("ms")
                .trim_end_matches('%')
                .parse()
                .with_context(|| format!("{text:?} is no number"))
        };
        let number = || read(arg.with_context(|| format!("fault {name} needs a number"))?);
        let share = |percent: f64| -> Result<f64> {
            if !(0.0..=100.0).contains(&percent) {
                bail!("a loss of {percent}% is not between 0 and 100");
            }
            Ok(percent / 100.0)
        };
        let millis = |ms: f64| Duration::from_secs_f64(ms.max(0.0) / 1e3);
        let target = arg.map(str::to_owned);
        let fault = match name {
            "vxlan-new-flows" => {
                return Ok(Self::VxlanNewFlows(match arg {
                    None => None,
                    Some("cni") => Some(Carrier::Cni),
                    Some("leaderd") => Some(Carrier::Leaderd),
                    Some(other) => bail!("{other:?} is neither \"cni\" nor \"leaderd\""),
                }));
            }
            "vxlan-all" => Self::VxlanAll,
            "forwarding-off" => Self::ForwardingOff,
            "ipv6-forwarding-off" => Self::Ipv6ForwardingOff,
            "sysctl-forwarding" => Self::SysctlForwarding,
            "fdb-ghost" => return Ok(Self::FdbGhost(target)),
            "fdb-ghost-held" => return Ok(Self::FdbGhostHeld(target)),
            "route-loop" => return Ok(Self::RouteLoop(target)),
            "foreign-rule" => return Ok(Self::ForeignRule(target)),
            "foreign-route" => return Ok(Self::ForeignRoute(target)),
            "mtu-blackhole" => return Ok(Self::MtuBlackhole(number()? as u16)),
            "size-window" => {
                let sizes = arg.and_then(|arg| arg.split_once('-'));
                let sizes = sizes.and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
                let sizes = sizes.filter(|(a, b): &(u16, u16)| a <= b);
                let (a, b) =
                    sizes.with_context(|| format!("fault {name} needs FROM-TO, in bytes"))?;
                return Ok(Self::SizeWindow(a, b));
            }
            "relay-loss" => return Ok(Self::RelayLoss(share(number()?)?)),
            "flow-hash" => return Ok(Self::FlowHash(number()?.max(1.0) as u16)),
            "outward-new-flows" => Self::OutwardNewFlows,
            "wan-loss" => return Ok(Self::WanLoss(share(number()?)?)),
            "wan-latency" => return Ok(Self::WanLatency(millis(number()?))),
            "pair-cut" => return Ok(Self::PairCut(Pair::parse(name, arg, false)?.0)),
            "pair-loss" => {
                let (pair, percent) = Pair::parse(name, arg, true)?;
                return Ok(Self::PairLoss(pair, share(read(percent)?)?));
            }
            "pair-latency" => {
                let (pair, ms) = Pair::parse(name, arg, true)?;
                return Ok(Self::PairLatency(pair, millis(read(ms)?)));
            }
            "plane-forwarding-off" => return Ok(Self::PlaneForwardingOff(number()? as u16)),
            "tcp-blackhole" => return Ok(Self::TcpBlackhole(number()? as u16)),
            "router-address" => return Ok(Self::RouterAddress(number()? as u8)),
            "service-down" => Self::ServiceDown,
            "cni-restart" => Self::CniRestart,
            "masquerade" => Self::Masquerade,
            "node-crash" => Self::NodeCrash,
            "daemon-kill" => Self::DaemonKill,
            "daemon-pause" => Self::DaemonPause,
            "wireguard-down" => Self::WireguardDown,
            "wan-cut" => Self::WanCut,
            "member-down" => Self::MemberDown,
            "location-cut" => Self::LocationCut,
            "lan-partition" => Self::LanPartition,
            _ => bail!("no fault {name:?}; `wgctl lab list` names them"),
        };
        if let Some(arg) = arg {
            bail!("fault {name} takes no argument ({arg:?})");
        }
        Ok(fault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_fault_is_understood_and_others_are_not() {
        for (name, arg, _) in FAULTS {
            let arg = match *arg {
                "" | "[NODE]" | "[cni|leaderd]" => None,
                "NODE [out|in]" => Some("a-0"),
                "FROM-TO" => Some("50-60"),
                "NODE PERCENT [out|in]" | "NODE MS [out|in]" => Some("a-0 50 out"),
                _ => Some("50"),
            };
            Fault::parse(name, arg).unwrap();
        }
        assert!(Fault::parse("gremlins", None).is_err());
        assert!(Fault::parse("wan-loss", None).is_err());
        assert!(Fault::parse("wan-loss", Some("101")).is_err());
        assert!(Fault::parse("wan-cut", Some("1")).is_err());
        for wrong in ["600", "900-600", "a-b"] {
            assert!(Fault::parse("size-window", Some(wrong)).is_err(), "{wrong}");
        }
        assert!(Fault::parse("vxlan-new-flows", Some("wire")).is_err());
        let cni = Fault::parse("vxlan-new-flows", Some("cni")).unwrap();
        assert_eq!(cni, Fault::VxlanNewFlows(Some(Carrier::Cni)));
        assert_eq!(Fault::parse("wan-loss", Some("10%")).unwrap(), Fault::WanLoss(0.1));
    }

    #[test]
    fn a_fault_of_a_pair_names_the_other_node_and_perhaps_one_direction() {
        let pair = |outward, inward| Pair { with: "a-0".into(), outward, inward };
        let parse = |name, arg| Fault::parse(name, Some(arg));
        assert_eq!(parse("pair-cut", "a-0").unwrap(), Fault::PairCut(pair(true, true)));
        assert_eq!(parse("pair-cut", "a-0 in").unwrap(), Fault::PairCut(pair(false, true)));
        let loss = Fault::PairLoss(pair(true, false), 0.3);
        assert_eq!(parse("pair-loss", "a-0 30% out").unwrap(), loss);
        let slow = Fault::PairLatency(pair(true, true), Duration::from_millis(60));
        assert_eq!(parse("pair-latency", "a-0 60ms").unwrap(), slow);
        let wrong = |name, arg: &str| format!("{:#}", Fault::parse(name, Some(arg)).unwrap_err());
        assert!(wrong("pair-cut", "").contains("needs another node"));
        assert!(wrong("pair-loss", "a-0").contains("needs a number"));
        assert!(wrong("pair-loss", "a-0 101").contains("between 0 and 100"));
        assert!(wrong("pair-cut", "a-0 up").contains("neither \"out\" nor \"in\""));
        assert!(wrong("pair-cut", "a-0 in out").contains("too many"));
    }
}
