//! Reads the network of a node from the kernel and applies plans to it: WireGuard, VXLAN, addresses, nexthops, routes.
//!
//! [`net::Reconciler`] is the way in for a daemon, [`net::Kernel`] for a tool.
//!
//! What each term means, and where it lives: `docs/glossary.md`.

pub mod net;
pub mod wireguard;
