//! `wgctl lab`: a whole mesh of network namespaces on one machine, with real daemons, real WireGuard, real VXLAN, an
//! emulated WAN, faults, and meters that measure the blackout.
//!
//! ```text
//! scenario ─ topology ─ world (namespaces, WAN, daemons) ─ play (steps, meters) ─ report
//!                          └ faults                     └ control socket (exec, fault, status, down)
//! ```
//!
//! The lab knows leaderd only as a program with a mesh file and an admin socket, so it cannot share its mistakes.
//!
//! What each term means, and where it lives: `docs/glossary.md`.

mod admin;
mod catalog;
mod cli;
pub mod cni;
mod control;
mod demo;
mod fabric;
mod faults;
mod flows;
mod machine;
mod meter;
pub mod netem;
mod ns;
mod play;
pub mod proof;
mod report;
mod sandbox;
mod scenario;
mod service;
pub mod system;
mod topology;
mod wan;
mod world;

pub use cli::{LabArgs, run};

// What plays something else than scenarios is built of these: `tests`' side-by-side benchmark.
pub use meter::{
    End, Lane, Meter, Meters, Outage, Stream, TICK, Tally, longest_outage, wall_micros,
};
pub use ns::{Namespace, feed};
pub use report::Failed;
pub use sandbox::{LabDir, Users, run_inside_as};
pub use scenario::{Scenario, WanSpec};
pub use system::System;
pub use topology::{Node, Topology, VXLAN_DEVICE, VXLAN_PORT, Vxlan};
pub use world::{Instead, LabNode, MANAGER, World, find_leaderd, wait_ready};
