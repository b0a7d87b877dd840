//! The whole mesh in virtual time: every daemon's real core, a model of the network between them, one seed.
//!
//! [`World`] owns the nodes and the clock; [`link`] is the weather between them; [`path`] says where a packet really
//! goes, by walking the very networks that the cores have programmed; [`Faults`] says what each node breaks on the way.
//! [`model`] is the reference: written without the core, it says from the true state of the world who could have carried
//! traffic, and holds the cores to it. [`explore`] draws worlds and faults from seeds and makes what fails small.

pub mod campaign;
mod carry;
#[cfg(test)]
mod checks;
pub mod disk;
pub mod draw;
pub mod explore;
pub mod faults;
pub mod hostile;
pub mod link;
pub mod meshes;
pub mod meter;
pub mod model;
pub mod path;
mod recording;
pub mod rollout;
pub mod world;

pub use faults::{Fault, Faults};
pub use link::{Link, Loss};
pub use world::{LogLine, World, WorldConfig};
