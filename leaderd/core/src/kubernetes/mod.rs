//! The decisions for Kubernetes: from a view of the cluster to the mesh file, to what leaderd writes back, and to Kilo's annotations.
//! Pure: the shell (`leaderd`, feature `kubernetes`) reads the API into a [`ClusterView`] and carries out the tasks.
//!
//! ```text
//! nodes, pools, the mesh object → view → render → text of mesh.toml → mesh::parse, as from a file
//!                                 view + status of this daemon → plan → TurnScheduler → changes of annotations, of pools' status, …
//! ```
//!
//! A shell calls [`plan`] whenever the view or the daemon's status changed (and at least every ten seconds), passes the tasks to
//! [`TurnScheduler::due`], and carries out what that returns. A change that meets a conflict is dropped: the next view says whether it
//! is still wanted.

mod keys;
mod kilo;
mod plan;
mod pool_policy;
mod pool_status;
mod render;
mod status;
mod tasks;
mod turn_order;
mod view;

#[cfg(test)]
mod fixture;

pub use keys::{NodeKeys, PinnedKeys, UnexpectedKeys};
pub use kilo::uninstall_changes;
pub use plan::plan;
pub use pool_policy::PoolPolicy;
pub use pool_status::{
    CandidateReport, ClusterEvent, Condition, LastFailover, PoolRequests, PoolStatus,
};
pub use render::{
    PrefixSource, Problem, Refusal, RefusalReason, RefusedCandidate, Rendered, RenderedCandidate,
    RenderedPool, Subject, prefix_source, render,
};
pub use tasks::{Action, ChangeRefused, NodeChange, RelayForwarding, Running, Task, TurnScheduler};
pub use turn_order::{watcher_turn_delay, watches_cluster};
pub use view::*;
