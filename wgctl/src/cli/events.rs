//! `wgctl events`: past events and detours, oldest first, and with `--follow` new ones.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

use leaderd_core::ids::LocationName;
use leaderd_core::state::{Event, EventKind, EventSeq};
use leaderd_core::time::WallTime;

use super::client::{Client, ClientError};
use super::entries::{Entry, SeenChange, fetch, fetch_json, json_concerns};
use super::output::{Output, Style, Table, measured, names, timestamp};
use super::status::require_location;

/// Time between two requests with `--follow`. The admin socket is local and the answer small.
const POLL: Duration = Duration::from_millis(500);

/// Changes of relay pairs that are remembered as printed: twice what a daemon keeps.
const MAX_PRINTED: usize = 512;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wgctl events --location cloud --limit 5
  wgctl events --follow                       new ones as they happen, until Ctrl-C
  wgctl events --follow --json | while read -r event; do notify \"$event\"; done

Detours and their like are those that this node has seen since its daemon started.
`wgctl explain EVENT` shows an event in full, `wgctl explain A B` the relays between two locations.")]
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
        let mut all = fetch_json(client)?;
        if let Some(wanted) = &args.location {
            all.retain(|e| json_concerns(e, wanted));
            require_known_location(all.is_empty(), wanted, client)?;
        }
        let skip = all.len().saturating_sub(args.limit);
        out.print_json(&all[skip..].to_vec())?;
        return Ok(ExitCode::SUCCESS);
    }
    let (_, entries) = first(args, client)?;
    if entries.is_empty() {
        eprintln!("no events yet");
    } else {
        out.print(&render(&entries, out))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns what there is now of a location that exists: what the limit leaves out, and the rest.
fn first(args: &Args, client: &Client) -> anyhow::Result<(Vec<Entry>, Vec<Entry>)> {
    let entries = fetch(client)?;
    if let Some(wanted) = &args.location {
        require_known_location(!entries.iter().any(|e| e.concerns(wanted)), wanted, client)?;
    }
    Ok(select(entries, args))
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

/// Returns what the limit leaves out, and the rest.
fn select(mut entries: Vec<Entry>, args: &Args) -> (Vec<Entry>, Vec<Entry>) {
    if let Some(wanted) = &args.location {
        entries.retain(|e| e.concerns(wanted));
    }
    let newest = entries.split_off(entries.len().saturating_sub(args.limit));
    (entries, newest)
}

/// What was printed: the number of the last event of each location, those without their blackout, and changes of relay pairs.
#[derive(Debug, Default)]
struct Printed {
    last: BTreeMap<LocationName, EventSeq>,
    unfinished: BTreeSet<(LocationName, EventSeq)>,
    changes: VecDeque<SeenChange>,
}

impl Printed {
    /// Returns what is to be printed: what is new, and events whose blackout was measured since they were printed.
    fn unprinted<'e>(&mut self, entries: &'e [Entry]) -> Vec<&'e Entry> {
        entries
            .iter()
            .filter(|entry| match entry {
                Entry::Event(e) => self.is_unprinted(e),
                Entry::Relays(seen) => self.is_new(seen),
            })
            .collect()
    }

    fn is_unprinted(&mut self, e: &Event) -> bool {
        let key = (e.location.clone(), e.seq);
        let new = self.last.get(&e.location).is_none_or(|last| e.seq > *last);
        if new {
            self.last.insert(e.location.clone(), e.seq);
            if e.kind == EventKind::Failover && e.blackout.is_none() {
                self.unfinished.insert(key.clone());
            }
        }
        new || (e.blackout.is_some() && self.unfinished.remove(&key))
    }

    fn is_new(&mut self, seen: &SeenChange) -> bool {
        if self.changes.contains(seen) {
            return false;
        }
        self.changes.push_back(seen.clone());
        if self.changes.len() > MAX_PRINTED {
            self.changes.pop_front();
        }
        true
    }
}

