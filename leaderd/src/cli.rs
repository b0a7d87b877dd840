//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use leaderd_core::ids::NodeName;
use wgctl_plan::InterfaceName;

use crate::log::LogFormat;

#[derive(Parser, Debug)]
#[command(name = "leaderd", version, about, after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    pub verb: Verb,
}

const EXAMPLES: &str = "\
Examples:
  leaderd run
      Run with /etc/leaderd/mesh.toml as the node named like this host.
  leaderd run --mesh mesh.toml --node cloud-0 --keys keys --state state --admin admin.sock
      Run with everything in the present directory.
  leaderd run --metrics 127.0.0.1:9586
      Serve /metrics, /healthz and /readyz there.
  LEADERD_LOG=leaderd=debug leaderd run --log json
      Log more, as JSON.
  leaderd run --record /var/log/leaderd.recording
      Keep all that the core is told and what it wants done. Holds no keys; mode 0600.
  leaderd replay /var/log/leaderd.recording
      What the daemon decided, when and why; and does this core do the same again?
  leaderd cleanup
      After the daemon was stopped for good: remove its interfaces, routes and nexthops.

LEADERD_WIREGUARD=kernel, wireguard-go or leaderd says who does WireGuard; without it the first of them that is there.

Exit status: 0 done, 1 it failed, 2 asked wrongly (command line, mesh file or keys).
Ask a running daemon with wgctl.";

#[derive(Subcommand, Debug)]
pub enum Verb {
    /// Run the daemon of this node.
    Run(RunArgs),
    /// Run the core again over a recording: what was decided, when and why, and whether it does the same again.
    Replay(ReplayArgs),
    /// WireGuard for one interface, for kernels without it. `leaderd run` starts it by itself.
    Userspace(UserspaceArgs),
    /// Remove everything that leaderd made in the kernel. Traffic through the mesh stops.
    Cleanup(CleanupArgs),
    /// Print the definition of LocationPool, for `kubectl apply -f -`.
    #[cfg(feature = "kubernetes")]
    Crd,
    /// Remove from the cluster what leaderd wrote: annotations, condition RelayForwarding and the mesh. Pools stay.
    #[cfg(feature = "kubernetes")]
    Uninstall(Namespace),
    /// Forget the store: the node rejoins its location as new. The daemon must be stopped.
    Reset(ResetArgs),
}

#[derive(Args, Debug)]
pub struct RunArgs {
    /// The mesh file.
    #[arg(long, value_name = "FILE", default_value = "/etc/leaderd/mesh.toml")]
    pub mesh: PathBuf,
    /// This node's name in the mesh [default: the host's name].
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    pub node: Option<NodeName>,
    /// Take the mesh from the cluster that this node is in, and tell there what is decided. Keys that are missing are made.
    #[cfg(feature = "kubernetes")]
    #[arg(long, conflicts_with = "mesh")]
    pub kubernetes: bool,
    /// What the cluster does not say of the mesh: tables `mesh` and `policy` as in a mesh file, and `kubernetes`. It may
    /// be missing.
    #[cfg(feature = "kubernetes")]
    #[arg(long, value_name = "FILE", default_value = "/etc/leaderd/settings.toml")]
    pub settings: PathBuf,
    #[cfg(feature = "kubernetes")]
    #[command(flatten)]
    pub namespace: Namespace,
    /// Directory with wireguard.key and control.key.
    #[arg(long, value_name = "DIR", default_value = "/etc/leaderd/keys")]
    pub keys: PathBuf,
    /// Directory of the store.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/leaderd")]
    pub state: PathBuf,
    /// Unix socket for wgctl.
    #[arg(long, value_name = "SOCKET", default_value = "/run/leaderd/admin.sock")]
    pub admin: PathBuf,
    /// Serve /metrics, /healthz and /readyz here.
    #[arg(long, value_name = "ADDR:PORT")]
    pub metrics: Option<SocketAddr>,
    /// How to log; what to log is said by LEADERD_LOG (such as info, or leaderd=debug).
    #[arg(long, value_enum, default_value = "text")]
    pub log: LogFormat,
    /// Record all inputs and outputs of the core to this file, for `leaderd replay`. One that is there is kept as FILE.old.
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
}

