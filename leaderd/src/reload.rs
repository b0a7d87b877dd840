//! A changed mesh file is applied live: on SIGHUP, or when it is seen to have changed. It comes from a [`MeshSource`].
//!
//! A file with mistakes, of an older generation, or in which this node is no longer the same, is told in the log and
//! left aside: the daemon goes on with what it has.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
#[cfg(feature = "kubernetes")]
use std::sync::Arc;
use std::time::Duration;

use leaderd_core::ids::{LocationName, NodeName};
use leaderd_core::io::Input;
use leaderd_core::mesh::{Mesh, Steering, report};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Interval, MissedTickBehavior, interval};
use wgctl_plan::WgPublicKey;

use crate::lan::{self, LanDevice};
use crate::resolve;
use crate::resolve::Resolver;

/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(1);

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
        "mesh file {}: location {location} is steered by Kilo, whose leaders only `leaderd run --kubernetes` can tell and change; \
         write steering = \"native\"",
        path.display()
    )]
    Kilo { path: PathBuf, location: LocationName },
}

/// Reads and checks the mesh file.
pub fn read(path: &Path) -> Result<Mesh, MeshFileError> {
    let failed = |source| MeshFileError::Read { path: path.to_owned(), source };
    // Bounded in the reading: a pipe or a device has no length to look at.
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

/// Why a good file is not taken while the daemon runs.
pub fn refusal(old: &Mesh, new: &Mesh, me: &NodeName) -> Option<String> {
    if new.generation < old.generation {
        return Some(format!(
            "its generation {} is older than {}, which is in use; set generation to {} or more",
            new.generation,
            old.generation,
            old.generation.0 + 1
        ));
    }
    if new.name != old.name {
        return Some(format!("it is of mesh {}, and this daemon runs in {}", new.name, old.name));
    }
    let (Some(then), Some(now)) = (old.node(me), new.node(me)) else {
        return Some(format!(
            "node {me} is not in it; stop this daemon and run `leaderd cleanup` if that is meant"
        ));
    };
    let restart =
        |what: &str| Some(format!("{what} of this node changed: restart leaderd to apply it"));
    if now.location != then.location {
        return Some(
            "it moves this node to another location: stop this daemon, run `leaderd reset`, start it again"
                .to_owned(),
        );
    }
    if now.wireguard_key != then.wireguard_key || now.control_key != then.control_key {
        return restart("a key");
    }
    if new.control_port != old.control_port {
        return Some("control_port changed: restart leaderd to apply it".to_owned());
    }
    None
}

/// Where meshes come from while the daemon runs. Whatever it is, a mesh that is not good is told and left aside.
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

/// A mesh file that is looked at.
#[derive(Debug)]
pub struct MeshFile {
    path: PathBuf,
    seen: Option<Stamp>,
    looks: Interval,
    /// One look at a time: a disk that hangs keeps one thread, not one for each second.
    looking: Option<JoinHandle<Option<Looked>>>,
}

/// Inode, time of change, length.
type Stamp = (u64, i64, i64, u64);
type Looked = (Option<Stamp>, Result<Mesh, MeshFileError>);

impl MeshFile {
    /// From what `path` is now: changes since then are seen.
    pub fn new(path: PathBuf) -> Self {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { seen: stamp(&path), path, looks, looking: None }
    }
}

impl MeshSource {
    /// The next mesh to look at. Cancelling it loses nothing.
    ///
    /// # Errors
    /// If no more meshes can come.
    async fn next(&mut self) -> anyhow::Result<Result<Mesh, MeshFileError>> {
        match self {
            Self::File(file) => loop {
                if file.looking.is_none() {
                    file.looks.tick().await;
                }
                if let Some(found) = file.look(false).await? {
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

    /// The mesh as it is now, because somebody asked (SIGHUP).
    async fn now(&mut self) -> anyhow::Result<Option<Result<Mesh, MeshFileError>>> {
        match self {
            Self::File(file) => file.look(true).await,
            #[cfg(feature = "kubernetes")]
            Self::Cluster(meshes) => Ok(meshes.borrow().as_deref().cloned().map(Ok)),
        }
    }
}

impl MeshFile {
    /// Reads the file if it is another one than at the last look, or `always`. Not on this thread, which the engine shares: a large
    /// file takes a while, and its disk may hang. Cancel-safe: the next call gets what this one waited for.
    async fn look(&mut self, always: bool) -> anyhow::Result<Option<Result<Mesh, MeshFileError>>> {
        loop {
            let (path, seen) = (self.path.clone(), self.seen);
            let begun = self.looking.is_none();
            let looking = self.looking.get_or_insert_with(|| {
                tokio::task::spawn_blocking(move || {
                    let now = stamp(&path);
                    (always || now != seen).then(|| (now, read(&path)))
                })
            });
            let looked = looking.await?;
            self.looking = None;
            if let Some((now, found)) = looked {
                self.seen = now;
                return Ok(Some(found));
            }
            // One that was under way may not have been asked to read it always.
            if begun {
                return Ok(None);
            }
        }
    }
}

/// Watches until the engine is gone; `lan` and the names of endpoints as well, whatever the mesh comes from. `resolver` and `lan`
/// are what the core has. `silent`: peers that were sent to and do not answer.
pub async fn watch(
    mut source: MeshSource,
    me: NodeName,
    mut mesh: Mesh,
    mut resolver: Resolver,
    mut lan: LanDevice,
    mut silent: watch::Receiver<BTreeSet<WgPublicKey>>,
    inputs: mpsc::Sender<Input>,
) -> anyhow::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    let mut lan_looks = interval(lan::LOOK);
    lan_looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
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
            _ = lan_looks.tick() => {
                let changed = lan.look(&mesh).await;
                if changed.mtu {
                    inputs.send(Input::LanMtu(lan.mtu())).await?;
                }
                if changed.device {
                    let device = lan.name().map(ToString::to_string);
                    tracing::info!(device.name = device, "this node's address is on another LAN device now");
                    inputs.send(Input::MeshChanged(Box::new(lan.put_into(&mesh)))).await?;
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
            Ok(new) => match refusal(&mesh, &new, &me) {
                Some(why) => tracing::error!(reason = why, "the mesh file is not applied"),
                None => {
                    if new.generation == mesh.generation {
                        tracing::warn!(mesh.generation = %new.generation, "the mesh file changed, and its generation did not");
                    }
                    tracing::info!(mesh.generation = %new.generation, "applying the changed mesh file");
                    mesh = new;
                    resolver.set_mesh(&mesh);
                    // First the names, so that the new nodes have addresses at once.
                    let resolved = resolver.first(&mesh, resolve::START).await;
                    inputs.send(Input::Resolved(resolved)).await?;
                    if lan.look(&mesh).await.mtu {
                        inputs.send(Input::LanMtu(lan.mtu())).await?;
                    }
                    inputs.send(Input::MeshChanged(Box::new(lan.put_into(&mesh)))).await?;
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
    use super::*;
    use crate::clock::Clock;
    use crate::fixture::example_mesh;

    #[tokio::test]
    async fn an_address_that_comes_after_the_start_is_told_to_the_core_with_its_device() {
        let mut mesh = example_mesh();
        let me = mesh.nodes.keys().next().unwrap().clone();
        let node = mesh.edit().nodes.get_mut(&me).unwrap();
        (node.address, node.device) = ([127, 0, 0, 1].into(), None);
        let dir = tempfile::tempdir().unwrap();
        let source = MeshSource::File(MeshFile::new(dir.path().join("mesh.toml")));
        // It has not looked yet: as if the address had not been there at the start.
        let lan = LanDevice::new(me.clone());
        let (inputs, mut received) = mpsc::channel(8);
        let resolver = Resolver::open(me.clone(), dir.path(), Clock::default());
        let (_silent, silent) = tokio::sync::watch::channel(BTreeSet::new());
        let watching = super::watch(source, me.clone(), mesh, resolver, lan, silent, inputs);
        tokio::select! {
            ended = watching => panic!("it ended: {ended:?}"),
            inputs = async { [received.recv().await, received.recv().await] } => match inputs {
                [Some(Input::LanMtu(Some(65_536))), Some(Input::MeshChanged(told))] => {
                    assert_eq!(told.node(&me).unwrap().device, "lo".parse().ok());
                }
                other => panic!("{other:?}"),
            },
        }
    }
}
