//! What the log of this node says about the cluster, each thing once.

use leaderd_core::kubernetes::{Problem, Rendered, Subject};

use super::super::bootstrap;
use super::Controller;

impl Controller {
    /// Logs the new problems that concern this node; pools' statuses have them all.
    pub(super) fn log_problems(&mut self, rendered: &Rendered) {
        // When leaderd is new in a cluster, there is no mesh before the nodes have keys, which is no problem.
        if self.keys_are_published() != Some(true) {
            return;
        }
        let me = self.config.me.as_str();
        let node = self.mesh.as_ref().and_then(|mesh| mesh.node(&self.config.me));
        let location = node.map(|node| node.location.as_str());
        let concerns_us = |p: &&Problem| match &p.subject {
            Subject::Settings | Subject::Mesh => true,
            Subject::Node(node) => node == me,
            Subject::Location(name) => Some(name.as_str()) == location,
            Subject::Pool(_) => false,
        };
        let now: Vec<Problem> = rendered.problems.iter().filter(concerns_us).cloned().collect();
        for new in now.iter().filter(|p| !self.problems.contains(p)) {
            tracing::warn!(subject = ?new.subject, problem = new.message, "a problem in the cluster");
        }
        self.problems = now;
    }

    /// Logs what this node waits for until its daemon runs.
    pub(super) fn log_missing(&mut self, rendered: Option<&Rendered>) {
        if self.daemon.is_some() {
            return;
        }
        let mesh = self.mesh.as_deref();
        let missing = bootstrap::missing(&self.config, &self.cache, rendered, mesh);
        if self.missing.as_ref() != Some(&missing) {
            tracing::info!(wants = missing, "no mesh with this node yet");
            self.missing = Some(missing);
        }
    }
}
