//! One node that gets its inputs from the test: whom it believes, what it counts, and where an operator's command goes.

mod addresses;
mod authors;
mod change;
mod explain;
mod fallback;
mod handover;
mod hostile;
mod proofs;
mod relays;
mod trust;
mod votes;

use super::*;
use crate::admin::{AdminRequest, AdminResponse};
use crate::fault::{Fault, MoveReason};
use crate::group::tests::cluster::{mesh, name};
use crate::ids::{Epoch, Slot};
use crate::io::LogLevel;
use crate::state::Decision;
use crate::time::Duration;
use crate::time::WallTime;
use crate::verdict::{Report, SlotReport, Verdict};
use crate::wire::{Frame, Hello};

/// The status of a candidate of `cloud`, where all is well and slot 0 leads.
fn candidate(slot: u8) -> crate::status::CandidateStatus {
    crate::status::CandidateStatus {
        name: name(&format!("cloud-{slot}")),
        slot: Slot(slot),
        leading: slot == 0,
        verdict: Verdict::Forwarding,
        observers: (3, 3),
        rtt_ms: None,
        loss: None,
        path_mtu: None,
        services: None,
        drained: false,
        blocked_by: vec![],
    }
}

struct Bench {
    node: Node,
    now: Now,
    /// Holds all writes at once; the node hears of them when a test says so.
    disk: BTreeMap<LocationName, StoredGroup>,
}

impl Bench {
    /// `home-0` of a mesh with the locations `cloud` (two candidates and a member) and `home`.
    fn new() -> Self {
        Self::of("home-0", mesh(2, 1, 0))
    }

    /// The same with one candidate in `home`, the others plain members.
    fn with_members(me: &str) -> Self {
        let mut mesh = mesh(2, 1, 0);
        for node in mesh.edit().nodes.values_mut() {
            if node.location.as_str() == "home" && node.name != name("home-0") {
                node.slot = None;
            }
        }
        Self::of(me, mesh)
    }

    fn of(me: &str, mesh: Mesh) -> Self {
        Self::with_key(me, mesh, [7; 32])
    }

    fn with_key(me: &str, mesh: Mesh, key: [u8; 32]) -> Self {
        Self::made(me, mesh, key, 1, BTreeMap::new())
    }

    fn seeded(me: &str, mesh: Mesh, seed: u64) -> Self {
        Self::made(me, mesh, [7; 32], seed, BTreeMap::new())
    }

    fn with_disk(me: &str, mesh: Mesh, disk: BTreeMap<LocationName, StoredGroup>) -> Self {
        Self::made(me, mesh, [7; 32], 1, disk)
    }

    fn made(
        me: &str,
        mesh: Mesh,
        key: [u8; 32],
        seed: u64,
        disk: BTreeMap<LocationName, StoredGroup>,
    ) -> Self {
        let now = Now { mono: Instant(1_000_000), wall: WallTime(1_700_000_000_000_000) };
        let config = NodeConfig {
            mesh: Arc::new(mesh),
            me: name(me),
            keys: ProbeKeys::new(key),
            restored: disk.clone(),
            seed,
            resolved: BTreeMap::new(),
        };
        let mut bench = Self { node: Node::new(config, now).unwrap(), now, disk };
        bench.effects();
        bench.feed(Input::LanDevice(LanDevice::default()));
        bench
    }

    fn effects(&mut self) -> Vec<Effect> {
        let effects: Vec<Effect> = std::iter::from_fn(|| self.node.poll_effect()).collect();
        for effect in &effects {
            if let Effect::Persist { location, write, .. } = effect {
                let stored = self.disk.entry(location.clone()).or_default();
                stored.write(write);
                stored.check(location).expect("a start from this disk succeeds");
            }
        }
        effects
    }

    fn feed(&mut self, input: Input) -> Vec<Effect> {
        self.node.handle_input(self.now, input);
        self.effects()
    }

    fn frame(&mut self, from: &str, frame: Frame) -> Vec<Effect> {
        self.feed(Input::Frame { from: name(from), frame: Box::new(frame) })
    }

    fn later(&mut self, time: Duration) -> Vec<Effect> {
        self.now.mono = self.now.mono + time;
        self.feed(Input::Timeout)
    }

    /// The notes in the status of this node's own location.
    fn notes(&self) -> Vec<String> {
        let status = self.node.status(self.now);
        status.locations.into_iter().find(|l| l.name == status.location).unwrap().notes
    }

