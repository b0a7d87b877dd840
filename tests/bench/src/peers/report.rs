//! The measured, as tables and a picture.

use super::cases::Case;
use super::play::{Idle, Outcome};
use super::systems::Contender;
use super::why::why;
use crate::chart::{Dot, Dots};
use crate::markdown::table;

/// Everything of one benchmark.
#[derive(Clone, Debug, Default)]
pub struct Results {
    pub outcomes: Vec<Outcome>,
    pub idle: Vec<Idle>,
}

/// Milliseconds: a third of what BFD at 3 × 50 ms endures.
const DISTURBED: f64 = 50.0;

const NEW: usize = 0;
const ESTABLISHED: usize = 1;

/// What became of a meter over all runs of a case.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Blackouts {
    None,
    /// Milliseconds.
    Ended {
        middle: f64,
        most: f64,
    },
    /// In `runs` of `of` runs it had not ended when the run did, after `watched`.
    NotEnded {
        runs: usize,
        of: usize,
        watched: f64,
    },
}

impl Results {
    fn of(&self, case: Case, who: Contender) -> Vec<&Outcome> {
        self.outcomes.iter().filter(|o| o.case == case && o.who == who).collect()
    }

    fn contenders(&self) -> Vec<Contender> {
        let there = |w: &Contender| self.outcomes.iter().any(|o| o.who == *w);
        Contender::ALL.into_iter().filter(there).collect()
    }

    fn cases(&self) -> impl Iterator<Item = Case> {
        Case::ALL.into_iter().filter(|c| self.outcomes.iter().any(|o| o.case == *c))
    }

    fn blackouts(&self, case: Case, who: Contender, meter: usize) -> Blackouts {
        let all = self.of(case, who);
        let open: Vec<&&Outcome> = all.iter().filter(|o| o.blackout[meter].unfinished).collect();
        if let Some(longest) = open.iter().map(|o| o.watched).max_by(f64::total_cmp) {
            return Blackouts::NotEnded { runs: open.len(), of: all.len(), watched: longest };
        }
        let mut ms: Vec<f64> = all.iter().map(|o| o.blackout[meter].ms).collect();
        ms.sort_by(f64::total_cmp);
        match ms.last() {
            None => Blackouts::None,
            // Nearest rank.
            Some(most) => Blackouts::Ended { middle: ms[ms.len().div_ceil(2) - 1], most: *most },
        }
    }

    fn head(&self, first: &str) -> Vec<String> {
        let names = self.contenders().into_iter().map(|w| w.name().to_owned());
        std::iter::once(first.to_owned()).chain(names).collect()
    }

    fn matrix(&self, first: &str, rows: &[Vec<String>]) -> String {
        let head = self.head(first);
        table(&head.iter().map(String::as_str).collect::<Vec<_>>(), rows)
    }

    /// Blackouts of one meter; the shortest of each row in bold.
    fn blackout_table(&self, meter: usize) -> String {
        let rows: Vec<Vec<String>> = self
            .cases()
            .filter(|c| !c.must_not_move())
            .map(|case| {
                let all: Vec<Blackouts> =
                    self.contenders().iter().map(|w| self.blackouts(case, *w, meter)).collect();
                let best = shortest(&all);
                let cells = all.iter().map(|b| blackout_cell(*b, best));
                std::iter::once(format!("`{}`", case.key())).chain(cells).collect()
            })
            .collect();
        self.matrix("fault", &rows)
    }

    fn noticed_table(&self) -> String {
        let row = |case: Case| {
            let cell = |who: &Contender| {
                let all = self.of(case, *who);
                let noticed = all.iter().filter(|o| noticed(o)).count();
                let mut times: Vec<f64> = all.iter().filter_map(|o| o.moved).collect();
                times.sort_by(f64::total_cmp);
                let middle = times.get(times.len().div_ceil(2).saturating_sub(1));
                match (noticed, middle) {
                    _ if all.is_empty() => "–".to_owned(),
                    (0, _) => format!("no (0 of {})", all.len()),
                    (n, None) => format!("mended in place, {n} of {}", all.len()),
                    (n, Some(ms)) => format!("{n} of {}, after {}", all.len(), span(*ms)),
                }
            };
            let cells = self.contenders().iter().map(cell).collect::<Vec<_>>();
            std::iter::once(format!("`{}`", case.key())).chain(cells).collect()
        };
        let rows: Vec<Vec<String>> = self.cases().filter(|c| !c.must_not_move()).map(row).collect();
        self.matrix("fault", &rows)
    }

    /// Packets lost per run, of new flows and of the established flow.
    fn lost_table(&self) -> String {
        let row = |case: Case| {
            let cell = |who: &Contender| {
                let all = self.of(case, *who);
                if all.is_empty() {
                    return "–".to_owned();
                }
                let mean = |meter: usize| {
                    let sum: u64 = all.iter().map(|o| o.lost[meter]).sum();
                    sum as f64 / all.len().max(1) as f64
                };
                let still = all.iter().any(|o| !o.recovered());
                let more = if still { " and more" } else { "" };
                format!("{:.0} / {:.0}{more}", mean(NEW), mean(ESTABLISHED))
            };
            let cells = self.contenders().iter().map(cell).collect::<Vec<_>>();
            std::iter::once(format!("`{}`", case.key())).chain(cells).collect()
        };
        let rows: Vec<Vec<String>> = self.cases().map(row).collect();
        self.matrix("fault", &rows)
    }

