//! Notes for the operator about a node's network: the mesh file is valid, but this node cannot do everything that it says.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use wgctl_plan::InterfaceName;

use super::local::vxlan_mtu;
use super::{TopologyInput, holds_underlay, locations, underlay};
use crate::ids::NodeName;
use crate::mesh::NotCarried;

/// A note; its text says what to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Note {
    /// Our VXLAN device carries smaller packets than the mesh.
    SmallLan { device: InterfaceName, mtu: u32, mesh: u16 },
    /// A remote destination that is not routed into the tunnels, because a tunnel's endpoint lies in it.
    Withheld { prefix: IpNet },
    /// This node's own address is not carried, though its location has `node_addresses`.
    OwnAddress { me: NodeName, address: IpAddr, why: NotCarried },
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SmallLan { device, mtu, mesh } => write!(
                f,
                "{device} carries packets of {mtu} bytes on this node's LAN, the mesh of {mesh}: larger ones are lost or cut; lower `mtu` \
                 in [mesh] to {mtu}, or raise the LAN's"
            ),
            Self::Withheld { prefix } => write!(
                f,
                "{prefix} goes by the underlay and not by the mesh: an endpoint's name has an address in it, or none at all; give the endpoint an address \
                 outside of what the mesh carries"
            ),
            Self::OwnAddress { me, address, why } => {
                write!(f, "address {address} of {me} is not carried to other locations: {why}")
            }
        }
    }
}

/// Returns all notes for this node.
pub fn notes(input: &TopologyInput<'_>) -> Vec<Note> {
    let mesh = input.mesh;
    let Some(me) = mesh.node(input.me) else { return Vec::new() };
    let Some(location) = mesh.locations.get(&me.location) else { return Vec::new() };
    let mut notes = Vec::new();
    if let Some(vxlan) = location.overlay.vxlan() {
        let mtu = vxlan_mtu(input, me, vxlan);
        if mtu < mesh.mtu.into() {
            notes.push(Note::SmallLan { device: vxlan.device.clone(), mtu, mesh: mesh.mtu });
        }
    }
    if location.node_addresses
        && let Some(why) = mesh.why_not_carried(me)
    {
        notes.push(Note::OwnAddress { me: me.name.clone(), address: me.address, why });
    }
    let underlay = underlay(input);
    let elsewhere = locations(mesh).into_iter().filter(|(l, _)| **l != me.location);
    let prefixes = elsewhere.flat_map(|(_, location)| location.prefixes);
    let withheld = prefixes.filter(|p| holds_underlay(&underlay, p));
    notes.extend(withheld.map(|prefix| Note::Withheld { prefix }));
    notes
}
