//! keepalived: VRRP between the two gateways of a location, and one WireGuard peer per location that moves with the address.
//!
//! ```text
//! lvx0   the location's gateway address, 100.126.{location}.250; members and the backup send what is remote there
//! wgl0   on the master only. Both gateways of a location have the same WireGuard key, so to the other location the peer
//!        stays the same and only its endpoint moves: by roaming, with the new master's first handshake, and by `wg set` there
//! ```
//!
//! The script that VRRP's `notify` calls makes or removes the device, as `wg-quick` does, and sets the routes. Of the other location it asks, as over ssh
//! (the driver does it, [`REMOTE_STEP`] later), to set the peer's endpoint on both of its gateways, in its configuration and in the device, which matters where both locations
//! have moved. `nopreempt`, so that nothing moves back by itself. The master gives up at once when its device is down, and after five
//! failed pings of the far end, one a second: longer than the other location needs to fail over, or both would move for one
//! fault. A planned move is stopping keepalived on the master.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use wgctl_lab::{LabNode, Node, System, Topology, VXLAN_DEVICE, World};

use ::tests::lab::overlay;

const DEVICE: &str = "wgl0";
const PORT: u16 = 51_820;
const PRIORITY: [u16; 2] = [150, 100];
/// From the start of the notify script until the other location has new endpoints: an ssh connection at 20 ms round trip (TCP,
/// key exchange, authentication, session: some seven round trips, and the work at both ends).
pub const REMOTE_STEP: Duration = Duration::from_millis(300);
/// Between the starts of two locations.
const BETWEEN_LOCATIONS: Duration = Duration::from_millis(1500);
const POLL: Duration = Duration::from_millis(10);

#[derive(Debug)]
pub struct Keepalived {
    advert: Duration,
    /// By node: what it runs as.
    processes: BTreeMap<usize, u32>,
}

impl Keepalived {
    pub fn new(advert: Duration) -> Self {
        Self { advert, processes: BTreeMap::new() }
    }
}

impl System for Keepalived {
    fn start(&mut self, world: &Arc<World>) -> Result<()> {
        overlay::set_up(world, true)?;
        for n in world.nodes.iter().filter(|n| n.node.slot.is_some()) {
            fs::write(tunnel_file(n), tunnel(world, &n.node, &BTreeMap::new())?)?;
            script(&notify_file(n), &notify(&world.topology, n))?;
            script(&check_file(n), &check(&world.topology, n))?;
        }
        for n in &world.nodes {
            let lines = by_gateway_address(&world.topology, n.node.location);
            n.ns.ip(&lines.iter().map(|l| format!("route add {l}\n")).collect::<String>())?;
        }
        // In a location the preferred gateway first, so that it is master before the other listens.
        let mut gateways: Vec<usize> =
            (0..world.nodes.len()).filter(|n| world.nodes[*n].node.slot.is_some()).collect();
        // One location after the other: two ends that begin the handshake in the same moment drop each other's.
        gateways.sort_by_key(|n| (world.nodes[*n].node.location, world.nodes[*n].node.slot));
        let mut location = 0;
        for i in gateways {
            if world.nodes[i].node.location != location {
                location = world.nodes[i].node.location;
                std::thread::sleep(BETWEEN_LOCATIONS);
            }
            let n = &world.nodes[i];
            let file = n.dir.join("keepalived.conf");
            fs::write(&file, configuration(&world.topology, n, self.advert))?;
            let log = fs::File::create(n.dir.join("keepalived.log"))?;
            let child =
                n.ns.command("keepalived")
                    .args(["--dont-fork", "--log-console", "--log-detail", "--vrrp", "--use-file"])
                    .arg(&file)
                    .stdin(Stdio::null())
                    .stdout(log.try_clone()?)
                    .stderr(log)
                    .spawn()
                    .context("cannot run keepalived: is it installed?")?;
            self.processes.insert(i, child.id());
        }
        let world = Arc::clone(world);
        std::thread::spawn(move || remote_steps(&world));
        Ok(())
    }

    fn not_ready(&self, world: &World) -> Option<String> {
        (0..world.topology.locations.len()).find_map(|l| {
            let gateways = world.nodes.iter().filter(|n| n.node.location == l);
            let masters = gateways.filter(|n| state(n) == "master").count();
            (masters != 1)
                .then(|| format!("{masters} masters in {}", world.topology.locations[l].name))
        })
    }

