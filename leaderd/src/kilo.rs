//! What Kilo does on this node: by the kernel's routes and the peers of `kilo0`, not by what Kilo says of itself.
//!
//! The kernel is asked which way packets to each other location would take were our rules not there: at once when it tells of
//! routes or links that changed, and when the cluster does of Kilo's keys (which go before Kilo elsewhere has changed, when its agent
//! is told to end); and five times a second, as Kilo replaces WireGuard peers without touching a route, and nobody tells of that.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use leaderd_core::ids::{LocationName, NodeName};
use leaderd_core::io::{Input, KiloFacts};
use leaderd_core::mesh::{Mesh, Node};
use leaderd_core::topology::{UNSTEERED_MARK, steered_location};
use tokio::sync::{mpsc, watch};
use wgctl::net::{Way, WayNews, Ways};
use wgctl::wireguard;
use wgctl_plan::{InterfaceName, WgPeer, WgPublicKey};

const LOOK: Duration = Duration::from_millis(200);

/// Least time between two looks, also as a multiple of what the last one took: where routes change all the time, nothing is gained
/// by more.
const AT_MOST: Duration = Duration::from_millis(10);
const AT_MOST_TIMES: u32 = 20;

/// How often every workload is asked for although nothing was told of.
const ANEW: Duration = Duration::from_secs(5);

/// Kilo's interface, its `--interface` by default.
pub const DEVICE: &str = "kilo0";

/// What the cluster says of Kilo's nodes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct KiloNodes {
    /// Whose `kilo0` has which public key.
    pub keys: BTreeMap<WgPublicKey, NodeName>,
    /// Whom Kilo must carry to: nodes that are `Ready`. One that is down for long is left out by Kilo, and rightly.
    pub ready: BTreeSet<NodeName>,
}

/// Looks until the engine is gone, in a thread of its own: none of this may hold up the engine.
pub fn start(
    me: NodeName,
    meshes: watch::Receiver<Arc<Mesh>>,
    names: watch::Receiver<KiloNodes>,
    inputs: mpsc::Sender<Input>,
) -> anyhow::Result<()> {
    let ways = Ways::open()?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().enable_io().build()?;
    let run = move || runtime.block_on(watch(ways, me, meshes, names, inputs));
    std::thread::Builder::new().name("kilo".into()).spawn(run)?;
    Ok(())
}

async fn watch(
    mut ways: Ways,
    me: NodeName,
    mut meshes: watch::Receiver<Arc<Mesh>>,
    mut names: watch::Receiver<KiloNodes>,
    inputs: mpsc::Sender<Input>,
) {
    let mut news = match WayNews::open() {
        Ok(news) => Some(news),
        Err(error) => {
            tracing::warn!(%error, "no news of routes: what Kilo does is seen a little later");
            None
        }
    };
    let mut told: Option<BTreeMap<LocationName, NodeName>> = None;
    let mut complained = false;
    // Something was told of, and when every workload was last asked for.
    let (mut told_of, mut whole) = (true, Instant::now());
    while !inputs.is_closed() {
        let mesh = meshes.borrow_and_update().clone();
        if !steers(&mesh, &me) {
            told = None;
            if meshes.changed().await.is_err() {
                return;
            }
            continue;
        }
        let begun = Instant::now();
        // Routes do not change without news of it; and what is not right is looked at until it is.
        let kilos = mesh.node(&me).map_or(0, |me| mesh.kilo_with(&me.location).count());
        let right = told.as_ref().is_some_and(|t| t.len() == kilos);
        let all = told_of || !right || news.is_none() || begun.duration_since(whole) > ANEW;
        if all {
            whole = begun;
        }
        let found = look(&mut ways, &mesh, &me, &names.borrow_and_update(), all);
        if let Err(error) = &found
            && !std::mem::replace(&mut complained, true)
        {
            tracing::error!(%error, "cannot find out what Kilo does on this node");
        }
        // Not known is not right: our routes carry then.
        let now = found.unwrap_or_default();
        if told.as_ref() != Some(&now) {
            let rules = match told {
                Some(_) => BTreeSet::new(),
                None => rules(&mut ways, &mesh),
            };
            tracing::debug!(ways = ?now, "Kilo's ways");
            told = Some(now.clone());
            if inputs.send(Input::Kilo(KiloFacts { ways: now, rules })).await.is_err() {
                return;
            }
        }
        tokio::time::sleep(AT_MOST.max(begun.elapsed() * AT_MOST_TIMES)).await;
        told_of = tokio::select! {
            () = tokio::time::sleep(LOOK) => false,
            true = heard(&mut news) => true,
            Ok(()) = names.changed() => true,
        };
    }
}

