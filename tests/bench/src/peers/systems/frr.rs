//! FRR: BFD and BGP over a WireGuard tunnel per pair of gateways, as a careful operator sets it up today.
//!
//! ```text
//! wgl{index of the far gateway}, AllowedIPs 0.0.0.0/0, /32 addresses at both ends; routes by BGP alone
//! between locations   eBGP over each tunnel, one AS per location; MED says which gateway a location wants to be reached by
//! in a location       iBGP over the overlay; gateways reflect, members announce their own prefix, local preference says which
//!                     gateway members use
//! BFD                 single-hop on every session, same interval everywhere
//! ```
//!
//! One gateway of each location is preferred (slot 0), so one leads as in the other systems; with equal cost multipath half of all
//! flows would meet a fault, whoever leads. Members find the gateway by iBGP rather than VRRP: one protocol, and a gateway that
//! has lost its tunnels withdraws its routes. No graceful restart: with BFD it would keep routes into a dead gateway.
//! A planned move is `bgp graceful-shutdown` (RFC 8326).

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use wgctl_lab::{LabNode, Node, System, Topology, World};

use ::tests::lab::overlay;

const DAEMONS: [&str; 3] = ["zebra", "bfdd", "bgpd"];
const DIRECTORY: &str = "/usr/lib/frr";
/// Local preference and MED of the gateway of a slot: the first is preferred.
const PREFERENCE: [u16; 2] = [200, 100];
const MED: [u16; 2] = [100, 200];
const FIRST_AS: usize = 65_001;
const FIRST_PORT: u16 = 51_820;

#[derive(Debug)]
pub struct Frr {
    /// Of BFD; three packets missed in a row are a failure.
    pub interval: Duration,
}

impl System for Frr {
    fn start(&mut self, world: &Arc<World>) -> Result<()> {
        overlay::set_up(world, false)?;
        for n in world.nodes.iter().filter(|n| n.node.slot.is_some()) {
            tunnels(world, n)?;
        }
        for n in &world.nodes {
            let configuration = [
                ("zebra", zebra(&n.node)),
                ("bfdd", bfdd(&n.node, self.interval)),
                ("bgpd", bgpd(&world.topology, &n.node)),
            ];
            // The daemons give up root, so what they read and write lies in a directory of theirs.
            n.ns.output("install", &["-d", "-o", "frr", "-g", "frr", "/run/frr"])?;
            for (daemon, text) in configuration {
                let from = n.dir.join(format!("{daemon}.conf"));
                std::fs::write(&from, text)?;
                let from = from.to_str().context("a path that is no text")?;
                let to = format!("/run/frr/{daemon}.conf");
                n.ns.output("install", &["-o", "frr", "-g", "frr", from, &to])?;
            }
            for daemon in DAEMONS {
                let file = format!("/run/frr/{daemon}.conf");
                // `-P 0`: no telnet port.
                let args = ["-d", "-f", &file, "-A", "127.0.0.1", "-P", "0"];
                let program = format!("{DIRECTORY}/{daemon}");
                n.ns.output(&program, &args)
                    .with_context(|| format!("{daemon} on {}", n.node.name))?;
            }
        }
        Ok(())
    }

    fn not_ready(&self, world: &World) -> Option<String> {
        world.nodes.iter().find_map(|n| {
            let why = match (vtysh(n, "show bgp summary json"), vtysh(n, "show bfd peers json")) {
                (Ok(bgp), Ok(bfd)) => waits_for(&bgp, &bfd)?,
                (Err(e), _) | (_, Err(e)) => format!("{e:#}"),
            };
            Some(format!("{}: {why}", n.node.name))
        })
    }

    fn hand_over(&mut self, world: &Arc<World>, from: usize, _to: usize) -> Result<()> {
        let n = &world.nodes[from];
        let own = as_number(n.node.location);
        let commands =
            ["configure terminal", &format!("router bgp {own}"), "bgp graceful-shutdown"];
        let args: Vec<&str> = commands.iter().flat_map(|c| ["-c", c]).collect();
        n.ns.output("vtysh", &args).map(drop)
    }
}

