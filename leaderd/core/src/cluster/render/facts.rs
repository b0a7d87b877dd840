//! What a Node object says, as the mesh file wants it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::before::Before;
use super::inner::{Inner, remedy};
use super::prefixes::Claims;
use super::{Problem, Subject};
use crate::cluster::keys::{self, NodeKeys, Pins};
use crate::cluster::view::{ClusterNode, names};
use crate::ids::{LocationName, NodeName};
use crate::mesh::{Host, Node};

/// One node of the mesh to be.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub name: NodeName,
    pub location: LocationName,
    pub address: IpAddr,
    pub prefixes: Vec<IpNet>,
    /// What it says that its location has besides its nodes.
    pub location_prefixes: Vec<IpNet>,
    /// Where other locations reach it; or why they do not, so that it may not lead.
    pub endpoint: Result<Host, String>,
    pub keys: NodeKeys,
    /// What is told of keys that it publishes and that are not taken.
    pub key_refused: Option<String>,
    /// A candidate of the mesh before whose Node object is gone, or says no endpoint any more: it stays one until it is seen not to
    /// lead.
    pub departed: bool,
    /// Its Node object is gone.
    pub gone: bool,
}

/// What is known besides a node itself.
#[derive(Clone, Copy)]
pub(super) struct Known<'a> {
    pub before: &'a Before,
    pub inner: &'a Inner,
    pub claims: &'a Claims,
    pub pins: &'a Pins,
    /// Departed candidates that are no candidates any more.
    pub leaving: &'a BTreeSet<NodeName>,
}

/// A candidate of the mesh before, whose Node object is gone.
pub(super) fn departed(node: &Node, known: Known<'_>) -> Option<Facts> {
    let Known { before, claims, pins, .. } = known;
    Some(Facts {
        name: node.name.clone(),
        location: node.location.clone(),
        address: node.address,
        prefixes: claims.or_kept(node.name.as_str(), &node.prefixes),
        // Which of them its Node said is not known any more. They stay with it, and not longer.
        location_prefixes: before.besides(&node.location),
        endpoint: Ok(node.endpoint.clone().filter(|_| node.slot.is_some())?),
        keys: pins.of_name(&node.name).unwrap_or(NodeKeys::of(node)),
        key_refused: None,
        departed: true,
        gone: true,
    })
}

impl Facts {
    /// Both cannot be in one mesh: the one was put in the other's place.
    pub fn replaces(&self, other: &Self) -> bool {
        (&self.location, self.address) == (&other.location, other.address)
            || self.keys.wireguard == other.keys.wireguard
            || self.keys.control == other.keys.control
            || self.endpoint.is_ok() && self.endpoint == other.endpoint
    }

    /// The node is in the mesh before with other facts than these.
    pub fn differs(&self, before: &Before) -> bool {
        before.node(self.name.as_str()).is_some_and(|was| {
            // A member's is not in the mesh file, and new if it is to lead.
            let endpoint = self.endpoint.as_ref().ok() != was.endpoint.as_ref();
            let besides = before.besides(&was.location);
            endpoint
                || (&self.location, self.address, self.keys)
                    != (&was.location, was.address, NodeKeys::of(was))
                || BTreeSet::from_iter(&self.prefixes) != BTreeSet::from_iter(&was.prefixes)
                || self.location_prefixes.iter().any(|p| !besides.contains(p))
        })
    }

    /// What it says does not fit: it stays as it was in the mesh before.
    pub fn held(self, was: &Node, known: Known<'_>) -> Self {
        let Known { before, pins, leaving, .. } = known;
        let besides = before.besides(&was.location);
        let here = self.location == was.location;
        let good = self.location_prefixes.into_iter().filter(|p| here && besides.contains(p));
        let endpoint =
            was.endpoint.clone().filter(|_| was.slot.is_some() && !leaving.contains(&was.name));
        Self {
            location: was.location.clone(),
            address: was.address,
            prefixes: was.prefixes.clone(),
            location_prefixes: good.collect(),
            endpoint: endpoint.ok_or_else(|| {
                "it is held as it was, since what its Node says now does not fit into the mesh"
                    .to_owned()
            }),
            keys: pins.of_name(&was.name).unwrap_or(NodeKeys::of(was)),
            ..self
        }
    }
}

