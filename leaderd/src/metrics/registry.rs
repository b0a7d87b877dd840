//! All metrics of one moment, from the node's status and from what it and its shells count.

use std::sync::atomic::AtomicU64;

use leaderd_core::ids::{LocationName, NodeName};
use leaderd_core::status::{RelayPairStatus, Status};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::counted;
use crate::engine::Snapshot;

pub(super) type Labels = Vec<(&'static str, String)>;
type Gauges = Family<Labels, Gauge<f64, AtomicU64>>;
type Counters = Family<Labels, Counter>;

/// Returns all metrics of this moment.
pub(super) fn registry(s: &Snapshot) -> Registry {
    let mut registry = Registry::with_prefix("leaderd");
    let mut gauges = |name: &str, help: &str, rows: Vec<(Labels, f64)>| {
        if let [(labels, value)] = &rows[..]
            && labels.is_empty()
        {
            return registry.register(name, help, gauge(*value));
        }
        let family = Gauges::default();
        for (labels, value) in rows {
            family.get_or_create(&labels).set(value);
        }
        registry.register(name, help, family);
    };
    let locations = &s.status.locations;
    let label = |name: &dyn std::fmt::Display| vec![("location", name.to_string())];
    let flag = |b: bool| f64::from(u8::from(b));
    gauges(
        "info",
        "This node and its backend",
        vec![(
            vec![
                ("mesh", s.status.mesh.clone()),
                ("node", s.status.node.to_string()),
                ("location", s.status.location.to_string()),
                ("backend", s.status.backend.clone()),
                ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ],
            1.0,
        )],
    );
    gauges(
        "mesh_generation",
        "Generation of the mesh file in use",
        vec![(vec![], s.status.generation.0 as f64)],
    );
    gauges(
        "probe_addresses",
        "Addresses that this node holds and is probed at; 0: none",
        vec![(vec![], s.status.probe_addresses.len() as f64)],
    );
    gauges("ready", "The network was programmed", vec![(vec![], flag(s.ready))]);
    gauges("peers", "Peers of the control channel", vec![(vec![], s.peers as f64)]);
    gauges("peers_connected", "Peers that are connected", vec![(vec![], s.peers_connected as f64)]);
    gauges(
        "epoch",
        "Epoch in force",
        locations.iter().map(|l| (label(&l.name), l.epoch.0 as f64)).collect(),
    );
    let leaders = locations.iter().flat_map(|l| {
        l.leaders
            .iter()
            .map(|n| (vec![("location", l.name.to_string()), ("node", n.to_string())], 1.0))
    });
    gauges("leader", "1 for the nodes that lead their location", leaders.collect());
    let raft = locations.iter().filter_map(|l| {
        let node = l.raft_leader.as_ref()?;
        Some((vec![("location", l.name.to_string()), ("node", node.to_string())], 1.0))
    });
    gauges("raft_leader", "1 for the raft leader of a location", raft.collect());
    let quorum = locations.iter().filter_map(|l| Some((label(&l.name), flag(l.quorum?))));
    gauges("quorum", "The location has a quorum, as far as known", quorum.collect());
    gauges(
        "disk_stuck",
        "This node's disk confirms no writes of the location's Raft group",
        locations.iter().map(|l| (label(&l.name), flag(l.disk_stuck))).collect(),
    );
    gauges(
        "frozen",
        "No automatic failover",
        locations.iter().map(|l| (label(&l.name), flag(l.frozen.is_some()))).collect(),
    );
    gauges(
        "fallback",
        "The local ranking is in force",
        locations.iter().map(|l| (label(&l.name), flag(l.fallback))).collect(),
    );
    let candidates = || locations.iter().flat_map(|l| l.candidates.iter().map(move |c| (l, c)));
    let of = |l: &leaderd_core::status::LocationStatus,
              c: &leaderd_core::status::CandidateStatus| {
        vec![("location", l.name.to_string()), ("node", c.name.to_string())]
    };
    let verdicts = candidates().map(|(l, c)| {
        use leaderd_core::verdict::Verdict;
        let (verdict, cause) = match &c.verdict {
            Verdict::Unknown => ("unknown", ""),
            Verdict::Forwarding => ("forwarding", ""),
            Verdict::Suspected => ("suspected", ""),
            Verdict::Degraded { cause, .. } => ("degraded", cause.as_str()),
        };
        let mut labels = of(l, c);
        labels.extend([("verdict", verdict.to_owned()), ("cause", cause.to_owned())]);
        (labels, 1.0)
    });
    gauges("verdict", "1 for the verdict on a candidate", verdicts.collect());
    let rtt = candidates().filter_map(|(l, c)| Some((of(l, c), c.rtt_ms? / 1000.0)));
    gauges("rtt_seconds", "Smoothed round trip of probes", rtt.collect());
    gauges(
        "loss_ratio",
        "Share of probes lost lately",
        candidates().filter_map(|(l, c)| Some((of(l, c), f64::from(c.loss?)))).collect(),
    );
    let mtu = candidates().filter_map(|(l, c)| Some((of(l, c), f64::from(c.path_mtu?))));
    gauges("path_mtu_bytes", "Largest packet known to pass", mtu.collect());
    let hidden = locations.iter().flat_map(|l| {
        let through = |h: &leaderd_core::status::HiddenSource| {
            h.through.as_ref().map_or_else(String::new, ToString::to_string)
        };
        l.hidden_sources
            .iter()
            .map(move |h| (vec![("location", l.name.to_string()), ("node", through(h))], 1.0))
    });
    gauges(
        "source_rewritten",
        "1 where sources of probes do not survive the way through a candidate, or without a node that of the workload",
        hidden.collect(),
    );
    let unreached = locations.iter().flat_map(|l| {
        let labels =
            |node: &NodeName| vec![("location", l.name.to_string()), ("node", node.to_string())];
        l.unreached.iter().map(move |u| (labels(&u.node), 1.0))
    });
    gauges(
        "node_unreached",
        "1 for a node that is reached through no candidate of its location, though others are",
        unreached.collect(),
    );
    relays(&s.status, &mut gauges);
    for (name, help, count) in [
        ("services_asked", "Services of the mesh file that were asked through a candidate", 1),
        ("services_up", "Those of them that answer through it", 0),
    ] {
        let rows = candidates().filter_map(|(l, c)| {
            let (up, asked) = c.services?;
            Some((of(l, c), f64::from(if count == 0 { up } else { asked })))
        });
        gauges(name, help, rows.collect());
    }
    let blackouts = s.blackouts.iter().map(|(l, seconds)| (label(l), *seconds));
    gauges("blackout_last_seconds", "Measured blackout of the last failover", blackouts.collect());
    let failovers = Counters::default();
    for location in locations {
        let count = s.failovers.get(location.name.as_str()).copied().unwrap_or(0);
        failovers.get_or_create(&label(&location.name)).inc_by(count);
    }
    registry.register(
        "failovers",
        "Failovers since the start, and those that were remembered then",
        failovers,
    );
    for family in counted::COUNTERS {
        let rows = family.rows(&s.core, &s.shell);
        if let Some(value) = rows.get(&Labels::new()) {
            registry.register(family.name, family.help, ConstCounter::new(*value));
            continue;
        }
        let counters = Counters::default();
        for (labels, value) in rows {
            counters.get_or_create(&labels).inc_by(value);
        }
        registry.register(family.name, family.help, counters);
    }
    for measured in counted::GAUGES {
        // A measurement is absent until the first one.
        let Some(value) = s.shell.get(measured.key).copied().or(measured.at_first) else {
            continue;
        };
        registry.register(measured.name, measured.help, gauge(value as f64 / measured.divisor));
    }
    registry
}

/// Which relays carry with each other location, and what is known of this node's own tunnels. Flags are there from the start, with zero.
fn relays(status: &Status, mut gauges: impl FnMut(&str, &str, Vec<(Labels, f64)>)) {
    let pairs = || status.relay_pairs.iter();
    // Both ends of a pair tell of it.
    let between = |other: &LocationName| {
        vec![("from", status.location.to_string()), ("location", other.to_string())]
    };
    let carry = pairs().flat_map(|p| {
        let each = |near| p.far.iter().map(move |far| (near, far));
        let all: Vec<_> = p.near.iter().flat_map(each).collect();
        all.into_iter().map(move |(near, far)| {
            let mut labels = between(&p.location);
            labels.extend([("near", near.to_string()), ("far", far.to_string())]);
            (labels, 1.0)
        })
    });
    gauges(
        "relay_pair",
        "1 for the relays, here (near) and there (far), that carry the traffic with another location",
        carry.collect(),
    );
    type Flag = fn(&RelayPairStatus) -> bool;
    let flags: [(&str, &str, Flag); 3] = [
        ("detour", "Other relays than the two leaders carry the traffic with a location", |p| {
            p.detour
        }),
        ("detour_long", "A detour has lasted for more than 15 minutes", |p| p.long),
        ("cut_off", "Every tunnel to a location is known to be bad", |p| p.cut_off),
    ];
    let others = || status.locations.iter().filter(|l| l.name != status.location);
    for (name, help, flag) in flags {
        let rows = others().map(|l| {
            let is = pairs().any(|p| p.location == l.name && flag(p));
            (between(&l.name), f64::from(u8::from(is)))
        });
        gauges(name, help, rows.collect());
    }
    let own = pairs().flat_map(|p| {
        p.tunnels.iter().filter(|t| t.near == status.node).map(move |t| {
            let mut labels = between(&p.location);
            labels.extend([
                ("near", t.near.to_string()),
                ("far", t.far.to_string()),
                ("state", t.state.as_str().to_owned()),
            ]);
            (labels, 1.0)
        })
    });
    gauges(
        "tunnel_state",
        "1 for what is known of a tunnel of this node's: good, lossy, unknown or bad",
        own.collect(),
    );
}

fn gauge(value: f64) -> Gauge<f64, AtomicU64> {
    let gauge = Gauge::default();
    gauge.set(value);
    gauge
}

#[cfg(test)]
pub(super) mod tests {
    use leaderd_core::ids::Epoch;
    use leaderd_core::relay_pair::TunnelState;
    use leaderd_core::status::{HiddenSource, LocationStatus, TunnelStatus, UnreachedNode};
    use prometheus_client::encoding::text::encode;

    use super::*;

    pub(in crate::metrics) fn snapshot() -> Snapshot {
        let location = LocationStatus {
            name: "cloud".parse().unwrap(),
            lowest_index: None,
            leaders: vec!["cloud-1".parse().unwrap()],
            epoch: Epoch(7),
            since: None,
            cause: None,
            frozen: None,
            raft_leader: Some("cloud-2".parse().unwrap()),
            quorum: Some(true),
            disk_stuck: false,
            fallback: false,
            candidates: vec![],
            next: None,
            carried: None,
            hidden_sources: vec![HiddenSource {
                through: Some("cloud-1".parse().unwrap()),
                target: "cloud-2".parse().unwrap(),
                sent_from: [100, 127, 0, 1].into(),
                arrived_from: [10, 42, 4, 0].into(),
            }],
            unreached: vec![UnreachedNode {
                node: "cloud-2".parse().unwrap(),
                daemon_absent: false,
            }],
            notes: vec![],
        };
        let status = Status {
            mesh: "home".into(),
            node: "cloud-0".parse().unwrap(),
            location: "cloud".parse().unwrap(),
            generation: Default::default(),
            mesh_hash: String::new(),
            other_generations: Default::default(),
            backend: "wireguard-go".into(),
            probe_addresses: vec![],
            locations: vec![location],
            relay_pairs: vec![],
        };
        Snapshot {
            status,
            core: [("probes.rejected.bad-hmac".to_owned(), 3), ("ignored.new".to_owned(), 1)]
                .into(),
            shell: [("persist_latency_micros", 1500), ("network_parts_failing", 2)].into(),
            ready: true,
            peers_connected: 1,
            peers: 2,
            blackouts: [("cloud".to_owned(), 0.25)].into(),
            failovers: [("cloud".to_owned(), 1)].into(),
        }
    }

    #[test]
    fn a_scrape_tells_who_leads_and_what_was_counted() {
        let text = scrape(&snapshot());
        for line in [
            r#"leaderd_leader{location="cloud",node="cloud-1"} 1.0"#,
            r#"leaderd_epoch{location="cloud"} 7.0"#,
            r#"leaderd_source_rewritten{location="cloud",node="cloud-1"} 1.0"#,
            r#"leaderd_node_unreached{location="cloud",node="cloud-2"} 1.0"#,
            r#"leaderd_blackout_last_seconds{location="cloud"} 0.25"#,
            r#"leaderd_failovers_total{location="cloud"} 1"#,
            r#"leaderd_probe_requests_rejected_total{reason="bad-hmac"} 3"#,
            r#"leaderd_probe_requests_rejected_total{reason="replayed"} 0"#,
            r#"leaderd_probes_sent_total{class="full-size"} 0"#,
            r#"leaderd_frames_ignored_total{reason="new"} 1"#,
            r#"leaderd_frames_ignored_total{reason="stranger"} 0"#,
            "leaderd_store_write_errors_total 0",
            "leaderd_store_last_write_seconds 0.0015",
            "leaderd_network_parts_failing 2.0",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }

    fn scrape(snapshot: &Snapshot) -> String {
        let mut text = String::new();
        encode(&mut text, &registry(snapshot)).unwrap();
        text
    }

    #[test]
    fn a_scrape_tells_which_relays_carry_and_the_states_of_own_tunnels() {
        let mut snapshot = snapshot();
        let other = LocationStatus {
            name: "home".parse().unwrap(),
            hidden_sources: vec![],
            unreached: vec![],
            ..snapshot.status.locations[0].clone()
        };
        snapshot.status.locations.push(other);
        let before = scrape(&snapshot);
        for line in [
            r#"leaderd_detour{from="cloud",location="home"} 0.0"#,
            r#"leaderd_detour_long{from="cloud",location="home"} 0.0"#,
            r#"leaderd_cut_off{from="cloud",location="home"} 0.0"#,
            "leaderd_detours_total 0",
            r#"leaderd_frames_received_total{kind="tunnels"} 0"#,
            r#"leaderd_frames_sent_total{kind="detours"} 0"#,
            r#"leaderd_frames_ignored_total{reason="tunnels-of-no-candidate"} 0"#,
            r#"leaderd_frames_ignored_total{reason="detours-of-no-candidate"} 0"#,
        ] {
            assert!(before.contains(line), "{line} is not in\n{before}");
        }
        assert!(!before.contains(r#"{from="cloud",location="cloud"}"#), "its own location");
        let tunnel = |near: &str, far: &str, state| TunnelStatus {
            near: near.parse().unwrap(),
            far: far.parse().unwrap(),
            state,
            seen_by: None,
            since: None,
        };
        let pair = RelayPairStatus {
            location: "home".parse().unwrap(),
            near: vec!["cloud-0".parse().unwrap()],
            far: vec!["home-1".parse().unwrap()],
            detour: true,
            long: true,
            cut_off: true,
            since: Default::default(),
            why: None,
            tunnels: vec![
                tunnel("cloud-0", "home-0", TunnelState::Bad),
                tunnel("cloud-0", "home-1", TunnelState::Good),
                tunnel("cloud-1", "home-0", TunnelState::Bad),
            ],
        };
        snapshot.status.relay_pairs = vec![pair];
        snapshot.core.insert("detours".to_owned(), 4);
        let text = scrape(&snapshot);
        for line in [
            r#"leaderd_relay_pair{from="cloud",location="home",near="cloud-0",far="home-1"} 1.0"#,
            r#"leaderd_detour{from="cloud",location="home"} 1.0"#,
            r#"leaderd_detour_long{from="cloud",location="home"} 1.0"#,
            r#"leaderd_cut_off{from="cloud",location="home"} 1.0"#,
            r#"leaderd_tunnel_state{from="cloud",location="home",near="cloud-0",far="home-0",state="bad"} 1.0"#,
            r#"leaderd_tunnel_state{from="cloud",location="home",near="cloud-0",far="home-1",state="good"} 1.0"#,
            "leaderd_detours_total 4",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!(!text.contains(r#"near="cloud-1""#), "another node's tunnel:\n{text}");
    }
}
