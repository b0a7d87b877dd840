//! The control plane of a world: leaderd, or another system with the same task.
//!
//! A world is links, addresses, workloads and a WAN. A [`System`] makes a mesh of it: tunnels, overlays within locations, routes,
//! and relays. Faults, meters and WAN are the same for every system, and none of them is announced to it.

use std::sync::Arc;

use anyhow::{Context, Result};
use serde_json::json;

use crate::admin;
use crate::world::{World, why_not_ready};

/// Call [`start`](System::start) once, then [`not_ready`](System::not_ready) until it is.
pub trait System: std::fmt::Debug {
    /// Sets up and starts everything on all nodes. Returns before it is ready.
    fn start(&mut self, world: &Arc<World>) -> Result<()>;

    /// Why it cannot carry traffic yet, as far as the system itself knows; `None` when it can.
    fn not_ready(&self, world: &World) -> Option<String>;

    /// An operator moves a location's traffic from one candidate to another, in the system's own best way. Indexes of nodes.
    fn hand_over(&mut self, world: &Arc<World>, from: usize, to: usize) -> Result<()>;
}

/// leaderd, a daemon on each node; its program is given to [`World::build`].
#[derive(Debug, Default)]
pub struct Leaderd;

impl System for Leaderd {
    fn start(&mut self, world: &Arc<World>) -> Result<()> {
        world.start_daemons()
    }

    fn not_ready(&self, world: &World) -> Option<String> {
        why_not_ready(world).map(|(n, why)| format!("{}: {why}", world.nodes[n].node.name))
    }

    fn hand_over(&mut self, world: &Arc<World>, _from: usize, to: usize) -> Result<()> {
        let to = &world.nodes[to];
        let asked = world.nodes_in(to.node.location).find(|n| world.status(*n).is_ok());
        let asked = asked.context("no daemon of the location runs")?;
        let body = json!({"promote": {"node": to.node.name, "force": false}});
        admin::command(&world.nodes[asked].admin(), &body).context("promote was refused")
    }
}
