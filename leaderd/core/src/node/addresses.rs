//! Where nodes answer probes: what this host holds, what the others report, and the mesh with all of that in it.
//!
//! A node reports which address it holds; so the mesh file need not name any, and an address that changes makes no new generation
//! of it. A node without a connection to another (an observer and a plain member of another location, a plain member and another
//! location's candidate) hears of it from a candidate of the other's location, or of its own. For a node that never reported
//! anything (an older release) the mesh file's default holds; for one that is silent now, what it reported last.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use wgctl_plan::Family;

use super::Node;
use super::ignored::Ignored;
use crate::ids::NodeName;
use crate::io::{HeldAddress, LogLevel};
use crate::mesh::{self, Mesh, Overlay};
use crate::time::{Duration, Instant, Now};
use crate::wire::Frame;

/// Devices whose addresses are preferred among those within the node's prefixes: the CNI's own come first, as
/// they exist before any Pod and packets to them take the path of Pods' packets. All others follow by name.
const DEVICES: [&str; 7] =
    ["cilium_host", "vxlan.calico", "tunl0", "antrea-gw0", "cni0", "kube-bridge", "flannel.1"];
/// For this long after the start a node that has reported nothing is no target: it reports as soon as a connection is up, and losses
/// at an address that was guessed would count against the relays. A node that still reports nothing then runs an older release.
const GRACE: Duration = Duration::from_secs(5);
/// Reports that come together are applied together: with each new mesh the observer rebuilds the locations that it changes.
const BATCH: Duration = Duration::from_millis(100);
/// All is sent again after this time, as frames may get lost.
const RESEND: Duration = Duration::from_secs(10);
/// Nodes in one frame: it fits a datagram. The rest follows a second later.
const MAX_SENT: usize = 32;
/// Most nodes of one frame that are read.
const MAX_ACCEPTED: usize = 4 * MAX_SENT;

#[derive(Debug)]
pub(super) struct Addresses {
    /// The mesh as its file has it; the node's own mesh has the addresses in it.
    file: Arc<Mesh>,
    /// `None` until the shell has reported them.
    held: Option<Vec<HeldAddress>>,
    reported: BTreeMap<NodeName, Reported>,
    /// Of the newest of `reported`.
    version: u64,
    sent: BTreeMap<NodeName, Sent>,
    /// When reports are applied to the mesh.
    due: Option<Instant>,
    /// Until then no address is guessed for nodes that have reported nothing.
    grace_until: Option<Instant>,
}

/// What a node reported last.
#[derive(Debug)]
struct Reported {
    addresses: Vec<IpAddr>,
    /// Counts up over all nodes: a peer that was sent all up to a version needs only what is newer.
    version: u64,
    /// The node reported it itself, or is this node.
    first_hand: bool,
}

/// What a peer was sent.
#[derive(Debug)]
struct Sent {
    version: u64,
    resend_at: Instant,
}

impl Addresses {
    pub(super) fn new(file: Arc<Mesh>) -> Self {
        Self {
            file,
            held: None,
            reported: BTreeMap::new(),
            version: 0,
            sent: BTreeMap::new(),
            due: None,
            grace_until: None,
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.due.into_iter().chain(self.grace_until).min()
    }

    fn take(&mut self, now: Instant, node: &NodeName, addresses: Vec<IpAddr>, first_hand: bool) {
        let old = self.reported.get_mut(node);
        if let Some(old) = old.filter(|old| old.addresses == addresses) {
            old.first_hand = first_hand;
            return;
        }
        self.version += 1;
        let reported = Reported { addresses, version: self.version, first_hand };
        self.reported.insert(node.clone(), reported);
        self.due = self.due.or(Some(now + BATCH));
    }

    /// The addresses that this host holds, as far as the shell has said.
    pub(super) fn held(&self) -> Vec<IpAddr> {
        self.held.iter().flatten().map(|held| held.address).collect()
    }

    /// The mesh of the file with the addresses that are known.
    pub(super) fn mesh(&self) -> Arc<Mesh> {
        let silent = self.file.nodes.keys().filter(|_| self.grace_until.is_some());
        let mut known: BTreeMap<NodeName, Vec<IpAddr>> =
            silent.map(|n| (n.clone(), Vec::new())).collect();
        known.extend(self.reported.iter().map(|(n, s)| (n.clone(), s.addresses.clone())));
        self.file.with_probe_addresses(&known).map_or_else(|| self.file.clone(), Arc::new)
    }

    /// Returns those of these addresses that this host does not hold; none while that is not known.
    fn missing<'a>(&'a self, of: &'a [IpAddr]) -> impl Iterator<Item = IpAddr> + 'a {
        let holds = |ip: &IpAddr| {
            self.held.as_ref().is_none_or(|held| held.iter().any(|h| h.address == *ip))
        };
        of.iter().copied().filter(move |ip| !holds(ip))
    }
}

impl Node {
    /// Returns whether the host holds the node's own address; true until the shell has reported.
    pub(super) fn holds_own_address(&self) -> bool {
        let own = self.mesh.node(&self.me).map(|me| me.address);
        self.addresses.missing(own.as_slice()).next().is_none()
    }

