//! Kilo in Kubernetes, in the lab: the real etcd and kube-apiserver, and beside each node's data path a stand-in of Kilo.
//!
//! ```text
//! rig ─ world of the lab (namespaces, WAN, faults, meters) with its management network
//!   ├ programs       what `tests/kilo/build` built
//!   ├ control_plane  etcd, kube-apiserver, who may do what ── api: HTTPS to it
//!   ├ cluster        Node objects, as kubelet and a cloud leave them
//!   ├ made_up        Node objects of no machine: a large cluster as the API server sees it
//!   ├ flannel        flannel.1 of each node
//!   ├ agents         Kilo's agent on each node: `real`, or `stand_in` with `rules` (pure) and `device` (kilo0, routes)
//!   └ beside         leaderd on each node, told of the cluster
//! ```
//!
//! **Kilo itself is not in here.** Its module cannot be had from the Go module proxy, so nothing here builds it. Whoever has its agent
//! names it by `$KILO_KG`; without that the stand-in plays, and [`stand_in`] says what, and by which of Kilo's rules.

pub mod agents;
pub mod api;
pub mod beside;
pub mod cluster;
pub mod control_plane;
pub mod device;
pub mod flannel;
pub mod made_up;
pub mod programs;
pub mod real;
pub mod rig;
pub mod rules;
pub mod stand_in;
