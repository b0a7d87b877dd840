//! `wgctl explain A B`: which relays carry between two locations, since when and why, and who would be next.

use std::fmt::Write as _;
use std::process::ExitCode;

use leaderd_core::ids::NodeName;
use leaderd_core::relay_pair::TunnelState;
use leaderd_core::status::{RelayExplanation, TunnelStatus};
use leaderd_core::time::WallTime;
use serde_json::Value;

use super::UsageError;
use super::client::Client;
use super::output::{Output, Style, Table, age, between, names, wall_now};
use super::relays::{state, tunnel_style};

pub fn run(a: &str, b: &str, client: &Client, out: &Output) -> anyhow::Result<ExitCode> {
    for name in [a, b] {
        // Locations are named as nodes are.
        name.parse::<NodeName>().map_err(|e| UsageError(e.to_string()))?;
    }
    if out.json {
        let explained: Value = client.explain_relays(a, b)?.map_err(anyhow::Error::msg)?;
        out.print_json(&explained)?;
    } else {
        let explained = client.explain_relays(a, b)?.map_err(anyhow::Error::msg)?;
        out.print(&render(&explained, wall_now(), out))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn render(e: &RelayExplanation, now: WallTime, out: &Output) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "{}", headline(e, now, out));
    if let Some((first, rest)) = e.way.split_first() {
        let way = rest.iter().fold(first.to_string(), |way, node| format!("{way} → {node}"));
        let _ = writeln!(text, "the way: {way}");
    }
    for note in notes(e) {
        let _ = writeln!(text, "{} {note}", out.paint(Style::Warn, "!"));
    }
    let _ = write!(text, "\nTunnels, as {} knows them\n{}", e.node, tunnels(e, now, out));
    if is_calm(e) {
        let why = "(candidates tell each other of their tunnels only while there is trouble)";
        let _ = writeln!(text, "  {}", out.paint(Style::Dim, why));
    }
    let _ = write!(text, "\nNext\n{}", next(e));
    text
}

/// `cloud–onprem: detour by cloud-0 and onprem-1 for 12s; …`, in one line.
fn headline(e: &RelayExplanation, now: WallTime, out: &Output) -> String {
    let pair = &e.pair;
    let title = out.paint(Style::Bold, &format!("{}–{}", e.location, pair.location));
    let by = format!("{} and {}", names(&pair.near), names(&pair.far));
    let since = age(between(pair.since, now));
    let (style, word) = state(pair);
    let said = match (pair.cut_off, pair.detour) {
        (true, _) => format!(
            "{}: no tunnel between them is known to be good; packets are still sent by {by}",
            out.paint(style, word)
        ),
        (false, true) => {
            let detour = out.paint(style, "detour");
            let why = why(e, now).map(|why| format!("; {why}")).unwrap_or_default();
            format!("{detour} by {by} for {since}{why}")
        }
        (false, false) => {
            format!("carried by the {}, {by}, for {since}", out.paint(style, "leaders"))
        }
    };
    format!("{title}: {said}")
}

/// Why it is a detour: what is known of the leaders' tunnel now, else what began it.
fn why(e: &RelayExplanation, now: WallTime) -> Option<String> {
    let faulty = |t: &&TunnelStatus| {
        is_leaders(e, t) && matches!(t.state, TunnelState::Bad | TunnelState::Lossy)
    };
    let Some(t) = e.pair.tunnels.iter().find(faulty) else { return e.pair.why.clone() };
    let state = t.state.as_str();
    let is = match t.since {
        Some(since) => format!("has been {state} for {}", age(between(since, now))),
        None => format!("is {state}"),
    };
    let who = t.seen_by.as_ref().map(|who| format!(", as {who} sees it")).unwrap_or_default();
    Some(format!("the tunnel {}–{} {is}{who}", t.near, t.far))
}

/// True if tunnels are unknown because nothing is wrong.
fn is_calm(e: &RelayExplanation) -> bool {
    let has = |state| e.pair.tunnels.iter().any(|t| t.state == state);
    has(TunnelState::Unknown) && !has(TunnelState::Bad) && !has(TunnelState::Lossy)
}

fn is_leaders(e: &RelayExplanation, t: &TunnelStatus) -> bool {
    e.near_leaders.contains(&t.near) && e.far_leaders.contains(&t.far)
}

fn notes(e: &RelayExplanation) -> Vec<String> {
    let mut notes = Vec::new();
    if e.pair.long {
        notes.push(
            "the detour has lasted for more than 15 minutes: mend the tunnel of the two leaders"
                .to_owned(),
        );
    }
    if !e.avoided.is_empty() {
        notes.push(format!(
            "not chosen if there is another, as drained or not able to relay: {}",
            names(&e.avoided)
        ));
    }
    if !e.accused.is_empty() {
        notes.push(format!(
            "not chosen if there is another, as the other end says that it answers and relays less than it should: {}",
            names(&e.accused)
        ));
    }
    if e.carried == Some(false) {
        notes.push(
            "leaderd's routes do not carry this traffic now (`wgctl status` says why): this is what they would do"
                .to_owned(),
        );
    }
    notes
}

