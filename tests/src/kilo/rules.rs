//! Kilo's rules at `--mesh-granularity=location`, purely: from what Nodes say to the tunnels and routes of one of them.
//!
//! Each was checked by reading Kilo's source, of which nothing is in here. Its repository, `squat/kilo`, was read as a public index of
//! code has it, which knows of no release: for each file the newest version found there, by its commit.
//!
//! | rule | read in |
//! |---|---|
//! | the location is annotation `location` if it is there, even if empty, else the label of `--topology-label` (by default the region) | `translateNode`, pkg/k8s/backend.go at `ffa0dcd7` |
//! | a node without an internal address is a location of its own; `force-internal-ip` goes before `internal-ip` and with `-` or nothing says 'none'; addresses have a prefix length | the same; `NewTopology`, pkg/mesh/topology.go at `04ecc6f0` |
//! | `leader` counts by being there, even as `false`; a `force-endpoint` that can be read goes before `endpoint` | `translateNode` |
//! | the leader: the first by name with the annotation and a public endpoint; with the annotation; with a public endpoint; of all. Public is what is not RFC 1918 | `findLeader`, topology.go; `isPublic`, pkg/mesh/ip.go at `17dc1f5c` |
//! | ready is who has an endpoint, a key, a pod CIDR, and checked in less than 60 s ago; who is not ready itself changes nothing | `Ready`, pkg/mesh/backend.go at `0820a9d3`; `applyTopology`, pkg/mesh/mesh.go at `4c62b206` |
//! | addresses of kilo0 are given out along the names of the locations that have a ready node, from 10.4.0.1, with the prefix length of `--subnet` | `NewTopology` |
//! | tunnels admit the pod CIDRs, internal addresses and tunnel address of the far location; they listen on the port of the node's own endpoint | `NewTopology`, `Conf`, topology.go |
//! | the leader's routes go to those by way of the far tunnel address, `onlink`; not to the address that is the far endpoint | `Routes`, pkg/mesh/routes.go at `01b8500c` |
//! | who does not lead sends that, and every tunnel address, to the network address of its leader's pod CIDR, on flannel.1 | the same; pkg/encapsulation/flannel.go at `17dc1f5c` |
//! | a change is applied 20 to 50 ms later | measured with real Kilo |
//!
//! Left out: Peer objects, `allowed-location-ips`, `persistent-keepalive` and the endpoints that are discovered with it, names as
//! endpoints, IPv6, other encapsulation than flannel's, `--local` (its routes within a location, their rules and table 1107), and
//! Kilo's NAT rules, which spare pod CIDRs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use ipnet::Ipv4Net;
use serde_json::Value;

use super::cluster::{REGION, annotation};
use wgctl_lab::Vxlan;

/// Between two check-ins of an agent, and between two looks at the clock.
pub const CHECK_IN: Duration = Duration::from_secs(30);
/// A node whose check-in is as old as this is left out.
pub const NOT_READY_AFTER: Duration = Duration::from_secs(60);
/// From a change of annotations until a node is reprogrammed, at least and at most: measured with real Kilo.
pub const APPLY: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(50)];

pub const DEVICE: &str = "kilo0";
pub const PORT: u16 = 51_820;

/// Where in its period an agent's timer stands at the start, and how slow it is, 0 to 1: agents have nothing to do with each other, and
/// each `run` is another draw.
pub fn phase(node: usize, run: u32) -> f64 {
    // Multiples of the golden ratio's fraction spread evenly, whatever their number.
    ((node as f64 + 1.0) * 0.618_034 + f64::from(run) * 0.381_966).fract()
}

/// A node's delay from a change to its application.
pub fn slowness(node: usize, run: u32) -> Duration {
    APPLY[0] + (APPLY[1] - APPLY[0]).mul_f64(phase(node + 7, run))
}

/// A Node, as Kilo reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KiloNode {
    pub name: String,
    pub location: String,
    /// It asks for the lead.
    pub leader: bool,
    pub endpoint: Option<SocketAddrV4>,
    /// Base64.
    pub key: Option<String>,
    pub internal: Option<Ipv4Addr>,
    /// It is said to have none.
    pub no_internal: bool,
    pub pods: Option<Ipv4Net>,
    /// Seconds since the Unix epoch.
    pub last_seen: u64,
}