    fn counted(&self, what: &str) -> u64 {
        self.node.counters().get(what).copied().unwrap_or(0)
    }
}

/// A request of an operator on this node.
fn admin(id: u64, request: AdminRequest) -> Input {
    Input::Admin { id, user: Some("uid 0".to_owned()), request }
}

fn commanded_by(mesh: Mesh, nodes: &[&str]) -> Mesh {
    let nodes = nodes.iter().map(|n| name(n)).collect();
    mesh.with(|m| m.commands = crate::mesh::Commands::Of(nodes))
}

fn announce(epoch: u64, slot: u8) -> Frame {
    let decision = Decision {
        location: "cloud".parse().unwrap(),
        epoch: Epoch(epoch),
        leaders: vec![Slot(slot)],
        cause: Fault::NewFlow.into(),
        at: WallTime(0),
    };
    Frame::Announce { decision, proof: Default::default(), event: None }
}

fn hello(node: &str, raft_leader: Option<&str>) -> Frame {
    Frame::Hello(Hello {
        capabilities: crate::capability::Capabilities::OURS,
        node: name(node),
        generation: crate::ids::Generation(1),
        mesh_hash: [0; 8],
        decision: None,
        raft_leader: raft_leader.map(name),
        broken: None,
        reaches: vec![],
        digest: vec![],
        proof: Default::default(),
        remote: vec![],
    })
}

fn programs(effects: &[Effect]) -> usize {
    effects.iter().filter(|e| matches!(e, Effect::Program { .. })).count()
}

fn program(effects: Vec<Effect>) -> Network {
    let mut networks = effects.into_iter().filter_map(|e| match e {
        Effect::Program { network, .. } => Some(*network),
        _ => None,
    });
    networks.next().expect("a network is asked for")
}

#[test]
fn a_failover_copies_nothing_but_the_nexthops() {
    let mut mesh = mesh(2, 1, 0);
    let far = mesh.edit().nodes.get_mut(&name("cloud-0")).unwrap();
    far.prefixes = vec!["10.64.0.0/24".parse().unwrap(), "10.64.1.0/24".parse().unwrap()];
    let mut bench = Bench::of("home-0", mesh);
    let before = program(bench.frame("cloud-0", announce(1, 0)));
    let after = program(bench.frame("cloud-0", announce(2, 1)));
    assert_ne!(before.nexthops, after.nexthops);
    assert!(before.wireguard.values().all(|w| !w.peers.is_empty()) && !before.routes.is_empty());
    let same = [
        after.wireguard.is_same(&before.wireguard),
        after.vxlan.is_same(&before.vxlan),
        after.addresses.is_same(&before.addresses),
        after.fdb.is_same(&before.fdb),
        after.neighbours.is_same(&before.neighbours),
        after.routes.is_same(&before.routes),
        after.rules.is_same(&before.rules),
        after.sysctls.is_same(&before.sysctls),
    ];
    assert_eq!(same, [true; 8]);
}

#[test]
fn a_recomputed_network_shares_the_unchanged_parts_of_the_one_before() {
    let mut bench = Bench::new();
    let before = program(bench.frame("cloud-0", announce(1, 0)));
    bench.node.reprogram(true);
    let again = program(bench.effects());
    assert_eq!(before, again);
    assert!(again.routes.is_same(&before.routes) && again.wireguard.is_same(&before.wireguard));
    assert!(again.nexthops.is_same(&before.nexthops));
}

fn ignored_lines(effects: &[Effect]) -> usize {
    let is = |e: &&Effect| matches!(e, Effect::Log { message, .. } if message == "ignored");
    effects.iter().filter(is).count()
}

#[test]
fn a_decision_about_another_nodes_location_is_counted_logged_once_a_minute_and_programs_nothing() {
    let mut bench = Bench::new();
    let before = bench.node.desired().clone();
    let mut effects = Vec::new();
    for epoch in 1..=100 {
        effects.extend(bench.frame("home-1", announce(epoch, 1)));
    }
    assert_eq!(bench.counted("ignored.decision-of-another-location"), 100);
    assert_eq!((programs(&effects), ignored_lines(&effects)), (0, 1));
    assert_eq!(*bench.node.desired(), before);
    bench.later(Duration::from_secs(61));
    assert_eq!(ignored_lines(&bench.frame("home-1", announce(200, 1))), 1);
    // The location's own decision counts, whatever was made up about it before.
    assert!(programs(&bench.frame("cloud-1", announce(1, 1))) > 0);
}

