//! The controller that connects the daemon with Kubernetes: feature `kubernetes`, `leaderd run --kubernetes`.
//!
//! ```text
//! watches → WatchCache → leaderd_core::kubernetes::plan → TurnScheduler → requests to the API, commands to the daemon
//!             └→ the mesh in force → the engine, as from a mesh file
//! ```
//!
//! [`leaderd_core::kubernetes`] decides; this module reads the cluster and carries out the tasks. It runs on a thread and a runtime of its
//! own: decoding a list of a thousand nodes delays no probe. An API server that does not answer stops nothing: the mesh in force stays,
//! and the last view is on disk.

mod api_health;
mod backoff;
mod bootstrap;
mod controller;
mod convert;
pub mod crd;
mod prefixes;
mod requests;
pub mod uninstall;
mod view_cache;
mod watch;
mod watch_cache;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hyper::Response;
use kube::client::{ClientBuilder, DynBody};
use leaderd_core::ids::NodeName;
use leaderd_core::kubernetes::{ClusterView, NodeKeys, Subject, names, render};
use leaderd_core::mesh::Mesh;
use tokio::sync;

use crate::cli::RunArgs;
use crate::counters::Counters;
use crate::run::Daemon;
use crate::secrets::Keys;
use crate::supervise;

/// Reporting controller of Events, and field manager of objects.
const COMPONENT: &str = "leaderd";

/// Longest settings file, in bytes.
const MAX_SETTINGS: u64 = 1 << 20;

/// The controller's configuration.
#[derive(Clone, Debug)]
pub struct Config {
    pub me: NodeName,
    pub namespace: String,
    /// Text of the settings file, empty if there is none.
    pub settings: String,
    /// Directory in which the last view is saved.
    pub state: PathBuf,
    /// Annotations that this node's Node must have: its public keys, and the proof that they are its own.
    own: BTreeMap<String, String>,
}

impl Config {
    /// # Errors
    /// If the settings file cannot be read, or has mistakes; or if a key file cannot be read.
    pub fn new(args: &RunArgs, me: &NodeName, keys: &Keys) -> anyhow::Result<Self> {
        let settings = settings(&args.settings)?;
        let public =
            NodeKeys { wireguard: keys.wireguard_public().0, control: keys.control_public().0 };
        let proofs = keys.sign_as_ever(&args.keys, &public.to_sign(me))?;
        let proofs: Vec<String> = proofs.iter().map(|p| BASE64.encode(p)).collect();
        let own = [
            (names::WIREGUARD_KEY, BASE64.encode(public.wireguard)),
            (names::CONTROL_KEY, BASE64.encode(public.control)),
            (names::KEY_PROOF, proofs.join(",")),
        ];
        Ok(Self {
            me: me.clone(),
            namespace: args.namespace.namespace.clone(),
            settings,
            state: args.state.clone(),
            own: own.map(|(k, v)| (k.to_owned(), v)).into(),
        })
    }
}

fn settings(path: &std::path::Path) -> anyhow::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    match std::fs::File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(text),
        opened => opened.and_then(|f| f.take(MAX_SETTINGS + 1).read_to_string(&mut text)),
    }
    .with_context(|| format!("settings file {}", path.display()))?;
    anyhow::ensure!(
        text.len() as u64 <= MAX_SETTINGS,
        "settings file {} has more than {MAX_SETTINGS} bytes",
        path.display()
    );
    let problems = render(&ClusterView::default(), &text).problems;
    let mistakes: Vec<String> = problems
        .into_iter()
        .filter(|p| p.subject == Subject::Settings)
        .map(|p| p.message)
        .collect();
    anyhow::ensure!(
        mistakes.is_empty(),
        "settings file {} has mistakes:\n{}",
        path.display(),
        mistakes.join("\n")
    );
    Ok(text)
}

/// The running controller.
#[derive(Debug)]
pub struct Handle {
    meshes: sync::watch::Receiver<Option<Arc<Mesh>>>,
    daemon: sync::mpsc::Sender<Daemon>,
}

/// Starts the controller on a thread of its own, which ends with the process.
///
/// # Errors
/// If no way to the API is configured: neither a service account (in a pod) nor a kubeconfig.
pub async fn start(config: Config, counters: Counters) -> anyhow::Result<Handle> {
    let api = api().await?;
    let retry_after = backoff::RetryAfter::default();
    let (meshes, meshes_rx) = sync::watch::channel(None);
    let (daemon, daemon_rx) = sync::mpsc::channel(1);
    std::thread::Builder::new().name("kubernetes".to_owned()).spawn(move || {
        let _essential = supervise::essential("Kubernetes controller");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let ended = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
            runtime.block_on(async {
                let client = client(api, retry_after.clone())?;
                let controller =
                    controller::Controller::new(client, retry_after, config, meshes, counters);
                controller.run(daemon_rx).await;
                Ok(())
            })
        });
        if let Err(error) = ended {
            tracing::error!(error = format!("{error:#}"), "the Kubernetes controller has stopped");
        }
    })?;
    Ok(Handle { meshes: meshes_rx, daemon })
}

/// Records in `retry_after` when the server asks for a pause. `kube` itself would wait within the request, invisibly and for minutes, and
/// start with pauses of milliseconds if the server names none.
fn client(mut api: kube::Config, retry_after: backoff::RetryAfter) -> kube::Result<kube::Client> {
    api.default_retry = false;
    let listen = tower::util::MapResponseLayer::new(move |answer: Response<Box<DynBody>>| {
        retry_after.record(answer.status(), answer.headers());
        answer
    });
    Ok(ClientBuilder::try_from(api)?.with_layer(&listen).build())
}

async fn api() -> anyhow::Result<kube::Config> {
    kube::Config::infer().await.context(
        "no way to the Kubernetes API: run in a pod with a service account, or set KUBECONFIG",
    )
}

impl Handle {
    /// Waits for a mesh that has this node with these keys; the controller's log says what it waits for.
    ///
    /// # Errors
    /// If the controller ended.
    pub async fn first_mesh(&mut self, me: &NodeName, keys: &Keys) -> anyhow::Result<Mesh> {
        loop {
            if let Some(mesh) = &*self.meshes.borrow_and_update()
                && mesh.node(me).is_some_and(|node| keys.are_of(node))
            {
                return Ok((**mesh).clone());
            }
            self.meshes.changed().await.context("the watch of the cluster ended")?;
        }
    }

    /// Returns the meshes after the first one.
    pub fn meshes(&self) -> sync::watch::Receiver<Option<Arc<Mesh>>> {
        self.meshes.clone()
    }

    /// Attaches the running daemon: from now on the controller reports what it knows to the cluster.
    pub fn attach(&self, daemon: Daemon) {
        // The channel has room for the only daemon.
        let _ = self.daemon.try_send(daemon);
    }
}

/// Runs `leaderd crd`.
///
/// # Errors
/// If the definition cannot be printed.
pub fn print_crd() -> anyhow::Result<ExitCode> {
    use std::io::Write as _;
    std::io::stdout().write_all(crd::yaml()?.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_settings_file_is_empty_and_a_directory_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(settings(&dir.path().join("none.toml")).unwrap(), "");
        assert!(settings(dir.path()).is_err());
    }
}