    /// What the host holds of the node's own address and within its prefixes.
    pub(super) fn addresses_held(&mut self, now: Now, held: Vec<HeldAddress>) {
        let held_own = self.holds_own_address();
        if self.addresses.held.replace(held).is_none() {
            self.addresses.grace_until = Some(now.mono + GRACE);
            self.addresses.due = Some(now.mono);
        }
        if self.holds_own_address() != held_own {
            // Routes name it as source, which the kernel takes only where it is held.
            self.reprogram(false);
        }
        self.renew_route_checks();
        self.choose_address(now);
        self.apply_addresses(now);
    }

    /// Chooses which of the held addresses to be probed at, and logs a change.
    pub(super) fn choose_address(&mut self, now: Now) {
        let file = self.addresses.file.clone();
        let Some(me) = file.node(&self.me) else { return };
        let Some(held) = &self.addresses.held else { return };
        if me.probe_addresses_written {
            self.addresses.reported.remove(&self.me);
            let missing: Vec<IpAddr> = self.addresses.missing(&me.probe_addresses).collect();
            for address in missing {
                let message = "this node does not hold the probe address that the mesh file names: no probe to it is answered";
                self.log(LogLevel::Warn, message, [("probe.address", address.to_string())]);
            }
            return;
        }
        let before = self.addresses.reported.get(&self.me).map(|s| s.addresses.clone());
        let chosen = choose(&file, me, held, before.as_deref().unwrap_or_default());
        if before.as_ref() == Some(&chosen) {
            return;
        }
        if !chosen.is_empty() {
            let list: Vec<String> = chosen.iter().map(ToString::to_string).collect();
            let fields = [("probe.addresses", list.join(","))];
            self.log(LogLevel::Info, "others probe this node at these addresses", fields);
        } else if !me.prefixes.is_empty() {
            let message =
                "this node holds no address within its prefixes: its workloads cannot be probed";
            self.log(LogLevel::Warn, message, []);
        }
        let name = self.me.clone();
        self.addresses.take(now.mono, &name, chosen, true);
    }

    /// Puts what was reported into the mesh, if it is time.
    pub(super) fn apply_addresses(&mut self, now: Now) {
        if self.addresses.poll_timeout().is_none_or(|due| due > now.mono) {
            return;
        }
        self.addresses.due = None;
        self.addresses.grace_until = self.addresses.grace_until.filter(|until| *until > now.mono);
        if let Some(observer) = &mut self.observer {
            observer.targets_are_awaited(self.addresses.grace_until.is_some());
        }
        let mesh = self.addresses.mesh();
        if mesh.nodes == self.mesh.nodes {
            return;
        }
        // Votes, leaders and routes do not depend on it.
        self.mesh = mesh.clone();
        if let Some(observer) = &mut self.observer {
            observer.readdress(now, mesh.clone());
        }
        self.reflector.set_mesh(mesh.clone());
        self.outward.set_mesh(now, mesh);
        self.mesh_in_force();
    }

    /// Another mesh file.
    pub(super) fn set_mesh_file(&mut self, now: Now, file: Arc<Mesh>) -> Arc<Mesh> {
        self.addresses.reported.retain(|n, _| file.nodes.contains_key(n));
        self.addresses.sent.retain(|n, _| file.nodes.contains_key(n));
        self.addresses.file = file;
        self.choose_address(now);
        self.addresses.due = None;
        self.addresses.mesh()
    }

    /// Sends a peer the addresses that it does not know yet, at most [`MAX_SENT`] nodes of them.
    pub(super) fn send_addresses(&mut self, now: Now, to: &NodeName) {
        let known = &mut self.addresses;
        let sent = known.sent.entry(to.clone());
        let sent = sent.or_insert(Sent { version: 0, resend_at: now.mono + RESEND });
        // Not before all was sent once: the newest comes last.
        if sent.resend_at <= now.mono && sent.version >= known.version {
            *sent = Sent { version: 0, resend_at: now.mono + RESEND };
        }
        let from = sent.version;
        if from >= known.version {
            return;
        }
        let of = |n: &NodeName| self.mesh.node(n).map(|n| (&n.location, n.slot.is_some()));
        let (far, member) = match of(to) {
            Some((location, candidate)) => (*location != self.location, !candidate),
            None => return,
        };
        let leads = self.leads_here();
        let is_for_it = |name: &NodeName, reported: &Reported| {
            let Some((location, _)) = of(name).filter(|_| name != to) else { return false };
            let heard = reported.first_hand && self.peers.hears(name, now.mono);
            let ours = *location == self.location;
            *name == self.me || heard && if far { ours } else { member && leads && !ours }
        };
        let mut new: Vec<(&NodeName, &Reported)> = self
            .addresses
            .reported
            .iter()
            .filter(|(name, reported)| reported.version > from && is_for_it(name, reported))
            .collect();
        new.sort_by_key(|(_, reported)| reported.version);
        let rest = new.len() > MAX_SENT;
        new.truncate(MAX_SENT);
        let upto = new.last().filter(|_| rest).map_or(self.addresses.version, |(_, s)| s.version);
        let list: Vec<(NodeName, Vec<IpAddr>)> =
            new.into_iter().map(|(n, s)| (n.clone(), s.addresses.clone())).collect();
        if let Some(sent) = self.addresses.sent.get_mut(to) {
            sent.version = upto;
        }
        if !list.is_empty() {
            self.send(to, Frame::Addresses(list));
        }
    }

