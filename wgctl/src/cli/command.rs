//! The verbs that change something: `promote`, `drain`, `undrain`, `freeze`, `unfreeze`.
//!
//! Each becomes one entry of the location's replicated log, so it survives any one node.

use std::process::ExitCode;
use std::time::Duration;

use leaderd_core::admin::{AdminRequest, AdminResponse, MAX_FREEZE};
use leaderd_core::ids::{LocationName, NodeName};

use super::client::Client;
use super::output::{Output, Style};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  wgctl promote cloud-1          refused unless observers see cloud-1 forward
  wgctl promote cloud-1 --force  without that check")]
pub struct PromoteArgs {
    /// A candidate.
    node: NodeName,
    /// Promote it even if it is not known to forward, or is drained.
    #[arg(long)]
    force: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  wgctl drain cloud-0 && wgctl status cloud")]
pub struct DrainArgs {
    /// A candidate.
    node: NodeName,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  wgctl undrain cloud-0")]
pub struct UndrainArgs {
    /// A drained candidate.
    node: NodeName,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wgctl freeze cloud --for 30m   ends by itself
  wgctl freeze cloud             until `wgctl unfreeze cloud`")]
pub struct FreezeArgs {
    /// A location.
    location: LocationName,
    /// How long, such as 10m, 2h, 1h30m.
    #[arg(long = "for", value_name = "DURATION", value_parser = freeze_duration)]
    duration: Option<Duration>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  wgctl unfreeze cloud")]
pub struct UnfreezeArgs {
    /// A frozen location.
    location: LocationName,
}

fn freeze_duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(d) if d.is_zero() => Err("a freeze needs a duration of more than zero".to_owned()),
        Ok(d) if d > MAX_FREEZE => {
            Err("longer than ten years; without --for a freeze lasts until `wgctl unfreeze`"
                .to_owned())
        }
        Ok(d) => Ok(d),
        Err(e) => Err(format!("{e}; write it like 10m or 1h30m")),
    }
}

impl PromoteArgs {
    pub fn request(self) -> AdminRequest {
        AdminRequest::Promote { node: self.node, force: self.force }
    }
}
impl DrainArgs {
    pub fn request(self) -> AdminRequest {
        AdminRequest::Drain { node: self.node }
    }
}
impl UndrainArgs {
    pub fn request(self) -> AdminRequest {
        AdminRequest::Undrain { node: self.node }
    }
}
impl FreezeArgs {
    pub fn request(self) -> AdminRequest {
        AdminRequest::Freeze { location: self.location, duration: self.duration }
    }
}
impl UnfreezeArgs {
    pub fn request(self) -> AdminRequest {
        AdminRequest::Unfreeze { location: self.location }
    }
}

pub fn run(request: AdminRequest, client: &Client, out: &Output) -> anyhow::Result<ExitCode> {
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
        assert!(freeze_duration("soon").unwrap_err().contains("10m"));
    }
}