/// Where leaderd lives in the cluster.
#[cfg(feature = "kubernetes")]
#[derive(Args, Clone, Debug)]
pub struct Namespace {
    /// The daemon's own namespace: its mesh is kept there, in ConfigMap leaderd-mesh.
    #[arg(long, value_name = "NAME", env = "POD_NAMESPACE", default_value = "leaderd")]
    pub namespace: String,
}

#[derive(Args, Debug)]
#[command(after_help = USERSPACE_EXAMPLES)]
pub struct UserspaceArgs {
    /// The interface to make. It ends when this is deleted.
    #[arg(value_name = "IFACE")]
    pub interface: InterfaceName,
    /// How to log; what to log is said by LEADERD_LOG [default: info,gotatun=off].
    #[arg(long, value_enum, default_value = "text")]
    pub log: LogFormat,
    /// Be silent once the interface is served, for a starter that reads standard error until then.
    #[arg(long)]
    pub background: bool,
}

const USERSPACE_EXAMPLES: &str = "\
Examples:
  leaderd userspace wg0 &
  wg set wg0 private-key wg0.key listen-port 51820 && ip link set wg0 up

While the link is down the UDP port is closed. Ends on SIGTERM as well, and takes the interface along.";

#[derive(Args, Debug)]
#[command(after_help = REPLAY_EXAMPLES)]
pub struct ReplayArgs {
    /// What `leaderd run --record FILE` wrote. It needs nothing else: no mesh file, no store, no keys, no root.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
    /// Print log lines of level DEBUG as well.
    #[arg(long)]
    pub debug: bool,
}

const REPLAY_EXAMPLES: &str = "\
Examples:
  leaderd replay leaderd.recording
      The account of the daemon, then 'as recorded', or the first output that is another.
  leaderd replay --json leaderd.recording | jq '.account.entries[] | select(.what == \"decision\")'
      Every decision that the node came to know, and the input that brought it.

Exit status: 0 all as recorded (if only up to where the recording is cut off), 1 not so, or
damaged, or the core panicked, 2 no recording that this leaderd reads.";

#[derive(Args, Debug)]
pub struct CleanupArgs {
    /// Remove nothing, and stay until SIGTERM or SIGINT: for the container of a DaemonSet's Pod, which must not end, once another
    /// has cleaned up. It needs no rights.
    #[arg(long)]
    pub idle: bool,
}

#[derive(Args, Debug)]
pub struct ResetArgs {
    /// Directory of the store.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/leaderd")]
    pub state: PathBuf,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound_and_has_the_agreed_defaults() {
        Cli::command().debug_assert();
        let Verb::Run(run) = Cli::try_parse_from(["leaderd", "run"]).unwrap().verb else {
            panic!()
        };
        assert_eq!(run.admin, PathBuf::from("/run/leaderd/admin.sock"));
        assert_eq!(run.state, PathBuf::from("/var/lib/leaderd"));
        assert!(Cli::try_parse_from(["leaderd", "run", "--node", "No Name"]).is_err());
    }

    #[cfg(feature = "kubernetes")]
    #[test]
    fn the_mesh_is_a_files_or_the_clusters() {
        let of = |args: &[&str]| Cli::try_parse_from(["leaderd", "run"].iter().chain(args));
        let Verb::Run(run) = of(&["--kubernetes", "--namespace", "n"]).unwrap().verb else {
            panic!()
        };
        assert!(run.kubernetes);
        assert_eq!(run.settings, PathBuf::from("/etc/leaderd/settings.toml"));
        assert_eq!(run.namespace.namespace, "n");
        assert!(of(&["--kubernetes", "--mesh", "mesh.toml"]).is_err());
        assert!(Cli::try_parse_from(["leaderd", "uninstall", "--namespace", "n"]).is_ok());
    }
}
