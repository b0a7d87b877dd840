//! leaderd in Kubernetes, as far as it is decided: from a view of the cluster to the mesh file, to what is written back, and to
//! what Kilo is told. Pure: the shell (`leaderd`, feature `kubernetes`) reads the API into a [`ClusterView`] and carries out what
//! comes of it.
//!
//! ```text
//! nodes, pools, the mesh object → view → render → text of mesh.toml → mesh::parse, as from a file
//!                                 view + status of this daemon → steer → changes of annotations, of pools' status
//! ```

mod view;

pub use view::*;
