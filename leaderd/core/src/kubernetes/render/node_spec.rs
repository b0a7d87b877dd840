//! A Node object's values as the mesh file needs them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::inner::{InnerRanges, remedy};
use super::prefixes::NodePrefixes;
use super::previous::PreviousMesh;
use super::{Problem, Subject};
use crate::ids::{LocationName, NodeName};
use crate::kubernetes::keys::{self, NodeKeys, PinnedKeys};
use crate::kubernetes::view::{ClusterNode, names};
use crate::mesh::{Host, Node};

/// One node of the new mesh.
#[derive(Clone, Debug)]
pub(super) struct NodeSpec {
    pub name: NodeName,
    pub location: LocationName,
    pub address: IpAddr,
    pub prefixes: Vec<IpNet>,
    /// Prefixes of its location besides the nodes', as its annotation names them.
    pub location_prefixes: Vec<IpNet>,
    /// Where other locations reach it; or why they cannot, so that it may not lead.
    pub endpoint: Result<Host, String>,
    pub keys: NodeKeys,
    /// Message about published keys that are not accepted.
    pub key_refused: Option<String>,
    /// A candidate of the previous mesh whose Node object is gone or names no endpoint any more: it stays a candidate until it is seen
    /// not to lead.
    pub departed: bool,
    /// Its Node object is gone.
    pub gone: bool,
}

/// Inputs other than the Node itself.
#[derive(Clone, Copy)]
pub(super) struct RenderContext<'a> {
    pub previous: &'a PreviousMesh,
    pub inner: &'a InnerRanges,
    pub node_prefixes: &'a NodePrefixes,
    pub pins: &'a PinnedKeys,
    /// Departed candidates that stop being candidates.
    pub leaving: &'a BTreeSet<NodeName>,
}

/// Returns the spec of a candidate of the previous mesh whose Node object is gone.
pub(super) fn departed(node: &Node, known: RenderContext<'_>) -> Option<NodeSpec> {
    let RenderContext { previous, node_prefixes, pins, .. } = known;
    Some(NodeSpec {
        name: node.name.clone(),
        location: node.location.clone(),
        address: node.address,
        prefixes: node_prefixes.or_kept(node.name.as_str(), &node.prefixes),
        // It is unknown which of them its Node named. They stay as long as it does.
        location_prefixes: previous.location_prefixes(&node.location),
        endpoint: Ok(node.endpoint.clone().filter(|_| node.slot.is_some())?),
        keys: pins.of_name(&node.name).unwrap_or(NodeKeys::of(node)),
        key_refused: None,
        departed: true,
        gone: true,
    })
}

impl NodeSpec {
    /// True if both cannot be in one mesh: this node replaces the other.
    pub fn replaces(&self, other: &Self) -> bool {
        (&self.location, self.address) == (&other.location, other.address)
            || self.keys.wireguard == other.keys.wireguard
            || self.keys.control == other.keys.control
            || self.endpoint.is_ok() && self.endpoint == other.endpoint
    }

    /// True if the node is in the previous mesh with another spec.
    pub fn differs(&self, previous: &PreviousMesh) -> bool {
        previous.node(self.name.as_str()).is_some_and(|was| {
            // The mesh file has no endpoint of a member, so it is new if the member becomes a candidate.
            let endpoint = self.endpoint.as_ref().ok() != was.endpoint.as_ref();
            let had = previous.location_prefixes(&was.location);
            endpoint
                || (&self.location, self.address, self.keys)
                    != (&was.location, was.address, NodeKeys::of(was))
                || BTreeSet::from_iter(&self.prefixes) != BTreeSet::from_iter(&was.prefixes)
                || self.location_prefixes.iter().any(|p| !had.contains(p))
        })
    }

    /// Returns the node as it was in the previous mesh, since its new values do not fit.
    pub fn held(self, was: &Node, known: RenderContext<'_>) -> Self {
        let RenderContext { previous, pins, leaving, .. } = known;
        let had = previous.location_prefixes(&was.location);
        let here = self.location == was.location;
        let good = self.location_prefixes.into_iter().filter(|p| here && had.contains(p));
        let endpoint =
            was.endpoint.clone().filter(|_| was.slot.is_some() && !leaving.contains(&was.name));
        Self {
            location: was.location.clone(),
            address: was.address,
            prefixes: was.prefixes.clone(),
            location_prefixes: good.collect(),
            endpoint: endpoint.ok_or_else(|| {
                "it stays as it was, since the current values of its Node do not fit into the mesh"
                    .to_owned()
            }),
            keys: pins.of_name(&was.name).unwrap_or(NodeKeys::of(was)),
            ..self
        }
    }
}