    fn hand_over(&mut self, _world: &Arc<World>, from: usize, _to: usize) -> Result<()> {
        let pid = self.processes.get(&from).context("no keepalived on the master")?;
        kill(Pid::from_raw(*pid as i32), Signal::SIGTERM).context("kill")
    }
}

fn script(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text)?;
    fs::set_permissions(file, fs::Permissions::from_mode(0o700)).context("chmod")
}

fn notify_file(n: &LabNode) -> PathBuf {
    n.dir.join("notify")
}
fn check_file(n: &LabNode) -> PathBuf {
    n.dir.join("check")
}
fn tunnel_file(n: &LabNode) -> PathBuf {
    n.dir.join("wgl0.conf")
}
fn state_file(n: &LabNode) -> PathBuf {
    n.dir.join("vrrp-state")
}
fn asked_file(n: &LabNode) -> PathBuf {
    n.dir.join("endpoint-please")
}

fn state(n: &LabNode) -> String {
    fs::read_to_string(state_file(n)).unwrap_or_default().trim().to_owned()
}

/// The location's end of the tunnel.
fn inner(location: usize) -> String {
    format!("100.125.0.{}", location + 1)
}

fn gateway_address(location: usize) -> String {
    format!("100.126.{location}.250")
}

/// Remote prefixes, by the location's gateway address: as `ip route add` takes them.
fn by_gateway_address(topology: &Topology, location: usize) -> Vec<String> {
    let gateway = gateway_address(location);
    let all = overlay::remote_prefixes(topology, location).into_iter();
    all.map(|p| format!("{p} via {gateway} dev {VXLAN_DEVICE}")).collect()
}

/// The node whose key a location uses.
fn key_holder(world: &World, location: usize) -> Option<&LabNode> {
    world.nodes.iter().find(|n| n.node.location == location && n.node.slot == Some(0))
}

/// `endpoints`: by location, where its master was last, if not the preferred gateway.
fn tunnel(world: &World, node: &Node, endpoints: &BTreeMap<usize, Ipv4Addr>) -> Result<String> {
    let own = key_holder(world, node.location).context("a location without gateways")?;
    let mut out =
        format!("[Interface]\nPrivateKey = {}\nListenPort = {PORT}\n", overlay::secret_key(own)?);
    for l in (0..world.topology.locations.len()).filter(|l| *l != node.location) {
        let far = key_holder(world, l).context("a location without gateways")?;
        let prefixes: Vec<String> =
            overlay::nodes_of(&world.topology, l).map(Node::prefix).collect();
        write!(
            out,
            "\n[Peer]\nPublicKey = {}\nEndpoint = {}:{PORT}\nAllowedIPs = {}/32, {}\nPersistentKeepalive = 25\n",
            far.wireguard_key,
            endpoints
                .get(&l)
                .copied()
                .or(far.node.wan())
                .context("a gateway without a WAN address")?,
            inner(l),
            prefixes.join(", ")
        )?;
    }
    Ok(out)
}

fn configuration(topology: &Topology, n: &LabNode, advert: Duration) -> String {
    let node = &n.node;
    let other = overlay::gateways_of(topology, node.location).find(|g| g.index != node.index);
    let peer = other.map(|o| overlay::address(o).to_string()).unwrap_or_default();
    render(
        node,
        &peer,
        advert,
        &notify_file(n).display().to_string(),
        &check_file(n).display().to_string(),
    )
}

fn render(node: &Node, peer: &str, advert: Duration, notify: &str, check: &str) -> String {
    format!(
        "\
global_defs {{
  router_id {name}
  vrrp_version 3
  script_user root
}}

vrrp_script device {{
  script \"{check} device\"
  interval 1
  fall 1
  rise 2
}}

vrrp_script far_end {{
  script \"{check} far-end\"
  interval 1
  timeout 2
  fall 5
  rise 2
}}

vrrp_instance gateway {{
  state BACKUP
  nopreempt
  interface {VXLAN_DEVICE}
  virtual_router_id {id}
  priority {priority}
  advert_int {advert}
  unicast_src_ip {own}
  unicast_peer {{
    {peer}
  }}
  virtual_ipaddress {{
    {gateway}/24 dev {VXLAN_DEVICE}
  }}
  track_script {{
    device
    far_end
  }}
  notify_master \"{notify} master\"
  notify_backup \"{notify} backup\"
  notify_fault \"{notify} fault\"
  notify_stop \"{notify} stop\"
}}
",
        name = node.name,
        id = node.location + 1,
        priority = PRIORITY[usize::from(node.slot.unwrap_or_default()).min(1)],
        advert = advert.as_secs_f64(),
        own = overlay::address(node),
        gateway = gateway_address(node.location),
    )
}

