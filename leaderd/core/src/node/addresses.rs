//! Where nodes answer probes: what this host holds, what the others say, and the mesh with all of that in it.
//!
//! A node says which address it holds; so the mesh file need not name any, and an address that changes makes no new generation
//! of it. Who has no connection with a node (an observer and a plain member of another location, a plain member and another
//! location's candidate) hears of it from a candidate of the node's location, or of its own. Of a node that never said anything
//! (its daemon is of before) the mesh file's default holds; of one that is silent now, what it said last.

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

/// Which device's address counts where several are within the node's prefixes: what the CNI itself answers at comes first, as
/// it is there before any Pod and crosses what Pods' packets cross. All others follow by name.
const DEVICES: [&str; 7] =
    ["cilium_host", "vxlan.calico", "tunl0", "antrea-gw0", "cni0", "kube-bridge", "flannel.1"];
/// So long after the start a node that has said nothing yet is no target: it says so as soon as a connection is up, and losses at an
/// address that was guessed would be held against the relays. What still says nothing then runs a daemon of before.
const FIRST_WORDS: Duration = Duration::from_secs(5);
/// What is heard together is taken together: each new mesh makes the observer look anew at the locations that it changes.
const SETTLE: Duration = Duration::from_millis(100);
/// All is told again after this, as frames may get lost.
const ANEW: Duration = Duration::from_secs(10);
/// Nodes in one frame: it fits a datagram. The rest follows a second later.
const MAX_TOLD: usize = 32;
/// Nodes in one frame that are looked at.
const MAX_HEARD: usize = 4 * MAX_TOLD;

#[derive(Debug)]
pub(super) struct Addresses {
    /// The mesh as its file has it; the node's own mesh has the addresses in it.
    pub(super) file: Arc<Mesh>,
    /// `None` until the shell has looked.
    held: Option<Vec<HeldAddress>>,
    said: BTreeMap<NodeName, Said>,
    /// Of the newest of `said`.
    version: u64,
    told: BTreeMap<NodeName, Told>,
    /// When what was heard is put into the mesh.
    due: Option<Instant>,
    /// Until then nothing is guessed of those that have said nothing.
    first_words: Option<Instant>,
}

/// What a node said last.
#[derive(Debug)]
struct Said {
    addresses: Vec<IpAddr>,
    /// Counts up over all nodes: who was told up to here need not be told again.
    version: u64,
    /// It said so itself, or is this node.
    first_hand: bool,
}

/// How far a peer was told.
#[derive(Debug)]
struct Told {
    version: u64,
    anew: Instant,
}

impl Addresses {
    pub(super) fn new(file: Arc<Mesh>) -> Self {
        Self {
            file,
            held: None,
            said: BTreeMap::new(),
            version: 0,
            told: BTreeMap::new(),
            due: None,
            first_words: None,
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.due.into_iter().chain(self.first_words).min()
    }

    fn take(&mut self, now: Instant, node: &NodeName, addresses: Vec<IpAddr>, first_hand: bool) {
        let old = self.said.get_mut(node);
        if let Some(old) = old.filter(|old| old.addresses == addresses) {
            old.first_hand = first_hand;
            return;
        }
        self.version += 1;
        let said = Said { addresses, version: self.version, first_hand };
        self.said.insert(node.clone(), said);
        self.due = self.due.or(Some(now + SETTLE));
    }

    /// The mesh of the file with the addresses that are known.
    pub(super) fn mesh(&self) -> Arc<Mesh> {
        let silent = self.file.nodes.keys().filter(|_| self.first_words.is_some());
        let mut known: BTreeMap<NodeName, Vec<IpAddr>> =
            silent.map(|n| (n.clone(), Vec::new())).collect();
        known.extend(self.said.iter().map(|(n, s)| (n.clone(), s.addresses.clone())));
        self.file.with_probe_addresses(&known).map_or_else(|| self.file.clone(), Arc::new)
    }

    /// Those of these addresses that this host does not hold; none while that is not known.
    fn missing<'a>(&'a self, of: &'a [IpAddr]) -> impl Iterator<Item = IpAddr> + 'a {
        let holds = |ip: &IpAddr| {
            self.held.as_ref().is_none_or(|held| held.iter().any(|h| h.address == *ip))
        };
        of.iter().copied().filter(move |ip| !holds(ip))
    }
}

impl Node {
    /// Whether the host holds the node's own address; taken for granted until the shell has looked.
    pub(super) fn holds_own_address(&self) -> bool {
        let own = self.mesh.node(&self.me).map(|me| me.address);
        self.addresses.missing(own.as_slice()).next().is_none()
    }

