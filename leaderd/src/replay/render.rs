//! Renders a replay as text.

use std::fmt::Write as _;
use std::time::{Duration, UNIX_EPOCH};

use leaderd_core::ids::{LocationName, NodeName};
use leaderd_core::io::{Effect, Input, LogLevel};
use leaderd_core::state::Event;
use leaderd_core::time::WallTime;
use leaderd_core::verdict::Verdict;

use super::account::{Account, Entry, What};
use super::play::{Outcome, Replay};

/// Changes of the network that are printed for one revision.
const SHOWN_CHANGES: usize = 4;
/// An effect that differs is shown up to this length, in bytes: a network has many pages.
const MAX_EFFECT: usize = 2000;

pub fn render(replay: &Replay, debug: bool) -> String {
    let a = &replay.account;
    let mut text = String::new();
    let location = a.location.as_ref().map(|l| format!(" of {l}")).unwrap_or_default();
    let _ = writeln!(
        text,
        "{}{location}, mesh {} generation {}, recorded by leaderd {}",
        a.node, a.mesh, a.generation, a.leaderd
    );
    let _ = writeln!(text, "from {}, {}", timestamp(a.from), seconds(a.micros));
    let kinds: Vec<String> = a.kinds.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
    let _ = writeln!(text, "{} inputs ({}), {} outputs\n", a.inputs, kinds.join(", "), a.effects);
    for e in &a.entries {
        if debug || !matches!(e.what, What::Log { level: LogLevel::Debug, .. }) {
            entry(&mut text, e);
        }
    }
    if a.left_out > 0 {
        let _ = writeln!(text, "… and {} more", a.left_out);
    }
    for e in &a.events {
        event(&mut text, e);
    }
    let _ = writeln!(text);
    end(&mut text, a, &replay.outcome);
    text
}

fn entry(text: &mut String, e: &Entry) {
    let at = format!("{:>12}", format!("+{}", seconds(e.at_micros)));
    let _ = match &e.what {
        What::Input { text: input } => writeln!(text, "{at}  {:<8}  {input}", "input"),
        What::Decision { location, epoch, leaders, before, cause, came_with } => {
            let before = match before.is_empty() {
                true => String::new(),
                false => format!(" instead of {}", join(before)),
            };
            writeln!(
                text,
                "{at}  {:<8}  {location}: {} leads{before}, epoch {epoch}, {cause}; came with: {came_with}",
                "decision",
                join(leaders)
            )
        }
        What::Network { revision, many, changes } => {
            let shown = changes.iter().take(SHOWN_CHANGES);
            let mut lines = writeln!(
                text,
                "{at}  {:<8}  revision {revision}: {many} change{}",
                "network",
                if *many == 1 { "" } else { "s" }
            );
            for change in shown {
                lines = lines.and(writeln!(text, "{:>26}{change}", ""));
            }
            if *many > SHOWN_CHANGES {
                lines = lines.and(writeln!(text, "{:>26}… and {} more", "", many - SHOWN_CHANGES));
            }
            lines
        }
        What::Log { level, message, fields } => {
            let fields: String = fields.iter().map(|(k, v)| format!(" {k}={v}")).collect();
            let level = format!("{level:?}").to_uppercase();
            writeln!(text, "{at}  {level:<8}  {message}{fields}")
        }
    };
}