#[test]
fn an_old_epoch_is_counted_and_changes_nothing() {
    let mut bench = Bench::new();
    assert!(programs(&bench.frame("cloud-0", announce(5, 1))) > 0);
    let after = bench.node.desired().clone();
    for (epoch, slot) in [(4, 0), (1, 0), (5, 0)] {
        assert_eq!(programs(&bench.frame("cloud-1", announce(epoch, slot))), 0, "epoch {epoch}");
    }
    assert_eq!(bench.counted("ignored.old-epoch"), 2);
    assert_eq!(*bench.node.desired(), after);
}

#[test]
fn frames_in_another_nodes_name_or_from_strangers_are_counted() {
    let mut bench = Bench::new();
    bench.frame("cloud-0", hello("cloud-1", None));
    bench.frame("nobody", hello("nobody", None));
    bench.frame("home-0", hello("home-0", None));
    let raft = Frame::Raft { location: "cloud".parse().unwrap(), message: vec![1, 2, 3] };
    bench.frame("cloud-0", raft);
    let relayed = Frame::Relayed { from: name("cloud-1"), frame: Box::new(announce(9, 1)) };
    bench.frame("cloud-0", relayed);
    for (what, count) in [
        ("ignored.hello-in-anothers-name", 1),
        ("ignored.stranger", 2),
        ("ignored.raft-of-another-group", 1),
        ("ignored.relayed-from-elsewhere", 1),
    ] {
        assert_eq!(bench.counted(what), count, "{what}: {:?}", bench.node.counters());
    }
}

/// What home-1 sees of the cloud's slots.
fn report(verdicts: &[Verdict]) -> Frame {
    let slot = |(n, verdict): (usize, &Verdict)| {
        SlotReport::new(Slot(n as u8), verdict.clone(), WallTime(0))
    };
    Frame::Report(Report {
        observer: name("home-1"),
        location: "cloud".parse().unwrap(),
        seq: 1,
        epoch: Epoch(0),
        abstains: false,
        full_rate: true,
        slots: verdicts.iter().enumerate().map(slot).collect(),
    })
}

fn relayed_to(effects: &[Effect]) -> Vec<&str> {
    let relayed = |frame: &Frame| matches!(frame, Frame::Relayed { .. });
    let to = effects.iter().filter_map(|e| match e {
        Effect::SendFrame { to, frame } if relayed(frame) => Some(to.as_str()),
        _ => None,
    });
    to.collect()
}

#[test]
fn a_report_is_passed_on_to_a_raft_leader_that_may_not_get_it_itself() {
    let down = Verdict::Degraded { cause: Fault::TunnelDown, direction: None };
    let well = Verdict::Forwarding;
    for (raft_leader, slot_1, expected) in [
        ("cloud-1", &well, vec![]),
        ("cloud-1", &down, vec!["cloud-1"]),
        ("cloud-1", &Verdict::Unknown, vec!["cloud-1"]),
        ("home-0", &well, vec!["home-0"]),
    ] {
        let mut bench = Bench::of("cloud-0", mesh(2, 0, 1));
        let id = |n: &str| u64::from(bench.node.mesh.nodes[&name(n)].index.0);
        let mut heartbeat = raft::eraftpb::Message::default();
        heartbeat.set_msg_type(raft::eraftpb::MessageType::MsgHeartbeat);
        (heartbeat.from, heartbeat.to, heartbeat.term) = (id(raft_leader), id("cloud-0"), 5);
        let message = protobuf::Message::write_to_bytes(&heartbeat).unwrap();
        let location = "cloud".parse().unwrap();
        bench.frame(raft_leader, Frame::Raft { location, message });
        let effects = bench.frame("home-1", report(&[well.clone(), slot_1.clone()]));
        assert_eq!(relayed_to(&effects), expected, "{raft_leader}, {slot_1:?}");
    }
}

#[test]
fn a_witness_hears_observers_through_the_candidates_of_its_location_only() {
    let mut bench = Bench::of("home-0", mesh(2, 0, 1));
    let relayed = |name: &str| Frame::Relayed {
        from: name.parse().unwrap(),
        frame: Box::new(report(&[Verdict::Forwarding, Verdict::Forwarding])),
    };
    bench.frame("home-2", relayed("home-1"));
    assert_eq!(bench.counted("ignored.relayed-from-elsewhere"), 1);
    let ignored = |bench: &Bench| {
        let counters = bench.node.counters();
        counters.iter().filter(|(k, _)| k.starts_with("ignored")).map(|(_, n)| n).sum::<u64>()
    };
    bench.frame("cloud-1", relayed("home-1"));
    assert_eq!(ignored(&bench), 1);
    bench.frame("cloud-1", relayed("home-2"));
    assert_eq!(bench.counted("ignored.report-in-anothers-name"), 1);
}

