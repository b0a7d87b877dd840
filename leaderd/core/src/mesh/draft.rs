//! A mesh file read field by field. A value that is missing or wrong is `None` here and a mistake in the [`Sink`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use toml::de::DeTable;
use wgctl_plan::{Family, InterfaceName, WgPublicKey};

use super::diagnostic::Sink;
use super::inner::{InnerRange, NEW_INNER, UNSAID_INNER};
use super::location::{HttpRequest, Location, Overlay, Service, Steering, VxlanDevice};
use super::model::{Commands, Mesh, MeshSpec, ProofPolicy};
use super::node::{ControlPublicKey, Host, Node};
use super::policy::Policy;
use super::reader::{At, Section};
use super::values::Bad;
use super::{policy, values};
use crate::ids::{Generation, LocationName, NodeIndex, NodeName, Slot};

const MAX_INDEX: u64 = 4094;
const PORTS: std::ops::RangeInclusive<u64> = 1..=65535;
/// Most reflector ports of a node.
const MAX_PROBE_PORTS: usize = 8;
const DEFAULT_PRIORITY: u16 = 100;
/// Most bytes that a probe of a service sends: enough for dozens of full-size packets.
const MAX_SERVICE_BODY: u64 = 65_536;
const KEYGEN: &str = "run `wgctl keygen` on that node and paste what it prints";

/// Returns a value of the file, or the default, whose place is that of its table.
fn or_default<T>(found: Option<At<T>>, default: T, at: usize) -> At<T> {
    found.unwrap_or(At { value: default, at })
}

#[derive(Default)]
pub(super) struct Draft {
    pub(super) head: Option<Head>,
    pub(super) policy: Policy,
    pub(super) locations: BTreeMap<LocationName, At<DraftLocation>>,
    pub(super) nodes: BTreeMap<NodeName, At<DraftNode>>,
}

/// `[mesh]`
pub(super) struct Head {
    name: Option<At<String>>,
    generation: Option<At<u64>>,
    pub(super) inner4: At<Ipv4Net>,
    pub(super) inner6: Option<At<Ipv6Net>>,
    pub(super) base_port: At<u16>,
    pub(super) control_port: At<u16>,
    pub(super) probe_ports: Vec<At<u16>>,
    pub(super) mtu: At<u16>,
    keepalive: u16,
    commands: Commands,
    proof: ProofPolicy,
}

/// `[locations.NAME]`
pub(super) struct DraftLocation {
    pub(super) overlay: Option<Overlay>,
    pub(super) vxlan_at: usize,
    pub(super) node_addresses: bool,
    pub(super) prefixes: Vec<At<IpNet>>,
    pub(super) witnesses: Vec<At<NodeName>>,
    pub(super) services: Vec<At<Service>>,
    pub(super) reflectors: Vec<At<SocketAddr>>,
    pub(super) steering: Option<At<Steering>>,
    track_transit: Option<At<bool>>,
    pub(super) policy: Option<Policy>,
}

/// `[nodes.NAME]`
pub(super) struct DraftNode {
    pub(super) index: Option<At<u16>>,
    pub(super) location: Option<At<LocationName>>,
    pub(super) slot: Option<At<Slot>>,
    priority: u16,
    pub(super) endpoint: Option<At<Host>>,
    pub(super) address: Option<At<IpAddr>>,
    pub(super) device: Option<At<InterfaceName>>,
    pub(super) prefixes: Vec<At<IpNet>>,
    pub(super) probe_addresses: Option<Vec<At<IpAddr>>>,
    pub(super) wireguard_key: Option<At<[u8; 32]>>,
    pub(super) control_key: Option<At<[u8; 32]>>,
}

