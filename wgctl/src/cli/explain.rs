//! `wgctl explain EVENT`: one event in full, from the first lost packet to the verification. With two names:
//! [`explain_relays`](super::explain_relays).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::str::FromStr;

use leaderd_core::ids::{LocationName, NodeName, Slot};
use leaderd_core::state::{Event, EventKind, EventSeq};
use leaderd_core::status::Status;
use leaderd_core::time::WallTime;
use leaderd_core::verdict::Verdict;

use super::UsageError;
use super::client::Client;
use super::events::{at, kind, leaders, reference};
use super::output::{
    Output, Style, Table, age, between, direction, measured, names, timestamp, verdict,
    verdict_style, wall_now,
};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wgctl explain last        the newest event of the mesh
  wgctl explain cloud#7     as `wgctl events` names it
  wgctl explain 7           enough where only one location has an event 7
  wgctl explain cloud home  which relays carry between two locations, since when and why
  wgctl explain web-3 db-1  the same for two nodes, with the way between them

Two names are explained by a candidate of one of the two locations; other nodes say whom to ask.")]
pub struct Args {
    /// `cloud#7`, `7` or `last`; with B a location or node.
    #[arg(value_name = "EVENT|A")]
    what: String,
    /// The other location or node.
    #[arg(value_name = "B")]
    other: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum EventRef {
    Last,
    Seq(EventSeq),
    Full(LocationName, EventSeq),
}

impl FromStr for EventRef {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let number = |n: &str| {
            n.parse().map_err(|_| {
                format!(
                    "{n:?} is no number: write cloud#7, 7 or last; or two locations, for the relays between them"
                )
            })
        };
        match s.split_once('#') {
            _ if s == "last" => Ok(Self::Last),
            Some((location, n)) => {
                Ok(Self::Full(location.parse().map_err(|e| format!("{e}"))?, number(n)?))
            }
            None => Ok(Self::Seq(number(s)?)),
        }
    }
}

pub fn run(args: &Args, client: &Client, out: &Output) -> anyhow::Result<ExitCode> {
    if let Some(other) = &args.other {
        return super::explain_relays::run(&args.what, other, client, out);
    }
    let wanted: EventRef = args.what.parse().map_err(UsageError)?;
    let events = client.events()?;
    let event = find(&events, &wanted).map_err(UsageError)?;
    if out.json {
        out.print_json(event)?;
        return Ok(ExitCode::SUCCESS);
    }
    let slots = slot_names(&client.status()?, &event.location);
    out.print(&render(event, &slots, wall_now(), out))?;
    Ok(ExitCode::SUCCESS)
}

fn find<'e>(events: &'e [Event], wanted: &EventRef) -> Result<&'e Event, String> {
    let matching: Vec<&Event> = match wanted {
        EventRef::Last => events.iter().max_by_key(|e| at(e)).into_iter().collect(),
        EventRef::Seq(n) => events.iter().filter(|e| e.seq == *n).collect(),
        EventRef::Full(location, n) => {
            events.iter().filter(|e| e.location == *location && e.seq == *n).collect()
        }
    };
    match matching[..] {
        [one] => Ok(one),
        [] if events.is_empty() => Err("no events yet".to_owned()),
        [] => Err("no such event; `wgctl events` lists those that are remembered".to_owned()),
        _ => {
            let all: Vec<String> = matching.into_iter().map(reference).collect();
            Err(format!(
                "more than one location has such an event: say which of {}",
                all.join(", ")
            ))
        }
    }
}

/// Returns the node in each slot, by the present mesh: reports name slots, people name nodes.
fn slot_names(status: &Status, location: &LocationName) -> BTreeMap<Slot, NodeName> {
    let here = status.locations.iter().filter(|l| l.name == *location);
    here.flat_map(|l| &l.candidates).map(|c| (c.slot, c.name.clone())).collect()
}