    /// Only rows in which there was one, and the case that is about them.
    fn wrong_table(&self) -> String {
        let count =
            |case, who| -> u64 { self.of(case, who).iter().map(|o| o.wrong_failovers).sum() };
        let rows: Vec<Vec<String>> = self
            .cases()
            .filter(|c| c.must_not_move() || self.contenders().iter().any(|w| count(*c, *w) > 0))
            .map(|case| {
                let cells = self.contenders().into_iter().map(|who| {
                    let seconds: f64 =
                        self.of(case, who).iter().map(|o| o.watched).sum::<f64>() / 1e3;
                    match count(case, who) {
                        0 => format!("**0** in {seconds:.0} s"),
                        n => format!("{n} in {seconds:.0} s"),
                    }
                });
                std::iter::once(format!("`{}`", case.key())).chain(cells).collect()
            })
            .collect();
        self.matrix("fault", &rows)
    }

    fn idle_table(&self) -> String {
        let row = |name: &str, value: &dyn Fn(&Idle) -> String| {
            let cell = |who: &Contender| {
                self.idle.iter().find(|i| i.who == *who).map_or_else(|| "–".to_owned(), value)
            };
            let cells = self.contenders().iter().map(cell).collect::<Vec<_>>();
            std::iter::once(name.to_owned()).chain(cells).collect::<Vec<_>>()
        };
        let rows = [
            row("packets/s on the WAN", &|i| format!("{:.1}", i.wan)),
            row("packets/s on the LANs", &|i| format!("{:.1}", i.lan)),
            row("daemons, % of a core", &|i| match i.who {
                Contender::Kilo => "(ours)".to_owned(),
                _ => format!("{:.2}", i.daemons),
            }),
            row("`wireguard-go`, % of a core", &|i| format!("{:.2}", i.tunnels)),
        ];
        self.matrix("idle, whole mesh", &rows)
    }

    fn why_table(&self) -> String {
        let rows: Vec<Vec<String>> = self
            .cases()
            .map(|case| {
                let mut row = vec![format!("`{}`: {}", case.key(), case.about())];
                row.extend(why(case).map(str::to_owned));
                row
            })
            .collect();
        table(&["fault", "leaderd", "BFD and BGP", "VRRP", "Kilo's rule"], &rows)
    }

    /// Whether the machine was quiet enough, in a sentence.
    fn stalls(&self) -> String {
        let longest = self.outcomes.iter().map(|o| o.stall).max_by(f64::total_cmp).unwrap_or(0.0);
        let disturbed = self.outcomes.iter().filter(|o| o.stall > DISTURBED).count();
        format!(
            "The machine kept a thread waiting for {longest:.0} ms at most, and for more than {DISTURBED:.0} ms in {disturbed} of {} cases \
             (what BFD and VRRP do with short intervals in such a case says nothing of them).\n",
            self.outcomes.len()
        )
    }

    /// Everything between the markers. `conditions` comes first.
    pub fn text(&self, conditions: &str) -> String {
        let part = |title: &str, table: String| format!("{title}\n\n{table}");
        [
            conditions.to_owned(),
            self.stalls(),
            part(
                "**Blackout of new flows**, p50 / max. In bold: the shortest.",
                self.blackout_table(NEW),
            ),
            part(
                "**Blackout of the established flow**, p50 / max.",
                self.blackout_table(ESTABLISHED),
            ),
            part(
                "**Noticed**: traffic left the gateway in question (in runs of all, after how long in the median), or it was mended in its place.",
                self.noticed_table(),
            ),
            part("**Packets lost** a run, of new flows / of the established flow.", self.lost_table()),
            part(
                "**Wrong failovers**: traffic left a gateway that nothing was wrong with, or that was no worse than the other. The way back counts as well.",
                self.wrong_table(),
            ),
            part("**What it costs while nothing happens.**", self.idle_table()),
            part("**Why.**", self.why_table()),
        ]
        .join("\n")
    }

    pub fn chart(&self) -> Dots {
        let row = |case: Case| {
            let dot = |who: &Contender| match self.blackouts(case, *who, NEW) {
                Blackouts::None => Dot::Absent,
                Blackouts::Ended { middle, most } => Dot::Ended { middle, most },
                Blackouts::NotEnded { watched, .. } => Dot::NotEnded { watched },
            };
            (case.key().to_owned(), self.contenders().iter().map(dot).collect())
        };
        Dots {
            title: "Blackout of new flows, by fault and system".into(),
            x: "blackout (at the left edge: 1 ms or less)".into(),
            series: self.contenders().iter().map(|w| w.name().to_owned()).collect(),
            rows: self.cases().filter(|c| !c.must_not_move()).map(row).collect(),
            decades: (0, 5),
        }
    }
}

