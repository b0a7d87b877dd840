//! The last good view, on disk: a daemon that starts while the API server is away begins where the last one was.

use std::fs::{DirBuilder, File};
use std::io::Read as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use leaderd_core::cluster::ClusterView;

use crate::durable;

/// Its name in the state directory.
pub const FILE: &str = "cluster.json";

/// Least time between two writes, but for a new mesh, which is written at once.
const EVERY: Duration = Duration::from_secs(10);

/// Longest file that is read, in bytes: 4,094 nodes with their labels fit.
const MAX_FILE: u64 = 64 << 20;

#[derive(Debug)]
pub struct Keeper {
    path: PathBuf,
    /// What the file holds, without what changes all the time.
    kept: Option<ClusterView>,
    at: Option<Instant>,
}

impl Keeper {
    /// With the view that an earlier run kept, if there is one that can be read.
    pub fn open(state: &Path) -> (Self, Option<ClusterView>) {
        let path = state.join(FILE);
        let view = match read(&path) {
            Ok(view) => Some(view),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "the view of the cluster that was kept is of no use");
                None
            }
        };
        (Self { path, kept: view.as_ref().map(material), at: None }, view)
    }

    /// Writes the view if it says something new. Returns when to ask again, if it waits.
    pub fn keep(&mut self, view: &ClusterView) -> Option<Instant> {
        let now = material(view);
        let Some(kept) = &self.kept else {
            self.write(view, now);
            return None;
        };
        if *kept == now {
            return None;
        }
        let text = |v: &ClusterView| v.mesh.as_ref().map(|m| m.text.clone());
        let due = self.at.map(|at| at + EVERY);
        if text(kept) == text(&now)
            && let Some(due) = due.filter(|due| *due > Instant::now())
        {
            return Some(due);
        }
        self.write(view, now);
        None
    }

    fn write(&mut self, view: &ClusterView, now: ClusterView) {
        // A disk that is full is no reason to try every time.
        self.at = Some(Instant::now());
        self.kept = Some(now);
        if let Err(error) = write(&self.path, view) {
            tracing::error!(file = %self.path.display(), %error, "cannot keep the view of the cluster");
            self.kept = Some(ClusterView::default());
        }
    }
}

/// The view without what changes all the time and says nothing to a daemon that starts.
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
    use leaderd_core::cluster::{ClusterNode, MeshObject};

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
    fn a_view_is_read_back_and_versions_alone_write_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let (mut keeper, none) = Keeper::open(&state);
        assert!(none.is_none());
        assert_eq!(keeper.keep(&view("1", true, "x")), None);
        let stamp = || std::fs::read(state.join(FILE)).unwrap();
        let first = stamp();
        assert_eq!(keeper.keep(&view("2", true, "x")), None);
        assert_eq!(stamp(), first, "versions are no news");
        assert!(keeper.keep(&view("3", false, "x")).is_some(), "news, but soon after the last");
        assert_eq!(stamp(), first);
        assert_eq!(keeper.keep(&view("4", false, "y")), None, "a new mesh is written at once");
        let (_, kept) = Keeper::open(&state);
        assert_eq!(kept.unwrap(), view("4", false, "y"));
    }

    #[test]
    fn a_damaged_file_is_left_aside_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), "{\"nodes\": ").unwrap();
        let (mut keeper, none) = Keeper::open(dir.path());
        assert!(none.is_none());
        keeper.keep(&view("1", true, "x"));
        assert_eq!(Keeper::open(dir.path()).1.unwrap(), view("1", true, "x"));
    }
}
