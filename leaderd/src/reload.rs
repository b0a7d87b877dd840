//! A changed mesh file is applied live: on SIGHUP, or when it is seen to have changed. It comes from a [`MeshSource`].
//!
//! A file with mistakes, of an older generation, or in which this node is another one is logged and not applied: the daemon
//! goes on with the mesh that it has.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use leaderd_core::ids::{LocationName, NodeName};
use leaderd_core::io::Input;
use leaderd_core::mesh::{Mesh, Steering, report};
use leaderd_core::node::check_successor;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Interval, MissedTickBehavior, interval};
use wgctl_plan::WgPublicKey;

use crate::lan::{self, LanWatch};
use crate::resolve;
use crate::resolve::Resolver;

/// How often the file is checked for changes.
const CHECK: Duration = Duration::from_secs(1);

/// Longest mesh file, in bytes: 3,000 nodes take about 1 MiB.
const MAX_FILE: u64 = leaderd_core::mesh::MAX_TEXT as u64;

#[derive(Debug, thiserror::Error)]
pub enum MeshFileError {
    #[error("mesh file {}: {source}; `wgctl mesh init` writes one to begin with", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("mesh file {} has more than {MAX_FILE} bytes", path.display())]
    TooLong { path: PathBuf },
    /// `report` shows each mistake in its line.
    #[error("mesh file {} has mistakes:\n{report}", path.display())]
    Mistakes { path: PathBuf, report: String },
    #[error(
        "mesh file {}: location {location} is steered by Kilo, whose leaders only `leaderd run --kubernetes` can read and change; \
         write steering = \"native\"",
        path.display()
    )]
    Kilo { path: PathBuf, location: LocationName },
}

/// Reads and checks the mesh file.
pub fn read(path: &Path) -> Result<Mesh, MeshFileError> {
    let failed = |source| MeshFileError::Read { path: path.to_owned(), source };
    // Bounded while reading: a pipe or a device has no length.
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_FILE {
        return Err(MeshFileError::TooLong { path: path.to_owned() });
    }
    let mesh = leaderd_core::mesh::parse(&text).map_err(|mistakes| MeshFileError::Mistakes {
        path: path.to_owned(),
        report: report(&path.display().to_string(), &text, &mistakes, false),
    })?;
    match mesh.locations.values().find(|l| l.steering == Steering::Kilo) {
        Some(l) => Err(MeshFileError::Kilo { path: path.to_owned(), location: l.name.clone() }),
        None => Ok(mesh),
    }
}

/// Where meshes come from while the daemon runs. A mesh with mistakes is logged and not applied, wherever it comes from.
#[derive(Debug)]
pub enum MeshSource {
    File(MeshFile),
    /// The cluster's mesh object, read and checked where the cluster is watched.
    #[cfg(feature = "kubernetes")]
    Cluster(watch::Receiver<Option<Arc<Mesh>>>),
}

impl std::fmt::Display for MeshSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(file) => write!(f, "{}", file.path.display()),
            #[cfg(feature = "kubernetes")]
            Self::Cluster(_) => f.write_str("the cluster"),
        }
    }
}

/// A mesh file that is watched.
#[derive(Debug)]
pub struct MeshFile {
    path: PathBuf,
    seen: Option<Stamp>,
    checks: Interval,
    /// One check at a time: a disk that hangs keeps one thread, not one for each second.
    checking: Option<JoinHandle<Option<Checked>>>,
}

/// Inode, time of change, length.
type Stamp = (u64, i64, i64, u64);
type Checked = (Option<Stamp>, Result<Mesh, MeshFileError>);

impl MeshFile {
    /// From what `path` is now: changes since then are seen.
    pub fn new(path: PathBuf) -> Self {
        let mut checks = interval(CHECK);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { seen: stamp(&path), path, checks, checking: None }
    }
}

impl MeshSource {
    /// Waits for the next mesh. Cancel-safe.
    ///
    /// # Errors
    /// If no more meshes can come.
    async fn next(&mut self) -> anyhow::Result<Result<Mesh, MeshFileError>> {
        match self {
            Self::File(file) => loop {
                if file.checking.is_none() {
                    file.checks.tick().await;
                }
                if let Some(found) = file.check(false).await? {
                    return Ok(found);
                }
            },
            #[cfg(feature = "kubernetes")]
            Self::Cluster(meshes) => loop {
                meshes.changed().await?;
                if let Some(mesh) = &*meshes.borrow_and_update() {
                    return Ok(Ok((**mesh).clone()));
                }
            },
        }
    }

    /// Returns the mesh as it is now (on SIGHUP).
    async fn now(&mut self) -> anyhow::Result<Option<Result<Mesh, MeshFileError>>> {
        match self {
            Self::File(file) => file.check(true).await,
            #[cfg(feature = "kubernetes")]
            Self::Cluster(meshes) => Ok(meshes.borrow().as_deref().cloned().map(Ok)),
        }
    }
}