fn vtysh(node: &LabNode, command: &str) -> Result<Value> {
    let text = node.ns.output("vtysh", &["-c", command])?;
    serde_json::from_str(&text).with_context(|| format!("{command}: {text}"))
}

/// What is not up yet, by `show bgp summary json` and `show bfd peers json`.
fn waits_for(bgp: &Value, bfd: &Value) -> Option<String> {
    let Some(peers) = bgp["ipv4Unicast"]["peers"].as_object().filter(|p| !p.is_empty()) else {
        return Some("no BGP peers".into());
    };
    if let Some((name, p)) = peers.iter().find(|(_, p)| p["state"] != "Established") {
        return Some(format!("BGP with {name} is {}", p["state"]));
    }
    let sessions = bfd.as_array().map_or(&[][..], Vec::as_slice);
    if sessions.len() < peers.len() {
        return Some(format!("{} BFD sessions of {}", sessions.len(), peers.len()));
    }
    let down = sessions.iter().find(|s| s["status"] != "up")?;
    Some(format!("BFD with {} is {}", down["peer"], down["status"]))
}

fn as_number(location: usize) -> usize {
    FIRST_AS + location
}

/// This end's address of the tunnel between two gateways.
fn inner(own: &Node, far: &Node) -> String {
    format!("100.125.{}.{}", own.index, far.index)
}

fn slot(node: &Node) -> usize {
    usize::from(node.slot.unwrap_or_default()).min(1)
}

fn is_far_gateway(own: &Node, other: &Node) -> bool {
    other.location != own.location && other.slot.is_some()
}

fn tunnels(world: &World, n: &LabNode) -> Result<()> {
    let own = &n.node;
    for far in world.nodes.iter().filter(|f| is_far_gateway(own, &f.node)) {
        let device = format!("wgl{}", far.node.index);
        let configuration = format!(
            "[Interface]\nPrivateKey = {}\nListenPort = {}\n\n[Peer]\nPublicKey = {}\nEndpoint = {}:{}\n\
             AllowedIPs = 0.0.0.0/0\nPersistentKeepalive = 25\n",
            overlay::secret_key(n)?,
            FIRST_PORT + far.node.index,
            far.wireguard_key,
            far.node.wan().context("a gateway without a WAN address")?,
            FIRST_PORT + own.index,
        );
        overlay::start_tunnel(n, &device, &configuration)?;
        n.ns.ip(&format!(
            "addr add {} peer {} dev {device}\nlink set {device} up",
            inner(own, &far.node),
            inner(&far.node, own)
        ))?;
    }
    Ok(())
}

fn zebra(node: &Node) -> String {
    format!("frr defaults datacenter\nhostname {}\nlog file /run/frr/zebra.log\n", node.name)
}

fn bfdd(node: &Node, interval: Duration) -> String {
    let ms = interval.as_millis();
    format!(
        "\
frr defaults datacenter
hostname {}
log file /run/frr/bfdd.log
!
bfd
 profile gateway
  detect-multiplier 3
  receive-interval {ms}
  transmit-interval {ms}
 exit
exit
",
        node.name
    )
}

fn bgpd(topology: &Topology, node: &Node) -> String {
    let head = format!(
        "\
frr defaults datacenter
hostname {}
log file /run/frr/bgpd.log
!
router bgp {}
 bgp router-id {}
 no bgp ebgp-requires-policy
",
        node.name,
        as_number(node.location),
        overlay::address(node),
    );
    let body = match node.slot {
        Some(_) => gateway(topology, node),
        None => member(topology, node),
    };
    head + &body
}

