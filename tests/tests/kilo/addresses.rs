//! Where nodes are probed, as the cluster shows it.

use std::time::Duration;

use ::tests::kilo::cluster::{annotation, node_path};
use ::tests::kilo::rig::{Rig, wait_for};
use anyhow::{Result, ensure};
use serde_json::Value;

use super::beside::ready;

/// Within this daemons would have written another mesh file.
const LOOK: Duration = Duration::from_secs(5);

/// Each Node says where it is probed, at flannel's address here; one that changes is announced again, and makes no new generation of the mesh.
pub fn are_published(rig: &mut Rig) -> Result<String> {
    let traffic = ready(rig)?;
    for (i, n) in rig.world.nodes.iter().enumerate() {
        told(rig, i, &n.node.workload(0).to_string())?;
    }
    let (member, before) = (rig.node("cloud-2"), mesh(rig)?);
    let n = &rig.world.nodes[member];
    let (own, other) = (n.node.workload(0), n.node.workload(246));
    let becomes = |new, old| {
        n.ns.ip(&format!("addr add {new}/32 dev flannel.1\naddr del {old}/32 dev flannel.1"))
    };
    becomes(other, own)?;
    told(rig, member, &other.to_string())?;
    std::thread::sleep(LOOK);
    ensure!(mesh(rig)? == before, "another address made a new generation of the mesh");
    becomes(own, other)?;
    told(rig, member, &own.to_string())?;
    traffic.wait_steady("with the address that it had")?;
    Ok("published, and followed".to_owned())
}

fn told(rig: &Rig, node: usize, address: &str) -> Result<()> {
    let name = &rig.world.nodes[node].node.name;
    let what = format!("the annotation of {name} is {address}");
    wait_for(&what, String::new, || {
        let node = rig.api.get(&node_path(name))?;
        Ok(annotation(&node, "leaderd.io/probe-address").as_deref() == Some(address))
    })
}

fn mesh(rig: &Rig) -> Result<Value> {
    let object = rig.api.get("/api/v1/namespaces/leaderd/configmaps/leaderd-mesh")?;
    Ok(object["metadata"]["resourceVersion"].clone())
}