    /// What the host holds of the node's own address and within its prefixes.
    pub(super) fn addresses_held(&mut self, now: Now, held: Vec<HeldAddress>) {
        let held_own = self.holds_own_address();
        if self.addresses.held.replace(held).is_none() {
            self.addresses.first_words = Some(now.mono + FIRST_WORDS);
            self.addresses.due = Some(now.mono);
        }
        if self.holds_own_address() != held_own {
            // Routes name it as source, which the kernel takes only where it is held.
            self.reprogram(false);
        }
        self.choose_address(now);
        self.settle_addresses(now);
    }

    /// Which of the held addresses counts. Says so where it is another one than before, or none.
    pub(super) fn choose_address(&mut self, now: Now) {
        let file = self.addresses.file.clone();
        let Some(me) = file.node(&self.me) else { return };
        let Some(held) = &self.addresses.held else { return };
        if me.probe_addresses_written {
            self.addresses.said.remove(&self.me);
            let missing: Vec<IpAddr> = self.addresses.missing(&me.probe_addresses).collect();
            for address in missing {
                let message = "this node does not hold the probe address that the mesh file names: no probe to it is answered";
                self.log(LogLevel::Warn, message, [("probe.address", address.to_string())]);
            }
            return;
        }
        let before = self.addresses.said.get(&self.me).map(|s| s.addresses.clone());
        let chosen = choose(&file, me, held, before.as_deref().unwrap_or_default());
        if before.as_ref() == Some(&chosen) {
            return;
        }
        if !chosen.is_empty() {
            let list: Vec<String> = chosen.iter().map(ToString::to_string).collect();
            let fields = [("probe.addresses", list.join(","))];
            self.log(LogLevel::Info, "others probe this node at", fields);
        } else if !me.prefixes.is_empty() {
            let message =
                "this node holds no address within its prefixes: nobody can probe its workloads";
            self.log(LogLevel::Warn, message, []);
        }
        let name = self.me.clone();
        self.addresses.take(now.mono, &name, chosen, true);
    }

    /// Puts what was heard into the mesh, if it is time.
    pub(super) fn settle_addresses(&mut self, now: Now) {
        if self.addresses.poll_timeout().is_none_or(|due| due > now.mono) {
            return;
        }
        self.addresses.due = None;
        self.addresses.first_words = self.addresses.first_words.filter(|until| *until > now.mono);
        if let Some(observer) = &mut self.observer {
            observer.targets_are_awaited(self.addresses.first_words.is_some());
        }
        let mesh = self.addresses.mesh();
        if mesh.nodes == self.mesh.nodes {
            return;
        }
        // Who votes, leads and routes does not hang on it.
        self.mesh = mesh.clone();
        if let Some(observer) = &mut self.observer {
            observer.readdress(now, mesh.clone());
        }
        self.reflector.set_mesh(mesh);
    }

    /// Another mesh file.
    pub(super) fn new_file(&mut self, now: Now, file: Arc<Mesh>) -> Arc<Mesh> {
        self.addresses.said.retain(|n, _| file.nodes.contains_key(n));
        self.addresses.told.retain(|n, _| file.nodes.contains_key(n));
        self.addresses.file = file;
        self.choose_address(now);
        self.addresses.due = None;
        self.addresses.mesh()
    }

