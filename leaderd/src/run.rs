//! `leaderd run`: opens everything in the order in which a failure does least harm, and only then starts it.
//! A start that fails leaves the data path of an earlier run alone.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use leaderd_core::ids::{LocationName, NodeName};
use leaderd_core::io::Input;
use leaderd_core::mesh::Mesh;
use leaderd_core::node::{Node, NodeConfig};
use leaderd_core::probe::keys::ProbeKeys;
use leaderd_core::proof::Signer;
use leaderd_core::topology::location_of_table;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use zeroize::Zeroizing;

use crate::admin::{AdminSocket, Asker};
use crate::cli::RunArgs;
use crate::clock::Clock;
use crate::control::Control;
use crate::counters::Counters;
use crate::engine::{Engine, MAX_INPUTS, MAX_REQUESTS, Shells};
use crate::lan::LanWatch;
use crate::network::KernelReconciler;
use crate::probes::Probes;
use crate::record::{self, Recorder};
use crate::reload::{MeshFile, MeshSource};
use crate::resolve::Resolver;
use crate::secrets::Keys;
use crate::store::{Identity, Store};
use crate::{
    addresses, durable, hardening, host, log, metrics, network, reload, resolve, supervise,
};

/// Exit status for a mistake in arguments or configuration: nothing was touched.
const USAGE_ERROR: u8 = 2;

/// What a daemon starts with.
struct Start {
    me: NodeName,
    mesh: Mesh,
    keys: Keys,
    source: MeshSource,
    counters: Counters,
}

/// Handles to the running daemon, for a shell that lives on a thread of its own.
#[derive(Clone, Debug)]
pub struct Daemon {
    pub asker: Asker,
    /// See [`Shells::decided`].
    pub decided: watch::Receiver<u64>,
}

