//! Whether the sources of probes survive the way. A reflector says where a request came from; its sender knows from where it
//! went.
//!
//! A source that was rewritten is no lost probe, and no candidate is judged by it: a CNI that masquerades what a relay takes
//! from a tunnel does so on every relay, and packets pass. It is reported, as workloads see wrong sources and long-lived
//! connections break.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::ids::NodeName;
use crate::io::LogLevel;
use crate::status::HiddenSource;
use crate::time::{Instant, Now};

use crate::observe::index::{PathIdx, TargetIdx};
use crate::observe::location::LocationWatch;
use crate::observe::probing::in_flight::{InFlight, SentPacket};
use crate::observe::{Observer, ObserverOutput};

/// A target without news for this long says nothing more, once sources arrive unchanged at others.
const STALE: Duration = Duration::from_secs(60);

/// A target at which sources have arrived unchanged for this long is well again.
const SETTLED: Duration = Duration::from_secs(10);

/// One way: the targets at which probes arrive from another source than they were sent from.
#[derive(Debug, Default)]
pub struct Sources {
    rewritten: BTreeMap<TargetIdx, Rewritten>,
}

#[derive(Debug, Clone, Copy)]
struct Rewritten {
    sent: IpAddr,
    seen: IpAddr,
    at: Instant,
}

impl Sources {
    /// Takes down what a reflector saw. Returns whether sources survive this way now and did not before, or the other way
    /// round.
    fn record(&mut self, now: Instant, target: TargetIdx, sent: IpAddr, seen: IpAddr) -> bool {
        let before = self.rewritten.is_empty();
        if sent == seen {
            // Of several leaders one may rewrite: what was rewritten lately is not taken back by the next packet.
            self.rewritten.retain(|t, r| {
                let patience = if *t == target { SETTLED } else { STALE };
                now.since(r.at) < patience
            });
        } else {
            self.rewritten.insert(target, Rewritten { sent, seen, at: now });
        }
        before != self.rewritten.is_empty()
    }

    /// Under another mesh file, where targets have other numbers.
    pub fn renumbered(self, number_now: impl Fn(TargetIdx) -> Option<TargetIdx>) -> Self {
        let rewritten = self.rewritten.into_iter().filter_map(|(t, r)| Some((number_now(t)?, r)));
        Self { rewritten: rewritten.collect() }
    }
}

impl LocationWatch {
    /// Returns one for each way on which sources are rewritten: before the candidate if they are there, else behind it.
    pub fn hidden_sources(&self) -> Vec<HiddenSource> {
        let ways = self.paths.enumerate().map(|(p, path)| (Some(p), &path.sources));
        let mut all = Vec::new();
        for (path, sources) in ways.chain([(None, &self.as_workload_sources)]) {
            let through = path.and_then(|p| self.candidate_of(p));
            let before =
                sources.rewritten.iter().find(|(t, _)| self.targets[**t].relay_of.is_some());
            // What is rewritten before the candidate says nothing of the candidate.
            let (target, r) = match before.or_else(|| sources.rewritten.iter().next()) {
                Some(first) => first,
                None => continue,
            };
            all.push(HiddenSource {
                through,
                target: self.targets[*target].node.clone(),
                sent_from: r.sent,
                arrived_from: r.seen,
            });
        }
        all
    }

    /// Returns the name of a path's candidate.
    fn candidate_of(&self, p: PathIdx) -> Option<NodeName> {
        self.targets.iter().find(|t| t.relay_of == Some(p)).map(|t| t.node.clone())
    }
}

impl Observer {
    /// Takes down where a reflector saw a probe come from, and logs a change.
    pub(in crate::observe) fn source_seen(
        &mut self,
        now: Now,
        f: &InFlight,
        packet: &SentPacket,
        seen: IpAddr,
    ) {
        self.rewritten += u64::from(seen != packet.source);
        let w = &mut self.watches[f.watch];
        let sources = match packet.spec.path {
            Some(p) => &mut w.paths[p].sources,
            None => &mut w.as_workload_sources,
        };
        if !sources.record(now.mono, packet.spec.target, packet.source, seen) {
            return;
        }
        let location = w.location.to_string();
        let through = packet.spec.path.and_then(|p| w.candidate_of(p));
        let hidden = w.hidden_sources().into_iter().find(|h| h.through == through);
        let (level, message) = match hidden {
            Some(hidden) => (LogLevel::Warn, hidden.to_string()),
            None => {
                let way =
                    through.map_or("by the ordinary routes".to_owned(), |n| format!("through {n}"));
                (LogLevel::Info, format!("sources arrive unchanged again {way}"))
            }
        };
        let fields = vec![("location.name".to_owned(), location)];
        self.emit(ObserverOutput::Log { level, message, fields });
    }
}
