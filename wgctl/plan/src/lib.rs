//! The desired and the observed network of one node, the ordered difference between the two, and a model kernel.
//!
//! Pure: nothing here touches a socket. A [`Network`] describes everything that leaderd owns on a node, desired or observed.
//! [`diff()`] returns the [`Change`]s from one network to another, in an order that a kernel accepts. [`ModelKernel`] has that
//! kernel's rules as far as they matter here; [`Network::hops`] and its siblings say what it does with a packet.
//!
//! What each term means, and where it lives: `docs/glossary.md`.

mod apply;
pub mod change;
pub mod diff;
mod forward;
pub mod kernel;
pub mod model;
mod pairs;
mod shared;
mod transit;

pub use change::Change;
pub use diff::{diff, diff_desired};
pub use forward::{Hop, MAIN_TABLE, Packet};
pub use kernel::{ModelKernel, Refused};
pub use model::*;
pub use shared::Shared;
pub use transit::{Prefixes, Transit};
