//! The whole mesh in virtual time: every daemon's real core, a model of the network between them, one seed.
//!
//! [`World`] owns the nodes and the clock; [`path`] says where a packet really goes, by walking the very networks that
//! the cores have programmed; [`Faults`] says what each node breaks on the way.

pub mod faults;
pub mod meshes;
pub mod path;
pub mod world;

pub use faults::Faults;
pub use world::{LogLine, World, WorldConfig};
