//! The kernel's network: observe, apply, watch, and keep as desired.

mod addresses;
mod encode;
mod heard;
mod kernel;
mod link;
mod netlink;
mod nft;
mod observe;
mod steward;
mod sysctl;
mod untracked;
mod watch;

pub use addresses::{AddressNews, Held, held_addresses};
pub use kernel::{ApplyError, CleanupError, Failure, Kernel, OpenError};
pub use link::{LinkState, LinkWatch};
pub use observe::{Scope, foreign_rules, our_rules};
pub use steward::{ProgramError, RepairError, Report, Steward};
pub use sysctl::read as read_sysctl;
pub use watch::{Drift, watch};