/// Returns the spec of a node; `None` if it stays out for now, with a problem unless it only has not published its keys yet. Missing
/// values come from the previous mesh: a node does not drop out of the mesh for a lost annotation.
pub(super) fn node_spec(
    node: &ClusterNode,
    known: RenderContext<'_>,
    problems: &mut Vec<Problem>,
) -> Option<NodeSpec> {
    let RenderContext { previous, inner, node_prefixes, pins, leaving } = known;
    let was = previous.node(&node.name);
    let mut say = |message: String| {
        problems.push(Problem { subject: Subject::Node(node.name.clone()), message });
    };
    let Ok(name) = node.name.parse::<NodeName>() else {
        say("its name is too long for the mesh: leaderd takes up to 63 characters".to_owned());
        return None;
    };
    // Pinned keys go before the mesh file's: any daemon may write that.
    let pinned = pins.of_node(node).or(was.map(NodeKeys::of));
    let published = keys::published(node, &mut say);
    let (keys, refused) = keys::effective_keys(node, &name, published, pinned);
    // Without keys: its daemon will publish them.
    let keys = keys?;
    let key_refused = refused.map(|new| key_refused(&node.name, &new));
    key_refused.iter().cloned().for_each(&mut say);
    let location = location(node, was, &mut say)?;
    let kilos = was.filter(|n| n.location == location && previous.is_kilos(&location));
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
    let mut prefixes =
        node_prefixes.or_kept(&node.name, was.map_or(&[], |n| n.prefixes.as_slice()));
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
    // A recreated Node has no annotations at first. A Node with an invalid endpoint is another matter.
    let led =
        was.filter(|n| n.slot.is_some() && n.location == location && !leaving.contains(&name));
    let kept = led.and_then(|n| n.endpoint.clone());
    let departed = says_no_endpoint(node) && endpoint.is_err() && kept.is_some();
    if departed && let Some(kept) = kept {
        endpoint = Ok(kept);
        say(format!(
            "it names no endpoint any more: if it leads, it does so for a minute more and then hands over; after that it is no \
             candidate. Set annotation {} again to keep it",
            names::KILO_FORCE_ENDPOINT
        ));
    }
    let bare = departed && !node.annotations.contains_key(names::KILO_ALLOWED_LOCATION_IPS);
    let location_prefixes = if bare {
        previous.location_prefixes(&location)
    } else {
        location_prefixes(node, &mut say)
    };
    Some(NodeSpec {
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

/// Returns the valid prefixes of the annotation; with or without host bits, as Kilo accepts them.
fn location_prefixes(node: &ClusterNode, say: &mut impl FnMut(String)) -> Vec<IpNet> {
    let name = names::KILO_ALLOWED_LOCATION_IPS;
    let value = node.annotations.get(name).map_or("", String::as_str);
    let mut good = Vec::new();
    for text in value.split(',').map(str::trim).filter(|t| !t.is_empty()) {
        match text.parse::<IpNet>() {
            Ok(net) if net.prefix_len() > 0 => good.push(net.trunc()),
            _ => say(format!(
                "annotation {name} has {text:?}: write prefixes with commas between, such as 192.168.7.0/24"
            )),
        }
    }
    good
}

/// Returns the location as Kilo names it, if the node names one. An empty annotation overrides the label, as in Kilo.
pub(in crate::kubernetes) fn location_of(node: &ClusterNode) -> Option<&str> {
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
            say(format!("its location is no valid name, and {stays}: {e}"));
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
        "its keys have changed, so the mesh keeps the previous ones: if you gave it new ones, or its keys were lost, \
         kubectl annotate --overwrite node {node} {}={}",
        names::ACCEPT_KEY,
        new.fingerprint()
    )
}

/// True if Kilo found, or an annotation says, that the node has no internal address.
fn is_alone(node: &ClusterNode) -> bool {
    let of = |name: &str| node.annotations.get(name).map(String::as_str);
    let forced = of(names::KILO_FORCE_INTERNAL_IP);
    let unforced = forced.is_none_or(|a| a.parse::<IpNet>().is_err());
    matches!(forced, Some("" | "-")) || (unforced && of(names::KILO_INTERNAL_IP) == Some(""))
}

/// Message about an annotation with one of leaderd's own addresses: Kilo found it on leaderd's interface.
fn own_address_ignored(name: &str, value: &str, range: &IpNet, instead: &str) -> String {
    format!(
        "annotation {name} is {value:?}, one of leaderd's own addresses {range}, and is ignored: set annotation {instead}, so that \
         Kilo does not choose by itself"
    )
}

/// `was`: the node in the previous mesh. `kilos`: the same, if Kilo steers. What Kilo's agent discovered disappears while the agent
/// restarts, which is no change.
fn address(
    node: &ClusterNode,
    was: Option<&Node>,
    kilos: Option<&Node>,
    inner: &InnerRanges,
    say: &mut impl FnMut(String),
) -> Option<IpAddr> {
    for name in [names::KILO_FORCE_INTERNAL_IP, names::KILO_INTERNAL_IP] {
        let value = node.annotations.get(name).filter(|a| !a.is_empty() && *a != "-");
        match value.map(|t| (t, t.parse::<IpNet>())) {
            None => {}
            Some((value, Ok(net))) => match inner.holds(net.addr()) {
                None => return Some(net.addr()),
                Some(range) => {
                    say(own_address_ignored(name, value, &range, names::KILO_FORCE_INTERNAL_IP))
                }
            },
            Some((value, Err(_))) => say(format!(
                "annotation {name} is {value:?}: write an address with its prefix length, such as 10.0.0.5/24"
            )),
        }
    }
    kilos.map(|n| n.address).or_else(|| {
        let here: Vec<IpAddr> = outside(&node.internal, inner).collect();
        keep_or_first(&here, was.map(|n| n.address))
    })
}

/// Returns the addresses that are not leaderd's own.
fn outside<'a>(all: &'a [IpAddr], inner: &'a InnerRanges) -> impl Iterator<Item = IpAddr> + 'a {
    all.iter().copied().filter(|ip| inner.holds(*ip).is_none())
}

/// Returns the previous address if the node still has it, whatever the order; else the first of the same family.
fn keep_or_first(all: &[IpAddr], had: Option<IpAddr>) -> Option<IpAddr> {
    let Some(had) = had else { return all.first().copied() };
    let same = |ip: &&IpAddr| ip.is_ipv4() == had.is_ipv4();
    let all_same = || all.iter().find(same).or(all.first()).copied();
    all.contains(&had).then_some(had).or_else(all_same)
}

/// Returns where other locations reach the node: Kilo's annotations first, then the ExternalIP. Only addresses that Kilo considers public:
/// a leader with a private endpoint cuts its location off. `was`, `kilos`: as for [`address`].
fn endpoint(
    node: &ClusterNode,
    was: Option<&Node>,
    kilos: Option<&Node>,
    inner: &InnerRanges,
    say: &mut impl FnMut(String),
) -> Result<Host, String> {
    let mut found = Vec::new();
    for annotation in [names::KILO_FORCE_ENDPOINT, names::KILO_ENDPOINT] {
        let value = node.annotations.get(annotation).filter(|v| !v.is_empty() && *v != "-");
        let Some(text) = value else { continue };
        match host(text) {
            Some(Host::Ip(ip)) if let Some(range) = inner.holds(ip) => {
                say(own_address_ignored(annotation, text, &range, names::KILO_FORCE_ENDPOINT));
            }
            host => found.push(host.ok_or_else(|| format!(
                "annotation {annotation} is {text:?}: write a host and a port, such as 203.0.113.7:51820 or [2001:db8::7]:51820"
            ))),
        }
    }
    let mut read = found.into_iter();
    let host = match (read.next(), read.next()) {
        (Some(Ok(host)), _) => host,
        // Kilo does the same.
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
            let external = keep_or_first(&public, had).or(here.first().copied()).map(Host::Ip);
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

/// True if the node names no endpoint, valid or invalid.
fn says_no_endpoint(node: &ClusterNode) -> bool {
    let of = |name: &str| node.annotations.get(name).filter(|v| !v.is_empty() && *v != "-");
    let value = [names::KILO_FORCE_ENDPOINT, names::KILO_ENDPOINT].into_iter().find_map(of);
    value.is_none() && node.external.is_empty()
}

/// Returns the host of `host:port`; IPv6 in brackets.
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

/// False for private, link-local, loopback and unspecified ranges (RFC 1918, 3927, 4193, 4291).
pub(super) fn is_public(ip: IpAddr) -> bool {
    !ip.is_unspecified()
        && !ip.is_loopback()
        && !ip.is_multicast()
        && match ip {
            IpAddr::V4(ip) => !ip.is_private() && !ip.is_link_local() && !ip.is_broadcast(),
            IpAddr::V6(ip) => !ip.is_unique_local() && !ip.is_unicast_link_local(),
        }
}