/// False, or never, if there are no news.
async fn heard(news: &mut Option<WayNews>) -> bool {
    let Some(socket) = news else { return std::future::pending().await };
    if let Err(error) = socket.next().await {
        tracing::warn!(%error, "no more news of routes: what Kilo does is seen a little later");
        *news = None;
    }
    news.is_some()
}

/// Kilo steers a location that this node sends to.
pub fn steers(mesh: &Mesh, me: &NodeName) -> bool {
    mesh.node(me).is_some_and(|me| mesh.kilo_with(&me.location).next().is_some())
}

/// Locations with a rule of ours: where a daemon before this one was carrying.
fn rules(ways: &mut Ways, mesh: &Mesh) -> BTreeSet<LocationName> {
    let rules = ways.our_rules().unwrap_or_default();
    rules.iter().filter_map(|r| steered_location(mesh, r.table)).cloned().collect()
}

/// To each location the node that Kilo sends to, if it sends to the same one whatever is for any of the location's nodes. `all`: the
/// kernel is asked for each of them, else for one, and the others are looked up among the peers alone.
fn look(
    ways: &mut Ways,
    mesh: &Mesh,
    me: &NodeName,
    names: &KiloNodes,
    all: bool,
) -> std::io::Result<BTreeMap<LocationName, NodeName>> {
    let Some(me) = mesh.node(me) else { return Ok(BTreeMap::new()) };
    let mut peers: Option<Admits> = None;
    let mut found = BTreeMap::new();
    'locations: for location in mesh.kilo_with(&me.location) {
        let there = workloads_of(mesh, location, names);
        let mut first: Option<(Way, &NodeName)> = None;
        for workload in there {
            let way = match &first {
                Some((way, _)) if !all => Some(way.clone()),
                _ => ways.to(workload, UNSTEERED_MARK)?,
            };
            let Some(way) = way else { continue 'locations };
            if way.dev.as_str() == DEVICE && peers.is_none() {
                let device: InterfaceName = DEVICE.parse().expect("an interface name");
                peers = Some(Admits::of(&wireguard::peers(&device)?.unwrap_or_default()));
            }
            let nobody = Admits::default();
            let peers = peers.as_ref().unwrap_or(&nobody);
            let Some(next) = next_hop(mesh, me, &way, workload, peers, names) else {
                continue 'locations;
            };
            match &first {
                None => first = Some((way, next)),
                Some((_, same)) if *same == next => {}
                Some(_) => continue 'locations,
            }
        }
        if let Some((_, next)) = first {
            found.insert(location.clone(), next.clone());
        }
    }
    Ok(found)
}

/// Which peer a device sends a packet to.
#[derive(Default)]
struct Admits(BTreeMap<u8, BTreeMap<IpNet, WgPublicKey>>);

impl Admits {
    fn of(peers: &BTreeMap<WgPublicKey, WgPeer>) -> Self {
        let mut by_length: BTreeMap<u8, BTreeMap<IpNet, WgPublicKey>> = BTreeMap::new();
        for (key, peer) in peers {
            for prefix in &peer.allowed_ips {
                by_length.entry(prefix.prefix_len()).or_default().insert(prefix.trunc(), *key);
            }
        }
        Self(by_length)
    }

    /// As WireGuard chooses: the longest prefix.
    fn choose(&self, to: IpAddr) -> Option<WgPublicKey> {
        self.0.iter().rev().find_map(|(length, prefixes)| {
            prefixes.get(&IpNet::new(to, *length).ok()?.trunc()).copied()
        })
    }
}

/// A workload address of each node of the location that is ready; where none is, of one that is not. Always the same ones.
fn workloads_of(mesh: &Mesh, location: &LocationName, names: &KiloNodes) -> Vec<IpAddr> {
    let mut nodes: Vec<&Node> = mesh.nodes_of(location).collect();
    nodes.sort_by_key(|n| n.index);
    let workload = |n: &&Node| n.probe_addresses.iter().copied().find(IpAddr::is_ipv4);
    let ready = nodes.iter().filter(|n| names.ready.contains(&n.name));
    let ready: Vec<IpAddr> = ready.filter_map(workload).collect();
    if !ready.is_empty() {
        return ready;
    }
    nodes.iter().find_map(workload).into_iter().collect()
}

