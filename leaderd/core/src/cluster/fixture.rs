//! Clusters for tests.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{CandidateRule, ClusterNode, ClusterView, MeshObject, Pool, PoolSpec, names, render};
use crate::ids::{Epoch, LocationName, NodeName};
use crate::mesh::Mesh;
use crate::status::{CandidateStatus, LocationStatus, Status};
use crate::time::WallTime;
use crate::verdict::{Cause, Verdict};

/// Settings of the tests' clusters.
pub(super) const SETTINGS: &str = "";

/// Node number `n`, with keys, and a public endpoint in its ExternalIP.
pub(super) fn node(n: u8, location: &str, name: &str) -> ClusterNode {
    let mut node = ClusterNode {
        name: name.to_owned(),
        resource_version: format!("{}", 1000 + u32::from(n)),
        uid: format!("uid-{name}"),
        pod_cidrs: vec![format!("10.42.{n}.0/24").parse().unwrap()],
        internal: vec![format!("10.0.{}.{n}", location.len()).parse().unwrap()],
        external: vec![format!("203.0.113.{n}").parse().unwrap()],
        ..ClusterNode::default()
    };
    annotate(&mut node, names::KILO_LOCATION, location);
    annotate(&mut node, names::WIREGUARD_KEY, &STANDARD.encode([n; 32]));
    annotate(&mut node, names::CONTROL_KEY, &STANDARD.encode([n ^ 0x80; 32]));
    node
}

pub(super) fn annotate(node: &mut ClusterNode, key: &str, value: &str) {
    node.annotations.insert(key.to_owned(), value.to_owned());
}

pub(super) fn pool(name: &str, location: &str, candidates: &[&str]) -> Pool {
    let names = candidates.iter().map(|c| (*c).to_owned()).collect();
    let candidates = CandidateRule { names, ..CandidateRule::default() };
    let spec = PoolSpec { location: location.to_owned(), candidates, ..PoolSpec::default() };
    Pool {
        name: name.to_owned(),
        resource_version: "7".to_owned(),
        uid: format!("uid-{name}"),
        generation: 1,
        spec,
        status: None,
    }
}

pub(super) fn view(nodes: Vec<ClusterNode>, pools: Vec<Pool>) -> ClusterView {
    ClusterView {
        nodes: nodes.into_iter().map(|n| (n.name.clone(), n)).collect(),
        pools: pools.into_iter().map(|p| (p.name.clone(), p)).collect(),
        ..ClusterView::default()
    }
}

/// home: three nodes of which two are named; cloud: three nodes of which two have an endpoint, and no pool.
pub(super) fn two_locations() -> ClusterView {
    let mut inner = node(6, "cloud", "cloud-2");
    inner.external.clear();
    let nodes = vec![
        node(1, "home", "home-0"),
        node(2, "home", "home-1"),
        node(3, "home", "home-2"),
        node(4, "cloud", "cloud-0"),
        node(5, "cloud", "cloud-1"),
        inner,
    ];
    view(nodes, vec![pool("home", "home", &["home-1", "home-0"])])
}

/// Renders, and puts the mesh file into the cluster.
pub(super) fn settle(view: &mut ClusterView) {
    let text = render(view, SETTINGS).text.expect("the cluster has a mesh");
    view.mesh = Some(MeshObject { resource_version: "50".to_owned(), text });
}

/// A location as a daemon knows it, with nothing said of its candidates.
pub(super) fn location_status(location: &str, leaders: &[&str], epoch: u64) -> LocationStatus {
    LocationStatus {
        name: location.parse().unwrap(),
        leaders: leaders.iter().map(|l| l.parse().unwrap()).collect(),
        epoch: Epoch(epoch),
        since: Some(WallTime(1_700_000_000_000_000)),
        cause: Some(Cause::Initial),
        frozen: None,
        raft_leader: None,
        quorum: Some(true),
        disk_stuck: false,
        fallback: false,
        candidates: Vec::new(),
        next: None,
        carried: None,
        hidden_sources: Vec::new(),
        notes: Vec::new(),
    }
}

/// What the daemon of a node says of a mesh: in every location the first candidate leads by epoch 1, all forward, and the second
/// (or only) one is the raft leader.
pub(super) fn mesh_status(mesh: &Mesh, me: &str) -> Status {
    let me: NodeName = me.parse().unwrap();
    let location = |l: &LocationName| {
        let all = mesh.candidates_of(l);
        let names: Vec<&str> = all.values().map(|n| n.name.as_str()).collect();
        let mut status = location_status(l.as_str(), &names[..1], 1);
        status.raft_leader = names.get(1).or(names.first()).map(|n| n.parse().unwrap());
        status.candidates = all
            .iter()
            .map(|(slot, n)| CandidateStatus {
                name: n.name.clone(),
                slot: *slot,
                leading: n.name.as_str() == names[0],
                verdict: Verdict::Forwarding,
                observers: (3, 3),
                rtt_ms: Some(20.0),
                loss: Some(0.0),
                path_mtu: None,
                services: None,
                drained: false,
                blocked_by: Vec::new(),
            })
            .collect();
        status
    };
    Status {
        mesh: mesh.name.clone(),
        location: mesh.nodes[&me].location.clone(),
        node: me,
        generation: mesh.generation,
        mesh_hash: String::new(),
        other_generations: Default::default(),
        backend: "kernel".to_owned(),
        probe_addresses: vec![],
        locations: mesh.locations.keys().map(location).collect(),
    }
}
