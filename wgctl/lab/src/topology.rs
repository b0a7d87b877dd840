//! Addresses, indexes and keys of a scenario's nodes, and the mesh file that says the same to leaderd.
//!
//! ```text
//! LAN        10.0.{location}.{index}/24        one switch per location
//! management 172.31.254.{index}/24             where there is such a network
//! WAN        203.0.113.{index}/32              candidates only
//! workloads  10.42.{index}.0/24, fd42:0:0:{index}::/64; the node is .1 (or what the scenario or its CNI says), its pod is .10
//! ```

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::cni::Cni;
use crate::fabric::FabricKind;
use crate::scenario::{Scenario, ServiceSpec};

/// Bytes: MTU of the mesh at most, and of workloads.
pub const MESH_MTU: u16 = 1420;
/// UDP port of VXLAN in locations with that overlay (the default of the mesh file).
pub const VXLAN_PORT: u16 = 4790;
pub const VXLAN_DEVICE: &str = "lvx0";
/// Bytes that VXLAN adds to an IP packet.
pub const VXLAN_OVERHEAD: u16 = 50;
/// What the pods of all nodes lie in, as the CNIs are told.
pub const CLUSTER_CIDR: &str = "10.42.0.0/16";

/// Bytes. Less leaves no room for IPv6 below two tunnels.
const MIN_LAN_MTU: u16 = 1300;
const MAX_LAN_MTU: u16 = 9000;

/// The VXLAN that joins the nodes of a location.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vxlan {
    pub device: &'static str,
    /// UDP port.
    pub port: u16,
}

impl Vxlan {
    /// leaderd's own, and that of what is held against it.
    pub const OWN: Self = Self { device: VXLAN_DEVICE, port: VXLAN_PORT };
    /// That of flannel's VXLAN backend: VNI 1, on the port that Linux had first.
    pub const FLANNEL: Self = Self { device: "flannel.1", port: 8472 };
    /// That of Cilium, one device for all nodes of the cluster.
    pub const CILIUM: Self = Self { device: "cilium_vxlan", port: 8472 };
}

#[derive(Debug)]
pub struct Topology {
    pub locations: Vec<Location>,
    pub nodes: Vec<Node>,
}

#[derive(Debug)]
pub struct Location {
    pub name: String,
    pub overlay: String,
    pub witnesses: Vec<String>,
    pub cni: Cni,
    pub fabric: FabricKind,
    /// Bytes.
    pub lan_mtu: u16,
    /// The mesh carries the nodes' own addresses too.
    pub node_addresses: bool,
    /// Its candidates drop forwarded packets that are invalid to connection tracking.
    pub stateful: bool,
}

impl Location {
    /// The device over which leaderd sends the workload's packets. `None`: they go over the LAN, or another program sends them.
    pub fn vxlan(&self) -> Option<Vxlan> {
        match self.overlay.as_str() {
            "vxlan" | "cni" => Some(Vxlan::OWN),
            "flannel" => Some(Vxlan::FLANNEL),
            _ => None,
        }
    }

    /// UDP ports of all VXLANs on its nodes, the CNI's among them.
    pub fn vxlan_ports(&self) -> Vec<u16> {
        let all: BTreeSet<u16> =
            [self.vxlan(), self.cni.vxlan()].into_iter().flatten().map(|v| v.port).collect();
        all.into_iter().collect()
    }
}

#[derive(Debug, Clone)]
pub struct Node {
    pub name: String,
    /// Index into [`Topology::locations`].
    pub location: usize,
    pub index: u16,
    pub slot: Option<u16>,
    pub dual_stack: bool,
    /// The host number of its address within its prefixes; `None`: it holds none there.
    pub host: Option<u8>,
}

impl Node {
    pub fn lan(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, self.location as u8, self.index as u8)
    }
    /// An unused address on the same LAN.
    pub fn dead_lan(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, self.location as u8, 250)
    }
    /// Its address for what manages it.
    pub fn management(&self) -> Ipv4Addr {
        Ipv4Addr::new(172, 31, 254, self.index as u8)
    }
    pub fn wan(&self) -> Option<Ipv4Addr> {
        self.slot.map(|_| Ipv4Addr::new(203, 0, 113, self.index as u8))
    }
    /// Its pod's gateway: the node's own address within its prefix, or one of no prefix.
    pub fn gateway(&self) -> Ipv4Addr {
        match self.host {
            Some(host) => self.workload(host),
            None => Ipv4Addr::new(169, 254, 1, 1),
        }
    }
    /// An address within its prefix.
    pub fn workload(&self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 42, self.index as u8, host)
    }
    pub fn pod(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 42, self.index as u8, 10)
    }
    pub fn gateway6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd42, 0, 0, self.index, 0, 0, 0, self.host.unwrap_or(1).into())
    }
    pub fn pod6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd42, 0, 0, self.index, 0, 0, 0, 0x10)
    }
    pub fn pod_address(&self, ipv6: bool) -> IpAddr {
        if ipv6 { self.pod6().into() } else { self.pod().into() }
    }
    pub fn prefix(&self) -> String {
        format!("10.42.{}.0/24", self.index)
    }
    /// MAC address of its device on a VXLAN without learning.
    pub fn mac(&self) -> String {
        format!("02:4c:45:00:00:{:02x}", self.index)
    }
}