/// The system did something that helped, or tried to.
fn noticed(o: &Outcome) -> bool {
    let suffered = o.lost.iter().any(|l| *l > 0);
    // Where a part of the packets gets lost no blackout lasts, so its end proves nothing.
    let mended = !o.case.to_the_end() && suffered && o.recovered();
    o.moved.is_some() || mended
}

fn shortest(all: &[Blackouts]) -> Option<f64> {
    let ended = all.iter().filter_map(|b| match b {
        Blackouts::Ended { middle, .. } => Some(*middle),
        _ => None,
    });
    ended.min_by(f64::total_cmp)
}

fn blackout_cell(b: Blackouts, best: Option<f64>) -> String {
    match b {
        Blackouts::None => "–".to_owned(),
        Blackouts::Ended { middle, most } => {
            let text = format!("{} / {}", span(middle), span(most));
            if best == Some(middle) { format!("**{text}**") } else { text }
        }
        Blackouts::NotEnded { runs, of, watched } => {
            format!("not ended after {} ({runs} of {of})", span(watched))
        }
    }
}

/// Milliseconds, in few characters.
fn span(ms: f64) -> String {
    match ms {
        0.0 => "0".to_owned(),
        ms if ms < 10_000.0 => format!("{ms:.0} ms"),
        ms => format!("{:.0} s", ms / 1e3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::tests::lab::flows::Blackout;

    fn outcome(who: Contender, case: Case, new: Option<f64>) -> Outcome {
        let ms = new.unwrap_or(15_000.0);
        Outcome {
            who,
            case,
            moved: new,
            blackout: [
                Blackout { ms, unfinished: new.is_none() },
                Blackout { ms: 0.0, unfinished: false },
            ],
            lost: [ms as u64, 0],
            sent: [30_000, 30_000],
            wrong_failovers: u64::from(case == Case::Brownout && who == Contender::Bfd50),
            watched: 15_000.0,
            stall: if who == Contender::Kilo { 60.0 } else { 3.0 },
        }
    }

    fn results() -> Results {
        let case = Case::VxlanNewFlows;
        let mut outcomes = vec![
            outcome(Contender::Leaderd, case, Some(180.0)),
            outcome(Contender::Leaderd, case, Some(240.0)),
            outcome(Contender::Bfd50, case, Some(90.0)),
            outcome(Contender::Bfd50, case, None),
            outcome(Contender::Kilo, case, Some(11_000.0)),
        ];
        for who in [Contender::Leaderd, Contender::Bfd50] {
            outcomes.push(outcome(who, Case::Brownout, None));
        }
        Results { outcomes, idle: Vec::new() }
    }

    #[test]
    fn one_blackout_without_an_end_is_reported_whatever_the_other_runs_did() {
        let r = results();
        let case = Case::VxlanNewFlows;
        let all = [Contender::Leaderd, Contender::Bfd50, Contender::Vrrp1000]
            .map(|w| r.blackouts(case, w, NEW));
        assert_eq!(all[0], Blackouts::Ended { middle: 180.0, most: 240.0 });
        assert_eq!(all[1], Blackouts::NotEnded { runs: 1, of: 2, watched: 15_000.0 });
        assert_eq!(all[2], Blackouts::None);
    }

    #[test]
    fn the_shortest_blackout_is_in_bold() {
        let table = results().blackout_table(NEW);
        let row = table.lines().last().unwrap();
        assert_eq!(
            row,
            "| `vxlan-new-flows` | **180 ms / 240 ms** | not ended after 15 s (1 of 2) | 11 s / 11 s |"
        );
        let faster = Blackouts::Ended { middle: 90.0, most: 90.0 };
        let slower = Blackouts::Ended { middle: 180.0, most: 240.0 };
        let best = shortest(&[slower, faster]);
        assert_eq!(blackout_cell(faster, best), "**90 ms / 90 ms**");
        assert_eq!(blackout_cell(slower, best), "180 ms / 240 ms");
    }

    #[test]
    fn wrong_failovers_are_counted_where_no_system_should_move() {
        let table = results().wrong_table();
        let row = table.lines().last().unwrap();
        assert!(row.starts_with("| `brownout` | **0** in 15 s | 1 in 15 s |"), "{row}");
        assert!(!table.contains("vxlan-new-flows"));
    }

    #[test]
    fn loss_that_no_system_answers_does_not_count_as_repaired() {
        let mut o = outcome(Contender::Kilo, Case::WanLoss, Some(900.0));
        o.moved = None;
        assert!(o.recovered() && !noticed(&o));
        o.case = Case::WireguardDown;
        assert!(noticed(&o));
    }

    #[test]
    fn the_report_has_every_case_and_system() {
        let text = results().text("conditions");
        assert!(text.starts_with("conditions\n"));
        assert!(text.contains("1 of 2, after 90 ms"), "{text}");
        assert!(text.contains("for more than 50 ms in 1 of 7 cases"), "{text}");
        assert_eq!(results().chart().rows.len(), 1);
    }
}