    /// A new connection: the peer may have started again.
    pub(super) fn resend_addresses(&mut self, now: Now, to: &NodeName) {
        self.addresses.sent.remove(to);
        self.send_addresses(now, to);
    }

    pub(super) fn handle_addresses(
        &mut self,
        now: Now,
        from: &NodeName,
        list: Vec<(NodeName, Vec<IpAddr>)>,
    ) {
        let file = self.addresses.file.clone();
        let (Some(teller), Some(me)) = (file.node(from), file.node(&self.me)) else { return };
        for (name, addresses) in list.into_iter().take(MAX_ACCEPTED) {
            // While a file is being rolled out it may have nodes that ours has not.
            let Some(node) = file.node(&name).filter(|n| n.name != self.me) else { continue };
            let first_hand = name == *from;
            // A candidate hears of other locations from their own nodes, a plain member from its leader as well.
            let neighbour = me.slot.is_none() && teller.location == me.location;
            if !first_hand && teller.location != node.location && !neighbour {
                self.ignored(now, from.as_str(), Ignored::AddressesOfAnotherLocation);
                continue;
            }
            let itself = self.addresses.reported.get(&name).is_some_and(|s| s.first_hand);
            if !first_hand && itself && self.peers.hears(&name, now.mono) {
                continue;
            }
            let of = |f| addresses.iter().filter(|a| Family::of(a) == f).count();
            let fits = [Family::V4, Family::V6].into_iter().all(|f| of(f) <= 1);
            if !fits || !addresses.iter().all(|a| node.has_workload(*a)) {
                self.ignored(now, from.as_str(), Ignored::AddressesOutside);
                continue;
            }
            self.addresses.take(now.mono, &name, addresses, first_hand);
        }
    }

    /// Returns where this node is probed: only addresses that it holds.
    pub(super) fn probed_at(&self) -> Vec<IpAddr> {
        let all = self.mesh.node(&self.me).map_or(&[][..], |me| &me.probe_addresses);
        let missing: Vec<IpAddr> = self.addresses.missing(all).collect();
        all.iter().copied().filter(|a| !missing.contains(a)).collect()
    }

    /// Returns what an operator should know about the addresses of a location's nodes.
    pub(super) fn address_notes(&self, location: &crate::ids::LocationName) -> Vec<String> {
        let mut notes = Vec::new();
        let unknown = |n: &&mesh::Node| {
            let none = !n.prefixes.is_empty() && self.mesh.probed_at(n).next().is_none();
            none && !n.probe_addresses_written && self.addresses.reported.contains_key(&n.name)
        };
        let nodes: Vec<&str> =
            self.mesh.nodes_of(location).filter(unknown).map(|n| n.name.as_str()).collect();
        if !nodes.is_empty() {
            let (few, more) = (&nodes[..nodes.len().min(8)], nodes.len().saturating_sub(8));
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            notes.push(format!(
                "no address to probe, as they hold none within their prefixes: {}{more}",
                few.join(", ")
            ));
        }
        if *location == self.location
            && let Some(me) = self.mesh.node(&self.me).filter(|me| me.probe_addresses_written)
        {
            let missing = self.addresses.missing(&me.probe_addresses);
            notes.extend(missing.map(|a| format!("this node does not hold its probe address {a}")));
        }
        notes
    }
}

/// Returns for each family the address in use while it is held, else the one of the first device.
fn choose(mesh: &Mesh, me: &mesh::Node, held: &[HeldAddress], in_use: &[IpAddr]) -> Vec<IpAddr> {
    let overlay = mesh.locations.get(&me.location).map(|l| &l.overlay);
    let ours = |h: &HeldAddress| {
        let vxlan = overlay.and_then(Overlay::vxlan).is_some_and(|v| v.device == h.device);
        vxlan || h.device.as_str().starts_with("wgl") || h.device.as_str() == "lvx0"
    };
    let rank = |h: &HeldAddress| {
        DEVICES.iter().position(|d| *d == h.device.as_str()).unwrap_or(DEVICES.len())
    };
    let of = |family: Family| {
        let fits = |h: &&HeldAddress| {
            Family::of(&h.address) == family && me.has_workload(h.address) && !ours(h)
        };
        let stays = |h: &&HeldAddress| in_use.contains(&h.address);
        let first = |h: &&HeldAddress| (rank(h), h.device.clone(), h.address);
        let found = held.iter().filter(fits);
        found.clone().find(stays).or_else(|| found.min_by_key(first)).map(|h| h.address)
    };
    [Family::V4, Family::V6].into_iter().filter_map(of).collect()
}