#[test]
fn a_command_for_another_location_goes_to_its_raft_leader_and_the_answer_comes_back() {
    let mut bench = Bench::of("home-0", commanded_by(mesh(2, 1, 0), &["home-0"]));
    let request = AdminRequest::Drain { node: name("cloud-0") };
    let sent = |effects: &[Effect]| {
        effects.iter().find_map(|e| match e {
            Effect::SendFrame { to, frame } => match &**frame {
                Frame::Forward { id, .. } => Some((to.clone(), *id)),
                _ => None,
            },
            _ => None,
        })
    };
    // No raft leader is known: the command is kept, and offered again.
    let effects = bench.feed(admin(77, request));
    assert_eq!(sent(&effects), None);
    for node in ["cloud-0", "cloud-1"] {
        bench.feed(Input::PeerUp { node: name(node), rtt_micros: 20_000 });
        bench.frame(node, hello(node, Some("cloud-1")));
    }
    let (to, id) = sent(&bench.later(Duration::from_millis(300))).expect("offered again");
    assert_eq!(to, name("cloud-1"));
    let response = AdminResponse::Refused { message: "no".into() };
    // Ids begin elsewhere after each start: a late answer to a command from before a restart counts for nothing.
    let other = Frame::Forwarded { id, response: response.clone() };
    assert!(bench.frame("cloud-0", other).iter().all(|e| !matches!(e, Effect::AdminReply { .. })));
    let effects = bench.frame("cloud-1", Frame::Forwarded { id, response: response.clone() });
    assert!(effects.contains(&Effect::AdminReply { id: 77, response }), "{effects:?}");
}

#[test]
fn a_command_without_a_quorum_gets_an_answer_that_says_why() {
    let mut bench = Bench::of("home-0", commanded_by(mesh(2, 1, 0), &["home-0"]));
    bench.feed(admin(5, AdminRequest::Drain { node: name("cloud-0") }));
    let effects = bench.later(Duration::from_secs(13));
    let told = effects.iter().any(|e| {
        matches!(e, Effect::AdminReply { id: 5, response: AdminResponse::Refused { message } }
        if message.contains("no answer from a raft leader of cloud"))
    });
    assert!(told, "{effects:?}");
}

#[test]
fn without_a_quorum_the_node_follows_its_own_ranking_and_returns_to_a_new_decision() {
    let mut bench = Bench::of("member-0", mesh(3, 1, 0));
    bench.frame("cloud-0", announce(5, 0));
    let own = |bench: &Bench| bench.node.fallback.is_active(&"cloud".parse().unwrap());
    // The location shows a quorum: the answer says something else.
    for _ in 0..30 {
        bench.frame("cloud-0", hello("cloud-0", Some("cloud-1")));
        bench.later(Duration::from_millis(500));
    }
    assert!(!own(&bench));
    let mut effects = Vec::new();
    for _ in 0..30 {
        effects.extend(bench.later(Duration::from_millis(500)));
    }
    assert!(own(&bench));
    let loud = |e: &&Effect| matches!(e, Effect::Log { level: LogLevel::Error, message, .. } if message.contains("no quorum"));
    assert!(effects.iter().filter(loud).count() >= 1, "it is said loudly");
    assert!(programs(&bench.frame("cloud-1", announce(6, 1))) > 0);
    assert!(!own(&bench), "a new decision ends it");
}

