//! Which mesh is in force: the one that the cluster holds, as soon as it is seen, unless it has mistakes or unexpected keys.

use std::mem;
use std::time::{Duration, Instant};

use leaderd_core::kubernetes::UnexpectedKeys;
use leaderd_core::mesh::Mesh;

use super::super::watch::Scope;
use super::Controller;

/// How long a mesh file may have keys that the Nodes seen here do not explain: one watch may be ahead of the other.
pub(super) const TRUST_GRACE: Duration = Duration::from_secs(3);

/// A mesh with unexpected keys.
pub(super) struct UntrustedMesh {
    pub since: Instant,
    pub keys: Vec<UnexpectedKeys>,
    logged: bool,
}

impl Controller {
    /// Puts the cluster's mesh in force if it is valid.
    pub(super) fn update_mesh(&mut self) {
        let text = self.cache.view.mesh.as_ref().map(|object| object.text.clone());
        let Some(text) = text.filter(|text| !text.is_empty()) else { return };
        if self.mesh_text == text {
            self.untrusted = None;
            return;
        }
        match text.mesh() {
            Ok(mesh) if self.is_untrusted(mesh) => return,
            Ok(mesh) => {
                self.mesh = Some(mesh.clone());
                self.meshes.send_replace(Some(mesh.clone()));
            }
            Err(mistakes) => {
                tracing::error!(
                    error = mistakes,
                    "the mesh file of the cluster has mistakes; the one in use stays"
                );
            }
        }
        self.mesh_text = text;
        self.untrusted = None;
    }

    /// True if nodes have other keys in the mesh than those pinned, without an explanation.
    fn is_untrusted(&mut self, mesh: &Mesh) -> bool {
        let mut pins = mem::take(&mut self.cache.view.pins);
        let checked = match self.cache.scope() {
            Scope::Cluster => pins.check_and_pin(mesh, &self.cache.view),
            // This daemon does not see other Nodes. What such a node does with a mesh file stays within its location.
            Scope::OwnNode => {
                pins.pin_unchecked(mesh);
                Ok(())
            }
        };
        self.cache.view.pins = pins;
        let Err(keys) = checked else { return false };
        if self.untrusted.as_ref().is_none_or(|u| u.keys != keys) {
            self.untrusted = Some(UntrustedMesh { since: Instant::now(), keys, logged: false });
        }
        true
    }

    /// Logs unexpected keys once the Nodes had time to explain them.
    pub(super) fn log_untrusted(&mut self) {
        let Some(UntrustedMesh { since, keys, logged }) = &mut self.untrusted else { return };
        if since.elapsed() < TRUST_GRACE || mem::replace(logged, true) {
            return;
        }
        self.counters.count("kubernetes_meshes_refused");
        for UnexpectedKeys { node, keys } in keys {
            tracing::error!(
                node.name = %node, keys.fingerprint = keys.fingerprint(),
                "the mesh file of the cluster has unconfirmed keys of a node; the mesh in use stays"
            );
        }
    }
}