/// A node's secrets, as the key files have them. No `Debug`: they are secrets even in a lab.
#[allow(missing_debug_implementations)]
pub struct Keys {
    pub wireguard_secret: Zeroizing<String>,
    pub wireguard_public: String,
    pub control_secret: Zeroizing<String>,
    pub control_public: String,
}

impl Keys {
    /// Makes new keys.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub fn generate() -> Result<Self> {
        let mut seed = Zeroizing::new([0u8; 32]);
        getrandom::fill(&mut *seed).context("random bytes")?;
        let wg = x25519_dalek::StaticSecret::from(*seed);
        let wg_secret = Zeroizing::new(wg.to_bytes());
        getrandom::fill(&mut *seed).context("random bytes")?;
        let control = ed25519_dalek::SigningKey::from_bytes(&seed);
        Ok(Self {
            wireguard_secret: Zeroizing::new(STANDARD.encode(*wg_secret)),
            wireguard_public: STANDARD.encode(x25519_dalek::PublicKey::from(&wg).as_bytes()),
            control_secret: Zeroizing::new(STANDARD.encode(*seed)),
            control_public: STANDARD.encode(control.verifying_key().as_bytes()),
        })
    }
}

impl Topology {
    /// Lays out a scenario's nodes and addresses.
    ///
    /// # Errors
    /// The scenario has too many nodes, or a location that cannot be.
    pub fn of(scenario: &Scenario) -> Result<Self> {
        let mut t = Self { locations: Vec::new(), nodes: Vec::new() };
        for (l, (name, spec)) in scenario.locations.iter().enumerate() {
            if spec.candidates + spec.members == 0 {
                bail!("location {name} has no nodes");
            }
            if spec.dual_stack && spec.node_host == 0 {
                bail!(
                    "location {name}: nodes without an address of their own have no IPv6 one either"
                );
            }
            if spec.node_host != 1 && spec.cni != Cni::None {
                bail!("location {name}: with a cni, that says which addresses nodes hold");
            }
            if spec.dual_stack && (spec.cni != Cni::None || spec.fabric != FabricKind::Switch) {
                bail!(
                    "location {name}: dual_stack goes with no cni and with fabric \"switch\" only"
                );
            }
            if !(MIN_LAN_MTU..=MAX_LAN_MTU).contains(&spec.lan_mtu) {
                bail!(
                    "location {name}: lan_mtu is {}, not {MIN_LAN_MTU} to {MAX_LAN_MTU}",
                    spec.lan_mtu
                );
            }
            t.locations.push(Location {
                name: name.clone(),
                overlay: spec.overlay.clone(),
                witnesses: spec.witnesses.clone(),
                cni: spec.cni,
                fabric: spec.fabric,
                lan_mtu: spec.lan_mtu,
                node_addresses: spec.node_addresses,
                stateful: spec.stateful || scenario.stateful,
            });
            for n in 0..spec.candidates + spec.members {
                t.nodes.push(Node {
                    name: format!("{name}-{n}"),
                    location: l,
                    index: t.nodes.len() as u16 + 1,
                    slot: (n < spec.candidates).then_some(n),
                    dual_stack: spec.dual_stack,
                    host: Some(spec.node_host).filter(|h| *h != 0),
                });
            }
        }
        // Addresses hold the index in one byte, and .250 is kept dead.
        if t.nodes.len() > 200 || t.locations.len() > 200 {
            bail!("a lab has at most 200 nodes");
        }
        Ok(t)
    }

    /// MTU of the mesh: what fits into WireGuard over the WAN and into VXLAN on every LAN.
    pub fn mesh_mtu(&self) -> u16 {
        let lans = self.locations.iter().map(|l| l.lan_mtu - VXLAN_OVERHEAD);
        lans.fold(MESH_MTU, u16::min)
    }

    /// MTU of the pods of a location.
    pub fn pod_mtu(&self, location: usize) -> u16 {
        self.locations[location].cni.pod_mtu(self.mesh_mtu())
    }

    /// Returns the index of a node.
    ///
    /// # Errors
    /// There is none of that name; the error lists all.
    pub fn node(&self, name: &str) -> Result<usize> {
        self.nodes.iter().position(|n| n.name == name).with_context(|| {
            let names: Vec<&str> = self.nodes.iter().map(|n| n.name.as_str()).collect();
            format!("no node {name:?}; there are {}", names.join(", "))
        })
    }

