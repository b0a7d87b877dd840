//! leaderd in Kubernetes, as far as it is decided: from a view of the cluster to the mesh file, to what is written back, and to
//! what Kilo is told. Pure: the shell (`leaderd`, feature `kubernetes`) reads the API into a [`ClusterView`] and carries out what
//! comes of it.
//!
//! ```text
//! nodes, pools, the mesh object → view → render → text of mesh.toml → mesh::parse, as from a file
//!                                 view + status of this daemon → tasks → Turns → changes of annotations, of pools' status, …
//! ```
//!
//! A shell calls [`tasks`] whenever the view or the daemon's status changed (and at least every second), hands the list to
//! [`Turns::due`], and carries out what that returns. A change that meets a conflict is dropped: the view that comes next says
//! whether it is still wanted.

mod depart;
mod keys;
mod pool_policy;
mod rank;
mod render;
mod report;
mod steer;
mod task;
mod view;

#[cfg(test)]
mod fixture;

pub use keys::{NodeKeys, NotTaken, Pins};
pub use pool_policy::PoolPolicy;
pub use rank::{looks, turn_of_any};
pub use render::{
    PrefixSource, Problem, Refusal, Refused, Rendered, RenderedCandidate, RenderedPool, Subject,
    Why, prefix_source, render,
};
pub use report::{
    Asked, CandidateReport, ClusterEvent, Condition, LastFailover, PoolStatus, commands,
    pool_statuses,
};
pub use steer::{kilo_changes, uninstall_changes};
pub use task::{Action, ChangeRefused, NodeChange, RelayForwarding, Running, Task, Turns, tasks};
pub use view::*;