/// The facts of a node; `None` if it stays out for now, with a problem unless it only has not published its keys yet. What it no
/// longer says is taken from the mesh before: a node that is in the mesh does not fall out for a lost annotation.
pub(super) fn facts(
    node: &ClusterNode,
    known: Known<'_>,
    problems: &mut Vec<Problem>,
) -> Option<Facts> {
    let Known { before, inner, claims, pins, leaving } = known;
    let was = before.node(&node.name);
    let mut say = |message: String| {
        problems.push(Problem { subject: Subject::Node(node.name.clone()), message });
    };
    let Ok(name) = node.name.parse::<NodeName>() else {
        say("its name is too long for the mesh: leaderd takes up to 63 characters".to_owned());
        return None;
    };
    // What is pinned goes before what the mesh file says: that may be somebody else's word.
    let pinned = pins.of_node(node).or(was.map(NodeKeys::of));
    let published = keys::published(node, &mut say);
    let (keys, refused) = keys::counted(node, &name, published, pinned);
    // Its daemon will publish them.
    let keys = keys?;
    let key_refused = refused.map(|new| key_refused(&node.name, &new));
    key_refused.iter().cloned().for_each(&mut say);
    let location = location(node, was, &mut say)?;
    let kilos = was.filter(|n| n.location == location && before.is_kilos(&location));
    if is_alone(node) {
        let stays = was.map_or("left out", |_| "kept as it was");
        say(format!(
            "Kilo takes it for a location of its own, as it has no internal address there, and it is {stays}: set annotation {}",
            names::KILO_FORCE_INTERNAL_IP
        ));
        was?;
    }
    let Some(address) = address(node, was, kilos, inner, &mut say).or(was.map(|n| n.address))
    else {
        say(format!(
            "it has no address within its location: set annotation {} or an InternalIP",
            names::KILO_FORCE_INTERNAL_IP
        ));
        return None;
    };
    let mut prefixes = claims.or_kept(&node.name, was.map_or(&[], |n| n.prefixes.as_slice()));
    prefixes.retain(|p| match inner.meets(p) {
        None => true,
        Some(range) => {
            let what = remedy(&range);
            say(format!(
                "its prefix {p} overlaps leaderd's own addresses {range}, and is left out: {what}"
            ));
            false
        }
    });
    let mut endpoint = endpoint(node, was, kilos, inner, &mut say);
    // A Node that was made again is bare at first. One that says a bad endpoint is another matter.
    let led =
        was.filter(|n| n.slot.is_some() && n.location == location && !leaving.contains(&name));
    let kept = led.and_then(|n| n.endpoint.clone());
    let departed = says_no_endpoint(node) && endpoint.is_err() && kept.is_some();
    if departed && let Some(kept) = kept {
        endpoint = Ok(kept);
        say(format!(
            "it says no endpoint any more: if it leads, it does so for a minute more and then hands over; after that it is no \
             candidate. Set annotation {} again to keep it",
            names::KILO_FORCE_ENDPOINT
        ));
    }
    let bare = departed && !node.annotations.contains_key(names::KILO_ALLOWED_LOCATION_IPS);
    let location_prefixes =
        if bare { before.besides(&location) } else { location_prefixes(node, &mut say) };
    Some(Facts {
        name,
        location,
        address,
        prefixes,
        location_prefixes,
        endpoint,
        keys,
        key_refused,
        departed,
        gone: false,
    })
}

/// Those that are good; as Kilo takes them, with host bits or without.
fn location_prefixes(node: &ClusterNode, say: &mut impl FnMut(String)) -> Vec<IpNet> {
    let name = names::KILO_ALLOWED_LOCATION_IPS;
    let told = node.annotations.get(name).map_or("", String::as_str);
    let mut good = Vec::new();
    for text in told.split(',').map(str::trim).filter(|t| !t.is_empty()) {
        match text.parse::<IpNet>() {
            Ok(net) if net.prefix_len() > 0 => good.push(net.trunc()),
            _ => say(format!(
                "annotation {name} has {text:?}: write prefixes with commas between, such as 192.168.7.0/24"
            )),
        }
    }
    good
}

