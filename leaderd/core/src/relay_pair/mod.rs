//! Which two candidates carry the traffic between two locations.
//!
//! Between two locations there is one *relay pair*: a candidate of each, which carry all traffic between their workloads, both ways. Both
//! ends compute it, by the same pure function ([`choose`]), from the same facts: who leads, and the state of the tunnels between their
//! candidates as either end has measured it ([`TunnelTable`]). So both directions of a flow cross the same two nodes, around a fault as
//! well, which is what relays that track connections need.
//!
//! A relay pair that is not the two leaders is a *detour*. It is taken on this end's own evidence, and the other end takes its word: no
//! quorum is asked. A decision changes the order in which relays are preferred, and moves nothing into a tunnel that is known to be bad.
//!
//! [`OwnTunnels`] turns an observer's verdicts into states and keeps a tunnel that comes and goes from moving traffic each time.

mod choose;
mod own;
mod table;
mod tunnel_state;

pub use choose::{Chosen, End, choose};
pub use own::OwnTunnels;
pub use table::{ROW_FRESH, TunnelTable, Who};
pub use tunnel_state::{TunnelRow, TunnelState};

use crate::ids::{LocationName, Slot};
use serde::{Deserialize, Serialize};

/// Who carries between a node's location and another one, for that node. With several leaders there may be several on each side.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Relays {
    /// In the node's own location.
    pub near: Vec<Slot>,
    /// In the other location: where the node's own tunnels lead, if it is a candidate.
    pub far: Vec<Slot>,
}

/// A relay pair that is not the two leaders, as a candidate tells the members of its location.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Detour {
    /// The other location.
    pub location: LocationName,
    pub near: Slot,
    pub far: Slot,
}
