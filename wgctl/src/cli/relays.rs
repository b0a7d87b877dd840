//! Relay pairs in words and tables: what `status`, `events` and `explain` share.

use leaderd_core::ids::LocationName;
use leaderd_core::relay_pair::TunnelState;
use leaderd_core::status::{RelayPairStatus, Status};
use leaderd_core::time::WallTime;

use super::output::{Output, Style, Table, age, between, names};

/// Pairs that `wgctl status` lists where nothing is wrong with them. Those in trouble are all listed.
const MAX_CALM: usize = 10;

/// How a pair gets through, and how that is shown.
pub fn state(pair: &RelayPairStatus) -> (Style, &'static str) {
    match pair {
        RelayPairStatus { cut_off: true, .. } => (Style::Bad, "cut off"),
        RelayPairStatus { long: true, .. } => (Style::Bad, "long detour"),
        RelayPairStatus { detour: true, .. } => (Style::Warn, "detour"),
        _ => (Style::Good, "leaders"),
    }
}

pub fn tunnel_style(state: TunnelState) -> Style {
    match state {
        TunnelState::Good => Style::Good,
        TunnelState::Lossy => Style::Warn,
        TunnelState::Unknown => Style::Dim,
        TunnelState::Bad => Style::Bad,
    }
}

/// Returns the table of this node's location with each other one, or with `wanted` alone; empty if there is none to show.
pub fn table(
    status: &Status,
    wanted: Option<&LocationName>,
    now: WallTime,
    out: &Output,
) -> String {
    let wanted = wanted.filter(|l| **l != status.location);
    let pairs = || status.relay_pairs.iter().filter(|p| wanted.is_none_or(|l| p.location == *l));
    let is_calm = |p: &&RelayPairStatus| !p.detour && !p.cut_off;
    let mut table = Table::new(&["WITH", "RELAYS HERE", "RELAYS THERE", "BY", "FOR", "WHY"]);
    let calm_left_out = pairs().filter(is_calm).count().saturating_sub(MAX_CALM);
    let mut calm = 0;
    for pair in pairs() {
        if is_calm(&pair) {
            calm += 1;
            if calm > MAX_CALM {
                continue;
            }
        }
        let (style, by) = state(pair);
        let relays = if style == Style::Good { Style::Plain } else { style };
        let why = match (pair.cut_off, &pair.why) {
            (true, _) => "no tunnel is known to be good".to_owned(),
            (false, why) => why.clone().unwrap_or_default(),
        };
        table.row(vec![
            (Style::Bold, pair.location.to_string()),
            (relays, names(&pair.near)),
            (relays, names(&pair.far)),
            (style, by.to_owned()),
            (Style::Plain, age(between(pair.since, now))),
            (style, why),
        ]);
    }
    if pairs().next().is_none() {
        return String::new();
    }
    let title = out.paint(Style::Bold, &format!("relays of {}", status.location));
    let mut text = format!("{title}  {}\n", out.paint(Style::Dim, "both ways, by other location"));
    text.push_str(&table.render(out, 2));
    if calm_left_out > 0 {
        text.push_str(&format!("  and {calm_left_out} more by their leaders\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;

    const PLAIN: Output = Output { json: false, color: false };

    fn pair(location: &str) -> RelayPairStatus {
        let mut pair = fixture::relay_pair();
        pair.location = location.parse().unwrap();
        (pair.detour, pair.why) = (false, None);
        pair
    }

    #[test]
    fn a_detour_a_long_one_and_a_cut_off_stand_out() {
        let mut status = fixture::status();
        let long = RelayPairStatus { long: true, detour: true, ..pair("edge") };
        let cut_off = RelayPairStatus { cut_off: true, ..pair("sea") };
        status.relay_pairs = vec![fixture::relay_pair(), long, cut_off, pair("shop")];
        let shown = table(&status, None, fixture::NOW, &PLAIN);
        insta::assert_snapshot!("relay-pairs", shown);
        let coloured = table(&status, None, fixture::NOW, &Output { json: false, color: true });
        for (code, word) in [(33, "detour"), (31, "long detour"), (31, "cut off"), (32, "leaders")]
        {
            let painted = format!("\x1b[{code}m{word}\x1b[0m");
            assert!(coloured.contains(&painted), "{word}: {coloured:?}");
        }
        let one = table(&status, Some(&"edge".parse().unwrap()), fixture::NOW, &PLAIN);
        assert_eq!(one.lines().count(), 3, "{one}");
        let own = table(&status, Some(&"home".parse().unwrap()), fixture::NOW, &PLAIN);
        assert_eq!(own, shown, "all pairs are of the own location");
        let none = table(&status, Some(&"mars".parse().unwrap()), fixture::NOW, &PLAIN);
        assert_eq!(none, "");
    }

    #[test]
    fn of_many_pairs_all_in_trouble_are_listed_and_some_of_the_others() {
        let mut status = fixture::status();
        status.relay_pairs = (0..30).map(|n| pair(&format!("l{n:02}"))).collect();
        for n in [3, 28, 29] {
            (status.relay_pairs[n].detour, status.relay_pairs[n].long) = (true, n == 29);
        }
        let shown = table(&status, None, fixture::NOW, &PLAIN);
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines.len(), 2 + 3 + MAX_CALM + 1, "{shown}");
        assert!(shown.contains("l28") && shown.contains("l29"), "{shown}");
        assert_eq!(lines.last(), Some(&"  and 17 more by their leaders"));
    }
}