impl MeshFile {
    /// Reads the file if it changed since the last check, or `always`. Not on this thread, which the engine shares: a large
    /// file takes a while, and its disk may hang. Cancel-safe: the next call gets what this one waited for.
    async fn check(&mut self, always: bool) -> anyhow::Result<Option<Result<Mesh, MeshFileError>>> {
        loop {
            let (path, seen) = (self.path.clone(), self.seen);
            let begun = self.checking.is_none();
            let checking = self.checking.get_or_insert_with(|| {
                tokio::task::spawn_blocking(move || {
                    let now = stamp(&path);
                    (always || now != seen).then(|| (now, read(&path)))
                })
            });
            let checked = checking.await?;
            self.checking = None;
            if let Some((now, found)) = checked {
                self.seen = now;
                return Ok(Some(found));
            }
            // A check that was under way already may have read nothing.
            if begun {
                return Ok(None);
            }
        }
    }
}

/// Watches until the engine is gone; `lan` and the names of endpoints as well, whatever the mesh comes from. The core has the mesh
/// in `meshes`, and what `resolver` and `lan` hold. `silent`: peers that were sent to and do not answer.
pub async fn watch(
    mut source: MeshSource,
    me: NodeName,
    meshes: watch::Sender<Arc<Mesh>>,
    mut resolver: Resolver,
    mut lan: LanWatch,
    mut silent: watch::Receiver<BTreeSet<WgPublicKey>>,
    inputs: mpsc::Sender<Input>,
) -> anyhow::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    let mut mesh = meshes.borrow().clone();
    let mut lan_checks = interval(lan::CHECK);
    lan_checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let (found, asked) = tokio::select! {
            Some(()) = hangup.recv() => match source.now().await? {
                Some(found) => (found, true),
                None => continue,
            },
            found = source.next() => (found?, false),
            resolved = resolver.changed(&mesh) => {
                tracing::info!(endpoints = ?resolved, "endpoints have other addresses now");
                inputs.send(Input::Resolved(resolved)).await?;
                continue;
            }
            Ok(()) = silent.changed() => {
                resolver.silent(&silent.borrow_and_update());
                continue;
            }
            _ = lan_checks.tick() => {
                if lan.check(&mesh).await {
                    inputs.send(Input::LanDevice(lan.in_use().clone())).await?;
                }
                continue;
            }
        };
        match found {
            Err(error) => tracing::error!(%error, "the mesh file is not applied"),
            Ok(new) if new.hash == mesh.hash => {
                if asked {
                    tracing::info!("the mesh file has not changed");
                }
            }
            Ok(new) => match check_successor(&mesh, &new, &me) {
                Err(why) => tracing::error!(reason = %why, "the mesh file is not applied"),
                Ok(()) => {
                    if new.generation == mesh.generation {
                        tracing::warn!(mesh.generation = %new.generation, "the mesh file changed, and its generation did not");
                    }
                    tracing::info!(mesh.generation = %new.generation, "applying the changed mesh file");
                    mesh = Arc::new(new);
                    resolver.set_mesh(&mesh);
                    // First the names, so that the new nodes have addresses at once.
                    let resolved = resolver.first(&mesh, resolve::START).await;
                    inputs.send(Input::Resolved(resolved)).await?;
                    if lan.check(&mesh).await {
                        inputs.send(Input::LanDevice(lan.in_use().clone())).await?;
                    }
                    inputs.send(Input::MeshChanged(Box::new((*mesh).clone()))).await?;
                    meshes.send_replace(mesh.clone());
                }
            },
        }
    }
}

/// Changes when the file does: replaced, rewritten, or gone.
fn stamp(path: &Path) -> Option<Stamp> {
    let m = std::fs::metadata(path).ok()?;
    Some((m.ino(), m.mtime(), m.mtime_nsec(), m.len()))
}

#[cfg(test)]
mod tests {
    use leaderd_core::io::LanDevice;

    use super::*;
    use crate::clock::Clock;
    use crate::fixture::example_mesh;

    #[tokio::test]
    async fn the_core_hears_of_the_device_of_an_address_that_comes_after_the_start() {
        let mut mesh = example_mesh();
        let me = mesh.nodes.keys().next().unwrap().clone();
        let node = mesh.edit().nodes.get_mut(&me).unwrap();
        (node.address, node.device) = ([127, 0, 0, 1].into(), None);
        let dir = tempfile::tempdir().unwrap();
        let source = MeshSource::File(MeshFile::new(dir.path().join("mesh.toml")));
        // It has not checked yet: as if the address had not been there at the start.
        let lan = LanWatch::new(me.clone());
        let (inputs, mut received) = mpsc::channel(8);
        let resolver = Resolver::open(me.clone(), dir.path(), Clock::default());
        let (meshes, _) = watch::channel(Arc::new(mesh));
        let (_silent, silent) = tokio::sync::watch::channel(BTreeSet::new());
        let watching = super::watch(source, me, meshes, resolver, lan, silent, inputs);
        tokio::select! {
            ended = watching => panic!("it ended: {ended:?}"),
            input = received.recv() => {
                let lan = LanDevice { name: "lo".parse().ok(), mtu: Some(65_536) };
                assert_eq!(input, Some(Input::LanDevice(lan)));
            }
        }
    }
}