pub(super) fn read(table: &DeTable<'_>, sink: &mut Sink<'_>) -> Draft {
    let mut root = Section::root(table);
    let mut draft = Draft::default();
    root.require("mesh", "start the file with [mesh]; `wgctl mesh init` writes an example", sink);
    root.require("locations", "name each location: [locations.NAME]", sink);
    root.require("nodes", "name each node: [nodes.NAME]", sink);
    draft.head = root.section("mesh", sink).map(|s| head(s, sink));
    if let Some(section) = root.section("policy", sink) {
        draft.policy = policy::read(section, sink);
    }
    if let Some(all) = root.section("locations", sink) {
        for (name, section) in all.sections(sink) {
            let at = name.at;
            let value = location(section, &draft.policy, sink);
            if let Some(name) = checked_name(name, sink) {
                draft.locations.insert(name, At { value, at });
            }
        }
    }
    if let Some(all) = root.section("nodes", sink) {
        for (name, section) in all.sections(sink) {
            let at = name.at;
            let value = node(section, sink);
            if let Some(name) = checked_name(name, sink) {
                draft.nodes.insert(name, At { value, at });
            }
        }
    }
    root.finish(sink);
    draft
}

fn checked_name<T: std::str::FromStr<Err: std::fmt::Display>>(
    name: At<String>,
    sink: &mut Sink<'_>,
) -> Option<T> {
    match values::name(&name.value) {
        Ok(name) => Some(name),
        Err(Bad(message, help)) => {
            sink.push(name.at, message, help);
            None
        }
    }
}

fn head(mut s: Section<'_, '_>, sink: &mut Sink<'_>) -> Head {
    s.require("name", "give the mesh a name: name = \"home\"", sink);
    s.require("generation", "write generation = 1, and count it up with every change", sink);
    let at = s.at;
    let name = s.text("name", sink, |t| values::name::<LocationName>(t).map(String::from));
    let generation = s.number("generation", 1..=i64::MAX as u64, sink);
    let inner4 = s.text("inner_cidr", sink, |t| match values::prefix(t)? {
        IpNet::V4(net) if net.prefix_len() == 16 => Ok(net),
        net => Err(Bad::new(
            format!("{net} is not an IPv4 /16"),
            format!("write a /16 that nobody uses: \"{NEW_INNER}\""),
        )),
    });
    let inner6 = s.text("inner_cidr6", sink, |t| match values::prefix(t)? {
        IpNet::V6(net) if net.prefix_len() == 112 && net.network().octets()[0] & 0xfe == 0xfc => {
            Ok(net)
        }
        net => Err(Bad::new(
            format!("{net} is not a /112 of a unique local range (fc00::/7)"),
            "write one that nobody uses: \"fd4c:eade:0:1::/112\"",
        )),
    });
    let probe_ports = s.numbers("probe_ports", PORTS, sink);
    if let Some(ports) =
        probe_ports.as_ref().filter(|p| !(1..=MAX_PROBE_PORTS).contains(&p.value.len()))
    {
        let message = format!("`mesh.probe_ports` has {} ports", ports.value.len());
        sink.push(ports.at, message, format!("write 1 to {MAX_PROBE_PORTS}: [8620, 8621, 8622]"));
    }
    let probe_ports = match probe_ports {
        Some(ports) => {
            ports.value.into_iter().map(|p| At { value: p.value as u16, at: p.at }).collect()
        }
        None => [8620, 8621, 8622].map(|value| At { value, at }).into(),
    };
    let port = |found: Option<At<u64>>, default| {
        or_default(found.map(|p| At { value: p.value as u16, at: p.at }), default, at)
    };
    let head = Head {
        name,
        generation,
        inner4: or_default(inner4, UNSAID_INNER.parse().expect("a prefix"), at),
        inner6,
        base_port: port(s.number("base_port", 1..=65521, sink), 51900),
        control_port: port(s.number("control_port", PORTS, sink), 7946),
        probe_ports,
        mtu: port(s.number("mtu", 1280..=9000, sink), 1420),
        keepalive: keepalive(&mut s, sink),
        commands: commands(&mut s, sink),
        proof: proof(&mut s, sink),
    };
    s.finish(sink);
    head
}

