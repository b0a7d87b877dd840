//! The kernel's network: reads it, applies changes, watches it, and keeps it as desired.

mod addresses;
mod encode;
mod kernel;
mod link;
mod liveness;
mod lookup;
mod netlink;
mod nft;
mod observe;
mod reconciler;
mod sysctl;
mod untracked;
mod watch;

pub use addresses::{AddressEvents, LocalAddress, local_addresses};
pub use kernel::{ApplyError, CleanupError, FailedChange, Kernel, OpenError};
pub use link::{LinkState, LinkWatch};
pub use lookup::Lookups;
pub use observe::{Scope, foreign_rules, our_rules};
pub use reconciler::{ProgramError, Reconciler, RepairError};
pub use sysctl::read as read_sysctl;
pub use watch::{Drift, watch};
