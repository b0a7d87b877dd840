//! What is broken on a node, in the model. All of it leaves the node's daemon alone unless it says so.

/// The true state of one node's data path.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Faults {
    /// The machine is off: nothing in, nothing out, no daemon.
    pub crashed: bool,
    /// New flows into the overlay are dropped on the way out; old ones pass (Kilo issue #489).
    pub vxlan_new_flows: bool,
    /// Everything into the overlay is dropped on the way out.
    pub vxlan_all: bool,
    /// Nothing is forwarded; the node itself answers.
    pub forwarding_off: bool,
    /// Forwarded packets longer than this are dropped silently.
    pub mtu: Option<u16>,
    /// Packets forwarded into the location are sent back where they came from.
    pub route_loop: bool,
    /// No packets to and from other locations.
    pub wan_cut: bool,
    /// Share of packets lost on this node's WAN, each way, 0 to 1.
    pub wan_loss: f64,
    /// No packets to and from nodes of the same location.
    pub lan_cut: bool,
}