fn tunnels(e: &RelayExplanation, now: WallTime, out: &Output) -> String {
    let mut table = Table::new(&["HERE", "THERE", "STATE", "FOR", "SAYS", "", ""]);
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    for t in &e.pair.tunnels {
        let known = t.state != TunnelState::Unknown;
        let used = e.pair.near.contains(&t.near) && e.pair.far.contains(&t.far);
        let since = t.since.filter(|_| known).map(|at| age(between(at, now)));
        let says = t.seen_by.as_ref().filter(|_| known).map(ToString::to_string);
        table.row(vec![
            (Style::Plain, t.near.to_string()),
            (Style::Plain, t.far.to_string()),
            (tunnel_style(t.state), t.state.as_str().to_owned()),
            (Style::Plain, or_dash(since)),
            (Style::Plain, or_dash(says)),
            (Style::Bold, if used { "in use" } else { "" }.to_owned()),
            (Style::Dim, if is_leaders(e, t) { "the leaders" } else { "" }.to_owned()),
        ]);
    }
    table.render(out, 2)
}

fn next(e: &RelayExplanation) -> String {
    let mut text = match &e.next {
        Some(next) => {
            let known = match next.state {
                TunnelState::Unknown => ", whose tunnel is unknown".to_owned(),
                state => format!(", whose tunnel is {}", state.as_str()),
            };
            format!("  if this fails: {} and {}{known}\n", next.near, next.far)
        }
        None => "  if this fails: nobody, as all other tunnels are known to be bad\n".to_owned(),
    };
    if e.pair.detour {
        text.push_str(&format!(
            "  {} and {}, the leaders, carry again once their tunnel is good\n",
            names(&e.near_leaders),
            names(&e.far_leaders)
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;

    const PLAIN: Output = Output { json: false, color: false };

    #[test]
    fn a_detour_is_explained_with_every_tunnel_and_who_is_next() {
        let mut e = fixture::explanation();
        e.way = ["home-3", "home-0", "cloud-2", "cloud-9"].map(|n| n.parse().unwrap()).into();
        e.avoided = vec!["home-2".parse().unwrap()];
        e.accused = vec!["cloud-1".parse().unwrap()];
        insta::assert_snapshot!("explain-relays", render(&e, fixture::NOW, &PLAIN));
    }

    #[test]
    fn without_the_age_of_the_fault_its_detour_has_one() {
        let mut e = fixture::explanation();
        e.pair.tunnels[0].since = None;
        let line = headline(&e, fixture::NOW, &PLAIN);
        assert_eq!(
            line,
            "home–cloud: detour by home-0 and cloud-2 for 12s; \
             the tunnel home-0–cloud-1 is bad, as cloud-1 sees it"
        );
        // It has healed a moment ago: what began the detour is told.
        e.pair.tunnels[0].state = TunnelState::Good;
        e.pair.why = Some("the reason at first".into());
        assert!(headline(&e, fixture::NOW, &PLAIN).ends_with("the reason at first"));
    }

    #[test]
    fn leaders_a_long_detour_and_a_cut_off_have_their_words() {
        let mut e = fixture::explanation();
        (e.pair.detour, e.pair.far) = (false, e.far_leaders.clone());
        let shown = render(&e, fixture::NOW, &PLAIN);
        let first = shown.lines().next().unwrap();
        assert_eq!(first, "home–cloud: carried by the leaders, home-0 and cloud-1, for 12s");
        assert!(!shown.contains("carry again") && !shown.contains("tell each other"), "{shown}");
        let mut calm = e.clone();
        calm.pair.tunnels.retain(|t| matches!(t.state, TunnelState::Good | TunnelState::Unknown));
        let shown = render(&calm, fixture::NOW, &PLAIN);
        assert!(shown.contains("tell each other of their tunnels only while"), "{shown}");
        (e.pair.cut_off, e.next) = (true, None);
        let shown = render(&e, fixture::NOW, &PLAIN);
        assert!(shown.starts_with("home–cloud: cut off: no tunnel between them is known to be good; packets are still sent by home-0 and cloud-1"), "{shown}");
        assert!(shown.contains("if this fails: nobody"), "{shown}");
        let mut e = fixture::explanation();
        (e.pair.long, e.carried) = (true, Some(false));
        let shown = render(&e, fixture::NOW, &PLAIN);
        assert!(shown.contains("! the detour has lasted for more than 15 minutes"), "{shown}");
        assert!(shown.contains("! leaderd's routes do not carry this traffic now"), "{shown}");
    }
}
