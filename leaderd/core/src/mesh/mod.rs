//! The mesh: what `mesh.toml` says once it has been read and found good.

mod model;

pub use model::*;