fn event(text: &mut String, e: &Event) {
    let _ = writeln!(text, "\nevent {}#{}, epoch {}: {}", e.location, e.seq, e.epoch, e.summary);
    let t = &e.times;
    let steps = [
        ("first loss", t.first_loss),
        ("suspected", t.suspected),
        ("condemned", t.condemned),
        ("committed", t.committed),
        ("programmed", t.programmed),
        ("verified", t.verified),
    ];
    let steps: Vec<(&str, WallTime)> =
        steps.into_iter().filter_map(|(step, at)| Some((step, at?))).collect();
    if let Some((_, origin)) = steps.first() {
        let since = |at: &WallTime| (i128::from(at.0) - i128::from(origin.0)) as f64 / 1e3;
        let steps: Vec<String> =
            steps.iter().map(|(step, at)| format!("{step} {:+.1} ms", since(at))).collect();
        let _ = writeln!(text, "  {}", steps.join(", "));
    }
    if let Some(blackout) = e.blackout {
        let _ = writeln!(text, "  blackout {:.1} ms", blackout.as_secs_f64() * 1e3);
    }
    for (observer, slots) in &e.evidence {
        for report in slots {
            let verdict = match &report.verdict {
                Verdict::Unknown => "unknown".to_owned(),
                Verdict::Forwarding => "forwarding".to_owned(),
                Verdict::Suspected => "suspected".to_owned(),
                Verdict::Degraded { cause, .. } => format!("degraded ({cause})"),
            };
            let rows: Vec<String> = report
                .evidence
                .iter()
                .map(|r| {
                    let to = r.target.as_ref().map(|t| format!(" to {t}")).unwrap_or_default();
                    format!("{}{to} {} of {} lost", r.class, r.lost, r.sent)
                })
                .collect();
            let rows =
                if rows.is_empty() { String::new() } else { format!(": {}", rows.join(", ")) };
            let _ = writeln!(text, "  {observer} saw slot {} {verdict}{rows}", report.slot);
        }
    }
}

fn end(text: &mut String, a: &Account, outcome: &Outcome) {
    if let Some(why) = a.ended {
        let _ = writeln!(text, "the recording ends here: {why}");
    }
    if a.cut_off && *outcome == Outcome::AsRecorded {
        let _ = writeln!(
            text,
            "the recording is cut off here: the daemon was killed while it recorded (its last second may be missing)"
        );
    }
    let so_far = format!("{} inputs, {} outputs", a.inputs, a.effects);
    let _ = match outcome {
        Outcome::AsRecorded => writeln!(text, "as recorded: {so_far}, byte for byte"),
        Outcome::Damaged { why } => {
            writeln!(text, "DAMAGED: {why}; as recorded up to there: {so_far}")
        }
        Outcome::Refused { why } => writeln!(text, "REFUSED: this core does not start: {why}"),
        Outcome::Panicked { record, input, message } => {
            writeln!(text, "PANIC at record {record} ({input}): {message}")
        }
        Outcome::Diverged(d) => {
            let shown = |e: &Option<String>| e.clone().unwrap_or_else(|| "nothing".to_owned());
            writeln!(
                text,
                "NOT AS RECORDED: first at record {}, +{}, output {} of: {}\n  recorded: {}\n  replayed: {}",
                d.record,
                seconds(d.at_micros),
                d.effect,
                d.input,
                shown(&d.recorded),
                shown(&d.replayed)
            )
        }
    };
}

/// Returns the name under which inputs of this kind are counted.
pub fn kind(input: &Input) -> &'static str {
    match input {
        Input::Timeout => "timeouts",
        Input::ProbeReply { .. } => "probe replies",
        Input::ProbeError { .. } => "probe errors",
        Input::ServiceConnected { .. } => "services connected",
        Input::ServiceReply { .. } => "replies of services",
        Input::ProbeRequest { .. } => "probe requests",
        Input::Frame { .. } => "frames",
        Input::PeerUp { .. } | Input::PeerDown { .. } => "peers up or down",
        Input::Persisted { .. } => "writes done",
        Input::Programmed { .. } => "networks programmed",
        Input::Local(_) => "local facts",
        Input::Admin { .. } => "commands",
        Input::Resolved(_) => "endpoints resolved",
        Input::MeshChanged(_) => "mesh files",
        Input::Carried(_) => "what was carried before",
        Input::Addresses(_) => "addresses held",
        Input::LanDevice(_) => "LAN devices",
        Input::HostNotes { .. } => "notes about the host",
        Input::Overridden(_) => "routes overridden",
        Input::Signed { .. } => "signatures",
    }
}

