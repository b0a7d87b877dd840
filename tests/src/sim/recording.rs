//! Recording a node of a [`World`], as `leaderd run --record` does.

use leaderd::record::{Ended, FileWriter, Header, RecordBuilder};
use leaderd_core::ids::NodeName;
use leaderd_core::io::{Effect, Input};
use leaderd_core::node::NodeConfig;
use leaderd_core::time::Now;

use super::World;

/// The recording of one node.
#[derive(Debug, Default)]
pub(super) struct Recording {
    node: Option<NodeName>,
    /// From the node's start on.
    file: Option<FileWriter<Vec<u8>>>,
    builder: RecordBuilder,
    /// The core's count of forged packets before the input.
    forged: u64,
}

impl Recording {
    fn is_of(&self, node: &NodeName) -> bool {
        self.file.is_some() && self.node.as_ref() == Some(node)
    }

    /// A daemon starts.
    pub(super) fn start(&mut self, config: &NodeConfig, now: Now) {
        if self.node.as_ref() != Some(&config.me) {
            return;
        }
        let header = Header {
            leaderd: "simulated".to_owned(),
            mesh: (*config.mesh).clone(),
            me: config.me.clone(),
            restored: config.restored.clone(),
            seed: config.seed,
            resolved: config.resolved.clone(),
            now,
        };
        self.file = Some(FileWriter::new(Vec::new(), &header).expect("plain data"));
        self.forged = 0;
    }

    pub(super) fn input(&mut self, node: &NodeName, now: Now, input: &Input, forged: u64) {
        if self.is_of(node) {
            self.builder.input(now, input);
            self.forged = forged;
        }
    }

    pub(super) fn effect(&mut self, node: &NodeName, effect: &Effect) {
        if self.is_of(node) {
            self.builder.effect(effect);
        }
    }

    /// Ends the record of an input.
    pub(super) fn done(&mut self, node: &NodeName, forged: u64) {
        if let Some(file) = self.file.as_mut().filter(|_| self.node.as_ref() == Some(node)) {
            file.record(&self.builder.record(forged == self.forged)).expect("plain data");
        }
    }
}

impl World {
    /// Starts a node's daemon anew, from what its disk holds, and records it from then on.
    pub fn record(&mut self, node: &NodeName) {
        self.kill_daemon(node);
        self.recording = Recording { node: Some(node.clone()), ..Recording::default() };
        self.start_daemon(node);
    }

    /// Ends the recording. Returns the bytes of its file.
    pub fn recorded(&mut self) -> Vec<u8> {
        let file = std::mem::take(&mut self.recording).file.expect("a node is recorded");
        file.finish(Ended::Stopped).expect("memory takes everything")
    }
}
