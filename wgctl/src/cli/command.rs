//! The verbs that change something: `promote`, `drain`, `undrain`, `freeze`, `unfreeze`.
//!
//! Each becomes one entry of the location's replicated log, so it survives any one node.

use std::process::ExitCode;
use std::time::Duration;

use leaderd_core::admin::{AdminRequest, AdminResponse, MAX_FREEZE};
use leaderd_core::duration;
use leaderd_core::ids::{LocationName, NodeName};

use super::Format;
use super::client::Client;
use super::output::{Output, Style};

/// A verb that becomes one request to the daemon.
#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// Make a candidate the leader of its location, without loss.
    #[command(after_help = "\
Example:
  wgctl promote cloud-1          refused unless observers see cloud-1 forward
  wgctl promote cloud-1 --force  without that check")]
    Promote {
        /// A candidate.
        node: NodeName,
        /// Promote it even if it is not known to forward, or is drained.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        format: Format,
    },
    /// Move leadership off a node and keep it off, without loss: before maintenance.
    #[command(after_help = "Example:\n  wgctl drain cloud-0 && wgctl status cloud")]
    Drain {
        /// A candidate.
        node: NodeName,
        #[command(flatten)]
        format: Format,
    },
    /// Let a drained node lead again.
    #[command(after_help = "Example:\n  wgctl undrain cloud-0")]
    Undrain {
        /// A drained candidate.
        node: NodeName,
        #[command(flatten)]
        format: Format,
    },
    /// Stop automatic failover of a location, for a time or until `unfreeze`.
    #[command(after_help = "\
Examples:
  wgctl freeze cloud --for 30m   ends by itself
  wgctl freeze cloud             until `wgctl unfreeze cloud`")]
    Freeze {
        /// A location.
        location: LocationName,
        /// How long, such as 10m, 2h, 1h30m.
        #[arg(long = "for", value_name = "DURATION", value_parser = freeze_duration)]
        duration: Option<Duration>,
        #[command(flatten)]
        format: Format,
    },
    /// Allow automatic failover of a location again.
    #[command(after_help = "Example:\n  wgctl unfreeze cloud")]
    Unfreeze {
        /// A frozen location.
        location: LocationName,
        #[command(flatten)]
        format: Format,
    },
}

impl Verb {
    /// Returns the request, and how to print its answer.
    fn request(self) -> (AdminRequest, Format) {
        match self {
            Self::Promote { node, force, format } => {
                (AdminRequest::Promote { node, force }, format)
            }
            Self::Drain { node, format } => (AdminRequest::Drain { node }, format),
            Self::Undrain { node, format } => (AdminRequest::Undrain { node }, format),
            Self::Freeze { location, duration, format } => {
                (AdminRequest::Freeze { location, duration }, format)
            }
            Self::Unfreeze { location, format } => (AdminRequest::Unfreeze { location }, format),
        }
    }
}

fn freeze_duration(text: &str) -> Result<Duration, String> {
    match duration::parse(text) {
        Some(d) if d.is_zero() => Err("a freeze needs a duration of more than zero".to_owned()),
        Some(d) if d > MAX_FREEZE => {
            Err("longer than ten years; without --for a freeze lasts until `wgctl unfreeze`"
                .to_owned())
        }
        Some(d) => Ok(d),
        None => Err(duration::HELP.to_owned()),
    }
}

pub fn run(verb: Verb, client: &Client) -> anyhow::Result<ExitCode> {
    let (request, format) = verb.request();
    let out = Output::detect(format.json);
    let response = client.command(&request)?;
    if out.json {
        out.print_json(&response)?;
    }
    match response {
        AdminResponse::Done { location, epoch, message } => {
            if !out.json {
                let mark = out.paint(Style::Good, "done");
                let epoch = out.paint(Style::Dim, &format!("({location}, epoch {epoch})"));
                out.print(&format!("{mark}: {message} {epoch}\n"))?;
            }
            Ok(ExitCode::SUCCESS)
        }
        AdminResponse::Refused { message } => {
            if !out.json {
                eprintln!("wgctl: refused: {message}");
            }
            Ok(ExitCode::FAILURE)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freeze_needs_a_sensible_duration() {
        assert_eq!(freeze_duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert!(freeze_duration("0s").is_err());
        assert!(freeze_duration("10years").is_ok());
        for ages in ["11years", "9000years", "500000000000years"] {
            assert!(freeze_duration(ages).unwrap_err().contains("unfreeze"), "{ages}");
        }
        assert!(freeze_duration("soon").unwrap_err().contains("1h30m"));
    }
}
