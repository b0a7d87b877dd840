//! The kernel's network: observe, apply, watch, and keep as desired.

mod encode;
mod kernel;
mod link;
mod netlink;
mod observe;
mod steward;
mod sysctl;
mod watch;

pub use kernel::{ApplyError, CleanupError, Failure, Kernel, OpenError};
pub use link::{LinkState, LinkWatch};
pub use observe::{Scope, our_rules};
pub use steward::{ProgramError, RepairError, Report, Steward};
pub use watch::{Drift, watch};
