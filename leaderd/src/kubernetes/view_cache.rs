//! The last complete view, on disk: a daemon that starts without an API server continues from it.

use std::fs::{DirBuilder, File};
use std::io::Read as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use leaderd_core::kubernetes::ClusterView;

use crate::durable;

/// Name of the file in the state directory.
pub const FILE: &str = "cluster.json";

/// Least time between two writes; a new mesh is written at once.
const MIN_INTERVAL: Duration = Duration::from_secs(10);

/// Longest file that is read, in bytes: 4,094 nodes with their labels fit.
const MAX_FILE: u64 = 64 << 20;

#[derive(Debug)]
pub struct ViewCache {
    path: PathBuf,
    /// The view in the file, without values that change all the time.
    saved: Option<ClusterView>,
    saved_at: Option<Instant>,
}

impl ViewCache {
    /// Returns the cache, and the view that an earlier run saved, if one can be read.
    pub fn open(state: &Path) -> (Self, Option<ClusterView>) {
        let path = state.join(FILE);
        let view = match read(&path) {
            Ok(view) => Some(view),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "the saved view of the cluster cannot be read");
                None
            }
        };
        (Self { path, saved: view.as_ref().map(material), saved_at: None }, view)
    }

    /// Writes the view if it has changed materially. Returns when to call this again, if it waits.
    pub fn save(&mut self, view: &ClusterView) -> Option<Instant> {
        let now = material(view);
        let Some(saved) = &self.saved else {
            self.write(view, now);
            return None;
        };
        if *saved == now {
            return None;
        }
        let text = |v: &ClusterView| v.mesh.as_ref().map(|m| m.text.clone());
        let due = self.saved_at.map(|at| at + MIN_INTERVAL);
        if text(saved) == text(&now)
            && let Some(due) = due.filter(|due| *due > Instant::now())
        {
            return Some(due);
        }
        self.write(view, now);
        None
    }

    fn write(&mut self, view: &ClusterView, now: ClusterView) {
        // A full disk is no reason to retry at every change.
        self.saved_at = Some(Instant::now());
        self.saved = Some(now);
        if let Err(error) = write(&self.path, view) {
            tracing::error!(file = %self.path.display(), %error, "cannot save the view of the cluster");
            self.saved = Some(ClusterView::default());
        }
    }
}

/// The view without values that change all the time and do not matter to a daemon that starts.
fn material(view: &ClusterView) -> ClusterView {
    let mut view = view.clone();
    for node in view.nodes.values_mut() {
        node.resource_version.clear();
        node.relay_forwarding = None;
        node.change_refused = None;
    }
    for pool in view.pools.values_mut() {
        pool.resource_version.clear();
        pool.status = None;
    }
    if let Some(mesh) = &mut view.mesh {
        mesh.resource_version.clear();
    }
    view
}

fn read(path: &Path) -> std::io::Result<ClusterView> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE).read_to_end(&mut bytes)?;
    serde_json::from_slice(&bytes).map_err(std::io::Error::other)
}

fn write(path: &Path, view: &ClusterView) -> std::io::Result<()> {
    let bytes = serde_json::to_vec(view)?;
    if let Some(dir) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    durable::replace(path, &bytes)
}

#[cfg(test)]
mod tests {
    use leaderd_core::kubernetes::{ClusterNode, MeshObject};

    use super::*;

    fn view(version: &str, lives: bool, text: &str) -> ClusterView {
        let node = ClusterNode {
            name: "a".into(),
            resource_version: version.into(),
            internal: lives.then(|| [10, 0, 0, 1].into()).into_iter().collect(),
            ..ClusterNode::default()
        };
        ClusterView {
            nodes: [("a".to_owned(), node)].into(),
            mesh: Some(MeshObject { resource_version: version.into(), text: text.into() }),
            ..ClusterView::default()
        }
    }

    #[test]
    fn a_view_is_read_back_and_new_versions_alone_are_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let (mut cache, none) = ViewCache::open(&state);
        assert!(none.is_none());
        assert_eq!(cache.save(&view("1", true, "x")), None);
        let stamp = || std::fs::read(state.join(FILE)).unwrap();
        let first = stamp();
        assert_eq!(cache.save(&view("2", true, "x")), None);
        assert_eq!(stamp(), first, "only versions changed");
        assert!(
            cache.save(&view("3", false, "x")).is_some(),
            "changed, but soon after the last write"
        );
        assert_eq!(stamp(), first);
        assert_eq!(cache.save(&view("4", false, "y")), None, "a new mesh is written at once");
        let (_, saved) = ViewCache::open(&state);
        assert_eq!(saved.unwrap(), view("4", false, "y"));
    }

    #[test]
    fn a_damaged_file_is_ignored_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), "{\"nodes\": ").unwrap();
        let (mut cache, none) = ViewCache::open(dir.path());
        assert!(none.is_none());
        cache.save(&view("1", true, "x"));
        assert_eq!(ViewCache::open(dir.path()).1.unwrap(), view("1", true, "x"));
    }
}
