//! Which nodes this one holds a control connection with, and at which addresses.

use std::collections::BTreeSet;

use super::Node;
use crate::ids::NodeName;
use crate::io::{Effect, Peer, PeerAddress};
use crate::observe::Observer;

impl Node {
    /// Asks for what follows from the mesh in force: connections with other peers, and no sockets of flows to targets that are gone.
    pub(super) fn mesh_in_force(&mut self) {
        let peers = self.wanted_peers();
        if self.asked_peers.as_ref() != Some(&peers) {
            self.asked_peers = Some(peers.clone());
            self.effects.push_back(Effect::SetPeers { peers });
        }
        let flows = self.observer.as_ref().map(Observer::pinned_flows).unwrap_or_default();
        self.effects.push_back(Effect::KeepFlows { flows });
    }

    pub(super) fn listen_for_probes(&mut self) {
        let ports = self.mesh.probe_ports.clone();
        self.effects.push_back(Effect::ListenProbes { ports });
    }

    /// The nodes of this location over the LAN; for candidates, the candidates of all others through their tunnels; for
    /// witnesses, the voters of their location.
    pub(super) fn wanted_peers(&self) -> Vec<Peer> {
        let Some(me) = self.mesh.node(&self.me) else { return Vec::new() };
        let mut voters_with_me: BTreeSet<NodeName> = BTreeSet::new();
        for location in self.groups.keys() {
            voters_with_me.extend(self.mesh.voters_of(location));
        }
        let port = self.mesh.control_port;
        let mut peers = Vec::new();
        for node in self.mesh.nodes.values().filter(|n| n.name != self.me) {
            let mut addresses = Vec::new();
            if node.location == me.location {
                addresses.push(PeerAddress {
                    plane: None,
                    source: None,
                    to: (node.address, port).into(),
                });
            } else if let (Some(mine), Some(theirs)) = (me.slot, node.slot) {
                addresses.push(PeerAddress {
                    plane: Some(theirs),
                    source: Some(self.mesh.inner4(me, theirs).into()),
                    to: (self.mesh.inner4(node, mine), port).into(),
                });
            } else if voters_with_me.contains(&node.name) {
                // A witness and a plain member: no tunnel joins them, but the mesh itself does.
                let pair = self.mesh.probed_at(node).find_map(|to| {
                    let source = self.mesh.probed_at(me).find(|s| s.is_ipv6() == to.is_ipv6())?;
                    Some((source, to))
                });
                addresses.extend(pair.map(|(source, to)| PeerAddress {
                    plane: None,
                    source: Some(source),
                    to: (to, port).into(),
                }));
            }
            if !addresses.is_empty() {
                let dial = me.index < node.index;
                peers.push(Peer {
                    name: node.name.clone(),
                    control_key: node.control_key,
                    addresses,
                    dial,
                });
            }
        }
        peers
    }
}
