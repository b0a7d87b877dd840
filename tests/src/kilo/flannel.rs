//! `flannel.1` of each node, as the lab has it (`wgctl_lab::cni::flannel`), without the rules of `--ip-masq`.
//!
//! Only nodes of the same location are in it: flannel's packets do not cross locations, which Kilo joins. Real flannel has entries for
//! all nodes; those of other locations lead nowhere, and Kilo's routes stand in their place.

use anyhow::Result;
use wgctl_lab::World;
pub use wgctl_lab::cni::flannel::address;
use wgctl_lab::cni::flannel::{self, Reach};

use crate::lab::overlay;

/// Sets it up on all nodes, with forwarding.
pub fn set_up(world: &World) -> Result<()> {
    for n in &world.nodes {
        overlay::forwarding(n)?;
        flannel::set_up(&world.topology, &n.node, &n.ns, Reach::Location)?;
    }
    Ok(())
}
