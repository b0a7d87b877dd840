//! Which mesh is in force: the one that the cluster holds, as soon as it is seen, unless it has mistakes, or keys that are not believed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use leaderd_core::cluster::NotTaken;
use leaderd_core::mesh::Mesh;

use super::super::seen::Scope;
use super::Shell;

/// How long a mesh file may have keys that the Nodes seen here do not explain: a watch of one may be ahead of the other's.
pub(super) const DOUBT: Duration = Duration::from_secs(3);

/// Keys that are not believed.
pub(super) struct Doubt {
    pub since: Instant,
    pub strange: Vec<NotTaken>,
    told: bool,
}

impl Shell {
    /// The mesh that the cluster holds is in force as soon as it is seen, if it is good.
    pub(super) fn take_mesh(&mut self) {
        let text = self.seen.view.mesh.as_ref().map(|object| object.text.clone());
        let Some(text) = text.filter(|text| !text.is_empty()) else { return };
        if self.in_force.as_ref().is_some_and(|(t, _)| *t == text) {
            self.doubted = None;
            return;
        }
        match leaderd_core::mesh::parse(&text) {
            Ok(mesh) if self.doubts(&mesh) => {}
            Ok(mesh) => {
                self.doubted = None;
                let mesh = Arc::new(mesh);
                self.in_force = Some((text, Some(mesh.clone())));
                self.out.meshes.send_replace(Some(mesh));
            }
            Err(mistakes) => {
                let mistakes: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
                tracing::error!(
                    error = mistakes.join("\n"),
                    "the mesh file of the cluster has mistakes; the one in use stays"
                );
                let before = self.in_force.take().and_then(|(_, mesh)| mesh);
                self.in_force = Some((text, before));
                self.doubted = None;
            }
        }
    }

    /// Nodes have other keys in it than those that they are known by, and nothing says why.
    fn doubts(&mut self, mesh: &Mesh) -> bool {
        let mut pins = std::mem::take(&mut self.seen.view.pins);
        let taken = match self.seen.scope() {
            Scope::All => pins.take(mesh, &self.seen.view),
            // The other Nodes are not seen. What such a node does by a mesh file is within its location.
            Scope::Own => {
                pins.trust(mesh);
                Ok(())
            }
        };
        self.seen.view.pins = pins;
        let Err(strange) = taken else { return false };
        if self.doubted.as_ref().is_none_or(|d| d.strange != strange) {
            self.doubted = Some(Doubt { since: Instant::now(), strange, told: false });
        }
        true
    }

    /// Keys that are not believed are told of once their Nodes had time to say why they changed.
    pub(super) fn say_doubt(&mut self) {
        let Some(Doubt { since, strange, told }) = &mut self.doubted else { return };
        if since.elapsed() < DOUBT || std::mem::replace(told, true) {
            return;
        }
        self.counters.count("kubernetes_meshes_refused");
        for NotTaken { node, keys } in strange {
            tracing::error!(
                node.name = %node, keys.fingerprint = keys.fingerprint(),
                "the mesh file of the cluster has other keys of a node, which nobody has accepted; the mesh in use stays"
            );
        }
    }
}
