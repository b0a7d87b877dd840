//! The measured, in words, tables and charts.

use std::time::Duration;

use super::election::Elections;
use super::false_failovers::{
    Conditions, Counted, Detection, LOSSES, RTTS, Weighed, of_two_in_three,
};
use super::loss::Loss;
use super::models::{BFD_50, BFD_300, HEADSCALE, InARow, SEVEN, THREE, YEAR};
use super::ours::{FaultKind, LossScope};
use super::percentile;
use super::scale::Cost;
use crate::chart::{Chart, Line};
use crate::markdown::{short, table};

const MODELS: [InARow; 4] = [THREE, SEVEN, BFD_50, BFD_300];
/// Simulated faults behind a model's detection time.
const MODEL_FAULTS: u64 = 4000;
/// The claim is made at this loss.
const CLAIM: f64 = 0.02;

fn conditions_name(conditions: &Conditions) -> String {
    let share = conditions.loss.mean() * 100.0;
    match (conditions.loss, conditions.scope) {
        (Loss::Independent(_), _) => format!("{share}%, independent"),
        (Loss::Bursts(_), LossScope::Path) => format!("{share}%, bursts per path"),
        (Loss::Bursts(_), LossScope::Candidate) => {
            format!("{share}%, bursts on the candidate's line")
        }
    }
}

fn ms(rtt: Duration) -> u128 {
    rtt.as_millis()
}

/// 95% upper bound of what three observers' single alarms would cause in a century, if one alone were enough.
fn alarms_per_century(w: &Weighed) -> f64 {
    3.0 * (w.rate + 2.0 * w.error) * YEAR * 100.0
}

/// Ours, per year, as well as it is known.
fn ours_per_year(
    conditions: &Conditions,
    counted: &[Counted],
    weighed: &[Weighed],
) -> (f64, String) {
    if let Some(w) = weighed.iter().find(|w| w.conditions == *conditions) {
        let n = of_two_in_three(w.rate, w.alarm_length);
        return (n, if w.hits == 0 { "none seen (w)".into() } else { format!("{} (w)", short(n)) });
    }
    let c =
        counted.iter().find(|c| c.conditions == *conditions).expect("all conditions were counted");
    match c.failovers {
        0 => (c.at_most(), format!("< {} (c)", short(c.at_most()))),
        _ => (c.per_year(), format!("{} (c)", short(c.per_year()))),
    }
}

pub fn false_failovers(counted: &[Counted], weighed: &[Weighed]) -> String {
    let mut text = String::new();
    let at = |c: &&Counted| ms(c.conditions.rtt) == 20;
    let mut rows = Vec::new();
    for c in counted.iter().filter(at) {
        let rtt = c.conditions.rtt.as_secs_f64();
        let mut row =
            vec![conditions_name(&c.conditions), ours_per_year(&c.conditions, counted, weighed).1];
        row.extend(MODELS.iter().map(|m| short(m.false_rate(c.conditions.loss) * YEAR)));
        row.push(short(HEADSCALE.false_rate(c.conditions.loss, rtt) * YEAR));
        rows.push(row);
    }
    let mut head = vec!["loss, each way", "ours"];
    head.extend(MODELS.iter().map(|m| m.name));
    head.push(HEADSCALE.name);
    text += "**False failovers a year**, 20 ms round trip. (w) weighed, (c) counted; the models are exact.\n\n";
    text += &table(&head, &rows);

    text += "\n**Ours with independent losses**, weighed: alarms of one observer about a leader that is well, and what follows.\n\n";
    let rows: Vec<Vec<String>> = weighed
        .iter()
        .map(|w| {
            let c = counted.iter().find(|c| c.conditions == w.conditions).expect("counted as well");
            vec![
                format!("{}%", w.conditions.loss.mean() * 100.0),
                format!("{} ms", ms(w.conditions.rtt)),
                format!("{} of {}", w.hits, w.windows),
                format!("{} ± {}", short(w.rate * YEAR), short(w.error * YEAR)),
                format!("{:.1} s", w.alarm_length),
                short(of_two_in_three(w.rate, w.alarm_length) * 100.0),
                short(alarms_per_century(w)),
                format!("{}; {} in {:.1} h", c.alarms, c.failovers, c.seconds / 3600.0),
            ]
        })
        .collect();
    text += &table(
        &[
            "loss",
            "round trip",
            "windows with an alarm",
            "one observer's alarms a year",
            "length",
            "failovers a century, two of three",
            "if one observer were enough, at most",
            "counted: alarms; failovers",
        ],
        &rows,
    );

    text += "\n**Ours with bursts**, counted.\n\n";
    let bursts = |c: &&Counted| matches!(c.conditions.loss, Loss::Bursts(_));
    let rows: Vec<Vec<String>> = counted
        .iter()
        .filter(bursts)
        .map(|c| {
            let free = match c.conditions.scope {
                LossScope::Path => short(of_two_in_three(c.alarm_rate(), c.alarm_length)),
                LossScope::Candidate => "–".to_owned(),
            };
            vec![
                conditions_name(&c.conditions),
                format!("{} ms", ms(c.conditions.rtt)),
                format!("{} in {:.1} h", c.failovers, c.seconds / 3600.0),
                ours_per_year(&c.conditions, counted, weighed).1,
                free,
                format!("{:.1} an hour, {:.1} s each", c.alarm_rate() * 3600.0, c.alarm_length),
            ]
        })
        .collect();
    text += &table(
        &[
            "loss",
            "round trip",
            "failovers",
            "a year, with the hold-down",
            "without it, from single alarms",
            "one observer's alarms about one candidate",
        ],
        &rows,
    );
    text
}

