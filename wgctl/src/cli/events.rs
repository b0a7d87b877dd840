//! `wgctl events`: past events, oldest first, and with `--follow` new ones.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

use leaderd_core::ids::LocationName;
use leaderd_core::state::{Event, EventKind, EventSeq};
use leaderd_core::time::WallTime;
use serde_json::Value;

use super::client::{Client, ClientError};
use super::output::{Output, Style, Table, measured, names, timestamp};
use super::status::require_location;

/// Time between two requests with `--follow`. The admin socket is local and the answer small.
const POLL: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wgctl events --location cloud --limit 5
  wgctl events --follow                       new ones as they happen, until Ctrl-C
  wgctl events --follow --json | while read -r event; do notify \"$event\"; done

`wgctl explain EVENT` shows one of them in full.")]
pub struct Args {
    /// Only events of this location.
    #[arg(long, short, value_name = "LOCATION")]
    location: Option<LocationName>,
    /// Keep printing new events until interrupted. With --json: one object a line.
    #[arg(long, short)]
    follow: bool,
    /// At most this many, the newest.
    #[arg(long, short = 'n', value_name = "N", default_value_t = 50)]
    limit: usize,
}

pub fn run(args: &Args, client: &Client, out: &Output) -> anyhow::Result<ExitCode> {
    if args.follow {
        return follow(args, client, out);
    }
    if out.json {
        let Value::Array(mut all) = client.value("/v1/events")? else {
            anyhow::bail!(
                "leaderd's answer to /v1/events is no list; are wgctl and leaderd of one version?"
            );
        };
        if let Some(wanted) = &args.location {
            all.retain(|e| e.get("location").and_then(Value::as_str) == Some(wanted.as_str()));
            require_known_location(all.is_empty(), wanted, client)?;
        }
        let skip = all.len().saturating_sub(args.limit);
        out.print_json(&all[skip..].to_vec())?;
        return Ok(ExitCode::SUCCESS);
    }
    let events = first(args, client)?;
    if events.is_empty() {
        eprintln!("no events yet");
    } else {
        out.print(&render(&events, out))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the present events, of a location that exists.
fn first(args: &Args, client: &Client) -> anyhow::Result<Vec<Event>> {
    let events = client.events()?;
    if let Some(wanted) = &args.location {
        require_known_location(events.iter().all(|e| e.location != *wanted), wanted, client)?;
    }
    Ok(select(events, args))
}

/// Checks that a location without events exists. One that left the mesh still has its events.
fn require_known_location(
    without_events: bool,
    wanted: &LocationName,
    client: &Client,
) -> anyhow::Result<()> {
    if without_events {
        require_location(&client.status()?, wanted)?;
    }
    Ok(())
}

fn select(mut events: Vec<Event>, args: &Args) -> Vec<Event> {
    if let Some(wanted) = &args.location {
        events.retain(|e| e.location == *wanted);
    }
    events.split_off(events.len().saturating_sub(args.limit))
}

/// The events that were printed: the number of the last one of each location, and those without their blackout.
#[derive(Debug, Default)]
struct Printed {
    last: BTreeMap<LocationName, EventSeq>,
    unfinished: BTreeSet<(LocationName, EventSeq)>,
}

impl Printed {
    /// Returns the events to print: new ones, and those whose blackout was measured since they were printed.
    fn unprinted<'e>(&mut self, events: &'e [Event]) -> Vec<&'e Event> {
        events
            .iter()
            .filter(|e| {
                let key = (e.location.clone(), e.seq);
                let new = self.last.get(&e.location).is_none_or(|last| e.seq > *last);
                if new {
                    self.last.insert(e.location.clone(), e.seq);
                    if e.kind == EventKind::Failover && e.blackout.is_none() {
                        self.unfinished.insert(key.clone());
                    }
                }
                new || (e.blackout.is_some() && self.unfinished.remove(&key))
            })
            .collect()
    }
}

fn follow(args: &Args, client: &Client, out: &Output) -> anyhow::Result<ExitCode> {
    let mut printed = Printed::default();
    let mut header = true;
    let mut away = false;
    let mut events = first(args, client)?;
    loop {
        for event in printed.unprinted(&events) {
            if out.json {
                out.print(&(serde_json::to_string(event)? + "\n"))?;
            } else {
                out.print(&render_line(event, header, out))?;
                header = false;
            }
        }
        sleep(POLL);
        if out.reader_is_gone() {
            return Ok(ExitCode::SUCCESS);
        }
        events = match client.events() {
            Ok(all) => {
                if std::mem::take(&mut away) {
                    eprintln!("wgctl: leaderd is back");
                }
                all.into_iter()
                    .filter(|e| args.location.as_ref().is_none_or(|l| e.location == *l))
                    .collect()
            }
            // The daemon may be restarting: go on.
            Err(
                error
                @ (ClientError::NoSocket(_) | ClientError::Refused(_) | ClientError::Http(..)),
            ) => {
                if !std::mem::replace(&mut away, true) {
                    eprintln!("wgctl: {error}\nwgctl: waiting for it to come back");
                }
                Vec::new()
            }
            Err(other) => return Err(other.into()),
        };
    }
}

