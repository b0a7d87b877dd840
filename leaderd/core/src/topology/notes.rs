//! What a person should know of a node's network: nothing is wrong with the mesh, and yet not all of it can be as it says.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use wgctl_plan::InterfaceName;

use super::local::vxlan_mtu;
use super::{TopologyInput, holds_underlay, sites, underlay};
use crate::ids::NodeName;
use crate::mesh::NotCarried;

/// One such thing, with what to do about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Note {
    /// Our VXLAN device carries smaller packets than the mesh.
    SmallLan { device: InterfaceName, mtu: u32, mesh: u16 },
    /// A destination elsewhere that is not routed into the tunnels, as one of them runs there.
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

/// All that there is to say on this node.
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
    let elsewhere = sites(mesh).into_iter().filter(|(l, _)| **l != me.location);
    let prefixes = elsewhere.flat_map(|(_, site)| site.prefixes);
    let withheld = prefixes.filter(|p| holds_underlay(&underlay, p));
    notes.extend(withheld.map(|prefix| Note::Withheld { prefix }));
    notes
}
