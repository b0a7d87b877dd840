//! A new mesh file, applied live: what is the same in both files keeps its state.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::group::Group;
use crate::ids::{Generation, NodeName};
use crate::io::LogLevel;
use crate::mesh::Mesh;
use crate::observe::Observer;
use crate::time::Now;

use super::Node;

/// Why a good mesh file is not applied while the daemon runs.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MeshRefusal {
    #[error(
        "its generation {new} is older than {in_use}, which is in use; set generation to {} or more",
        in_use.0.saturating_add(1)
    )]
    OlderGeneration { new: Generation, in_use: Generation },
    #[error("it is of mesh {new}, and this daemon runs in {in_use}")]
    OtherMesh { new: String, in_use: String },
    #[error("node {0} is not in it; stop this daemon and run `leaderd cleanup` if that is meant")]
    NodeMissing(NodeName),
    #[error(
        "it moves this node to another location: stop this daemon, run `leaderd reset`, start it again"
    )]
    OtherLocation,
    #[error("a key of this node changed: restart leaderd to apply it")]
    OtherKey,
    #[error("control_port changed: restart leaderd to apply it")]
    OtherControlPort,
}

/// Whether a daemon that runs as node `me` can apply `new` in place of `old`.
///
/// # Errors
/// If the file is older or of another mesh, or changes what takes a restart.
pub fn check_successor(old: &Mesh, new: &Mesh, me: &NodeName) -> Result<(), MeshRefusal> {
    if new.generation < old.generation {
        return Err(MeshRefusal::OlderGeneration { new: new.generation, in_use: old.generation });
    }
    if new.name != old.name {
        let (new, in_use) = (new.name.clone(), old.name.clone());
        return Err(MeshRefusal::OtherMesh { new, in_use });
    }
    let (Some(before), Some(now)) = (old.node(me), new.node(me)) else {
        return Err(MeshRefusal::NodeMissing(me.clone()));
    };
    if now.location != before.location {
        return Err(MeshRefusal::OtherLocation);
    }
    if (now.wireguard_key, now.control_key) != (before.wireguard_key, before.control_key) {
        return Err(MeshRefusal::OtherKey);
    }
    if new.control_port != old.control_port {
        return Err(MeshRefusal::OtherControlPort);
    }
    Ok(())
}

impl Node {
    pub(super) fn mesh_changed(&mut self, now: Now, mesh: Mesh) {
        if let Err(why) = check_successor(&self.mesh, &mesh, &self.me) {
            let fields = [("reason", why.to_string())];
            return self.log(LogLevel::Error, "the mesh file is not applied", fields);
        }
        let is_candidate = mesh.node(&self.me).is_some_and(|node| node.slot.is_some());
        let mesh = self.set_mesh_file(now, Arc::new(mesh));
        let old = std::mem::replace(&mut self.mesh, mesh.clone());
        match (&mut self.observer, is_candidate) {
            (Some(observer), true) => observer.set_mesh(now, mesh.clone()),
            (None, true) => {
                let (me, keys) = (self.me.clone(), self.keys.clone());
                let mut observer = Observer::new(mesh.clone(), me, keys, self.seed, now);
                // A new observer hears only of decisions that come into force later.
                for decision in self.decisions.in_force() {
                    observer.decided(now, &decision.location, decision.epoch, &decision.leaders);
                }
                self.observer = Some(observer);
            }
            (_, false) => self.observer = None,
        }
        self.reflector.set_mesh(mesh.clone());
        self.outward.set_mesh(now, mesh.clone());
        self.handover.set_mesh(now.mono, &old, &mesh);
        self.update_groups(now);
        self.decisions.retain(&mesh);
        self.new_voters(now, &mesh);
        // A decision that names a candidate of the new file could not be followed before.
        let decided = self.groups.values().filter_map(|g| g.state().decision.clone());
        for decision in decided.collect::<Vec<_>>() {
            let _ = self.adopt(now, &decision, None);
        }
        self.peers.retain(&mesh);
        self.announcer.retain(&mesh);
        self.log(
            LogLevel::Info,
            "mesh file applied",
            [("mesh.generation", mesh.generation.to_string())],
        );
        self.listen_for_probes();
        self.mesh_in_force();
        self.relays_of_mesh(now);
        self.reprogram(false);
    }

    /// Makes a group for each location in which this node votes, from what it already has of it. The group of a location that is gone
    /// is paused: the location may come back, perhaps other nodes never saw it go, and this node's old vote still binds it then.
    fn update_groups(&mut self, now: Now) {
        let mesh = self.mesh.clone();
        let (here, gone) = std::mem::take(&mut self.groups)
            .into_iter()
            .partition::<BTreeMap<_, _>, _>(|(location, _)| mesh.locations.contains_key(location));
        self.groups = here;
        self.paused.extend(gone);
        for location in mesh.locations.keys() {
            if let Some(group) = self.paused.remove(location) {
                self.groups.insert(location.clone(), group);
            }
            if let Some(group) = self.groups.get_mut(location) {
                group.set_mesh(now, mesh.clone());
            } else if mesh.voters_of(location).contains(&self.me) {
                let stored = self.stored.remove(location).unwrap_or_default();
                let me = self.me.clone();
                match Group::new(mesh.clone(), location.clone(), me, &stored, self.seed, now) {
                    Ok(group) => drop(self.groups.insert(location.clone(), group)),
                    Err(error) => {
                        self.stored.insert(location.clone(), stored);
                        self.log(
                            LogLevel::Error,
                            "cannot join a Raft group",
                            [("location.name", location.to_string()), ("error", error.to_string())],
                        );
                    }
                }
            }
        }
    }
}
