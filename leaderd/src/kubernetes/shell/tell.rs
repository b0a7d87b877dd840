//! What the log of this node says of the cluster, each thing once.

use leaderd_core::cluster::{Problem, Rendered, Subject};

use super::super::first;
use super::Shell;

impl Shell {
    /// Those that somebody at this node can do something about; pools' statuses have them all.
    pub(super) fn say_problems(&mut self, rendered: &Rendered) {
        // A cluster that leaderd comes to has no mesh before its nodes have keys: no problem of anybody's.
        if self.keys_are_published() != Some(true) {
            return;
        }
        let me = self.config.me.as_str();
        let location = self
            .in_force
            .as_ref()
            .and_then(|(_, m)| Some(m.as_ref()?.node(&self.config.me)?.location.to_string()));
        let mine = |p: &&Problem| match &p.subject {
            Subject::Settings | Subject::Mesh => true,
            Subject::Node(node) => node == me,
            Subject::Location(name) => Some(name) == location.as_ref(),
            Subject::Pool(_) => false,
        };
        let now: Vec<Problem> = rendered.problems.iter().filter(mine).cloned().collect();
        for new in now.iter().filter(|p| !self.problems.contains(p)) {
            tracing::warn!(subject = ?new.subject, problem = new.message, "not all is well in the cluster");
        }
        self.problems = now;
    }

    pub(super) fn say_what_is_missing(&mut self, rendered: Option<&Rendered>) {
        if self.daemon.is_some() {
            return;
        }
        let mesh = self.in_force.as_ref().and_then(|(_, mesh)| mesh.as_deref());
        let missing = first::waits_for(&self.config, &self.seen, rendered, mesh);
        if self.waits_for.as_ref() != Some(&missing) {
            tracing::info!(wants = missing, "no mesh with this node yet");
            self.waits_for = Some(missing);
        }
    }
}