fn name_of(slot: Slot, slots: &BTreeMap<Slot, NodeName>) -> String {
    slots.get(&slot).map_or_else(|| format!("slot {slot}"), ToString::to_string)
}

fn render(e: &Event, slots: &BTreeMap<Slot, NodeName>, now: WallTime, out: &Output) -> String {
    let mut text = String::new();
    let (style, kind) = kind(e.kind);
    let title = out.paint(Style::Bold, &reference(e));
    let _ =
        writeln!(text, "{title}  {}  {}  epoch {}", out.paint(style, kind), leaders(e), e.epoch);
    if let Some(at) = at(e) {
        let _ = writeln!(text, "{}, {} ago", timestamp(at), age(between(at, now)));
    }
    let _ = writeln!(text, "\n{}", super::events::summary(e));
    if let Some(cause) = e.cause {
        let which =
            e.direction.map(|d| format!(", {} direction", direction(d))).unwrap_or_default();
        let _ = writeln!(text, "Cause {cause}{which}: {}.", cause.explanation());
    }
    if let Some(blackout) = e.blackout {
        let _ = writeln!(
            text,
            "Blackout {}, measured by as-workload probes.",
            out.paint(Style::Bold, &measured(blackout))
        );
    } else if e.kind == EventKind::Failover {
        let _ = writeln!(text, "{}", out.paint(Style::Warn, "Blackout not measured (yet)."));
    }
    timeline(&mut text, e, out);
    evidence(&mut text, e, slots, out);
    candidates(&mut text, e, slots, out);
    text
}

fn timeline(text: &mut String, e: &Event, out: &Output) {
    let t = &e.times;
    let condemned = match e.kind {
        EventKind::Failover => "the votes of other locations asked for a standby that forwards",
        EventKind::FailStatic => "there was reason to move, and no standby would be better",
        EventKind::Move | EventKind::Operator | EventKind::Notice => "there was reason to move",
    };
    let steps = [
        (t.first_loss, "first loss", "the first probe that was lost was sent"),
        (t.suspected, "suspected", "an observer missed its reply and began a burst"),
        (t.condemned, "condemned", condemned),
        (t.committed, "committed", "the decision was in the replicated log"),
        (t.programmed, "programmed", "a quorum of observers had changed their route"),
        (t.verified, "verified", "as-workload probes passed again"),
    ];
    let Some(origin) = steps.iter().find_map(|(at, ..)| *at) else { return };
    let mut table = Table::new(&["TIME", "STEP", ""]);
    for (at, step, words) in steps {
        let Some(at) = at else { continue };
        let ms = (i128::from(at.0) - i128::from(origin.0)) as f64 / 1e3;
        table.row(vec![
            (Style::Plain, format!("{ms:+.1} ms")),
            (Style::Bold, step.into()),
            (Style::Dim, words.into()),
        ]);
    }
    let _ = write!(
        text,
        "\nTimeline (each step on the clock of the node that took it)\n{}",
        table.render(out, 2)
    );
}