/// The location as Kilo names it, if the node says one. An empty annotation counts before the label, as it does with Kilo.
pub(in crate::cluster) fn location_of(node: &ClusterNode) -> Option<&str> {
    let annotation = node.annotations.get(names::KILO_LOCATION);
    annotation
        .or_else(|| node.labels.get(names::REGION))
        .map(String::as_str)
        .filter(|l| !l.is_empty())
}

fn location(
    node: &ClusterNode,
    was: Option<&Node>,
    say: &mut impl FnMut(String),
) -> Option<LocationName> {
    match (location_of(node).map(str::parse::<LocationName>), was) {
        (Some(Ok(location)), _) => Some(location),
        (Some(Err(e)), was) => {
            let stays =
                was.map_or("it is left out".to_owned(), |w| format!("it stays in {}", w.location));
            say(format!("its location is no name of leaderd's, and {stays}: {e}"));
            was.map(|w| w.location.clone())
        }
        (None, Some(was)) => {
            say(format!(
                "it names no location any more, and stays in {}: set annotation {} again",
                was.location,
                names::KILO_LOCATION
            ));
            Some(was.location.clone())
        }
        (None, None) => {
            say(format!(
                "it is in no location, and left out: set annotation {} or label {}",
                names::KILO_LOCATION,
                names::REGION
            ));
            None
        }
    }
}

fn key_refused(node: &str, new: &NodeKeys) -> String {
    format!(
        "its keys are others than before, so the mesh stays with those that it had: if you gave it new ones, or its keys were lost, \
         kubectl annotate --overwrite node {node} {}={}",
        names::ACCEPT_KEY,
        new.fingerprint()
    )
}

/// Kilo has said, or was told, that the node has no internal address.
fn is_alone(node: &ClusterNode) -> bool {
    let of = |name: &str| node.annotations.get(name).map(String::as_str);
    let forced = of(names::KILO_FORCE_INTERNAL_IP);
    let unforced = forced.is_none_or(|a| a.parse::<IpNet>().is_err());
    matches!(forced, Some("" | "-")) || (unforced && of(names::KILO_INTERNAL_IP) == Some(""))
}

/// An annotation that names one of leaderd's own addresses: Kilo found it on leaderd's interface.
fn prey(name: &str, told: &str, range: &IpNet, instead: &str) -> String {
    format!(
        "annotation {name} is {told:?}, one of leaderd's own addresses {range}, and is ignored: set annotation {instead}, so that \
         Kilo does not choose by itself"
    )
}

/// `was`: the node before. `kilos`: the same, where Kilo steers. What Kilo's agent found out goes while it restarts, and that is no
/// news.
fn address(
    node: &ClusterNode,
    was: Option<&Node>,
    kilos: Option<&Node>,
    inner: &Inner,
    say: &mut impl FnMut(String),
) -> Option<IpAddr> {
    for name in [names::KILO_FORCE_INTERNAL_IP, names::KILO_INTERNAL_IP] {
        let told = node.annotations.get(name).filter(|a| !a.is_empty() && *a != "-");
        match told.map(|t| (t, t.parse::<IpNet>())) {
            None => {}
            Some((told, Ok(net))) => match inner.holds(net.addr()) {
                None => return Some(net.addr()),
                Some(range) => say(prey(name, told, &range, names::KILO_FORCE_INTERNAL_IP)),
            },
            Some((told, Err(_))) => say(format!(
                "annotation {name} is {told:?}: write an address with its prefix length, such as 10.0.0.5/24"
            )),
        }
    }
    kilos.map(|n| n.address).or_else(|| {
        let here: Vec<IpAddr> = outside(&node.internal, inner).collect();
        settled(&here, was.map(|n| n.address))
    })
}

/// Addresses that are not leaderd's own.
fn outside<'a>(all: &'a [IpAddr], inner: &'a Inner) -> impl Iterator<Item = IpAddr> + 'a {
    all.iter().copied().filter(|ip| inner.holds(*ip).is_none())
}

/// The address that a node had as long as it has it, whatever the order they come in; else the first of the same family.
fn settled(all: &[IpAddr], had: Option<IpAddr>) -> Option<IpAddr> {
    let Some(had) = had else { return all.first().copied() };
    let same = |ip: &&IpAddr| ip.is_ipv4() == had.is_ipv4();
    let all_same = || all.iter().find(same).or(all.first()).copied();
    all.contains(&had).then_some(had).or_else(all_same)
}