/// Returns a line about an input.
pub fn input(input: &Input) -> String {
    match input {
        Input::Timeout => "a timeout".to_owned(),
        Input::ProbeReply { probe, .. } => format!("reply to probe {}", probe.0),
        Input::ProbeError { probe, error } => format!("probe {} failed: {error:?}", probe.0),
        Input::ServiceConnected { probe } => {
            format!("probe {} is connected to its service", probe.0)
        }
        Input::ServiceReply { probe, .. } => format!("reply of a service to probe {}", probe.0),
        Input::ProbeRequest { from, .. } => format!("probe from {from}"),
        Input::Frame { from, frame } => format!("{} frame from {from}", frame.kind()),
        Input::PeerUp { node, rtt_micros } => {
            format!("{node} is connected, round trip {:.1} ms", *rtt_micros as f64 / 1e3)
        }
        Input::PeerDown { node } => format!("{node} is not connected any more"),
        Input::Persisted { ticket } => format!("on disk up to ticket {}", ticket.0),
        Input::Programmed { revision, error: None } => {
            format!("network revision {revision} is programmed")
        }
        Input::Programmed { revision, error: Some(why) } => {
            format!("network revision {revision} is not programmed: {why}")
        }
        Input::Local(facts) => match &facts.broken {
            Some((cause, why)) => format!("this node cannot relay: {cause}, {why}"),
            None => format!("this node can relay ({} WireGuard)", facts.backend),
        },
        Input::Admin { user, request, .. } => match user {
            Some(user) => format!("command {request:?} of {user}"),
            None => format!("command {request:?}"),
        },
        Input::Resolved(names) => format!("{} endpoints resolved", names.len()),
        Input::MeshChanged(mesh) => format!("mesh file of generation {}", mesh.generation),
        Input::Addresses(held) => format!("{} addresses within this node's prefixes", held.len()),
        Input::LanDevice(lan) => match &lan.name {
            Some(name) => format!(
                "the LAN device is {name}, MTU {}",
                lan.mtu.map_or_else(|| "unknown".to_owned(), |mtu| mtu.to_string())
            ),
            None => "there is no LAN device".to_owned(),
        },
        Input::HostNotes { part, notes } if notes.is_empty() => format!("{part}: nothing is wrong"),
        Input::HostNotes { part, notes } => format!("{part}: {}", notes.join("; ")),
        Input::Overridden(routes) => match routes.first() {
            Some(first) => format!(
                "{} packets do not go by our routes; from {} to {}: {}",
                routes.len(),
                first.check.source,
                first.check.target,
                first.found
            ),
            None => "all packets go by our routes".to_owned(),
        },
        Input::Signed { id, .. } => format!("signature {id}"),
        Input::Carried(rules) => {
            let names: Vec<&str> = rules.iter().map(LocationName::as_str).collect();
            format!(
                "carried to before: {}",
                if names.is_empty() { "none".into() } else { names.join(", ") }
            )
        }
    }
}

/// One effect, cut if it is long.
pub fn effect(effect: &Effect) -> String {
    let mut text = format!("{effect:?}");
    if text.len() > MAX_EFFECT {
        let at = (0..=MAX_EFFECT).rev().find(|n| text.is_char_boundary(*n)).unwrap_or(0);
        text.truncate(at);
        text.push('…');
    }
    text
}

fn join(names: &[NodeName]) -> String {
    names.iter().map(NodeName::as_str).collect::<Vec<_>>().join(", ")
}

fn seconds(micros: u64) -> String {
    format!("{}.{:06} s", micros / 1_000_000, micros % 1_000_000)
}

fn timestamp(at: WallTime) -> String {
    let text = UNIX_EPOCH
        .checked_add(Duration::from_micros(at.0))
        .filter(|_| at.0 < FAR)
        .map(|t| humantime::format_rfc3339_micros(t).to_string());
    text.unwrap_or_else(|| format!("{at:?}"))
}

/// The year 9999: beyond it there is no RFC 3339.
const FAR: u64 = 253_402_300_799_000_000;
