//! Which metric each count of the core and of the shells is. Every series is there from the start, with zero.

use std::collections::BTreeMap;

use super::registry::Labels;

/// A family of counters, `leaderd_NAME_total`.
#[derive(Debug)]
pub(super) struct Counted {
    pub name: &'static str,
    pub help: &'static str,
    source: Source,
    /// Name of the label; empty: the family has one series without labels.
    label: &'static str,
    series: Series,
}

/// Who counts.
#[derive(Debug)]
enum Source {
    Core,
    Shell,
}

#[derive(Debug)]
enum Series {
    /// The counter's key.
    One(&'static str),
    /// Keys of counters and their values of the label.
    Keys(&'static [(&'static str, &'static str)]),
    /// All counters whose keys begin with this; the label's value is the rest, among them those listed.
    Prefix(&'static str, &'static [&'static str]),
}

/// A gauge that a shell sets.
#[derive(Debug)]
pub(super) struct Measured {
    pub name: &'static str,
    pub help: &'static str,
    pub key: &'static str,
    pub divisor: f64,
    pub at_first: Option<u64>,
}

impl Counted {
    const fn one(
        name: &'static str,
        help: &'static str,
        source: Source,
        key: &'static str,
    ) -> Self {
        Self { name, help, source, label: "", series: Series::One(key) }
    }

    /// Returns the series of the family and their counts.
    pub(super) fn rows(
        &self,
        core: &BTreeMap<String, u64>,
        shell: &BTreeMap<&'static str, u64>,
    ) -> BTreeMap<Labels, u64> {
        let count = |key: &str| match self.source {
            Source::Core => core.get(key).copied().unwrap_or(0),
            Source::Shell => shell.get(key).copied().unwrap_or(0),
        };
        let labels = |value: &str| vec![(self.label, value.to_owned())];
        match self.series {
            Series::One(key) => [(Vec::new(), count(key))].into(),
            Series::Keys(keys) => {
                keys.iter().map(|(key, value)| (labels(value), count(key))).collect()
            }
            Series::Prefix(prefix, values) => {
                let counted: Vec<&str> = match self.source {
                    Source::Core => core.keys().map(String::as_str).collect(),
                    Source::Shell => shell.keys().copied().collect(),
                };
                let counted = counted.into_iter().filter_map(|key| key.strip_prefix(prefix));
                let all = values.iter().copied().chain(counted);
                all.map(|value| (labels(value), count(&format!("{prefix}{value}")))).collect()
            }
        }
    }
}

const KINDS: &[&str] = &[
    "raft",
    "report",
    "announce",
    "ack",
    "verified",
    "relayed",
    "hello",
    "forward",
    "forwarded",
    "addresses",
    "uncarried",
    "signed",
    "tunnels",
    "detours",
];

pub(super) const COUNTERS: &[Counted] = &[
    Counted {
        name: "probes_sent",
        help: "Probes sent",
        source: Source::Shell,
        label: "class",
        series: Series::Prefix(
            "probes_sent_",
            &["relay", "new-flow", "pinned-flow", "full-size", "as-workload", "service"],
        ),
    },
    Counted::one(
        "probe_send_errors",
        "Probes that the local kernel refused to send",
        Source::Shell,
        "probes_refused_locally",
    ),
    Counted::one(
        "probe_icmp_errors",
        "Probes answered by an ICMP error",
        Source::Shell,
        "probe_icmp_errors",
    ),
    Counted::one(
        "probe_sockets_evicted",
        "Probes given up for want of sockets",
        Source::Shell,
        "probe_sockets_evicted",
    ),
    Counted::one(
        "probe_rounds_skipped",
        "Rounds, bursts and requests to services not sent, as the probe budget was spent",
        Source::Core,
        "probes.rounds-left-out",
    ),
    Counted::one(
        "service_requests_skipped",
        "HTTP requests to services not sent, as too many were under way",
        Source::Shell,
        "service_requests_refused",
    ),
    Counted {
        name: "probe_replies_rejected",
        help: "Replies to own probes that were not believed",
        source: Source::Core,
        label: "reason",
        series: Series::Prefix("probes.replies.", &["bad-hmac"]),
    },
    Counted::one(
        "probe_sources_rewritten",
        "Own probes that arrived from another source than they were sent from",
        Source::Core,
        "probes.source-rewritten",
    ),
    Counted::one(
        "probe_requests_received",
        "Probe requests received",
        Source::Shell,
        "probe_requests",
    ),
    Counted::one(
        "probe_requests_dropped",
        "Probe requests dropped unread, as too many came",
        Source::Shell,
        "probe_requests_dropped",
    ),
    Counted {
        name: "probe_requests_rejected",
        help: "Probe requests not answered",
        source: Source::Core,
        label: "reason",
        series: Series::Prefix(
            "probes.rejected.",
            &["unknown-source", "unknown-sender", "truncated", "bad-hmac", "replayed"],
        ),
    },
    Counted::one(
        "probe_replies_sent",
        "Replies to probe requests",
        Source::Shell,
        "reflections_sent",
    ),
    Counted::one(
        "probe_reply_errors",
        "Replies that the local kernel refused to send",
        Source::Shell,
        "reflections_failed",
    ),
    Counted::one(
        "decisions",
        "Decisions about leaders that came into force on this node",
        Source::Core,
        "decisions",
    ),
    Counted::one(
        "detours",
        "Times that other relays than the two leaders, or other ones than before, began to carry the traffic with a location",
        Source::Core,
        "detours",
    ),
    Counted::one(
        "decisions_not_signed",
        "Decisions that this voter did not sign",
        Source::Core,
        "decisions.not-signed",
    ),
    Counted::one(
        "commands_refused",
        "Commands refused for want of the right to give them",
        Source::Core,
        "commands.refused",
    ),
    Counted {
        name: "steering_changes",
        help: "Times that the traffic to a location moved to leaderd's routes, or to Kilo's",
        source: Source::Core,
        label: "to",
        series: Series::Keys(&[("steer.in", "leaderd"), ("steer.back", "kilo")]),
    },
    Counted {
        name: "frames_sent",
        help: "Frames sent on the control channel",
        source: Source::Shell,
        label: "kind",
        series: Series::Prefix("frames_out_", KINDS),
    },
    Counted {
        name: "frames_received",
        help: "Frames received on the control channel",
        source: Source::Shell,
        label: "kind",
        series: Series::Prefix("frames_in_", KINDS),
    },
    Counted {
        name: "frames_dropped",
        help: "Frames that did not reach the other node's engine, or this node's",
        source: Source::Shell,
        label: "reason",
        series: Series::Keys(&[
            ("frames_dropped", "queue-full"),
            ("frames_without_connection", "not-connected"),
            ("frames_too_long", "too-long"),
            ("frames_incomplete", "incomplete"),
            ("frames_dropped_by_full_engine", "engine-full"),
            ("frames_dropped_by_rate", "rate"),
            ("frames_skipped_unknown_kind", "unknown-kind"),
        ]),
    },
    Counted::one(
        "frames_delayed",
        "Frames that waited, as their peer sends more than it may",
        Source::Shell,
        "frames_held_back_by_rate",
    ),
    Counted {
        name: "frames_refused",
        help: "Received frames that could not be read",
        source: Source::Shell,
        label: "reason",
        series: Series::Keys(&[
            ("frames_refused_too_long", "too-long"),
            ("frames_refused_malformed", "malformed"),
        ]),
    },
    Counted {
        name: "frames_ignored",
        help: "Received frames that were not believed; probe: a probe request, see leaderd_probe_requests_rejected_total",
        source: Source::Core,
        label: "reason",
        series: Series::Prefix(
            "ignored.",
            &[
                "stranger",
                "nonsense",
                "raft-of-another-group",
                "relayed-from-elsewhere",
                "not-relayed",
                "report-in-anothers-name",
                "about-another-group",
                "decision-of-another-location",
                "hello-in-anothers-name",
                "uncarried-of-another-location",
                "addresses-of-another-location",
                "addresses-outside",
                "event",
                "answer-not-asked",
                "signature-of-no-voter",
                "tunnels-of-no-candidate",
                "detours-of-no-candidate",
                "decision-for-candidates",
                "old-epoch",
                "old-decision",
                "decision-with-an-epoch-too-far-ahead",
                "decision-whose-leaders-are-no-candidates",
                "decision-without-a-proof",
                "probe",
            ],
        ),
    },
    Counted {
        name: "frames_invalid",
        help: "Received frames with an impossible value; leaderd_frames_ignored_total counts them as nonsense",
        source: Source::Core,
        label: "field",
        series: Series::Prefix(
            "nonsense.",
            &[
                "round-trip",
                "loss",
                "time",
                "duration",
                "number",
                "slot",
                "no-leader",
                "counts",
                "length",
                "text",
                "event",
            ],
        ),
    },
    Counted {
        name: "handshakes_failed",
        help: "Incoming connections of the control channel that were not accepted",
        source: Source::Shell,
        label: "reason",
        series: Series::Keys(&[
            ("handshakes_refused", "refused"),
            ("handshakes_timed_out", "timeout"),
            ("handshakes_refused_by_load", "load"),
            ("connections_refused_double", "duplicate"),
        ]),
    },
    Counted::one(
        "handshakes_retried",
        "Incoming connections that had to prove their address first",
        Source::Shell,
        "handshakes_retried",
    ),
    Counted::one(
        "dials_failed",
        "Outgoing connections of the control channel that failed",
        Source::Shell,
        "dials_failed",
    ),
    Counted::one("store_writes", "Writes to the store", Source::Shell, "persist_batches"),
    Counted::one(
        "store_write_errors",
        "Writes to the store that failed",
        Source::Shell,
        "persist_errors",
    ),
    Counted::one(
        "network_programs",
        "Changes of the network that the kernel took",
        Source::Shell,
        "programs",
    ),
    Counted::one(
        "network_program_errors",
        "Changes that the kernel refused, or refused in part",
        Source::Shell,
        "program_errors",
    ),
    Counted::one(
        "network_repairs",
        "Repairs of what somebody else changed",
        Source::Shell,
        "repairs",
    ),
    Counted::one(
        "network_repair_errors",
        "Repairs that the kernel refused, or refused in part",
        Source::Shell,
        "repair_errors",
    ),
    Counted::one(
        "kubernetes_writes",
        "Writes to the Kubernetes API",
        Source::Shell,
        "kubernetes_writes",
    ),
    Counted {
        name: "kubernetes_request_errors",
        help: "Requests to the Kubernetes API that met another's change, were refused, met a busy server, or got no answer",
        source: Source::Shell,
        label: "reason",
        series: Series::Keys(&[
            ("kubernetes_conflicts", "conflict"),
            ("kubernetes_refusals", "refused"),
            ("kubernetes_throttled", "throttled"),
            ("kubernetes_failures", "unanswered"),
        ]),
    },
    Counted::one(
        "kubernetes_changes_refused",
        "Nodes whose changes were not taken into the mesh",
        Source::Shell,
        "kubernetes_changes_refused",
    ),
    Counted::one(
        "kubernetes_meshes_refused",
        "Mesh files with keys that this daemon does not believe",
        Source::Shell,
        "kubernetes_meshes_refused",
    ),
];

pub(super) const GAUGES: &[Measured] = &[
    Measured {
        name: "store_last_write_seconds",
        help: "Duration of the last write to the store",
        key: "persist_latency_micros",
        divisor: 1e6,
        at_first: None,
    },
    Measured {
        name: "network_last_program_seconds",
        help: "Duration of the last change of the network",
        key: "program_latency_micros",
        divisor: 1e6,
        at_first: None,
    },
    Measured {
        name: "network_parts_failing",
        help: "Parts of this node's network that the kernel refuses",
        key: "network_parts_failing",
        divisor: 1.0,
        at_first: Some(0),
    },
    Measured {
        name: "transit_tracked",
        help: "1 while the kernel tracks transit although it is not to",
        key: "transit_tracked",
        divisor: 1.0,
        at_first: Some(0),
    },
    Measured {
        name: "kubernetes_contact_age_seconds",
        help: "Time since the Kubernetes API server was last heard",
        key: "kubernetes_contact_age_micros",
        divisor: 1e6,
        at_first: None,
    },
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    /// Keys that are counted in this crate: they stand in quotes behind these calls.
    fn keys(dir: &Path, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                keys(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("tests.rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let text = text.split("#[cfg(test)]").next().unwrap();
                for call in [
                    "counters.count(\"",
                    "counters.add(\"",
                    "counters.set(\"",
                    "shared.refuse(from, \"",
                ] {
                    let calls = text.split(call).skip(1);
                    found.extend(calls.filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())));
                }
            }
        }
    }

    #[test]
    fn every_counter_of_the_shells_is_a_metric() {
        let mut found = BTreeSet::new();
        keys(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")), &mut found);
        assert!(found.len() > 25, "{found:?}");
        let known = |key: &str| {
            let in_family = |family: &Counted| match family.series {
                Series::One(one) => one == key,
                Series::Keys(keys) => keys.iter().any(|(k, _)| *k == key),
                Series::Prefix(prefix, _) => key.starts_with(prefix),
            };
            COUNTERS.iter().any(in_family) || GAUGES.iter().any(|g| g.key == key)
        };
        found.retain(|key| !known(key));
        assert_eq!(found, BTreeSet::new());
    }

    #[test]
    fn every_class_and_every_kind_is_there_from_the_start() {
        let family = |name: &str| COUNTERS.iter().find(|f| f.name == name).unwrap();
        let rows = family("probes_sent").rows(&BTreeMap::new(), &BTreeMap::new());
        let classes: BTreeSet<&str> = rows.keys().map(|labels| labels[0].1.as_str()).collect();
        assert_eq!(classes, leaderd_core::verdict::ProbeClass::ALL.map(|c| c.as_str()).into());
        assert!(rows.values().all(|count| *count == 0));
    }
}
