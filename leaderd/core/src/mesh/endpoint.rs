//! Endpoints with a DNS name: which of the name's addresses can be the candidate's, and which one to use.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::model::Mesh;
use super::node::{Host, Node};
use crate::ids::NodeName;
use crate::time::{Duration, Instant};

/// Why an address cannot be the endpoint of another node's WireGuard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Unfit {
    /// Unspecified, loopback, multicast, broadcast or link-local: no single host elsewhere.
    NoHost(&'static str),
    /// It lies in what the mesh carries: the tunnel would run through itself.
    Workload(IpNet),
    /// It is an inner address of the mesh.
    Inner(IpNet),
    /// It is this host's own.
    Own,
    /// A node of this node's own location has it on the LAN.
    Neighbour(NodeName),
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoHost(kind) => write!(f, "it is {kind}"),
            Self::Workload(net) => write!(f, "it lies in {net}, which the mesh itself carries"),
            Self::Inner(net) => write!(f, "it lies in the inner range {net}"),
            Self::Own => f.write_str("it is this node's own address"),
            Self::Neighbour(node) => write!(f, "{node} has it, in this node's own location"),
        }
    }
}

impl Mesh {
    /// Returns why `address` cannot be where `me` reaches the WireGuard of nodes elsewhere; `None` if it can. It is for addresses of
    /// names: those written in the mesh file are checked with it.
    pub fn unfit_endpoint(&self, me: &NodeName, address: IpAddr) -> Option<Unfit> {
        let address = address.to_canonical();
        if let Some(kind) = no_host(address) {
            return Some(Unfit::NoHost(kind));
        }
        let inner = [Some(IpNet::V4(self.inner.v4)), self.inner.v6.map(IpNet::V6)];
        if let Some(range) = inner.into_iter().flatten().find(|r| r.contains(&address)) {
            return Some(Unfit::Inner(range));
        }
        let nodes = self.nodes.values().flat_map(|n| &n.prefixes);
        let mut carried = self.locations.values().flat_map(|l| &l.prefixes).chain(nodes);
        if let Some(net) = carried.find(|p| p.contains(&address)) {
            return Some(Unfit::Workload(*net));
        }
        let me = self.node(me)?;
        if me.address == address || me.endpoint == Some(Host::Ip(address)) {
            return Some(Unfit::Own);
        }
        let near = |n: &&Node| n.location == me.location && n.address == address;
        self.nodes.values().find(near).map(|n| Unfit::Neighbour(n.name.clone()))
    }
}

fn no_host(address: IpAddr) -> Option<&'static str> {
    let (broadcast, link_local, nowhere) = match address {
        // "This network", 0.0.0.0/8 (RFC 1122, section 3.2.1.3).
        IpAddr::V4(ip) => (ip.is_broadcast(), ip.is_link_local(), ip.octets()[0] == 0),
        IpAddr::V6(ip) => (false, ip.is_unicast_link_local(), ip.is_unspecified()),
    };
    let kinds = [
        (nowhere, "no host's address"),
        (address.is_loopback(), "a loopback address"),
        (address.is_multicast(), "a multicast address"),
        (broadcast, "the broadcast address"),
        (link_local, "a link-local address"),
    ];
    kinds.into_iter().find_map(|(is, kind)| is.then_some(kind))
}

/// How long a peer may be silent at one address before the next address of its name is tried. WireGuard begins a new handshake after
/// the same time without an answer (`KEEPALIVE_TIMEOUT` + `REKEY_TIMEOUT`).
pub const SILENCE: Duration = Duration::from_secs(15);

/// The time between two tries grows up to this: a node that is down has no address that works.
const MAX_PATIENCE: Duration = Duration::from_secs(120);

/// The addresses of one name, and the one in use.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Addresses {
    in_use: Option<IpAddr>,
    listed: Vec<IpAddr>,
    /// No other address is tried before this.
    next_try: Option<Instant>,
    patience: Duration,
}

impl Addresses {
    /// `kept`: the address in use before a restart.
    pub fn new(kept: Option<IpAddr>) -> Self {
        Self { in_use: kept, listed: Vec::new(), next_try: None, patience: SILENCE }
    }

    pub const fn in_use(&self) -> Option<IpAddr> {
        self.in_use
    }

    /// Forgets the address in use, as after a change of the mesh.
    pub fn give_up(&mut self) {
        self.in_use = None;
    }

    /// Takes the resolver's answer, without addresses that are unfit. An empty answer changes nothing.
    ///
    /// Its order says which family to prefer: addresses that this machine cannot reach come last (RFC 6724, section 6, rule 1). Within
    /// a family the order may change each time, so the address in use stays, or tunnels would move back and forth.
    pub fn answered(&mut self, found: &[IpAddr]) {
        let Some(first) = found.first() else { return };
        let (mut listed, mut others): (Vec<IpAddr>, Vec<IpAddr>) =
            found.iter().partition(|ip| ip.is_ipv4() == first.is_ipv4());
        listed.sort();
        others.sort();
        listed.append(&mut others);
        listed.dedup();
        if self.in_use.is_none_or(|ip| !listed.contains(&ip)) {
            self.in_use = listed.first().copied();
            (self.next_try, self.patience) = (None, SILENCE);
        }
        self.listed = listed;
    }

    /// Moves to the next address, as the peer did not answer for [`SILENCE`], unless the present one has not had its time yet. Returns
    /// whether another one is in use now.
    pub fn silent(&mut self, now: Instant) -> bool {
        let Some(at) = self.listed.iter().position(|ip| Some(*ip) == self.in_use) else {
            return false;
        };
        if self.listed.len() < 2 || self.next_try.is_some_and(|next| now < next) {
            return false;
        }
        self.in_use = Some(self.listed[(at + 1) % self.listed.len()]);
        self.next_try = Some(now + self.patience);
        self.patience = (self.patience * 2).min(MAX_PATIENCE);
        true
    }