pub fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    log::init(args.log, log::FILTER)?;
    supervise::end_on_panic();
    hardening::no_core_dumps()?;
    hardening::narrow_umask();
    raise_descriptors();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    #[cfg(feature = "kubernetes")]
    if args.kubernetes {
        return run_on(runtime, run_in_cluster(args));
    }
    let asked = || -> anyhow::Result<_> {
        let me = node_name(&args)?;
        let mesh = reload::read(&args.mesh)?;
        let node = mesh.node(&me).with_context(|| {
            let names: Vec<&str> = mesh.nodes.keys().map(NodeName::as_str).collect();
            format!(
                "node {me} is not in {}; say which with --node: {}",
                args.mesh.display(),
                names.join(", ")
            )
        })?;
        let keys = Keys::load(&args.keys, node)?;
        Ok((me, mesh, keys))
    };
    let (me, mesh, keys) = match asked() {
        Ok(asked) => asked,
        Err(error) => return Ok(usage_error(&error)),
    };
    run_on(runtime, async {
        let source = MeshSource::File(MeshFile::new(args.mesh.clone()));
        let start = Start { me, mesh, keys, source, counters: Counters::default() };
        serve(args, start, |_| {}).await
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Runs `work` to its end without waiting for blocking threads: a name that DNS does not answer for keeps one in getaddrinfo(3),
/// and dropping the runtime would wait for it. What must be done when the daemon ends (the last write of the store and of the
/// recording) is waited for within `work`, by what it drops.
fn run_on<T>(runtime: Runtime, work: impl Future<Output = T>) -> T {
    supervise::end_if_unwound(|| {
        let done = runtime.block_on(work);
        runtime.shutdown_background();
        done
    })
}

/// Runs as a node of a Kubernetes cluster, which holds the mesh and shows what is decided.
#[cfg(feature = "kubernetes")]
async fn run_in_cluster(args: RunArgs) -> anyhow::Result<ExitCode> {
    use crate::kubernetes;
    let asked = || -> anyhow::Result<_> {
        let me = node_name(&args)?;
        let (keys, made) = Keys::load_or_make(&args.keys)?;
        if made {
            tracing::info!(keys = %args.keys.display(), "made the keys of this node");
        }
        Ok((kubernetes::Config::new(&args, &me, &keys)?, me, keys))
    };
    let (config, me, keys) = match asked() {
        Ok(asked) => asked,
        Err(error) => return Ok(usage_error(&error)),
    };
    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let counters = Counters::default();
    let mut cluster = kubernetes::start(config, counters.clone()).await?;
    let waiting = metrics::Waiting::serve(args.metrics).await?;
    let first = tokio::select! {
        first = cluster.first_mesh(&me, &keys) => first?,
        _ = terminate.recv() => return Ok(ExitCode::SUCCESS),
        _ = interrupt.recv() => return Ok(ExitCode::SUCCESS),
    };
    waiting.end().await;
    let source = MeshSource::Cluster(cluster.meshes());
    let start = Start { me, mesh: first, keys, source, counters };
    serve(args, start, |daemon| cluster.attach(daemon)).await?;
    Ok(ExitCode::SUCCESS)
}

fn usage_error(error: &anyhow::Error) -> ExitCode {
    eprintln!("leaderd: {}", in_one_line(error));
    ExitCode::from(USAGE_ERROR)
}

/// Returns an error and its causes in one line. Some errors name their cause themselves: no text comes twice.
pub fn in_one_line(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

/// Starts all parts, hands the running daemon to `started`, and runs until a signal.
async fn serve(args: RunArgs, start: Start, started: impl FnOnce(Daemon)) -> anyhow::Result<()> {
    let Start { me, mesh: file, keys, source, counters } = start;
    let clock = Clock::default();
    let location = file.node(&me).context("this node")?.location.clone();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"), mesh.name = file.name, mesh.generation = %file.generation,
        mesh.hash = hex(&file.hash[..8]), node.name = %me, location.name = %location,
        mesh.source = %source, state = %args.state.display(), admin = %args.admin.display(),
        metrics = ?args.metrics, control.port = file.control_port, probe.ports = ?file.probe_ports,
        policy = ?file.policy, "starting"
    );
    // Locks first: a second daemon of this node must get no further.
    let identity = Identity { mesh: file.name.clone(), location, node: me.clone() };
    let store = Store::open(&args.state, &identity)?;
    let mut admin = AdminSocket::bind(&args.admin)?;
    let probes = Probes::bind(&file.probe_ports, counters.clone())?;
    let (inputs, inputs_rx) = mpsc::channel(MAX_INPUTS);
    let control = Control::start(file.control_port, &keys, inputs.clone(), counters.clone())?;

    let mut resolver = Resolver::open(me.clone(), &args.state, clock);
    resolver.set_mesh(&file);
    let resolved = resolver.first(&file, resolve::START).await;
    let mesh = Arc::new(file);
    let mut lan = LanWatch::new(me.clone());
    lan.check(&mesh).await;
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).map_err(|e| anyhow::anyhow!("no randomness: {e}"))?;
    let seed = u64::from_le_bytes(seed);
    let now = clock.now();
    let restored = store.restored.clone();
    let recorder = match &args.record {
        None => None,
        Some(path) => {
            let header = record::Header {
                leaderd: env!("CARGO_PKG_VERSION").to_owned(),
                mesh: (*mesh).clone(),
                me: me.clone(),
                restored: restored.clone(),
                seed,
                resolved: resolved.clone(),
                now,
            };
            recorder(path, &header)?
        }
    };
    let (meshes, meshes_rx) = watch::channel(mesh.clone());
    let host = host::watch(me.clone(), meshes_rx.clone(), inputs.clone());
    tokio::spawn(supervise::never_ends("watch of the host's settings", host));
    let addresses = addresses::watch(me.clone(), meshes_rx, inputs.clone());
    tokio::spawn(supervise::never_ends("watch of addresses", addresses));
    inputs.send(Input::LanDevice(lan.in_use().clone())).await?;
    inputs.send(Input::Carried(carried_before(&mesh))).await?;
    let secret = Zeroizing::new(*keys.wireguard.expose());
    let config = NodeConfig {
        mesh,
        me: me.clone(),
        keys: ProbeKeys::new(*secret),
        restored,
        seed,
        resolved,
    };
    let node = Node::new(config, now).context("cannot take up where the store left off")?;

    let (programs, programs_rx) = watch::channel(None);
    let (route_checks, checks_rx) = watch::channel(Vec::new());
    let (silent_tx, silent) = watch::channel(BTreeSet::new());
    let network_keys = keys.clone();
    network::start(
        move || async move { KernelReconciler::open(&network_keys).await },
        network::Orders { programs: programs_rx, checks: checks_rx },
        network::Outputs { inputs: inputs.clone(), silent: silent_tx, counters: counters.clone() },
    )
    .await
    .context("cannot work on this machine's network")?;
    let persisted = inputs.clone();
    let writer = store.start(counters.clone(), move |ticket| {
        // The engine may be gone when the last write is done.
        let _ = persisted.blocking_send(Input::Persisted { ticket });
    })?;
    let (asker, requests) = mpsc::channel(MAX_REQUESTS);
    let asker = Asker(asker);
    admin.serve(asker.clone());
    if let Some(address) = args.metrics {
        metrics::serve(address, asker.clone()).await?;
    }
    let (decided, decided_rx) = watch::channel(0);
    started(Daemon { asker, decided: decided_rx });
    tokio::spawn(supervise::never_ends("watch of the mesh file", async move {
        if let Err(error) = reload::watch(source, me, meshes, resolver, lan, silent, inputs).await {
            tracing::error!(%error, "changes of the mesh file are not seen any more");
        }
    }));
    let signer = Signer::new(keys.control.expose());
    let shells = Shells {
        probes,
        control,
        writer,
        signer,
        programs,
        route_checks,
        recorder,
        counters,
        decided,
    };
    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        supervise::stopping();
    };
    supervise::running().context("cannot watch over the daemon's threads")?;
    // Nothing can fail the start any more, and the admin socket answers.
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::warn!(%error, "cannot tell the service manager that the daemon runs");
    }
    Engine::new(node, clock, shells, inputs_rx, requests).run(stop).await;
    tracing::info!("stopped; forwarding stays as it is");
    Ok(())
}