/// Called with the new state.
fn notify(topology: &Topology, n: &LabNode) -> String {
    let location = n.node.location;
    let mut up = String::new();
    for prefix in overlay::remote_prefixes(topology, location) {
        let _ = writeln!(up, "  ip route replace {prefix} dev {DEVICE}");
    }
    let mut down = String::new();
    for route in by_gateway_address(topology, location) {
        let _ = writeln!(down, "  ip route replace {route}");
    }
    format!(
        "\
#!/bin/sh
case \"$1\" in
master)
  wireguard-go {DEVICE}
  wg setconf {DEVICE} {tunnel}
  ip addr add {inner}/16 dev {DEVICE}
  ip link set {DEVICE} mtu {mtu} up
{up}  # In place of: ssh GATEWAY wg set {DEVICE} peer OUR_KEY endpoint OUR_ADDRESS
  echo please >{asked}
  ;;
*)
{down}  ip link del {DEVICE}
  ;;
esac
echo \"$1\" >{state}
echo \"$(date +%s.%N) $1\" >>{log}
",
        tunnel = tunnel_file(n).display(),
        inner = inner(location),
        mtu = overlay::TUNNEL_MTU,
        asked = asked_file(n).display(),
        state = state_file(n).display(),
        log = n.dir.join("notify.log").display(),
    )
}

/// Whether the device is up, or the far end answers, as far as a master can tell. A backup's is down, and says nothing.
fn check(topology: &Topology, n: &LabNode) -> String {
    let far = (0..topology.locations.len()).filter(|l| *l != n.node.location);
    let pings: Vec<String> =
        far.map(|l| format!("ping -q -c 1 -W 1 {} >/dev/null", inner(l))).collect();
    format!(
        "\
#!/bin/sh
[ \"$(cat {} 2>/dev/null)\" = master ] || exit 0
case \"$1\" in
device) ip link show {DEVICE} up | grep -q {DEVICE} ;;
*) {} ;;
esac
",
        state_file(n).display(),
        pings.join(" || ")
    )
}

/// Does what new masters ask of other locations, for as long as the lab lasts.
fn remote_steps(world: &World) {
    let mut due: Vec<(Instant, usize)> = Vec::new();
    let mut endpoints = BTreeMap::new();
    loop {
        for (i, n) in world.nodes.iter().enumerate() {
            if fs::remove_file(asked_file(n)).is_ok() {
                due.push((Instant::now() + REMOTE_STEP, i));
            }
        }
        let now = Instant::now();
        for (_, i) in due.extract_if(.., |(at, _)| *at <= now) {
            let n = &world.nodes[i];
            let (Some(key), Some(wan)) = (key_holder(world, n.node.location), n.node.wan()) else {
                continue;
            };
            endpoints.insert(n.node.location, wan);
            for far in &world.nodes {
                if far.node.location == n.node.location || far.node.slot.is_none() {
                    continue;
                }
                let file = tunnel(world, &far.node, &endpoints);
                let set = file.and_then(|text| Ok(fs::write(tunnel_file(far), text)?));
                if let Err(e) = set {
                    eprintln!("  remote step on {}: {e:#}", far.node.name);
                }
                if state(far) == "master" {
                    let endpoint = format!("{wan}:{PORT}");
                    let args = ["set", DEVICE, "peer", &key.wireguard_key, "endpoint", &endpoint];
                    // It may have lost its device since: that is a fault, or a move of its own.
                    let _ = far.ns.output("wg", &args);
                }
            }
        }
        std::thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_gateway_is_preferred_and_the_interval_is_in_seconds() {
        let scenario = crate::peers::cases::scenario(128).unwrap();
        let topology = Topology::of(&scenario).unwrap();
        let [first, second] = ["cloud-0", "cloud-1"]
            .map(|n| &topology.nodes[topology.node(n).unwrap()])
            .map(|n| render(n, "100.126.0.9", Duration::from_millis(100), "/n", "/c"));
        assert!(first.contains("priority 150") && second.contains("priority 100"));
        for text in [first, second] {
            assert!(text.contains("advert_int 0.1\n") && text.contains("100.126.0.9"), "{text}");
            assert!(text.contains("notify_master \"/n master\""), "{text}");
            assert_eq!(text.matches('{').count(), text.matches('}').count(), "{text}");
        }
    }
}
