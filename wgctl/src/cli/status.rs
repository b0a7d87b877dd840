//! `wgctl status [LOCATION]`: who leads, why and since when; the state of every candidate; who would be next; and which relays carry
//! between this node's location and each other one.

use std::fmt::Write as _;
use std::process::ExitCode;

use leaderd_core::ids::LocationName;
use leaderd_core::status::{CandidateStatus, LocationStatus, Status};
use leaderd_core::time::WallTime;
use serde_json::Value;

use super::UsageError;
use super::client::Client;
use super::output::{
    Output, Style, Table, age, between, names, timestamp, verdict, verdict_style, wall_now,
};
use super::relays;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wgctl status                  every location of the mesh, as this node knows it
  wgctl status cloud            one location
  wgctl status --json | jq '.locations[] | {name, leaders, epoch}'")]
pub struct Args {
    /// Show only this location.
    location: Option<LocationName>,
}

pub fn run(args: &Args, client: &Client, out: &Output) -> anyhow::Result<ExitCode> {
    if out.json {
        let mut value = client.value("/v1/status")?;
        if let (Some(wanted), Some(Value::Array(all))) =
            (&args.location, value.get_mut("locations"))
        {
            all.retain(|l| l.get("name").and_then(Value::as_str) == Some(wanted.as_str()));
            if all.is_empty() {
                return Err(UsageError(format!("no location {wanted} in this mesh")).into());
            }
            // Every pair is one of this node's own location.
            let own = value.get("location").and_then(Value::as_str) == Some(wanted.as_str());
            if let (false, Some(Value::Array(pairs))) = (own, value.get_mut("relay_pairs")) {
                pairs
                    .retain(|p| p.get("location").and_then(Value::as_str) == Some(wanted.as_str()));
            }
        }
        out.print_json(&value)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut status = client.status()?;
    if let Some(wanted) = &args.location {
        require_location(&status, wanted)?;
        status.locations.retain(|l| l.name == *wanted);
    }
    out.print(&render(&status, args.location.as_ref(), wall_now(), out))?;
    Ok(ExitCode::SUCCESS)
}

/// Checks that the mesh has this location.
///
/// # Errors
/// If it has not; the error lists the locations.
pub fn require_location(status: &Status, wanted: &LocationName) -> Result<(), UsageError> {
    let known: Vec<&LocationName> = status.locations.iter().map(|l| &l.name).collect();
    if known.contains(&wanted) {
        return Ok(());
    }
    Err(UsageError(format!(
        "no location {wanted} in mesh {}: it has {}",
        status.mesh,
        names(&known)
    )))
}

fn render(status: &Status, wanted: Option<&LocationName>, now: WallTime, out: &Output) -> String {
    let mut text = String::new();
    let hash: String = status.mesh_hash.chars().take(8).collect();
    let seen = format!(
        "generation {} ({hash}), seen from {} in {}, {} WireGuard",
        status.generation, status.node, status.location, status.backend
    );
    let _ = writeln!(
        text,
        "mesh {}  {}",
        out.paint(Style::Bold, &status.mesh),
        out.paint(Style::Dim, &seen)
    );
    if !status.other_generations.is_empty() {
        let others: Vec<String> = status
            .other_generations
            .iter()
            .map(|(n, g)| format!("{n} has generation {g}"))
            .collect();
        warn(
            &mut text,
            out,
            0,
            &format!("half rolled out: {}, this node has {}", others.join(", "), status.generation),
        );
    }
    for location in &status.locations {
        text.push('\n');
        text.push_str(&render_location(location, now, out));
    }
    let relays = relays::table(status, wanted, now, out);
    if !relays.is_empty() {
        text.push('\n');
        text.push_str(&relays);
    }
    text
}

fn render_location(l: &LocationStatus, now: WallTime, out: &Output) -> String {
    let mut text = String::new();
    let name = out.paint(Style::Bold, l.name.as_str());
    if l.leaders.is_empty() {
        let _ = writeln!(text, "{name}  {}", out.paint(Style::Warn, "no leader yet"));
    } else {
        let mut facts = vec![format!("epoch {}", l.epoch)];
        facts.extend(l.since.map(|since| format!("for {}", age(between(since, now)))));
        facts.extend(l.cause.map(|cause| format!("because {cause}")));
        let _ = writeln!(
            text,
            "{name}  led by {}, {}",
            out.paint(Style::Bold, &names(&l.leaders)),
            facts.join(", ")
        );
    }

    let raft = match (&l.raft_leader, l.quorum) {
        (Some(r), _) => Some(format!("raft leader {r}")),
        (None, Some(false)) => None,
        (None, _) => Some("raft leader not known here".to_owned()),
    };
    let next = match &l.next {
        Some(next) => format!("next {next}"),
        None => "next: nobody".to_owned(),
    };
    let line: Vec<String> = raft.into_iter().chain([next]).collect();
    let _ = writeln!(text, "  {}", out.paint(Style::Dim, &line.join(", ")));

    // All other trouble is among the notes. The time left depends on this machine's clock.
    match l.frozen {
        None => {}
        Some(None) => {
            let until = format!("frozen until `wgctl unfreeze {}`: no automatic failover", l.name);
            warn(&mut text, out, 2, &until);
        }
        Some(Some(until)) => {
            let left = age(between(now, until));
            warn(
                &mut text,
                out,
                2,
                &format!("frozen until {} ({left} left): no automatic failover", timestamp(until)),
            );
        }
    }
    for note in &l.notes {
        warn(&mut text, out, 2, note);
    }

    // Only if the mesh file names services.
    let services = l.candidates.iter().any(|c| c.services.is_some());
    let mut header =
        vec!["CANDIDATE", "SLOT", "ROLE", "VERDICT", "OBSERVERS", "RTT", "LOSS", "PATH MTU"];
    header.extend(services.then_some("SERVICES"));
    header.push("BLOCKED BY");
    let mut table = Table::new(&header);
    for c in &l.candidates {
        table.row(candidate_row(c, services));
    }
    text.push_str(&table.render(out, 2));
    text
}

fn candidate_row(c: &CandidateStatus, services: bool) -> Vec<(Style, String)> {
    let role = match (c.leading, c.drained) {
        (true, false) => (Style::Bold, "leader"),
        (true, true) => (Style::Warn, "leader, drained"),
        (false, false) => (Style::Plain, "standby"),
        (false, true) => (Style::Warn, "drained"),
    };
    let unknown = || "-".to_owned();
    let loss_style = if c.loss.is_some_and(|l| l > 0.0) { Style::Warn } else { Style::Plain };
    let mut row = vec![
        (Style::Plain, c.name.to_string()),
        (Style::Plain, c.slot.to_string()),
        (role.0, role.1.to_owned()),
        (verdict_style(&c.verdict), verdict(&c.verdict)),
        (Style::Plain, format!("{}/{}", c.observers.0, c.observers.1)),
        (Style::Plain, c.rtt_ms.map_or_else(unknown, |ms| format!("{ms:.1} ms"))),
        (loss_style, c.loss.map_or_else(unknown, |l| format!("{:.1}%", l * 100.0))),
        (Style::Plain, c.path_mtu.map_or_else(unknown, |m| m.to_string())),
    ];
    if services {
        let style =
            if c.services.is_some_and(|(up, of)| up < of) { Style::Warn } else { Style::Plain };
        let shown = c.services.map_or_else(unknown, |(up, of)| format!("{up}/{of}"));
        row.push((style, shown));
    }
    row.push((Style::Warn, c.blocked_by.join("; ")));
    row
}

fn warn(text: &mut String, out: &Output, indent: usize, message: &str) {
    let _ = writeln!(text, "{:indent$}{} {message}", "", out.paint(Style::Warn, "!"));
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;

    const PLAIN: Output = Output { json: false, color: false };

    #[test]
    fn status_shows_who_leads_why_since_when_and_who_is_next() {
        insta::assert_snapshot!("status", render(&fixture::status(), None, fixture::NOW, &PLAIN));
    }

    #[test]
    fn every_kind_of_trouble_is_described() {
        let mut status = fixture::status();
        status.other_generations =
            [("home-2".parse().unwrap(), leaderd_core::ids::Generation(2))].into();
        let l = &mut status.locations[0];
        (l.quorum, l.raft_leader, l.fallback, l.next) = (Some(false), None, true, None);
        l.frozen = Some(Some(WallTime(fixture::NOW.0 + 483_000_000)));
        l.notes = vec![
            "no quorum: 1 of 3 voters reachable; nothing can be decided".into(),
            "no quorum: this node follows its own ranking until the location decides again".into(),
        ];
        status.locations[1].leaders.clear();
        insta::assert_snapshot!("status-in-trouble", render(&status, None, fixture::NOW, &PLAIN));
    }

    #[test]
    fn colour_changes_nothing_but_colour() {
        let coloured =
            render(&fixture::status(), None, fixture::NOW, &Output { json: false, color: true });
        let mut stripped = String::new();
        let mut rest = coloured.as_str();
        while let Some(start) = rest.find("\x1b[") {
            stripped.push_str(&rest[..start]);
            rest = &rest[start + rest[start..].find('m').unwrap() + 1..];
        }
        stripped.push_str(rest);
        assert_ne!(coloured, stripped);
        assert_eq!(stripped, render(&fixture::status(), None, fixture::NOW, &PLAIN));
    }
}