fn follow(args: &Args, client: &Client, out: &Output) -> anyhow::Result<ExitCode> {
    let mut printed = Printed::default();
    let mut header = true;
    let mut away = false;
    let (left_out, mut entries) = first(args, client)?;
    printed.unprinted(&left_out);
    loop {
        for entry in printed.unprinted(&entries) {
            if out.json {
                let line = match entry {
                    Entry::Event(event) => serde_json::to_string(event)?,
                    Entry::Relays(seen) => serde_json::to_string(seen)?,
                };
                out.print(&(line + "\n"))?;
            } else {
                out.print(&render_line(entry, header, out))?;
                header = false;
            }
        }
        sleep(POLL);
        if out.reader_is_gone() {
            return Ok(ExitCode::SUCCESS);
        }
        entries = match fetch(client) {
            Ok(all) => {
                if std::mem::take(&mut away) {
                    eprintln!("wgctl: leaderd is back");
                }
                all.into_iter()
                    .filter(|e| args.location.as_ref().is_none_or(|l| e.concerns(l)))
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

fn cells(entry: &Entry) -> [(Style, String); 8] {
    let e = match entry {
        Entry::Event(e) => e,
        Entry::Relays(seen) => return change_cells(seen),
    };
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

/// In the place of leaders: the relays.
fn change_cells(seen: &SeenChange) -> [(Style, String); 8] {
    let (style, kind) = seen.kind();
    let dash = || (Style::Plain, "-".to_owned());
    let relays = format!("{} – {}", names(&seen.change.near), names(&seen.change.far));
    [
        (Style::Dim, timestamp(seen.change.at)),
        (Style::Bold, seen.reference()),
        (style, kind.to_owned()),
        (Style::Plain, relays),
        dash(),
        dash(),
        dash(),
        (Style::Plain, seen.summary()),
    ]
}

/// Returns the summary, with the author if it was a command.
pub fn summary(e: &Event) -> String {
    match &e.author {
        Some(author) => format!("{} (by {author})", e.summary),
        None => e.summary.clone(),
    }
}

fn render(entries: &[Entry], out: &Output) -> String {
    let mut table = Table::new(&HEADER);
    for entry in entries {
        table.row(cells(entry).into());
    }
    table.render(out, 0)
}

/// One line while following. Later lines are not known yet, so the columns have minimum widths.
fn render_line(entry: &Entry, header: bool, out: &Output) -> String {
    let mut table = Table::with_min_widths(&[27, 12, 12, 20, 13, 5, 8, 0]);
    if header {
        table.row(HEADER.map(|h| (Style::Dim, h.to_owned())).into());
    }
    table.row(cells(entry).into());
    table.render(out, 0)
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;

    const PLAIN: Output = Output { json: false, color: false };

    fn event(e: Event) -> Entry {
        Entry::Event(Box::new(e))
    }

    fn both() -> Vec<Entry> {
        vec![event(fixture::failover()), event(fixture::drained())]
    }

    #[test]
    fn events_are_one_line_each() {
        insta::assert_snapshot!("events", render(&both(), &PLAIN));
    }

    #[test]
    fn changes_of_relay_pairs_are_lines_that_say_who_saw_them() {
        let changes = SeenChange::all(Some(fixture::relay_changes()));
        let changes: Vec<Entry> = changes.into_iter().map(Entry::Relays).collect();
        insta::assert_snapshot!("relay-changes", render(&changes, &PLAIN));
    }

    #[test]
    fn following_prints_an_event_once_and_again_when_its_blackout_is_known() {
        let mut printed = Printed::default();
        let done = fixture::failover();
        let fresh = [event(Event { blackout: None, ..done.clone() })];
        assert_eq!(printed.unprinted(&fresh).len(), 1);
        assert_eq!(printed.unprinted(&fresh).len(), 0);
        assert_eq!(printed.unprinted(&both()).len(), 2);
        assert_eq!(printed.unprinted(&both()).len(), 0);
    }

    #[test]
    fn following_prints_a_change_once_also_over_an_answer_without_any() {
        let mut printed = Printed::default();
        let changes = SeenChange::all(Some(fixture::relay_changes()));
        let changes: Vec<Entry> = changes.into_iter().map(Entry::Relays).collect();
        assert_eq!(printed.unprinted(&changes[..2]).len(), 2);
        assert_eq!(printed.unprinted(&[]).len(), 0);
        assert_eq!(printed.unprinted(&changes), [&changes[2]]);
    }

    #[test]
    fn the_limit_keeps_the_newest() {
        let shown = |args: &Args| -> Vec<String> {
            let (_, newest) = select(both(), args);
            newest.iter().map(|e| cells(e)[1].1.clone()).collect()
        };
        let args = Args { location: None, follow: false, limit: 1 };
        assert_eq!(shown(&args), ["home#3"]);
        assert_eq!(select(both(), &args).0.len(), 1);
        let args = Args { location: Some("cloud".parse().unwrap()), follow: false, limit: 9 };
        assert_eq!(shown(&args), ["cloud#7"]);
    }
}