#[test]
fn a_plain_member_shows_the_decisions_that_its_leader_passes_on() {
    let mut bench = Bench::with_members("home-1");
    let tell = |from: &str, epoch, slot| {
        let Frame::Hello(mut hello) = hello(from, None) else { unreachable!() };
        let Frame::Announce { decision, .. } = announce(epoch, slot) else { unreachable!() };
        hello.remote = vec![decision];
        Frame::Hello(hello)
    };
    let shown = |bench: &Bench| {
        let status = bench.node.status(bench.now);
        let cloud = status.locations.into_iter().find(|l| l.name.as_str() == "cloud").unwrap();
        let leading = cloud.candidates.iter().filter(|c| c.leading).count();
        (cloud.leaders.first().map(NodeName::to_string), cloud.epoch.0, leading)
    };
    assert_eq!(shown(&bench), (None, 0, 0));
    bench.frame("cloud-0", tell("cloud-0", 9, 0));
    assert_eq!(shown(&bench), (None, 0, 0), "only its own location is heard");
    let before = bench.node.desired().clone();
    bench.frame("home-0", tell("home-0", 5, 1));
    assert_eq!(shown(&bench), (Some("cloud-1".into()), 5, 1));
    bench.frame("home-0", tell("home-0", 4, 0));
    assert_eq!(shown(&bench), (Some("cloud-1".into()), 5, 1), "an older one changes nothing");
    assert_eq!(*bench.node.desired(), before, "it is for show only");
}

#[test]
fn a_leader_passes_decisions_of_other_locations_to_its_members() {
    let mut bench = Bench::with_members("home-0");
    bench.frame("cloud-0", announce(5, 1));
    let home = Decision {
        location: "home".parse().unwrap(),
        epoch: Epoch(1),
        leaders: vec![Slot(0)],
        cause: MoveReason::Initial,
        at: WallTime(0),
    };
    bench.frame(
        "home-1",
        Frame::Announce { decision: home, proof: Default::default(), event: None },
    );
    for peer in ["home-1", "cloud-0"] {
        bench.feed(Input::PeerUp { node: name(peer), rtt_micros: 1000 });
    }
    let effects = bench.later(Duration::from_secs(2));
    let told = |peer: &str| {
        effects.iter().find_map(|e| match e {
            Effect::SendFrame { to, frame } if *to == name(peer) => match &**frame {
                Frame::Hello(h) => Some(h.remote.iter().map(|d| d.epoch.0).collect::<Vec<_>>()),
                _ => None,
            },
            _ => None,
        })
    };
    assert_eq!(told("home-1"), Some(vec![5]));
    assert_eq!(told("cloud-0"), Some(vec![]), "candidates hear of it from the location itself");
}

#[test]
fn nodes_of_other_locations_take_turns_for_hellos_and_nodes_of_the_own_location_always_get_one() {
    let mut bench = Bench::new();
    // The mesh file has few nodes; any name can be connected.
    let far: Vec<NodeName> = (0..150).map(|n| name(&format!("far-{n}"))).collect();
    for node in far.iter().cloned().chain([name("home-1")]) {
        bench.node.peers.connect(node);
    }
    let mut heard = std::collections::BTreeMap::new();
    for _ in 0..3 {
        let effects = bench.later(Duration::from_secs(1));
        let to: Vec<NodeName> = effects
            .into_iter()
            .filter_map(|e| match e {
                Effect::SendFrame { to, frame } if matches!(*frame, Frame::Hello(_)) => Some(to),
                _ => None,
            })
            .collect();
        assert!(to.contains(&name("home-1")) && to.len() == 65, "{}", to.len());
        to.into_iter().for_each(|n| *heard.entry(n).or_insert(0) += 1);
    }
    assert!(far.iter().all(|n| heard.contains_key(n)), "{heard:?}");
}

#[test]
fn the_raft_leader_that_a_location_named_is_shown_while_the_location_is_heard() {
    let mut bench = Bench::new();
    let shown = |bench: &Bench| {
        let status = bench.node.status(bench.now);
        let cloud = status.locations.into_iter().find(|l| l.name.as_str() == "cloud").unwrap();
        cloud.raft_leader
    };
    bench.frame("cloud-0", hello("cloud-0", Some("cloud-1")));
    assert_eq!(shown(&bench), Some(name("cloud-1")));
    bench.later(Duration::from_secs(60));
    assert_eq!(shown(&bench), None);
    bench.frame("cloud-0", hello("cloud-0", Some("cloud-1")));
    assert_eq!(shown(&bench), Some(name("cloud-1")));
}

#[test]
fn notes_about_the_host_are_shown_until_they_are_withdrawn() {
    let mut bench = Bench::new();
    let before = bench.notes();
    let note = "IPv6 cannot be programmed on this host".to_owned();
    let say =
        |part: &str, notes: &[String]| Input::HostNotes { part: part.into(), notes: notes.into() };
    bench.feed(say("network", std::slice::from_ref(&note)));
    bench.feed(say("host", &[]));
    assert_eq!(bench.notes(), [before.clone(), vec![note]].concat());
    bench.feed(say("network", &[]));
    assert_eq!(bench.notes(), before);
}