fn keepalive(s: &mut Section<'_, '_>, sink: &mut Sink<'_>) -> u16 {
    let Some(found) = s.duration("keepalive", Duration::ZERO..=Duration::from_secs(65535), sink)
    else {
        return 10;
    };
    if found.value.subsec_nanos() != 0 {
        sink.push(
            found.at,
            "`mesh.keepalive`: WireGuard counts whole seconds".into(),
            "write \"10s\", or \"0s\" for off",
        );
    }
    found.value.as_secs() as u16
}

fn proof(s: &mut Section<'_, '_>, sink: &mut Sink<'_>) -> ProofPolicy {
    let found = s.text("proof", sink, |t| match t {
        "auto" => Ok(ProofPolicy::Auto),
        "require" => Ok(ProofPolicy::Require),
        _ => Err(Bad::new(
            format!("{t:?} says nothing of proofs"),
            "write \"auto\" (decisions need a proof once most voters are known to sign) or \"require\" (always)",
        )),
    });
    found.map(|f| f.value).unwrap_or_default()
}

/// Reads which nodes may command every location: names, or `"*"` for all. Names of nodes that do not exist have no effect.
fn commands(s: &mut Section<'_, '_>, sink: &mut Sink<'_>) -> Commands {
    let parse = |t: &str| if t == "*" { Ok(None) } else { values::name(t).map(Some) };
    let listed = s.texts("commands", sink, parse).map(|l| l.value).unwrap_or_default();
    let names: Option<BTreeSet<NodeName>> = listed.into_iter().map(|n| n.value).collect();
    names.map_or(Commands::All, Commands::Of)
}

fn interface(text: &str) -> Result<InterfaceName, Bad> {
    let name: InterfaceName = values::name(text)?;
    if text.starts_with("wgl") {
        return Err(Bad::new(
            format!("{text:?} is taken: wgl0, wgl1, … are the planes"),
            "choose another name",
        ));
    }
    Ok(name)
}

fn location(mut s: Section<'_, '_>, mesh: &Policy, sink: &mut Sink<'_>) -> DraftLocation {
    const HELP: &str = "write \"vxlan\" (leaderd builds it), \"direct\" (nodes reach each other's workloads over the \
                        LAN), \"cni\", \"flannel\" or \"external\" (a CNI carries it)";
    s.require("overlay", HELP, sink);
    let mut vxlan_at = s.at;
    let kind = s.text("overlay", sink, |t| match t {
        "direct" => Ok(Overlay::Direct),
        "external" => Ok(Overlay::External),
        "flannel" => {
            Ok(Overlay::Flannel { device: "flannel.1".parse().expect("an interface name") })
        }
        "vxlan" => Ok(Overlay::Vxlan(VxlanDevice::default())),
        "cni" => Ok(Overlay::Cni(VxlanDevice::default())),
        _ => Err(Bad::new(format!("{t:?} is no overlay"), HELP)),
    });
    let mut overlay = kind.map(|k| k.value);
    if let Some(mut v) = s.section("vxlan", sink) {
        vxlan_at = v.at;
        let name = v.text("device", sink, interface);
        let number = v.number("vni", 1..=0xff_ffff, sink);
        let udp = v.number("port", PORTS, sink);
        let bytes = v.number("mtu", 1280..=9000, sink);
        match &mut overlay {
            Some(Overlay::Vxlan(vxlan) | Overlay::Cni(vxlan)) => {
                let default = vxlan.clone();
                *vxlan = VxlanDevice {
                    device: name.map_or(default.device, |n| n.value),
                    vni: number.map_or(default.vni, |n| n.value as u32),
                    port: udp.map_or(default.port, |n| n.value as u16),
                    mtu: bytes.map(|n| n.value as u16),
                };
            }
            Some(_) => {
                let message = format!("`{}` is set, but the overlay is another", v.path);
                sink.push(v.at, message, "remove it, or write overlay = \"vxlan\" or \"cni\"");
            }
            None => {}
        }
        v.finish(sink);
    }
    if let Some(mut f) = s.section("flannel", sink) {
        let name = f.text("device", sink, interface);
        match &mut overlay {
            Some(Overlay::Flannel { device }) => *device = name.map_or(device.clone(), |n| n.value),
            Some(_) => {
                let message = format!("`{}` is set, but the overlay is another", f.path);
                sink.push(f.at, message, "remove it, or write overlay = \"flannel\"");
            }
            None => {}
        }
        f.finish(sink);
    }
    let node_addresses = s.flag("node_addresses", sink).is_some_and(|f| f.value);
    let prefixes = s.texts("prefixes", sink, values::prefix).map(|p| p.value).unwrap_or_default();
    let steering = s.text("steering", sink, |t| match t {
        "native" => Ok(Steering::Native),
        "kilo" => Ok(Steering::Kilo),
        "observe" => Ok(Steering::Observe),
        _ => Err(Bad::new(
            format!("{t:?} is no steering"),
            "write \"native\" (leaderd's routes carry the workload), \"kilo\" (they do beside Kilo) or \"observe\" (nothing is changed)",
        )),
    });
    let track_transit = s.flag("track_transit", sink);
    let witnesses = s.texts("witnesses", sink, values::name).map(|w| w.value).unwrap_or_default();
    let services = s.tables("services", sink);
    let services = services.into_iter().filter_map(|s| service(s, sink)).collect();
    let reflectors = s.texts("reflectors", sink, values::address_and_port);
    let reflectors = reflectors.map(|r| r.value).unwrap_or_default();
    let policy = s.section("policy", sink).map(|p| policy::read_of_location(p, mesh, sink));
    s.finish(sink);
    DraftLocation {
        overlay,
        vxlan_at,
        node_addresses,
        prefixes,
        witnesses,
        services,
        reflectors,
        steering,
        track_transit,
        policy,
    }
}

