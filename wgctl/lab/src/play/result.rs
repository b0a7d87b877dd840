//! Compares what happened with what was expected.

use std::time::Duration;

use super::gauges::Account;
use super::{Gauges, Session};
use crate::admin::Event;
use crate::meter::{NEW_CONNECTION_EVERY, TcpSeen};
use crate::report::{Failed, Leaders, MeterResult, RunResult, Stages};
use crate::scenario::{ConnectOut, LostMax};

/// By how much new connections may be out for longer than packets are, besides two round trips: one that was under way when the fault began,
/// and the time to the next one.
const MORE_FOR_A_CONNECTION: Duration =
    Duration::from_millis(3 * NEW_CONNECTION_EVERY.as_millis() as u64);

fn millis(span: Duration) -> f64 {
    span.as_secs_f64() * 1e3
}

impl Session {
    pub(super) fn result(
        &self,
        meters: &Gauges,
        before: &Account,
        since: u64,
        until: u64,
    ) -> RunResult {
        let seen = meters.results(before, since, until);
        let open = seen.iter().any(|(_, open)| *open);
        let meters: Vec<_> = seen.into_iter().map(|(result, _)| result).collect();
        let location = self.world.scenario.location.as_str();
        let moved: Vec<&Event> =
            self.news(location).filter(|e| e.kind == "failover" || e.kind == "move").collect();
        let first = moved.first();
        let before = self.leaders_before.get(location).cloned();
        let after = self
            .leader_now(location)
            .or_else(|| moved.last().and_then(|e| e.leaders_after.first().cloned()));
        let since_injection = |t: Option<u64>| Some((t? as f64 - self.injected? as f64) / 1e3);
        let times = first.map(|e| e.times).unwrap_or_default();
        let mut result = RunResult {
            machine: Default::default(),
            outcome: String::new(),
            why: String::new(),
            failed: None,
            failovers: self.count(location, "failover"),
            leader: Leaders { before, after },
            cause: first.and_then(|e| e.cause.clone()),
            ms: Stages {
                suspected: since_injection(times.suspected),
                condemned: since_injection(times.condemned),
                committed: since_injection(times.committed),
                programmed: since_injection(times.programmed),
                verified: since_injection(times.verified),
            },
            blackout_ms: meters[0].blackout_ms.clone(),
            packets: meters[0].packets.clone(),
            meters,
        };
        let mut misses = self.misses(&result);
        if self.world.scenario.expect.recovers && open {
            misses.push((Failed::Late, "packets are still lost at the end".into()));
        }
        result.outcome = if misses.is_empty() { "pass" } else { "fail" }.into();
        let wrong = misses.iter().any(|(how, _)| *how == Failed::Wrong);
        let how = if wrong { Failed::Wrong } else { Failed::Late };
        result.failed = (!misses.is_empty()).then_some(how);
        result.why = misses.into_iter().map(|(_, why)| why).collect::<Vec<_>>().join("; ");
        result
    }

    fn leader_now(&self, location: &str) -> Option<String> {
        // By the highest epoch that any daemon of the location shows: one that is cut off may not know it yet.
        let all = self.world.nodes_in(self.tested).filter_map(|n| {
            let status = self.world.status(n).ok()?;
            let seen = status.location(location)?;
            Some((seen.epoch, seen.leaders.first().cloned()?))
        });
        all.max_by_key(|(epoch, _)| *epoch).map(|(_, leader)| leader)
    }

    /// Returns the notes of nodes of other locations on this one.
    fn notes_elsewhere(&self, location: &str) -> Vec<String> {
        let elsewhere = |n: &usize| self.world.nodes[*n].node.location != self.tested;
        (0..self.world.nodes.len())
            .filter(elsewhere)
            .filter_map(|n| Some(self.world.status(n).ok()?.location(location)?.notes.clone()))
            .flatten()
            .collect()
    }

    /// Returns what is expected of TCP between a meter's ends and did not come.
    fn tcp_miss(&self, m: &MeterResult, tcp: TcpSeen) -> Option<String> {
        let e = &self.world.scenario.expect;
        let mut missed = Vec::new();
        let mut must = |right: bool, what: String| {
            if !right {
                missed.push(what);
            }
        };
        let survives = tcp.opened > 0 && tcp.failed == 0 && tcp.answers > 0 && tcp.broken == 0;
        must(e.tcp.is_none() || survives, "TCP does not survive".into());
        let most = e.tcp_connect_out.map(|most| match most {
            ConnectOut::AtMost(most) => millis(most.0),
            ConnectOut::Blackout => {
                let more = self.world.scenario.wan.rtt.0 * 2 + MORE_FOR_A_CONNECTION;
                m.longest_blackout_ms() + millis(more)
            }
        });
        let open = tcp.connect.begun > 0 && !tcp.connect.unfinished;
        must(
            most.is_none_or(|most| open && tcp.connect.out_ms <= most),
            format!("new connections are out for more than {:.0} ms", most.unwrap_or_default()),
        );
        let still = e.tcp_stall_max.map(|most| millis(most.0));
        must(
            still.is_none_or(|most| tcp.stall_ms <= most),
            format!(
                "a kept connection stands still for more than {:.0} ms",
                still.unwrap_or_default()
            ),
        );
        (!missed.is_empty()).then(|| format!("{}: {tcp}", missed.join(", ")))
    }

