//! Desired and observed network state of one node, the ordered difference between the two, and a model kernel.
//!
//! Pure: nothing here touches a socket. [`model::Network`] is a whole description of what leaderd owns on a node;
//! the same type describes what is wanted and what was seen.

pub mod model;

pub use model::*;