fn service(mut s: Section<'_, '_>, sink: &mut Sink<'_>) -> Option<At<Service>> {
    s.require("address", "write its address and port: address = \"10.42.1.10:443\"", sink);
    let address = s.text("address", sink, values::address_and_port);
    let path = s.text("http", sink, values::http_path);
    let body = s.number("body", 0..=MAX_SERVICE_BODY, sink);
    if let (Some(body), false) = (&body, s.has("http")) {
        let message = format!("`{}.body` is set, but nothing is asked over HTTP", s.path);
        sink.push(body.at, message, "add http = \"/PATH\", or remove `body`");
    }
    s.finish(sink);
    let body = body.map_or(0, |b| b.value as u32);
    let http = path.map(|p| HttpRequest { path: p.value, body });
    let address = address?;
    Some(At { value: Service { address: address.value, http }, at: address.at })
}

fn node(mut s: Section<'_, '_>, sink: &mut Sink<'_>) -> DraftNode {
    s.require("location", "write which location the node is in", sink);
    s.require("index", "give the node a number of its own, 1 to 4094, and never change it", sink);
    s.require("address", "write the node's LAN address", sink);
    s.require("wireguard_key", KEYGEN, sink);
    s.require("control_key", KEYGEN, sink);
    let slot = s
        .number("slot", 0..=u64::from(Slot::MAX.0), sink)
        .map(|n| At { value: Slot(n.value as u8), at: n.at });
    if slot.is_some() {
        const HELP: &str = "write the address or DNS name that other locations reach it on, or remove `slot` to make it \
                            a member";
        s.require("endpoint", HELP, sink);
    }
    let node = DraftNode {
        index: s
            .number("index", 1..=MAX_INDEX, sink)
            .map(|n| At { value: n.value as u16, at: n.at }),
        location: s.text("location", sink, values::name),
        slot,
        priority: s
            .number("priority", 0..=65535, sink)
            .map_or(DEFAULT_PRIORITY, |n| n.value as u16),
        endpoint: s.text("endpoint", sink, values::host),
        address: s.text("address", sink, values::address),
        device: s.text("device", sink, interface),
        prefixes: s.texts("prefixes", sink, values::prefix).map(|p| p.value).unwrap_or_default(),
        probe_addresses: s.texts("probe_addresses", sink, values::address).map(|p| p.value),
        wireguard_key: s.text("wireguard_key", sink, values::key),
        control_key: s.text("control_key", sink, values::key),
    };
    s.finish(sink);
    node
}

