//! `wgctl lab`: a whole mesh of network namespaces on one machine, with real daemons, real WireGuard, real VXLAN, an
//! emulated WAN, faults, and meters that measure the blackout.
//!
//! ```text
//! scenario ─ topology ─ world (namespaces, WAN, daemons) ─ play (steps, meters) ─ report
//!                          └ faults                     └ control socket (exec, fault, status, down)
//! ```
//!
//! The lab knows leaderd only as a program with a mesh file and an admin socket, so it cannot share its mistakes.

mod admin;
mod catalog;
mod cli;
mod control;
mod demo;
mod faults;
mod meter;
pub mod netem;
mod ns;
mod play;
pub mod proof;
mod report;
mod sandbox;
mod scenario;
mod service;
mod topology;
mod wan;
mod world;

pub use cli::{LabArgs, run};