/// `cloud#7`
pub fn reference(e: &Event) -> String {
    format!("{}#{}", e.location, e.seq)
}

/// Returns the time of an event: of its decision, or of the last step before it that is known.
pub fn at(e: &Event) -> Option<WallTime> {
    let t = &e.times;
    t.committed.or(t.condemned).or(t.suspected).or(t.first_loss)
}

pub fn kind(kind: EventKind) -> (Style, &'static str) {
    match kind {
        EventKind::Failover => (Style::Warn, "failover"),
        EventKind::Move => (Style::Plain, "move"),
        EventKind::FailStatic => (Style::Bad, "fail-static"),
        EventKind::Operator => (Style::Plain, "operator"),
        EventKind::Notice => (Style::Plain, "notice"),
    }
}

/// `cloud-0 → cloud-1`, or just the leaders if they did not change.
pub fn leaders(e: &Event) -> String {
    if e.leaders_before == e.leaders_after {
        names(&e.leaders_after)
    } else {
        format!("{} → {}", names(&e.leaders_before), names(&e.leaders_after))
    }
}

const HEADER: [&str; 8] =
    ["TIME", "EVENT", "KIND", "LEADER", "CAUSE", "EPOCH", "BLACKOUT", "SUMMARY"];

fn cells(e: &Event) -> [(Style, String); 8] {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let (style, kind) = kind(e.kind);
    [
        (Style::Dim, or_dash(at(e).map(timestamp))),
        (Style::Bold, reference(e)),
        (style, kind.to_owned()),
        (Style::Plain, leaders(e)),
        (Style::Plain, or_dash(e.cause.map(|c| c.to_string()))),
        (Style::Plain, e.epoch.to_string()),
        (Style::Plain, or_dash(e.blackout.map(measured))),
        (Style::Plain, summary(e)),
    ]
}

/// Returns the summary, with the author if it was a command.
pub fn summary(e: &Event) -> String {
    match &e.author {
        Some(author) => format!("{} (by {author})", e.summary),
        None => e.summary.clone(),
    }
}

fn render(events: &[Event], out: &Output) -> String {
    let mut table = Table::new(&HEADER);
    for e in events {
        table.row(cells(e).into());
    }
    table.render(out, 0)
}

/// One line while following. Later lines are not known yet, so the columns have minimum widths.
fn render_line(e: &Event, header: bool, out: &Output) -> String {
    let mut table = Table::with_min_widths(&[27, 12, 11, 20, 13, 5, 8, 0]);
    if header {
        table.row(HEADER.map(|h| (Style::Dim, h.to_owned())).into());
    }
    table.row(cells(e).into());
    table.render(out, 0)
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;

    const PLAIN: Output = Output { json: false, color: false };

    #[test]
    fn events_are_one_line_each() {
        insta::assert_snapshot!(
            "events",
            render(&[fixture::failover(), fixture::drained()], &PLAIN)
        );
    }

    #[test]
    fn following_prints_an_event_once_and_again_when_its_blackout_is_known() {
        let mut printed = Printed::default();
        let done = fixture::failover();
        let fresh = Event { blackout: None, ..done.clone() };
        assert_eq!(printed.unprinted(std::slice::from_ref(&fresh)).len(), 1);
        assert_eq!(printed.unprinted(std::slice::from_ref(&fresh)).len(), 0);
        assert_eq!(printed.unprinted(&[done.clone(), fixture::drained()]).len(), 2);
        assert_eq!(printed.unprinted(&[done, fixture::drained()]).len(), 0);
    }

    #[test]
    fn the_limit_keeps_the_newest() {
        let args = Args { location: None, follow: false, limit: 1 };
        let kept = select(vec![fixture::failover(), fixture::drained()], &args);
        assert_eq!(kept.iter().map(reference).collect::<Vec<_>>(), ["home#3"]);
        let args = Args { location: Some("cloud".parse().unwrap()), follow: false, limit: 9 };
        let kept = select(vec![fixture::failover(), fixture::drained()], &args);
        assert_eq!(kept.iter().map(reference).collect::<Vec<_>>(), ["cloud#7"]);
    }
}