impl Draft {
    /// Returns the mesh; `None` if anything is missing.
    pub(super) fn into_mesh(self, hash: [u8; 32]) -> Option<Mesh> {
        let head = self.head?;
        let location = |(name, l): (LocationName, At<DraftLocation>)| {
            let witnesses = l.value.witnesses.into_iter().map(|w| w.value).collect();
            let services = l.value.services.into_iter().map(|s| s.value).collect();
            let reflectors = l.value.reflectors.into_iter().map(|r| r.value).collect();
            let location = Location {
                name,
                overlay: l.value.overlay?,
                node_addresses: l.value.node_addresses,
                prefixes: l.value.prefixes.into_iter().map(|p| p.value).collect(),
                witnesses,
                services,
                reflectors,
                steering: l.value.steering.map(|s| s.value).unwrap_or_default(),
                track_transit: l.value.track_transit.map(|t| t.value),
                policy: l.value.policy,
            };
            Some((location.name.clone(), location))
        };
        let node =
            |(name, n): (NodeName, At<DraftNode>)| Some((name.clone(), n.value.into_node(name)?));
        Some(Mesh::new(MeshSpec {
            name: head.name?.value,
            generation: Generation(head.generation?.value),
            hash,
            inner: InnerRange { v4: head.inner4.value, v6: head.inner6.map(|n| n.value) },
            base_port: head.base_port.value,
            control_port: head.control_port.value,
            probe_ports: head.probe_ports.into_iter().map(|p| p.value).collect(),
            mtu: head.mtu.value,
            keepalive: head.keepalive,
            commands: head.commands,
            proof: head.proof,
            policy: self.policy,
            locations: self.locations.into_iter().map(location).collect::<Option<_>>()?,
            nodes: self.nodes.into_iter().map(node).collect::<Option<_>>()?,
        }))
    }
}

impl DraftNode {
    /// Returns whether an address is one of the node's probe addresses, by default the first of its prefixes.
    pub(super) fn answers(&self, ip: IpAddr) -> bool {
        let all: Vec<IpAddr> = match &self.probe_addresses {
            Some(list) => list.iter().map(|a| a.value).collect(),
            None => self.default_probe_addresses(),
        };
        all.contains(&ip)
    }

    fn default_probe_addresses(&self) -> Vec<IpAddr> {
        let first = |f| self.prefixes.iter().map(|p| p.value).find(|p| Family::of_net(p) == f);
        [Family::V4, Family::V6]
            .into_iter()
            .filter_map(|f| Some(values::first_host(&first(f)?)))
            .collect()
    }

    fn into_node(self, name: NodeName) -> Option<Node> {
        let probe_addresses = match &self.probe_addresses {
            Some(list) => list.iter().map(|a| a.value).collect(),
            None => self.default_probe_addresses(),
        };
        let prefixes: Vec<IpNet> = self.prefixes.into_iter().map(|p| p.value).collect();
        Some(Node {
            name,
            index: NodeIndex(self.index?.value),
            location: self.location?.value,
            slot: self.slot.map(|s| s.value),
            priority: self.priority,
            endpoint: self.endpoint.map(|e| e.value),
            address: self.address?.value,
            device: self.device.map(|d| d.value),
            prefixes,
            probe_addresses,
            probe_addresses_written: self.probe_addresses.is_some(),
            wireguard_key: WgPublicKey(self.wireguard_key?.value),
            control_key: ControlPublicKey(self.control_key?.value),
        })
    }
}