/// The node at the end of the first hop.
fn next_hop<'a>(
    mesh: &'a Mesh,
    me: &Node,
    way: &Way,
    there: IpAddr,
    peers: &Admits,
    names: &'a KiloNodes,
) -> Option<&'a NodeName> {
    if way.dev.as_str() == DEVICE {
        return names.keys.get(&peers.choose(there)?);
    }
    let gateway = way.gateway?;
    let is = |n: &&Node| n.address == gateway || n.prefixes.iter().any(|p| p.contains(&gateway));
    mesh.nodes_of(&me.location).find(is).map(|n| &n.name)
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    fn mesh() -> Mesh {
        let mut text = "[mesh]\nname = \"k\"\ngeneration = 1\n".to_owned();
        for location in ["cloud", "home"] {
            text +=
                &format!("[locations.{location}]\noverlay = \"flannel\"\nsteering = \"kilo\"\n");
            for n in 0..3 {
                let i = n + if location == "home" { 4 } else { 1 };
                text += &format!(
                    "[nodes.{location}-{n}]\nlocation = \"{location}\"\nindex = {i}\nslot = {n}\nendpoint = \"203.0.113.{i}\"\naddress = \"10.0.0.{i}\"\nprefixes = [\"10.42.{i}.0/24\"]\nwireguard_key = \"{k}\"\ncontrol_key = \"{c}\"\n",
                    k = STANDARD.encode([i as u8; 32]),
                    c = STANDARD.encode([i as u8 + 100; 32])
                );
            }
        }
        leaderd_core::mesh::parse(&text).unwrap_or_else(|e| panic!("{e:?}"))
    }

    fn way(dev: &str, gateway: Option<&str>) -> Way {
        Way { dev: dev.parse().unwrap(), gateway: gateway.map(|g| g.parse().unwrap()) }
    }

    fn peer(allowed: &[&str]) -> WgPeer {
        WgPeer {
            endpoint: None,
            allowed_ips: allowed.iter().map(|p| p.parse().unwrap()).collect(),
            persistent_keepalive: 0,
        }
    }

    #[test]
    fn a_gateway_is_known_by_its_lan_address_and_by_flannels() {
        let mesh = mesh();
        let me = mesh.node(&"home-0".parse().unwrap()).unwrap();
        let there = "10.42.1.1".parse().unwrap();
        let (peers, names) = (Admits::default(), KiloNodes::default());
        let next = |w: &Way| next_hop(&mesh, me, w, there, &peers, &names).map(NodeName::as_str);
        assert_eq!(next(&way("flannel.1", Some("10.42.5.0"))), Some("home-1"));
        assert_eq!(next(&way("eth0", Some("10.0.0.6"))), Some("home-2"));
        // The default route, and another location's node.
        assert_eq!(next(&way("eth0", Some("10.0.0.254"))), None);
        assert_eq!(next(&way("flannel.1", Some("10.42.2.0"))), None);
        assert_eq!(next(&way("eth0", None)), None);
    }

    #[test]
    fn the_far_end_of_kilos_tunnel_is_who_has_the_key_of_the_peer_that_wireguard_would_choose() {
        let mesh = mesh();
        let me = mesh.node(&"home-0".parse().unwrap()).unwrap();
        let there: IpAddr = "10.42.1.1".parse().unwrap();
        let (a, b) = (WgPublicKey([21; 32]), WgPublicKey([22; 32]));
        let keys = [(a, "cloud-0".parse().unwrap()), (b, "cloud-1".parse().unwrap())].into();
        let names = KiloNodes { keys, ..KiloNodes::default() };
        let peers = [(a, peer(&["10.42.0.0/16"])), (b, peer(&["10.42.1.0/24", "10.4.0.2/32"]))];
        let peers = Admits::of(&peers.into());
        let kilo0 = way(DEVICE, Some("10.4.0.2"));
        let (none, nobody) = (Admits::default(), KiloNodes::default());
        let next = |peers, names| {
            next_hop(&mesh, me, &kilo0, there, peers, names).map(NodeName::to_string)
        };
        assert_eq!(next(&peers, &names).as_deref(), Some("cloud-1"));
        assert_eq!(next(&peers, &nobody), None, "a stranger's key");
        assert_eq!(next(&none, &names), None, "Kilo dropped its peers");
    }

    #[test]
    fn kilo_must_carry_to_every_node_that_is_ready() {
        let (mesh, cloud) = (mesh(), "cloud".parse().unwrap());
        let of = |ready: &[&str]| {
            let ready = ready.iter().map(|n| n.parse().unwrap()).collect();
            let all = workloads_of(&mesh, &cloud, &KiloNodes { ready, ..KiloNodes::default() });
            all.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(of(&["cloud-2", "home-0", "cloud-1"]), ["10.42.2.1", "10.42.3.1"]);
        assert_eq!(of(&["home-0"]), ["10.42.1.1"]);
    }
}