/// Starts the recording; `None` if the disk takes none: the daemon starts without.
fn recorder(path: &Path, header: &record::Header) -> anyhow::Result<Option<Recorder>> {
    match Recorder::create(path, header) {
        Ok(recorder) => Ok(Some(recorder)),
        Err(error) if durable::is_disk_trouble(&error) => {
            tracing::error!(file = %path.display(), %error, "nothing is recorded: the disk takes no writes");
            Ok(None)
        }
        Err(error) => Err(error).with_context(|| format!("cannot record to {}", path.display())),
    }
}

/// Returns the remote locations with a rule of ours: where a daemon before this one carried beside Kilo.
fn carried_before(mesh: &Mesh) -> BTreeSet<LocationName> {
    let rules = wgctl::net::our_rules().unwrap_or_else(|error| {
        tracing::error!(%error, "cannot read the kernel's rules: it is not known where leaderd carried before");
        BTreeSet::new()
    });
    rules.iter().filter_map(|r| location_of_table(mesh, r.table)).cloned().collect()
}

/// Returns what --node says, else the host's name.
fn node_name(args: &RunArgs) -> anyhow::Result<NodeName> {
    match &args.node {
        Some(name) => Ok(name.clone()),
        None => host_name(),
    }
}

fn host_name() -> anyhow::Result<NodeName> {
    let name = nix::unistd::gethostname()?.to_string_lossy().to_ascii_lowercase();
    name.parse()
        .with_context(|| "the host's name is no node name; say which node this is with --node")
}

/// Raises the limit of open files: each fresh flow under way has a descriptor, and the usual soft limit is 1,024.
fn raise_descriptors() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_full_disk_does_not_keep_a_recording_daemon_from_starting_and_a_wrong_path_does() {
        let mesh = crate::fixture::example_mesh();
        let header = record::Header {
            leaderd: "test".into(),
            me: mesh.nodes.keys().next().unwrap().clone(),
            mesh,
            restored: BTreeMap::new(),
            seed: 1,
            resolved: BTreeMap::new(),
            now: Clock::default().now(),
        };
        assert!(recorder(Path::new("/dev/full"), &header).unwrap().is_none());
        let dir = tempfile::tempdir().unwrap();
        let error = recorder(&dir.path().join("nowhere/file"), &header).unwrap_err();
        assert!(
            in_one_line(&error).contains("nowhere/file: No such file"),
            "{}",
            in_one_line(&error)
        );
    }

    #[test]
    fn the_end_does_not_wait_for_a_lookup_that_gets_no_answer() {
        let (answer, no_answer) = std::sync::mpsc::channel::<()>();
        let (ended, has_ended) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let done = run_on(runtime.unwrap(), async {
                let (begun, has_begun) = tokio::sync::oneshot::channel();
                // As `lookup_host` has it done.
                drop(tokio::task::spawn_blocking(move || {
                    begun.send(()).unwrap();
                    no_answer.recv()
                }));
                has_begun.await.unwrap();
                7
            });
            ended.send(done).unwrap();
        });
        assert_eq!(has_ended.recv_timeout(Duration::from_secs(30)), Ok(7));
        drop(answer);
    }
}
