//! Desired and observed network state of one node, the ordered difference between the two, and a model kernel.
//!
//! Pure: nothing here touches a socket. [`model::Network`] is a whole description of what leaderd owns on a node;
//! the same type describes what is wanted and what was seen. [`diff()`] gives the [`Change`]s between two of them in an
//! order that a kernel accepts; [`ModelKernel`] is that kernel's rules as far as they matter here.
//!
//! What each term means, and where it lives: `docs/glossary.md`.

pub mod change;
pub mod diff;
mod effect;
pub mod kernel;
pub mod model;
mod pairs;
mod shared;
mod transit;

pub use change::Change;
pub use diff::{diff, diff_desired};
pub use kernel::{ModelKernel, Refused};
pub use model::*;
pub use shared::Shared;
pub use transit::{Prefixes, Transit};