    /// Tells a peer what it does not know yet, some of it.
    pub(super) fn tell_addresses(&mut self, now: Now, to: &NodeName) {
        let known = &mut self.addresses;
        let told = known.told.entry(to.clone());
        let told = told.or_insert(Told { version: 0, anew: now.mono + ANEW });
        // Not before all was told once: what is new comes last.
        if told.anew <= now.mono && told.version >= known.version {
            *told = Told { version: 0, anew: now.mono + ANEW };
        }
        let from = told.version;
        if from >= known.version {
            return;
        }
        let of = |n: &NodeName| self.mesh.node(n).map(|n| (&n.location, n.slot.is_some()));
        let (far, member) = match of(to) {
            Some((location, candidate)) => (*location != self.location, !candidate),
            None => return,
        };
        let leads = self.leads_here();
        let tells = |name: &NodeName, said: &Said| {
            let Some((location, _)) = of(name).filter(|_| name != to) else { return false };
            let heard = said.first_hand && self.heard.hears(name, now.mono);
            let ours = *location == self.location;
            *name == self.me || heard && if far { ours } else { member && leads && !ours }
        };
        let mut news: Vec<(&NodeName, &Said)> = self
            .addresses
            .said
            .iter()
            .filter(|(name, said)| said.version > from && tells(name, said))
            .collect();
        news.sort_by_key(|(_, said)| said.version);
        let rest = news.len() > MAX_TOLD;
        news.truncate(MAX_TOLD);
        let upto = news.last().filter(|_| rest).map_or(self.addresses.version, |(_, s)| s.version);
        let list: Vec<(NodeName, Vec<IpAddr>)> =
            news.into_iter().map(|(n, s)| (n.clone(), s.addresses.clone())).collect();
        if let Some(told) = self.addresses.told.get_mut(to) {
            told.version = upto;
        }
        if !list.is_empty() {
            self.send(to, Frame::Addresses(list));
        }
    }

    /// A new connection: the peer may have started again.
    pub(super) fn tell_addresses_anew(&mut self, now: Now, to: &NodeName) {
        self.addresses.told.remove(to);
        self.tell_addresses(now, to);
    }

    pub(super) fn handle_addresses(
        &mut self,
        now: Now,
        from: &NodeName,
        list: Vec<(NodeName, Vec<IpAddr>)>,
    ) {
        let file = self.addresses.file.clone();
        let (Some(teller), Some(me)) = (file.node(from), file.node(&self.me)) else { return };
        for (name, addresses) in list.into_iter().take(MAX_HEARD) {
            // While a file is being rolled out it may have nodes that ours has not.
            let Some(node) = file.node(&name).filter(|n| n.name != self.me) else { continue };
            let first_hand = name == *from;
            // A candidate hears of other locations from their own nodes, a plain member from its leader as well.
            let neighbour = me.slot.is_none() && teller.location == me.location;
            if !first_hand && teller.location != node.location && !neighbour {
                self.ignored(now, from.as_str(), Ignored::AddressesOfAnotherLocation);
                continue;
            }
            let itself = self.addresses.said.get(&name).is_some_and(|s| s.first_hand);
            if !first_hand && itself && self.heard.hears(&name, now.mono) {
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

    /// Where this node is probed: nothing that it does not hold.
    pub(super) fn probed_at(&self) -> Vec<IpAddr> {
        let all = self.mesh.node(&self.me).map_or(&[][..], |me| &me.probe_addresses);
        let missing: Vec<IpAddr> = self.addresses.missing(all).collect();
        all.iter().copied().filter(|a| !missing.contains(a)).collect()
    }

    /// What an operator should know about the addresses of a location's nodes.
    pub(super) fn address_notes(&self, location: &crate::ids::LocationName) -> Vec<String> {
        let mut notes = Vec::new();
        let unknown = |n: &&mesh::Node| {
            let none = !n.prefixes.is_empty() && self.mesh.probed_at(n).next().is_none();
            none && !n.probe_addresses_written && self.addresses.said.contains_key(&n.name)
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

/// Of each family the address in use while it is held, else the one of the first device.
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