pub mod names {
    pub const LOCATION: &str = "kilo.squat.ai/location";
    pub const LEADER: &str = "kilo.squat.ai/leader";
    pub const ENDPOINT: &str = "kilo.squat.ai/endpoint";
    pub const FORCE_ENDPOINT: &str = "kilo.squat.ai/force-endpoint";
    pub const INTERNAL_IP: &str = "kilo.squat.ai/internal-ip";
    pub const FORCE_INTERNAL_IP: &str = "kilo.squat.ai/force-internal-ip";
    pub const KEY: &str = "kilo.squat.ai/key";
    pub const LAST_SEEN: &str = "kilo.squat.ai/last-seen";
    pub const WIREGUARD_IP: &str = "kilo.squat.ai/wireguard-ip";
    pub const DISCOVERED_ENDPOINTS: &str = "kilo.squat.ai/discovered-endpoints";
    pub const GRANULARITY: &str = "kilo.squat.ai/granularity";
}

impl KiloNode {
    /// From a Node object.
    pub fn of(node: &Value) -> Self {
        let say = |name: &str| annotation(node, name);
        let region = || node["metadata"]["labels"][REGION].as_str().map(str::to_owned);
        let endpoint = |name: &str| say(name)?.parse().ok();
        let address = |name: &str| say(name)?.parse::<Ipv4Net>().ok().map(|net| net.addr());
        let no_internal = say(names::FORCE_INTERNAL_IP).is_some_and(|a| a.is_empty() || a == "-");
        Self {
            name: node["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
            location: say(names::LOCATION).or_else(region).unwrap_or_default(),
            leader: say(names::LEADER).is_some(),
            endpoint: endpoint(names::FORCE_ENDPOINT).or_else(|| endpoint(names::ENDPOINT)),
            key: say(names::KEY).filter(|k| !k.is_empty()),
            internal: address(names::FORCE_INTERNAL_IP)
                .or_else(|| address(names::INTERNAL_IP))
                .filter(|_| !no_internal),
            no_internal,
            pods: node["spec"]["podCIDR"].as_str().and_then(|p| p.parse().ok()),
            last_seen: say(names::LAST_SEEN).and_then(|s| s.parse().ok()).unwrap_or(0),
        }
    }

    pub fn ready(&self, now: u64) -> bool {
        let fresh = now.saturating_sub(self.last_seen) < NOT_READY_AFTER.as_secs();
        fresh && self.endpoint.is_some() && self.key.is_some() && self.pods.is_some()
    }

    /// Nothing is to be done about it: the time of a check-in alone is no news, unless the node is ready by it, or was.
    pub fn is_as(&self, other: &Self, now: u64) -> bool {
        let last_seen = self.last_seen;
        *self == Self { last_seen, ..other.clone() } && self.ready(now) == other.ready(now)
    }

    fn public(&self) -> bool {
        self.endpoint.is_some_and(|e| !e.ip().is_private())
    }

    /// What segments are sorted by.
    fn segment(&self) -> String {
        match self.internal {
            Some(_) => format!("location:{}", self.location),
            None => format!("node:{}", self.name),
        }
    }
}

/// A location with whom it has.
#[derive(Debug)]
pub struct Segment<'a> {
    /// Its name among Kilo's.
    pub location: String,
    /// By name.
    pub nodes: Vec<&'a KiloNode>,
    pub leader: &'a KiloNode,
    /// The leader's address in the tunnels.
    pub tunnel: Ipv4Addr,
}

/// All locations by name, with whoever is ready at `now` (seconds since the Unix epoch).
pub fn segments(nodes: &BTreeMap<String, KiloNode>, now: u64) -> Vec<Segment<'_>> {
    let mut locations: BTreeMap<String, Vec<&KiloNode>> = BTreeMap::new();
    for n in nodes.values().filter(|n| n.ready(now)) {
        locations.entry(n.segment()).or_default().push(n);
    }
    let all = locations.into_iter().enumerate();
    all.filter_map(|(i, (location, nodes))| {
        let tunnel = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 4, 0, 0)) + i as u32 + 1);
        Some(Segment { location, leader: leader(&nodes)?, nodes, tunnel })
    })
    .collect()
}

/// Who leads these, which are of one location and sorted by name.
fn leader<'a>(nodes: &[&'a KiloNode]) -> Option<&'a KiloNode> {
    let by: [fn(&KiloNode) -> bool; 4] =
        [|n| n.leader && n.public(), |n| n.leader, |n| n.public(), |_| true];
    by.iter().find_map(|fits| nodes.iter().find(|n| fits(n)).copied())
}

/// What a node is to have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// It leads: its address on kilo0, which is up then.
    pub tunnel: Option<Ipv4Addr>,
    /// UDP port of kilo0.
    pub port: u16,
    /// Its peers, as `wg setconf` takes them.
    pub peers: String,
    /// Destination, and how to get there, as `ip route` takes them.
    pub routes: BTreeMap<String, String>,
}