fn model_times(model: &InARow, conditions: &Conditions) -> (f64, f64) {
    let rtt = conditions.rtt.as_secs_f64();
    let mut times: Vec<f64> =
        (0..MODEL_FAULTS).map(|seed| model.detection(conditions.loss, rtt, seed)).collect();
    (percentile(&mut times, 0.5) * 1e3, percentile(&mut times, 0.99) * 1e3)
}

fn pair(times: (f64, f64)) -> String {
    format!("{:.0} / {:.0}", times.0, times.1)
}

pub fn detection(found: &[Detection]) -> String {
    let mut rows = Vec::new();
    for d in found.iter().filter(|d| d.kind == FaultKind::NewFlows) {
        let death =
            found.iter().find(|o| o.conditions == d.conditions && o.kind == FaultKind::Death);
        let ours = |d: &Detection| {
            let late =
                if d.missed > 0 { format!(" ({} not at all)", d.missed) } else { String::new() };
            pair((d.p50 * 1e3, d.p99 * 1e3)) + &late
        };
        let mut row =
            vec![conditions_name(&d.conditions), format!("{} ms", ms(d.conditions.rtt)), ours(d)];
        row.push(death.map_or_else(String::new, ours));
        row.extend(MODELS.iter().map(|m| pair(model_times(m, &d.conditions))));
        row.push(pair((HEADSCALE.detection(0.5) * 1e3, HEADSCALE.detection(0.99) * 1e3)));
        rows.push(row);
    }
    let faults = found.first().map_or(0, |d| d.faults);
    let mut head = vec!["loss, each way", "round trip", "ours, #489", "ours, node death"];
    head.extend(MODELS.iter().map(|m| m.name));
    head.push(HEADSCALE.name);
    format!(
        "**Detection**, ms from the fault to its detection, p50 / p99 of {faults} faults each (models: {MODEL_FAULTS}). Models: \
         a fault that nothing survives. BFD and the pings never see #489; the others do if they probe with new flows.\n\n{}",
        table(&head, &rows)
    )
}