    /// Returns everything that is not as expected.
    fn misses(&self, r: &RunResult) -> Vec<(Failed, String)> {
        let scenario = &self.world.scenario;
        let (e, location) = (&scenario.expect, scenario.location.as_str());
        let mut misses = Vec::new();
        let mut miss = |how: Failed, ok: bool, why: String| {
            if !ok {
                misses.push((how, why));
            }
        };
        miss(
            e.failovers.missed_by(r.failovers),
            e.failovers.holds(r.failovers),
            format!("{} failovers, expected {:?}", r.failovers, e.failovers),
        );
        let moves = self.count(location, "move");
        let moved = format!("{moves} moves, expected {:?}", e.moves);
        miss(e.moves.missed_by(moves), e.moves.holds(moves), moved);
        let awaited = r.failovers < e.failovers.least() || moves < e.moves.least();
        let decided = if awaited { Failed::Late } else { Failed::Wrong };
        let mut must = |ok: bool, why: String| miss(decided, ok, why);
        match e.leader.as_deref() {
            None => {}
            Some("same") => must(r.leader.before == r.leader.after, "the leader changed".into()),
            Some("changed") => must(r.leader.before != r.leader.after, "the leader stayed".into()),
            Some(name) => must(
                r.leader.after.as_deref() == Some(name),
                format!(
                    "{} leads, expected {name}",
                    r.leader.after.as_deref().unwrap_or("no node")
                ),
            ),
        }
        if !e.cause.is_empty() {
            let cause = r.cause.clone().unwrap_or_else(|| "none".into());
            must(
                e.cause.contains(&cause),
                format!("cause {cause}, expected {}", e.cause.join(" or ")),
            );
        }
        if let Some(words) = &e.summary {
            let mut moved =
                self.news(location).filter(|e| e.kind == "failover" || e.kind == "move");
            let said = moved.next().map_or("nothing", |e| e.summary.as_str());
            must(said.contains(words.as_str()), format!("{said:?} does not say {words:?}"));
        }
        for kind in &e.kinds {
            miss(Failed::Late, self.count(location, kind) > 0, format!("no event of kind {kind}"));
        }
        if let Some(words) = &e.note {
            let notes = self.notes_elsewhere(location);
            let said = notes.iter().any(|n| n.contains(words.as_str()));
            miss(Failed::Late, said, format!("no note says {words:?}: {notes:?}"));
        }
        for m in &r.meters {
            let most = e.lost_max.unwrap_or(LostMax { new_flows: None, established: None });
            let pairs = [
                ("new flows", most.new_flows, m.packets.new_flows),
                ("the established flow", most.established, m.packets.established),
            ];
            for (name, most, t) in pairs {
                miss(
                    Failed::Late,
                    most.is_none_or(|m| t.lost <= m),
                    format!("{}: {} of {} packets of {name} lost", m.ends(), t.lost, t.sent),
                );
            }
            miss(
                Failed::Wrong,
                e.sources.is_none() || m.rewritten.total() == 0,
                format!("{}: sources were rewritten: {}", m.ends(), m.rewritten),
            );
            let out = m.longest_blackout_ms();
            let (shown, most) = (format!("{out:.0} ms"), e.blackout_max);
            let short = most.is_none_or(|most| out <= millis(most.0));
            miss(Failed::Late, short, format!("{}: packets were lost for {shown}", m.ends()));
            if let Some(why) = m.tcp.and_then(|tcp| self.tcp_miss(m, tcp)) {
                miss(Failed::Late, false, format!("{}: {why}", m.ends()));
            }
        }
        if e.others_stay {
            for l in self.world.topology.locations.iter().filter(|l| l.name != location) {
                let n = self.count(&l.name, "failover") + self.count(&l.name, "move");
                miss(Failed::Wrong, n == 0, format!("{n} leader changes in {}", l.name));
            }
        }
        if e.hold_down_grows {
            let at: Vec<u64> = self
                .news(location)
                .filter(|e| e.kind == "failover")
                .filter_map(|e| e.times.committed)
                .collect();
            let gaps: Vec<u64> = at.windows(2).map(|w| w[1].saturating_sub(w[0])).collect();
            let grows = gaps.len() < 2 || gaps.last() >= gaps.first();
            miss(
                Failed::Wrong,
                grows,
                format!("the time between failovers does not grow: {gaps:?} µs"),
            );
        }
        for n in 0..self.world.nodes.len() {
            let name = &self.world.nodes[n].node.name;
            let killed = self.world.active_faults().iter().any(|(on, fault)| {
                on == name && ["daemon-kill", "node-crash", "member-down"].contains(&fault.as_str())
            });
            if self.world.daemon_pid(n).is_none() && !killed {
                miss(
                    Failed::Wrong,
                    false,
                    format!("leaderd on {name} died: {}", self.world.log_tail(n, 3)),
                );
            }
        }
        misses
    }
}