/// Where other locations reach the node: Kilo's annotations first, then the ExternalIP. Only what Kilo takes for public: a leader
/// with a private endpoint cuts its location off. `was`, `kilos`: as for [`address`].
fn endpoint(
    node: &ClusterNode,
    was: Option<&Node>,
    kilos: Option<&Node>,
    inner: &Inner,
    say: &mut impl FnMut(String),
) -> Result<Host, String> {
    let mut told = Vec::new();
    for annotation in [names::KILO_FORCE_ENDPOINT, names::KILO_ENDPOINT] {
        let value = node.annotations.get(annotation).filter(|v| !v.is_empty() && *v != "-");
        let Some(text) = value else { continue };
        match host(text) {
            Some(Host::Ip(ip)) if let Some(range) = inner.holds(ip) => {
                say(prey(annotation, text, &range, names::KILO_FORCE_ENDPOINT));
            }
            found => told.push(found.ok_or_else(|| format!(
                "annotation {annotation} is {text:?}: write a host and a port, such as 203.0.113.7:51820 or [2001:db8::7]:51820"
            ))),
        }
    }
    let mut read = told.into_iter();
    let host = match (read.next(), read.next()) {
        (Some(Ok(host)), _) => host,
        // As Kilo does.
        (Some(Err(mistake)), Some(Ok(host))) => {
            say(format!("{mistake}; annotation {} counts", names::KILO_ENDPOINT));
            host
        }
        (Some(Err(mistake)), _) => return Err(mistake),
        (None, _) => {
            let had = was.and_then(|n| match n.endpoint {
                Some(Host::Ip(ip)) => Some(ip),
                _ => None,
            });
            let here: Vec<IpAddr> = outside(&node.external, inner).collect();
            let public: Vec<IpAddr> = here.iter().copied().filter(|ip| is_public(*ip)).collect();
            let external = settled(&public, had).or(here.first().copied()).map(Host::Ip);
            kilos.and_then(|n| n.endpoint.clone()).or(external).ok_or_else(|| {
                format!(
                    "it has no endpoint: set annotation {} to an address that other locations reach, with a port",
                    names::KILO_FORCE_ENDPOINT
                )
            })?
        }
    };
    match host {
        Host::Ip(ip) if !is_public(ip) => Err(format!(
            "its endpoint {ip} is private, so other locations cannot reach it: set annotation {} to one that they reach",
            names::KILO_FORCE_ENDPOINT
        )),
        host => Ok(host),
    }
}

/// Neither a good endpoint nor a bad one.
fn says_no_endpoint(node: &ClusterNode) -> bool {
    let of = |name: &str| node.annotations.get(name).filter(|v| !v.is_empty() && *v != "-");
    let told = [names::KILO_FORCE_ENDPOINT, names::KILO_ENDPOINT].into_iter().find_map(of);
    told.is_none() && node.external.is_empty()
}

/// The host of `host:port`; IPv6 in brackets.
pub(super) fn host(text: &str) -> Option<Host> {
    let (host, port) = text.rsplit_once(':')?;
    port.parse::<u16>().ok().filter(|p| *p != 0)?;
    if let Some(v6) = host.strip_prefix('[') {
        return v6.strip_suffix(']')?.parse().ok().map(IpAddr::V6).map(Host::Ip);
    }
    if let Ok(v4) = host.parse() {
        return Some(Host::Ip(IpAddr::V4(v4)));
    }
    crate::mesh::host_name(host).map(Host::Name)
}

/// Not of a private, link-local, loopback or unspecified range (RFC 1918, 3927, 4193, 4291).
pub(super) fn is_public(ip: IpAddr) -> bool {
    !ip.is_unspecified()
        && !ip.is_loopback()
        && !ip.is_multicast()
        && match ip {
            IpAddr::V4(ip) => !ip.is_private() && !ip.is_link_local() && !ip.is_broadcast(),
            IpAddr::V6(ip) => !ip.is_unique_local() && !ip.is_unicast_link_local(),
        }
}
