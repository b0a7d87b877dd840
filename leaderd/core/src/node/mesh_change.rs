//! A new mesh file, taken live: what is the same in both keeps its state.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::group::Group;
use crate::io::LogLevel;
use crate::mesh::Mesh;
use crate::observe::Observer;
use crate::time::Now;

use super::Node;

impl Node {
    pub(super) fn mesh_changed(&mut self, now: Now, mesh: Mesh) {
        let Some(node) = mesh.node(&self.me) else {
            self.log(
                LogLevel::Error,
                "the new mesh file has no node of this name: kept the old one",
                [],
            );
            return;
        };
        if node.location != self.location {
            self.log(
                LogLevel::Error,
                "the new mesh file moves this node to another location: kept the old one; stop leaderd, run `leaderd reset`, start it again",
                [("location.new", node.location.to_string())],
            );
            return;
        }
        let is_candidate = node.slot.is_some();
        let mesh = self.new_file(now, Arc::new(mesh));
        let old = std::mem::replace(&mut self.mesh, mesh.clone());
        match (&mut self.observer, is_candidate) {
            (Some(observer), true) => observer.set_mesh(now, mesh.clone()),
            (None, true) => {
                let (me, keys) = (self.me.clone(), self.keys.clone());
                let mut observer = Observer::new(mesh.clone(), me, keys, self.seed, now);
                // It hears only of what comes into force from now on.
                for decision in self.known.in_force() {
                    observer.decided(now, &decision.location, decision.epoch, &decision.leaders);
                }
                self.observer = Some(observer);
            }
            (_, false) => self.observer = None,
        }
        self.reflector.set_mesh(mesh.clone());
        self.steer.set_mesh(now, &old, &mesh, &self.location);
        self.groups_follow(now);
        self.known.retain(&mesh);
        self.new_voters(now, &mesh);
        // One that named a candidate of the new file could not be followed before.
        let decided = self.groups.values().filter_map(|g| g.state().decision.clone());
        for decision in decided.collect::<Vec<_>>() {
            let _ = self.adopt(&decision, None);
        }
        // Nodes that are gone have no generation, and locations that are gone no quorum to miss.
        self.heard.last.retain(|n, _| mesh.nodes.contains_key(n));
        self.heard.quorum_seen.retain(|l, _| mesh.locations.contains_key(l));
        self.heard.told.retain(|l, _| mesh.locations.contains_key(l));
        self.announcer.retain(&mesh);
        self.log(
            LogLevel::Info,
            "mesh file applied",
            [("mesh.generation", mesh.generation.to_string())],
        );
        self.reprogram(false);
    }

    /// A group of each location that this node votes in, with what it already has of it. The group of a location that is gone
    /// rests: if the location comes back, perhaps for others it never was away, and then this node's vote still binds it.
    fn groups_follow(&mut self, now: Now) {
        let mesh = self.mesh.clone();
        let (here, gone) = std::mem::take(&mut self.groups)
            .into_iter()
            .partition::<BTreeMap<_, _>, _>(|(location, _)| mesh.locations.contains_key(location));
        self.groups = here;
        self.resting.extend(gone);
        for location in mesh.locations.keys() {
            if let Some(group) = self.resting.remove(location) {
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
