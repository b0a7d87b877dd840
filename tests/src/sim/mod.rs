//! The whole mesh in virtual time: every daemon's real core, a model of the network between them, one seed.
//!
//! [`World`] owns the nodes and the clock; [`link`] delays and loses packets between them; [`path`] walks a packet through the networks
//! that the cores have programmed; [`Faults`] says what each node breaks on the way. [`model`] is the reference: written without the
//! core, it knows from the true state of the world which candidates could have carried traffic, and checks the cores against it.
//! [`meter`] measures traffic, and TCP through relays that track connections ([`conntrack`]). [`known`] counts what fails today.
//! [`generate`] makes worlds and faults from seeds, [`case`] runs them and makes a failing one small.

pub mod campaign;
pub mod case;
pub mod conntrack;
pub mod disk;
pub mod faults;
pub mod foreign;
pub mod generate;
pub mod hostile;
mod kernel;
pub mod known;
pub mod link;
pub mod meshes;
pub mod meter;
pub mod model;
pub mod path;
mod recording;
pub mod rollout;
#[cfg(test)]
mod tests;
mod transport;
pub mod world;

pub use faults::{Fault, Faults};
pub use foreign::{Foreign, ForeignKind};
pub use link::{Link, Loss, Weather};
pub use world::{LogLine, World, WorldConfig};
