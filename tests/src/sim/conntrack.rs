//! A relay's connection tracking, as far as it decides which TCP packets are invalid.
//!
//! The states are Linux's (`tcp_conntracks` in `net/netfilter/nf_conntrack_proto_tcp.c`), for handshakes and what follows them. Left out:
//! windows (a relay that sees one direction of an old connection calls it invalid once the window is used up), closing, timeouts.

use std::collections::BTreeMap;
use std::net::IpAddr;

use leaderd_core::ids::NodeName;
use wgctl_plan::Network;

/// What a TCP packet says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    Syn,
    SynAck,
    /// An acknowledgement, with data or without.
    Ack,
}

/// A connection: who opened it, to whom, and a number that stands for the ports.
pub type Connection = (NodeName, NodeName, u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    SynSent,
    SynReceived,
    Established,
}

/// The connection tables of all relays.
#[derive(Clone, Debug, Default)]
pub struct Conntrack {
    states: BTreeMap<(NodeName, Connection), State>,
}

impl Conntrack {
    /// Takes a packet at a relay. Returns `false` if the relay calls it invalid, and drops it. `reply`: it is from who was connected to.
    pub fn admit(
        &mut self,
        relay: &NodeName,
        connection: &Connection,
        segment: Segment,
        reply: bool,
    ) -> bool {
        let key = (relay.clone(), connection.clone());
        let next = match (self.states.get(&key), segment, reply) {
            (None, Segment::Syn, _) => Some(State::SynSent),
            // A connection that the relay never saw is picked up (`nf_conntrack_tcp_loose`, which is on by default) ...
            (None, Segment::Ack, _) => Some(State::Established),
            // ... but no SYN-ACK without its SYN.
            (None, Segment::SynAck, _) => None,
            // The SYN once more.
            (Some(State::SynSent), Segment::Syn, false) => Some(State::SynSent),
            (Some(State::SynSent), Segment::SynAck, true) => Some(State::SynReceived),
            // Who opens it acknowledges a SYN-ACK that did not cross this relay.
            (Some(State::SynSent), Segment::Ack, false) => None,
            (Some(State::SynReceived), Segment::Ack, false) => Some(State::Established),
            // All else is passed without a change.
            (Some(state), ..) => Some(*state),
        };
        next.map(|next| self.states.insert(key, next)).is_some()
    }

    /// Forgets all connections but those with these numbers or later ones: tables are bounded.
    pub fn forget_before(&mut self, number: u64) {
        self.states.retain(|(_, (_, _, n)), _| *n >= number);
    }
}

/// Returns whether a relay with this network leaves the packet out of connection tracking, by the rules that leaderd itself has set.
pub fn is_untracked(network: &Network, source: IpAddr, target: IpAddr) -> bool {
    let Some(transit) = network.untracked.as_ref() else { return false };
    let within =
        |prefixes: &wgctl_plan::Prefixes, ip: IpAddr| prefixes.iter().any(|p| p.contains(&ip));
    let joins = |a, b| within(&transit.near, a) && within(&transit.far, b);
    let own = within(&transit.own, source) || within(&transit.own, target);
    !own && (joins(source, target) || joins(target, source))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(s: &str) -> NodeName {
        s.parse().expect("a name")
    }

    /// What a relay says to these packets of one connection.
    fn said(packets: &[(Segment, bool)]) -> Vec<bool> {
        let mut table = Conntrack::default();
        let connection = (name("a"), name("b"), 1);
        packets.iter().map(|(s, reply)| table.admit(&name("r"), &connection, *s, *reply)).collect()
    }

    #[test]
    fn a_relay_that_sees_both_directions_passes_a_handshake() {
        use Segment::{Ack, Syn, SynAck};
        let all = [(Syn, false), (SynAck, true), (Ack, false), (Ack, true)];
        assert_eq!(said(&all), [true; 4]);
    }

    #[test]
    fn a_syn_ack_without_its_syn_is_invalid() {
        assert_eq!(said(&[(Segment::SynAck, true)]), [false]);
    }

    #[test]
    fn the_acknowledgement_of_a_syn_ack_that_went_another_way_is_invalid() {
        assert_eq!(said(&[(Segment::Syn, false), (Segment::Ack, false)]), [true, false]);
    }

    #[test]
    fn an_old_connection_is_picked_up() {
        assert_eq!(said(&[(Segment::Ack, true), (Segment::Ack, false)]), [true, true]);
    }
}