/// What `name` is to have; `None` while it is left out itself.
pub fn wanted(nodes: &BTreeMap<String, KiloNode>, name: &str, now: u64) -> Option<Wanted> {
    let segments = segments(nodes, now);
    let own = segments.iter().find(|s| s.nodes.iter().any(|n| n.name == name))?;
    let leads = own.leader.name == name;
    let port = nodes.get(name)?.endpoint?.port();
    let mut wanted = Wanted { tunnel: leads.then_some(own.tunnel), port, ..Wanted::default() };
    let gateway =
        format!("via {} dev {} onlink", own.leader.pods?.network(), Vxlan::FLANNEL.device);
    if !leads {
        wanted.routes.insert(format!("{}/32", own.tunnel), gateway.clone());
    }
    for far in segments.iter().filter(|s| s.location != own.location) {
        let pods = far.nodes.iter().filter_map(|n| n.pods).map(|p| p.trunc().to_string());
        let mut remote: Vec<String> = pods.collect();
        remote.extend(far.nodes.iter().filter_map(|n| n.internal).map(|i| format!("{i}/32")));
        if !leads {
            remote.push(format!("{}/32", far.tunnel));
            wanted.routes.extend(remote.into_iter().map(|to| (to, gateway.clone())));
            continue;
        }
        let Some((key, endpoint)) = far.leader.key.as_ref().zip(far.leader.endpoint) else {
            continue;
        };
        let outside = format!("{}/32", endpoint.ip());
        for to in remote.iter().filter(|to| **to != outside) {
            let how = format!("via {} dev {DEVICE} onlink", far.tunnel);
            wanted.routes.insert(to.clone(), how);
        }
        remote.push(format!("{}/32", far.tunnel));
        let _ = write!(
            wanted.peers,
            "\n[Peer]\nPublicKey = {key}\nEndpoint = {endpoint}\nAllowedIPs = {}\n",
            remote.join(", ")
        );
    }
    Some(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const NOW: u64 = 1_000_000;

    /// `a-0`, `a-1` (public), `a-2` (private), and the same of `b`.
    fn nodes() -> BTreeMap<String, KiloNode> {
        let mut all = BTreeMap::new();
        for (l, location) in ["a", "b"].into_iter().enumerate() {
            for n in 0..3 {
                let index = l * 3 + n + 1;
                let lan = format!("10.0.{l}.{index}");
                let outside = if n < 2 { format!("203.0.113.{index}") } else { lan.clone() };
                let node = json!({
                    "metadata": {
                        "name": format!("{location}-{n}"),
                        "labels": {REGION: location},
                        "annotations": {
                            names::ENDPOINT: format!("{outside}:51820"),
                            names::INTERNAL_IP: format!("{lan}/24"),
                            names::KEY: format!("key{index}="),
                            names::LAST_SEEN: NOW.to_string(),
                        },
                    },
                    "spec": {"podCIDR": format!("10.42.{index}.0/24")},
                });
                let node = KiloNode::of(&node);
                all.insert(node.name.clone(), node);
            }
        }
        all
    }

    fn leaders(nodes: &BTreeMap<String, KiloNode>, now: u64) -> Vec<String> {
        segments(nodes, now).iter().map(|s| s.leader.name.clone()).collect()
    }

    fn change(name: &str, f: impl Fn(&mut KiloNode)) -> BTreeMap<String, KiloNode> {
        let mut all = nodes();
        f(all.get_mut(name).unwrap());
        all
    }

    #[test]
    fn the_leader_asks_and_is_public_or_asks_or_is_public_in_this_order() {
        assert_eq!(leaders(&nodes(), NOW), ["a-0", "b-0"]);
        assert_eq!(leaders(&change("b-1", |n| n.leader = true), NOW), ["a-0", "b-1"]);
        assert_eq!(leaders(&change("b-2", |n| n.leader = true), NOW), ["a-0", "b-2"]);
        let mut two = change("b-2", |n| n.leader = true);
        two.get_mut("b-1").unwrap().leader = true;
        assert_eq!(leaders(&two, NOW), ["a-0", "b-1"]);
        let private = |n: &mut KiloNode| n.endpoint = Some("10.0.1.4:51820".parse().unwrap());
        assert_eq!(leaders(&change("b-0", private), NOW), ["a-0", "b-1"]);
    }

    #[test]
    fn an_annotation_counts_by_its_presence_and_a_location_annotation_beats_the_region() {
        let node = KiloNode::of(&json!({"metadata": {
            "name": "x", "labels": {REGION: "a"},
            "annotations": {names::LEADER: "false", names::LOCATION: "c", names::FORCE_ENDPOINT: "203.0.113.9:1", names::ENDPOINT: "10.0.0.1:2"},
        }}));
        assert!(node.leader);
        assert_eq!((node.location.as_str(), node.endpoint), ("c", "203.0.113.9:1".parse().ok()));
        let node = KiloNode::of(&json!({"metadata": {
            "name": "x", "labels": {REGION: "a"},
            "annotations": {names::LOCATION: "", names::FORCE_ENDPOINT: "-", names::ENDPOINT: "10.0.0.1:2"},
        }}));
        assert_eq!((node.location.as_str(), node.endpoint), ("", "10.0.0.1:2".parse().ok()));
    }

    #[test]
    fn a_node_without_an_internal_address_is_a_location_of_its_own() {
        let of =
            |annotations: Value| KiloNode::of(&json!({"metadata": {"annotations": annotations}}));
        let (said, forced) = (names::INTERNAL_IP, names::FORCE_INTERNAL_IP);
        let internal = |annotations: Value| of(annotations).internal.map(|i| i.to_string());
        assert_eq!(
            internal(json!({said: "10.0.0.1/24", forced: "10.0.0.9/24"})),
            Some("10.0.0.9".into())
        );
        assert_eq!(
            internal(json!({said: "10.0.0.1/24", forced: "10.0.0.9"})),
            Some("10.0.0.1".into())
        );
        for none in ["", "-"] {
            assert_eq!(internal(json!({said: "10.0.0.1/24", forced: none})), None);
        }
        let alone = change("b-2", |n| n.internal = None);
        assert_eq!(leaders(&alone, NOW), ["a-0", "b-0", "b-2"]);
        assert_eq!(wanted(&alone, "b-2", NOW).unwrap().tunnel, Some(Ipv4Addr::new(10, 4, 0, 3)));
    }

    #[test]
    fn a_node_without_a_check_in_for_a_minute_is_left_out_and_left_alone() {
        let old = change("b-0", |n| n.last_seen = NOW - 59);
        assert_eq!(leaders(&old, NOW), ["a-0", "b-0"]);
        assert_eq!(leaders(&old, NOW + 1), ["a-0", "b-1"]);
        assert!(wanted(&old, "b-0", NOW).is_some());
        assert_eq!(wanted(&old, "b-0", NOW + 1), None);
    }

    #[test]
    fn leaders_have_tunnels_and_the_others_send_to_them_over_flannel() {
        let leader = wanted(&nodes(), "b-0", NOW).unwrap();
        assert_eq!(leader.tunnel, Some(Ipv4Addr::new(10, 4, 0, 2)));
        assert_eq!(leader.routes["10.42.3.0/24"], "via 10.4.0.1 dev kilo0 onlink");
        assert!(leader.peers.contains("PublicKey = key1=\nEndpoint = 203.0.113.1:51820\n"));
        assert!(leader.peers.contains("10.42.1.0/24, 10.42.2.0/24, 10.42.3.0/24, 10.0.0.1/32"));
        let other = wanted(&nodes(), "b-2", NOW).unwrap();
        assert_eq!((other.tunnel, other.peers.as_str()), (None, ""));
        assert_eq!(other.routes["10.42.3.0/24"], "via 10.42.4.0 dev flannel.1 onlink");
        for tunnel in ["10.4.0.1/32", "10.4.0.2/32"] {
            assert_eq!(other.routes[tunnel], "via 10.42.4.0 dev flannel.1 onlink");
        }
        // Its own location's pods are flannel's.
        assert!(!other.routes.contains_key("10.42.5.0/24"));
        // Nobody sends a tunnel's packets into it.
        let private = change("b-0", |n| n.endpoint = n.internal.map(|i| SocketAddrV4::new(i, 1)));
        let only = BTreeMap::from_iter(
            private.into_iter().filter(|(n, _)| n.starts_with('a') || n == "b-0"),
        );
        let outside = wanted(&only, "a-0", NOW).unwrap();
        assert!(
            outside.routes.contains_key("10.42.4.0/24")
                && !outside.routes.contains_key("10.0.1.4/32")
        );
    }

    #[test]
    fn the_time_of_a_check_in_matters_only_for_nodes_that_were_not_ready() {
        let node = nodes()["a-0"].clone();
        let seen = |last_seen| KiloNode { last_seen, ..node.clone() };
        assert!(seen(NOW).is_as(&seen(NOW - 59), NOW));
        assert!(!seen(NOW).is_as(&seen(NOW - 60), NOW));
        assert!(!seen(NOW).is_as(&KiloNode { leader: true, ..seen(NOW) }, NOW));
    }
}
