//! What Kilo does on this node: by the kernel's routes and the peers of `kilo0`, not by what Kilo says of itself.
//!
//! Five times a second the kernel is asked which way packets to each other location would take were our rules not there. Kilo
//! replaces WireGuard peers without touching a route, and nobody tells of that, so it is asked rather than waited for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use leaderd_core::ids::{LocationName, NodeName};
use leaderd_core::io::{Input, KiloFacts};
use leaderd_core::mesh::{Mesh, Node};
use leaderd_core::topology::{UNSTEERED_MARK, steered_location};
use tokio::sync::{mpsc, watch};
use wgctl::net::{Way, Ways};
use wgctl::wireguard;
use wgctl_plan::{InterfaceName, WgPeer, WgPublicKey};

const LOOK: Duration = Duration::from_millis(200);

/// Kilo's interface, its `--interface` by default.
pub const DEVICE: &str = "kilo0";

/// Whose `kilo0` has which public key.
pub type KiloNames = BTreeMap<WgPublicKey, NodeName>;

/// Looks until the engine is gone, in a thread of its own: none of this may hold up the engine.
pub fn start(
    me: NodeName,
    meshes: watch::Receiver<Arc<Mesh>>,
    names: watch::Receiver<KiloNames>,
    inputs: mpsc::Sender<Input>,
) -> anyhow::Result<()> {
    let ways = Ways::open()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let run = move || runtime.block_on(watch(ways, me, meshes, names, inputs));
    std::thread::Builder::new().name("kilo".into()).spawn(run)?;
    Ok(())
}

async fn watch(
    mut ways: Ways,
    me: NodeName,
    mut meshes: watch::Receiver<Arc<Mesh>>,
    names: watch::Receiver<KiloNames>,
    inputs: mpsc::Sender<Input>,
) {
    let mut told: Option<BTreeMap<LocationName, NodeName>> = None;
    let mut complained = false;
    while !inputs.is_closed() {
        let mesh = meshes.borrow_and_update().clone();
        if !steers(&mesh, &me) {
            told = None;
            if meshes.changed().await.is_err() {
                return;
            }
            continue;
        }
        let found = look(&mut ways, &mesh, &me, &names.borrow());
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
        tokio::time::sleep(LOOK).await;
    }
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

fn look(
    ways: &mut Ways,
    mesh: &Mesh,
    me: &NodeName,
    names: &KiloNames,
) -> std::io::Result<BTreeMap<LocationName, NodeName>> {
    let Some(me) = mesh.node(me) else { return Ok(BTreeMap::new()) };
    let mut peers: Option<BTreeMap<WgPublicKey, WgPeer>> = None;
    let mut found = BTreeMap::new();
    for location in mesh.kilo_with(&me.location) {
        let Some(there) = workload_of(mesh, location) else { continue };
        let Some(way) = ways.to(there, UNSTEERED_MARK)? else { continue };
        if way.dev.as_str() == DEVICE && peers.is_none() {
            let device: InterfaceName = DEVICE.parse().expect("an interface name");
            peers = Some(wireguard::peers(&device)?.unwrap_or_default());
        }
        let empty = BTreeMap::new();
        if let Some(next) = next_hop(mesh, me, &way, there, peers.as_ref().unwrap_or(&empty), names)
        {
            found.insert(location.clone(), next.clone());
        }
    }
    Ok(found)
}

/// A workload address of the location, always the same one.
fn workload_of(mesh: &Mesh, location: &LocationName) -> Option<IpAddr> {
    let mut nodes: Vec<&Node> = mesh.nodes_of(location).collect();
    nodes.sort_by_key(|n| n.index);
    nodes.iter().flat_map(|n| &n.probe_addresses).copied().find(IpAddr::is_ipv4)
}

/// The node at the end of the first hop.
fn next_hop<'a>(
    mesh: &'a Mesh,
    me: &Node,
    way: &Way,
    there: IpAddr,
    peers: &BTreeMap<WgPublicKey, WgPeer>,
    names: &'a KiloNames,
) -> Option<&'a NodeName> {
    if way.dev.as_str() == DEVICE {
        // As WireGuard chooses: the longest prefix.
        let fits = peers.iter().filter_map(|(key, peer)| {
            let longest = peer
                .allowed_ips
                .iter()
                .filter(|p| p.contains(&there))
                .map(|p| p.prefix_len())
                .max();
            Some((longest?, key))
        });
        return names.get(fits.max()?.1);
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
        let (peers, names) = (BTreeMap::new(), BTreeMap::new());
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
        let there = workload_of(&mesh, &"cloud".parse().unwrap()).unwrap();
        assert_eq!(there, "10.42.1.1".parse::<IpAddr>().unwrap());
        let (a, b) = (WgPublicKey([21; 32]), WgPublicKey([22; 32]));
        let names: KiloNames =
            [(a, "cloud-0".parse().unwrap()), (b, "cloud-1".parse().unwrap())].into();
        let peers: BTreeMap<_, _> =
            [(a, peer(&["10.42.0.0/16"])), (b, peer(&["10.42.1.0/24", "10.4.0.2/32"]))].into();
        let kilo0 = way(DEVICE, Some("10.4.0.2"));
        let (none, nobody) = (BTreeMap::new(), KiloNames::new());
        let next = |peers, names| {
            next_hop(&mesh, me, &kilo0, there, peers, names).map(NodeName::to_string)
        };
        assert_eq!(next(&peers, &names).as_deref(), Some("cloud-1"));
        assert_eq!(next(&peers, &nobody), None, "a stranger's key");
        assert_eq!(next(&none, &names), None, "Kilo dropped its peers");
    }
}