/// The claim, and whether it holds, by round trip.
pub fn claim(counted: &[Counted], weighed: &[Weighed], found: &[Detection]) -> String {
    let mut rows = Vec::new();
    for loss in [Loss::Independent(CLAIM), Loss::Bursts(CLAIM)] {
        for rtt in RTTS.map(Duration::from_millis) {
            let conditions = Conditions { loss, scope: LossScope::Path, rtt };
            let (calm, said) = match weighed.iter().find(|w| w.conditions == conditions) {
                Some(w) => {
                    let n = alarms_per_century(w);
                    (
                        n < 1.0 && w.hits > 0,
                        format!("< {} (weighed, one observer enough)", short(n)),
                    )
                }
                None => {
                    let c = counted
                        .iter()
                        .find(|c| c.conditions == conditions)
                        .expect("all conditions were counted");
                    match c.failovers {
                        0 => (false, format!("none counted, so < {}", short(c.at_most() * 100.0))),
                        _ => (false, format!("{} (counted)", short(c.per_year() * 100.0))),
                    }
                }
            };
            let bfd = model_times(&BFD_50, &conditions);
            let ours = |kind| {
                let d = found
                    .iter()
                    .find(|d| d.conditions == conditions && d.kind == kind)
                    .expect("measured");
                (d.p50 * 1e3, d.p99 * 1e3)
            };
            let (flows, death) = (ours(FaultKind::NewFlows), ours(FaultKind::Death));
            let fast = |t: (f64, f64)| t.0 <= bfd.0 && t.1 <= bfd.1;
            let mut because = Vec::new();
            if !calm {
                because.push("the hours counted are too few to prove it, or there were some");
            }
            if !fast(flows) || !fast(death) {
                because.push(match rtt.as_millis() {
                    0..50 => "new flows go every 100 ms where BFD sends every 50, a burst one timeout later confirms the loss, and silence is given 130 ms more",
                    _ => "a reply is waited for twice, BFD listens one way",
                });
            }
            let verdict = if because.is_empty() {
                "**reached**".to_owned()
            } else {
                format!("**missed**: {}", because.join("; "))
            };
            rows.push(vec![
                conditions_name(&conditions),
                format!("{} ms", ms(rtt)),
                said,
                pair(flows),
                pair(death),
                pair(bfd),
                verdict,
            ]);
        }
    }
    let text = table(
        &[
            "loss, each way",
            "round trip",
            "false failovers a century",
            "#489, ms",
            "node death, ms",
            "BFD 3 × 50 ms, node death",
            "claim",
        ],
        &rows,
    );
    format!(
        "**The claim**: at 2% loss fewer than one false failover a century, detection no slower than BFD 3 × 50 ms (p50 and p99).\n\n{text}"
    )
}

/// False failovers a year against loss, at 20 ms.
pub fn false_failover_chart(counted: &[Counted], weighed: &[Weighed]) -> Chart {
    let conditions =
        |loss| Conditions { loss, scope: LossScope::Path, rtt: Duration::from_millis(20) };
    let line = |name: &str, dashed, f: &dyn Fn(f64) -> f64| Line {
        name: name.to_owned(),
        dashed,
        points: LOSSES.map(|p| (p * 100.0, f(p).max(1e-30))).to_vec(),
    };
    let ours = |loss: fn(f64) -> Loss| {
        move |p: f64| ours_per_year(&conditions(loss(p)), counted, weighed).0
    };
    let mut lines = vec![
        line("ours, independent (weighed)", false, &ours(Loss::Independent)),
        line("ours, bursts (counted)", true, &ours(Loss::Bursts)),
    ];
    for m in [BFD_50, BFD_300] {
        let name = |w: &str| format!("{}, {w}", m.name);
        lines.push(line(&name("independent"), false, &|p| {
            m.false_rate(Loss::Independent(p)) * YEAR
        }));
        lines.push(line(&name("bursts"), true, &|p| m.false_rate(Loss::Bursts(p)) * YEAR));
    }
    lines.push(line("3 of 3 in a row, independent", false, &|p| {
        THREE.false_rate(Loss::Independent(p)) * YEAR
    }));
    lines.push(line("7 of 7 in a row, independent", false, &|p| {
        SEVEN.false_rate(Loss::Independent(p)) * YEAR
    }));
    Chart {
        title: "False failovers a year, 20 ms round trip".to_owned(),
        x: "loss each way, %".to_owned(),
        y: "false failovers a year".to_owned(),
        lines,
    }
}