fn gateway(topology: &Topology, node: &Node) -> String {
    let mut out = String::from(
        " neighbor FAR peer-group
 neighbor FAR remote-as external
 neighbor FAR bfd profile gateway
 neighbor OTHER peer-group
 neighbor OTHER remote-as internal
 neighbor OTHER bfd profile gateway
 neighbor MEMBER peer-group
 neighbor MEMBER remote-as internal
 neighbor MEMBER bfd profile gateway
",
    );
    for far in topology.nodes.iter().filter(|f| is_far_gateway(node, f)) {
        let _ = writeln!(out, " neighbor {} peer-group FAR", inner(far, node));
    }
    for near in overlay::nodes_of(topology, node.location).filter(|n| n.index != node.index) {
        let group = if near.slot.is_some() { "OTHER" } else { "MEMBER" };
        let _ = writeln!(out, " neighbor {} peer-group {group}", overlay::address(near));
    }
    let _ = write!(
        out,
        " !
 address-family ipv4 unicast
  network {prefix}
  neighbor FAR route-map TO-FAR out
  neighbor OTHER next-hop-self
  neighbor MEMBER next-hop-self
  neighbor MEMBER route-reflector-client
  neighbor MEMBER route-map TO-MEMBER out
 exit-address-family
exit
!
route-map TO-FAR permit 10
 set metric {med}
exit
!
route-map TO-MEMBER permit 10
 set local-preference {preference}
exit
",
        prefix = node.prefix(),
        med = MED[slot(node)],
        preference = PREFERENCE[slot(node)],
    );
    out
}

fn member(topology: &Topology, node: &Node) -> String {
    let mut out = String::from(
        " neighbor GATEWAY peer-group
 neighbor GATEWAY remote-as internal
 neighbor GATEWAY bfd profile gateway
",
    );
    for g in overlay::gateways_of(topology, node.location) {
        let _ = writeln!(out, " neighbor {} peer-group GATEWAY", overlay::address(g));
    }
    let _ = write!(
        out,
        " !\n address-family ipv4 unicast\n  network {}\n exit-address-family\nexit\n",
        node.prefix()
    );
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn it_waits_for_every_session_of_both_protocols() {
        let bgp = |state| json!({"ipv4Unicast": {"peers": {"10.0.0.1": {"state": state}}}});
        let bfd = |status| json!([{"peer": "10.0.0.1", "status": status}]);
        assert_eq!(waits_for(&bgp("Established"), &bfd("up")), None);
        for (bgp, bfd) in [
            (json!({}), json!([])),
            (bgp("Active"), bfd("up")),
            (bgp("Established"), json!([])),
            (bgp("Established"), bfd("down")),
        ] {
            assert!(waits_for(&bgp, &bfd).is_some(), "{bgp} {bfd}");
        }
    }

    #[test]
    fn gateways_meet_every_far_gateway_and_their_own_location_and_members_their_gateways() {
        let topology = topology();
        let [first, second] = ["cloud-0", "cloud-1"].map(|n| topology.node(n).unwrap());
        let text = bgpd(&topology, &topology.nodes[first]);
        assert_eq!(text.matches(" peer-group FAR\n").count(), 2, "{text}");
        assert_eq!(text.matches(" peer-group OTHER\n").count(), 1, "{text}");
        assert_eq!(text.matches(" peer-group MEMBER\n").count(), 1, "{text}");
        assert!(text.contains("set metric 100") && text.contains("set local-preference 200"));
        let text = bgpd(&topology, &topology.nodes[second]);
        assert!(text.contains("set metric 200") && text.contains("set local-preference 100"));
        let member = &topology.nodes[topology.node("cloud-2").unwrap()];
        let text = bgpd(&topology, member);
        assert_eq!(text.matches(" peer-group GATEWAY\n").count(), 2, "{text}");
        assert!(text.contains(&format!("network {}", member.prefix())));
    }

    fn topology() -> Topology {
        Topology::of(&crate::peers::cases::scenario(128).unwrap()).unwrap()
    }

    #[test]
    fn the_interval_goes_into_the_profile() {
        let text = bfdd(&topology().nodes[0], Duration::from_millis(300));
        assert!(text.contains("detect-multiplier 3\n  receive-interval 300\n"), "{text}");
    }
}