    /// Returns the index of a location.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn location(&self, name: &str) -> Result<usize> {
        self.locations
            .iter()
            .position(|l| l.name == name)
            .with_context(|| format!("no location {name:?}"))
    }

    /// Returns all pairs of nodes between which meters run; the first is the one that [`Self::metered`] returns.
    ///
    /// # Errors
    /// One of them does not exist, or is to be metered against itself.
    pub fn metered_pairs(&self, scenario: &Scenario) -> Result<Vec<(usize, usize)>> {
        if scenario.meter.pairs.is_empty() {
            return Ok(vec![self.metered(scenario)?]);
        }
        let pair = |[from, to]: &[String; 2]| {
            if from == to {
                bail!("a meter runs between two nodes, not from {from} to itself");
            }
            Ok((self.node(from)?, self.node(to)?))
        };
        scenario.meter.pairs.iter().map(pair).collect()
    }

    /// Returns the nodes between whose workloads the meters run: (elsewhere, in the location under test).
    ///
    /// # Errors
    /// One of them does not exist.
    pub fn metered(&self, scenario: &Scenario) -> Result<(usize, usize)> {
        if let Some([from, to]) = scenario.meter.pairs.first() {
            return Ok((self.node(from)?, self.node(to)?));
        }
        let tested = self.location(&scenario.location)?;
        let last = |want: &dyn Fn(usize) -> bool| self.nodes.iter().rposition(|n| want(n.location));
        let other = self.nodes.iter().find(|n| n.location != tested).map(|n| n.location);
        let from = match &scenario.meter.from {
            Some(name) => self.node(name)?,
            None => last(&|l| Some(l) == other).context("there is no other location")?,
        };
        let to = match &scenario.meter.to {
            Some(name) => self.node(name)?,
            None => {
                last(&|l| l == tested).context("there is no node in the location under test")?
            }
        };
        Ok((from, to))
    }

    /// The services of a scenario and their addresses.
    pub fn services<'s>(
        &self,
        scenario: &'s Scenario,
    ) -> Result<Vec<(&'s ServiceSpec, SocketAddr)>> {
        let all = scenario.services.iter().map(|s| {
            let node = &self.nodes[self.node(&s.node)?];
            Ok((s, SocketAddr::new(node.pod_address(s.ipv6), s.port)))
        });
        all.collect()
    }

    /// Writes the mesh file. `keys` in the order of the nodes.
    pub fn mesh_toml(&self, scenario: &Scenario, keys: &[Keys]) -> Result<String> {
        let mut out = String::from(
            "[mesh]\nname = \"lab\"\ngeneration = 1\ninner_cidr = \"100.127.0.0/16\"\n",
        );
        if self.mesh_mtu() != MESH_MTU {
            writeln!(out, "mtu = {}", self.mesh_mtu())?;
        }
        if self.nodes.iter().any(|n| n.dual_stack) {
            out.push_str("inner_cidr6 = \"fd4c:eade:0:1::/112\"\n");
        }
        if !scenario.policy.is_empty() {
            write!(out, "\n[policy]\n{}", toml::to_string(&scenario.policy)?)?;
        }
        for l in &self.locations {
            write!(out, "\n[locations.{}]\noverlay = {:?}\n", l.name, l.overlay)?;
            if l.node_addresses {
                out.push_str("node_addresses = true\n");
            }
            if !l.witnesses.is_empty() {
                writeln!(out, "witnesses = {:?}", l.witnesses)?;
            }
            for (spec, address) in self.services(scenario)? {
                if self.locations[self.nodes[self.node(&spec.node)?].location].name != l.name {
                    continue;
                }
                write!(out, "[[locations.{}.services]]\naddress = \"{address}\"\n", l.name)?;
                if let Some(path) = &spec.http {
                    write!(out, "http = {path:?}\nbody = {}\n", spec.body)?;
                }
            }
        }
        for (n, k) in self.nodes.iter().zip(keys) {
            write!(
                out,
                "\n[nodes.{}]\nlocation = {:?}\nindex = {}\n",
                n.name, self.locations[n.location].name, n.index
            )?;
            if let (Some(slot), Some(wan)) = (n.slot, n.wan()) {
                write!(out, "slot = {slot}\nendpoint = \"{wan}\"\n")?;
            }
            write!(out, "address = \"{}\"\ndevice = \"eth0\"\n", n.lan())?;
            let six = if n.dual_stack {
                format!(", \"fd42:0:0:{:x}::/64\"", n.index)
            } else {
                String::new()
            };
            writeln!(out, "prefixes = [\"{}\"{six}]", n.prefix())?;
            writeln!(
                out,
                "wireguard_key = {:?}\ncontrol_key = {:?}",
                k.wireguard_public, k.control_public
            )?;
        }
        Ok(out)
    }
}