fn evidence(text: &mut String, e: &Event, slots: &BTreeMap<Slot, NodeName>, out: &Output) {
    if e.evidence.is_empty() {
        return;
    }
    let mut table = Table::new(&[
        "OBSERVER",
        "CANDIDATE",
        "VERDICT",
        "CLASS",
        "TARGET",
        "SENT",
        "LOST",
        "LOOPED",
    ]);
    for (observer, reports) in &e.evidence {
        for report in reports {
            let mut lead =
                [observer.to_string(), name_of(report.slot, slots), verdict(&report.verdict)];
            let mut row = |rest: [String; 5]| {
                let [o, c, v] = std::mem::take(&mut lead);
                let [class, target, sent, lost, looped] = rest;
                let lost_style = if lost == "0" { Style::Plain } else { Style::Bad };
                table.row(vec![
                    (Style::Plain, o),
                    (Style::Plain, c),
                    (verdict_style(&report.verdict), v),
                    (Style::Plain, class),
                    (Style::Plain, target),
                    (Style::Plain, sent),
                    (lost_style, lost),
                    (Style::Plain, looped),
                ]);
            };
            if report.evidence.is_empty() {
                row(["-".into(), "-".into(), "0".into(), "0".into(), "0".into()]);
            }
            for r in &report.evidence {
                let address = match (r.address, r.port) {
                    (Some(ip), Some(port)) => format!(" {}", SocketAddr::new(ip, port)),
                    (Some(ip), None) => format!(" {ip}"),
                    _ => String::new(),
                };
                let target =
                    r.target.as_ref().map_or("all".to_owned(), |t| format!("{t}{address}"));
                row([
                    r.class.to_string(),
                    target,
                    r.sent.to_string(),
                    r.lost.to_string(),
                    r.time_exceeded.to_string(),
                ]);
            }
        }
    }
    let _ = write!(text, "\nEvidence\n{}", table.render(out, 2));
}

/// Writes why this candidate was chosen: what the same observers reported of every candidate.
fn candidates(text: &mut String, e: &Event, slots: &BTreeMap<Slot, NodeName>, out: &Output) {
    let all: BTreeSet<Slot> = e.evidence.values().flatten().map(|r| r.slot).collect();
    if all.is_empty() && e.blocked_by.is_empty() {
        return;
    }
    let mut table = Table::new(&["CANDIDATE", "", ""]);
    for slot in all {
        let name = name_of(slot, slots);
        let reports: Vec<_> = e.evidence.values().flatten().filter(|r| r.slot == slot).collect();
        let forwards = reports.iter().filter(|r| r.verdict == Verdict::Forwarding).count();
        let seen = format!("{forwards} of {} observers saw it forward", reports.len());
        let is = |nodes: &[NodeName]| nodes.iter().any(|n| n.as_str() == name);
        let (style, role) = match (is(&e.leaders_before), is(&e.leaders_after)) {
            (true, true) => (Style::Plain, "led and leads on"),
            (true, false) => (Style::Bad, "left"),
            (false, true) => (Style::Good, "chosen"),
            // Listed below, with the recorded reason.
            (false, false) => continue,
        };
        table.row(vec![(Style::Plain, name), (style, role.to_owned()), (Style::Dim, seen)]);
    }
    for (name, why) in &e.blocked_by {
        let role = format!("not chosen: {}", why.join("; "));
        table.row(vec![(Style::Plain, name.to_string()), (Style::Dim, role)]);
    }
    let who =
        if e.leaders_after.is_empty() { "nobody".to_owned() } else { names(&e.leaders_after) };
    let _ = write!(text, "\nWhy {who}\n{}", table.render(out, 2));
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;

    const PLAIN: Output = Output { json: false, color: false };

    #[test]
    fn a_failover_is_explained_from_first_loss_to_verification() {
        let slots = slot_names(&fixture::status(), &"cloud".parse().unwrap());
        insta::assert_snapshot!(
            "explain",
            render(&fixture::failover(), &slots, fixture::NOW, &PLAIN)
        );
    }

    #[test]
    fn an_operators_event_has_no_evidence() {
        insta::assert_snapshot!(
            "explain-operator",
            render(&fixture::drained(), &BTreeMap::new(), fixture::NOW, &PLAIN)
        );
    }

    #[test]
    fn a_short_reference_must_be_unique() {
        let mut twin = fixture::drained();
        twin.seq = 7;
        let events = [fixture::failover(), twin];
        let error = find(&events, &"7".parse().unwrap()).unwrap_err();
        assert!(error.contains("cloud#7, home#7"), "{error}");
        assert_eq!(find(&events, &"cloud#7".parse().unwrap()), Ok(&events[0]));
        assert_eq!(find(&events, &"last".parse().unwrap()), Ok(&events[1]));
        assert!("cloud#x".parse::<EventRef>().is_err());
    }
}