/// Median detection against the round trip at 2% independent loss.
pub fn detection_chart(found: &[Detection]) -> Chart {
    let loss = Loss::Independent(CLAIM);
    let ours = |kind| {
        let of = |d: &&Detection| d.conditions.loss == loss && d.kind == kind;
        found.iter().filter(of).map(|d| (ms(d.conditions.rtt) as f64, d.p50 * 1e3)).collect()
    };
    let mut lines = vec![
        Line { name: "ours, #489".into(), points: ours(FaultKind::NewFlows), dashed: false },
        Line { name: "ours, node death".into(), points: ours(FaultKind::Death), dashed: true },
    ];
    for m in MODELS {
        let point = |rtt: u64| {
            let conditions =
                Conditions { loss, scope: LossScope::Path, rtt: Duration::from_millis(rtt) };
            (rtt as f64, model_times(&m, &conditions).0)
        };
        let points = RTTS.map(point).to_vec();
        lines.push(Line { name: m.name.into(), points, dashed: m.one_way });
    }
    Chart {
        title: "Detection, median, 2% independent loss each way".to_owned(),
        x: "round trip, ms".to_owned(),
        y: "ms from the fault to its detection".to_owned(),
        lines,
    }
}

pub fn scale(costs: &[Cost]) -> String {
    let name = |c: &Cost| match c.size.members {
        0 => format!("{} × 3", c.size.locations),
        m => format!("{} × (3 + {m})", c.size.locations),
    };
    let rows: Vec<Vec<String>> = costs
        .iter()
        .map(|c| {
            let kinds: Vec<String> = c
                .kinds
                .iter()
                .filter(|(_, n)| **n >= 0.5)
                .map(|(k, n)| format!("{k} {n:.0}"))
                .collect();
            vec![
                name(c),
                format!("{} nodes, {} s", c.real, c.seconds),
                format!("{:.0} + {:.0}", c.probes, c.reflected),
                format!("{:.0} ({})", c.frames, kinds.join(", ")),
                if c.size.members > 0 { format!("{:.0}", c.member_frames) } else { "–".into() },
                format!("{}", c.peers),
                format!("{:.2}", c.memory / 1048576.0),
                format!("{:.1}", c.cpu * 1e3),
                format!("{:.0}", c.failover * 1e3),
            ]
        })
        .collect();
    table(
        &[
            "mesh",
            "real cores, measured for",
            "probes sent + reflected /s",
            "control messages sent /s",
            "of a member",
            "connections",
            "MiB in use by the core",
            "CPU, ms per virtual second",
            "failover, ms",
        ],
        &rows,
    )
}

pub fn scale_chart(costs: &[Cost]) -> Chart {
    let plain = || costs.iter().filter(|c| c.size.members == 0);
    let line = |name: &str, f: &dyn Fn(&Cost) -> f64| Line {
        name: name.to_owned(),
        points: plain().map(|c| (c.size.locations as f64 * 3.0, f(c))).collect(),
        dashed: false,
    };
    Chart {
        title: "What one candidate costs".to_owned(),
        x: "candidates in the mesh".to_owned(),
        y: "per candidate".to_owned(),
        lines: vec![
            line("probes sent /s", &|c| c.probes),
            line("control messages sent /s", &|c| c.frames),
            line("CPU, ms/s", &|c| c.cpu * 1e3),
            line("memory, MiB", &|c| c.memory / 1048576.0),
            line("failover, ms", &|c| c.failover * 1e3),
        ],
    }
}

pub fn election(ours: Elections, fixed: &[(Duration, Elections)]) -> String {
    let row = |name: String, e: &Elections| {
        vec![
            name,
            e.changes.to_string(),
            format!("{:.2}%", e.led * 100.0),
            format!("{:.1} h", e.seconds as f64 / 3600.0),
        ]
    };
    let mut rows = vec![row("ours (timeouts follow the round trips)".into(), &ours)];
    for (tick, e) in fixed {
        rows.push(row(format!("raft-rs, ticks of {} ms", tick.as_millis()), e));
    }
    table(&["", "raft leader changes", "time with a known raft leader", "simulated"], &rows)
}
