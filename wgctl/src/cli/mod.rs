//! The command line. One verb per file; each verb turns its `Args` into output and an exit code.
//!
//! Exit codes: 0 success, 1 failure (or the daemon refused), 2 wrong usage.

use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub mod client;
pub mod command;
pub mod completions;
pub mod entries;
pub mod events;
pub mod explain;
pub mod explain_relays;
pub mod file;
pub mod keygen;
pub mod mesh;
pub mod net;
pub mod output;
pub mod relays;
pub mod status;

#[cfg(test)]
mod fixture;

use client::Client;
use output::Output;

/// The daemon's default admin socket.
pub const DEFAULT_ADMIN_SOCKET: &str = "/run/leaderd/admin.sock";

/// Show and steer leaderd: who leads each location of a WireGuard mesh, why, and what would happen next.
#[derive(Debug, Parser)]
#[command(name = "wgctl", version, propagate_version = true, after_help = EXAMPLES)]
pub struct Cli {
    /// Admin socket of the daemon on this node.
    #[arg(
        long,
        global = true,
        value_name = "SOCKET",
        env = "LEADERD_ADMIN",
        hide_env_values = true,
        default_value = DEFAULT_ADMIN_SOCKET
    )]
    pub admin: PathBuf,

    #[command(subcommand)]
    pub verb: Verb,
}

const EXAMPLES: &str = "\
Examples:
  wgctl status                   who leads, why and since when, and who would be next
  wgctl explain last             the last event, step by step, with its evidence
  wgctl explain cloud home       which relays carry between two locations, and why
  wgctl drain cloud-0            move leadership off a node before maintenance, without loss
  wgctl freeze cloud --for 30m   no automatic failover of a location for half an hour

Exit status: 0 success, 1 failure, 2 wrong usage.";

/// Not on the root, because `wgctl lab run --json FILE` means something else.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Format {
    /// Print JSON for programs instead of tables for people.
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Show who leads each location, why and since when; the state of every candidate; and who would be next.
    Status {
        #[command(flatten)]
        args: status::Args,
        #[command(flatten)]
        format: Format,
    },
    /// List failovers, moves, operators' commands, warnings, and detours that this node has seen; oldest first.
    Events {
        #[command(flatten)]
        args: events::Args,
        #[command(flatten)]
        format: Format,
    },
    /// Show one event step by step: timeline, evidence, blackout, and why not another candidate. Or which relays carry between two
    /// locations, since when, why, and who would be next.
    Explain {
        #[command(flatten)]
        args: explain::Args,
        #[command(flatten)]
        format: Format,
    },
    #[command(flatten)]
    Command(command::Verb),
    /// Show what leaderd has put into this node's kernel and what would change, or remove it.
    Net {
        #[command(flatten)]
        args: net::Args,
        #[command(flatten)]
        format: Format,
    },
    /// Write an example of a mesh file, or check one.
    Mesh {
        #[command(flatten)]
        args: mesh::Args,
        #[command(flatten)]
        format: Format,
    },
    /// Generate a node's keys, and print the public ones for the mesh file.
    Keygen {
        #[command(flatten)]
        args: keygen::Args,
        #[command(flatten)]
        format: Format,
    },
    /// Run a whole mesh in network namespaces on this machine: try things, break things, measure.
    Lab(wgctl_lab::LabArgs),
    /// Print a completion script for a shell.
    Completions(completions::Args),
}

fn dispatch(cli: Cli) -> anyhow::Result<ExitCode> {
    let client = Client::new(&cli.admin);
    let out = |format: Format| Output::detect(format.json);
    match cli.verb {
        Verb::Status { args, format } => status::run(&args, &client, &out(format)),
        Verb::Events { args, format } => events::run(&args, &client, &out(format)),
        Verb::Explain { args, format } => explain::run(&args, &client, &out(format)),
        Verb::Command(verb) => command::run(verb, &client),
        Verb::Net { args, format } => net::run(args, &out(format), &client),
        Verb::Mesh { args, format } => mesh::run(&args, &out(format)),
        Verb::Keygen { args, format } => keygen::run(&args, &out(format)),
        Verb::Lab(args) => wgctl_lab::run(args),
        Verb::Completions(args) => completions::run(args),
    }
}

/// The command names something that does not exist or makes no sense: exit 2.
#[derive(Debug)]
pub struct UsageError(pub String);

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::error::Error for UsageError {}

pub fn main() -> ExitCode {
    match dispatch(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("wgctl: {error:#}");
            if error.is::<UsageError>() { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_verb_explains_itself() {
        let mut root = Cli::command().term_width(100);
        root.build();
        let mut text = root.render_long_help().to_string();
        for verb in root.get_subcommands_mut().filter(|v| v.get_name() != "help") {
            let help = verb.render_long_help().to_string();
            let name = verb.get_name();
            assert!(
                name == "completions" || help.contains("Example"),
                "`wgctl {name} --help` shows no example"
            );
            text.push_str(&format!("\n──── {name} ────\n{help}"));
        }
        // Trailing spaces would be trimmed by editors and then fail the comparison.
        let text: Vec<&str> = text.lines().map(str::trim_end).collect();
        insta::assert_snapshot!("help", text.join("\n"));
    }

    #[test]
    fn json_and_admin_may_stand_before_or_after_the_verb_they_belong_to() {
        let cli =
            Cli::try_parse_from(["wgctl", "status", "--admin", "/tmp/a.sock", "--json"]).unwrap();
        assert_eq!(cli.admin, PathBuf::from("/tmp/a.sock"));
        assert!(matches!(cli.verb, Verb::Status { format: Format { json: true }, .. }));
    }
}