    /// Takes note that the peer was heard.
    pub fn heard(&mut self) {
        (self.next_try, self.patience) = (None, SILENCE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::group::tests::cluster;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn ips(text: &str) -> Vec<IpAddr> {
        text.split_whitespace().map(ip).collect()
    }

    #[test]
    fn an_address_that_cannot_be_another_nodes_endpoint_is_named_as_such() {
        let mut mesh = cluster::mesh(2, 1, 0);
        let me = cluster::name("home-0");
        mesh.edit().inner.v6 = Some("fd00:aaaa::/108".parse().unwrap());
        for (n, node) in (1..).zip(mesh.edit().nodes.values_mut()) {
            node.address = IpAddr::from([10, 9, 0, n]);
        }
        let node = |mesh: &mut Mesh, name: &str| mesh.nodes[&cluster::name(name)].clone();
        let (own, near, far) =
            (node(&mut mesh, "home-0"), node(&mut mesh, "home-1"), node(&mut mesh, "cloud-0"));
        let site = mesh.edit().locations.get_mut(&far.location).unwrap();
        site.prefixes = vec!["198.18.0.0/24".parse().unwrap()];
        let behind = mesh.edit().nodes.get_mut(&far.name).unwrap();
        behind.prefixes = vec!["10.77.0.0/24".parse().unwrap()];
        let inner = mesh.inner4(&far, crate::ids::Slot(0)).to_string();
        let (own, near, far) =
            (own.address.to_string(), near.address.to_string(), far.address.to_string());
        for (address, why) in [
            ("0.0.0.0", Some("no host's")),
            ("0.1.2.3", Some("no host's")),
            ("::", Some("no host's")),
            ("127.0.0.1", Some("loopback")),
            ("127.9.9.9", Some("loopback")),
            ("::1", Some("loopback")),
            ("::ffff:127.0.0.1", Some("loopback")),
            ("224.0.0.1", Some("multicast")),
            ("ff02::1", Some("multicast")),
            ("255.255.255.255", Some("broadcast")),
            ("169.254.1.1", Some("link-local")),
            ("fe80::1", Some("link-local")),
            ("10.77.0.1", Some("the mesh itself carries")),
            ("198.18.0.9", Some("the mesh itself carries")),
            (&inner, Some("inner range")),
            ("fd00:aaaa::7", Some("inner range")),
            (&own, Some("own address")),
            (&near, Some("home-1 has it")),
            (&far, None),
            ("203.0.113.77", None),
            ("2001:db8::77", None),
        ] {
            let found = mesh.unfit_endpoint(&me, ip(address)).map(|u| u.to_string());
            match why {
                Some(why) => assert!(
                    found.as_deref().is_some_and(|f| f.contains(why)),
                    "{address}: {found:?}, not {why}"
                ),
                None => assert_eq!(found, None, "{address}"),
            }
        }
    }

    #[test]
    fn the_resolvers_family_is_taken_and_the_address_in_use_stays() {
        for (old, found, chosen) in [
            // A machine without IPv4, and one that prefers it.
            (None, "2001:db8::1 192.0.2.1", Some("2001:db8::1")),
            (None, "192.0.2.1 2001:db8::1", Some("192.0.2.1")),
            // The same from every order within the family.
            (None, "2001:db8::2 192.0.2.1 2001:db8::1", Some("2001:db8::1")),
            (None, "2001:db8::1 2001:db8::2 192.0.2.1", Some("2001:db8::1")),
            // In use: stays while it is listed, and while nothing is.
            (Some("192.0.2.2"), "2001:db8::1 192.0.2.1 192.0.2.2", Some("192.0.2.2")),
            (Some("192.0.2.2"), "", Some("192.0.2.2")),
            (Some("192.0.2.2"), "2001:db8::1 192.0.2.1", Some("2001:db8::1")),
            (None, "", None),
        ] {
            let mut addresses = Addresses::new(old.map(ip));
            addresses.answered(&ips(found));
            assert_eq!(addresses.in_use(), chosen.map(ip), "{old:?} {found}");
        }
    }

    #[test]
    fn a_silent_address_is_followed_by_the_others_ever_more_slowly_until_one_is_heard() {
        let at = |seconds: u64| Instant(seconds * 1_000_000);
        let mut addresses = Addresses::new(None);
        addresses.answered(&ips("192.0.2.1 192.0.2.2 2001:db8::1"));
        let mut uses = vec![(0, ip("192.0.2.1"))];
        for second in 1..=300 {
            if addresses.silent(at(second)) {
                uses.push((second, addresses.in_use().unwrap()));
            }
        }
        let wanted = [
            (0, "192.0.2.1"),
            (1, "192.0.2.2"),
            (16, "2001:db8::1"),
            (46, "192.0.2.1"),
            (106, "192.0.2.2"),
            (226, "2001:db8::1"),
        ];
        assert_eq!(uses, wanted.map(|(second, text)| (second, ip(text))));
        // The same answer leaves what is tried alone; something that is heard ends the patience.
        addresses.answered(&ips("192.0.2.2 192.0.2.1 2001:db8::1"));
        assert_eq!(addresses.in_use(), Some(ip("2001:db8::1")));
        assert!(!addresses.silent(at(301)));
        addresses.heard();
        assert!(addresses.silent(at(302)));

        let mut only = Addresses::new(None);
        only.answered(&ips("192.0.2.1"));
        assert!(!only.silent(at(1)), "there is no other");
        let mut kept = Addresses::new(Some(ip("192.0.2.1")));
        assert!(!kept.silent(at(1)), "nothing is listed yet");
    }
}
