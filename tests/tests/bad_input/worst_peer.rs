//! A node that was broken into: its own keys, its own connections, and the worst that it may send.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use leaderd::control::Control;
use leaderd::counters::Counters;
use leaderd::secrets::Keys;
use leaderd_core::ids::NodeName;
use leaderd_core::io::{Effect, Input};
use leaderd_core::mesh::Mesh;
use leaderd_core::node::{Node, NodeConfig};
use leaderd_core::probe::keys::ProbeKeys;
use leaderd_core::state::Decision;
use leaderd_core::time::{Now, WallTime};
use leaderd_core::wire::Frame;
use tests::worst_peer::WorstPeer;
use tokio::sync::mpsc;

use super::attacks::story;
use super::lab::{Daemon, Lab, wait_for};

/// How long it sends in `make test`. `WORST_PEER_SECONDS` is for the nightly tests.
const SECONDS: u64 = 30;
/// What a daemon may hold, in KiB: what floods of strangers leave it with, and its inbox.
const MOST: u64 = 96 * 1024;
/// From a third of the time on it may grow by so much, in KiB: an allocator's whims.
const GROWTH: u64 = 8 * 1024;

/// Connects with all peers of a node and sends them all that it may, as fast as they take it, until told to end. Says how many
/// frames those were.
pub fn run(dir: &str, node: &str, over: impl FnOnce() -> Arc<AtomicBool>) {
    let text = std::fs::read_to_string(format!("{dir}/mesh.toml")).expect("the mesh file");
    let mesh = Arc::new(leaderd_core::mesh::parse(&text).expect("a good mesh file"));
    let me: NodeName = node.parse().expect("a name");
    let keys =
        Keys::load(Path::new(&format!("{dir}/{node}/keys")), &mesh.nodes[&me]).expect("keys");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let over = over();
    println!("{}", runtime.expect("a runtime").block_on(lie(mesh, me, keys, over)));
}

async fn lie(mesh: Arc<Mesh>, me: NodeName, keys: Keys, over: Arc<AtomicBool>) -> u64 {
    let (inputs, mut news) = mpsc::channel::<Input>(64);
    let counters = Counters::default();
    let mut control =
        Control::start(mesh.control_port, &keys, inputs, counters.clone()).expect("the port");
    let config = NodeConfig {
        mesh: mesh.clone(),
        me: me.clone(),
        keys: ProbeKeys::new(*keys.wireguard.expose()),
        restored: Default::default(),
        seed: 1,
        resolved: Default::default(),
    };
    // Only to know whom it has connections with.
    let mut node = Node::new(config, Now::default()).expect("a node of the mesh");
    while let Some(effect) = node.poll_effect() {
        if let Effect::SetPeers { peers } = effect {
            control.set_peers(&peers);
        }
    }
    let mut worst = WorstPeer::new(me.clone(), mesh.nodes[&me].location.clone());
    let (mut known, mut sent) = (None::<Decision>, 0u64);
    while !over.load(Ordering::Relaxed) {
        // What the others say is read, as an honest daemon would: they should not notice that way.
        let pause = tokio::time::sleep(Duration::from_millis(5));
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => break,
                Some(_) = news.recv() => {}
                Input::Frame { frame, .. } = control.next_frame() => if let Frame::Hello(hello) = *frame {
                    known = hello.decision.filter(|d| d.location == worst.location).or(known);
                },
                else => break,
            }
        }
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let wall = WallTime(since.map_or(0, |d| d.as_micros() as u64));
        for frame in worst.frames(&known, wall) {
            for peer in control.connected() {
                control.send(&peer, &frame);
                sent += 1;
            }
        }
    }
    sent
}

fn held(lab: &Lab, daemon: &Daemon) -> u64 {
    let rss = daemon.proc_line(lab, "status", "VmRSS:");
    rss.trim_end_matches(" kB").trim().parse().expect("a number")
}

/// The location's plain member lies to both candidates of it, which hear it over the LAN.
pub fn a_member_that_sends_the_worst() {
    let seconds =
        std::env::var("WORST_PEER_SECONDS").ok().map(|s| s.parse().expect("WORST_PEER_SECONDS"));
    let seconds: u64 = seconds.unwrap_or(SECONDS);
    let lab = Lab::up();
    let mut daemons = lab.daemons();
    let at = daemons.iter().position(|d| d.node == "cloud-2").expect("a daemon");
    daemons.remove(at).end(&lab, "TERM");
    let (leader, epoch) = lab.leader("home-0", "cloud").expect("a leader");
    let worst = lab.inside("cloud-2", false, "worst-peer", &[&lab.dir, "cloud-2"]);
    let nonsense = |node: &str| lab.metric(node, r#"leaderd_frames_received_total{kind="report"}"#);
    for node in ["cloud-0", "cloud-1"] {
        wait_for(
            &format!("{node} hears the worst peer"),
            || story(&daemons),
            || nonsense(node) > 100.0,
        );
    }
    let began = Instant::now();
    let (mut early, mut late) = (vec![0; daemons.len()], vec![0; daemons.len()]);
    while began.elapsed() < Duration::from_secs(seconds) {
        let first = began.elapsed() < Duration::from_secs(seconds / 3);
        for (n, daemon) in daemons.iter().enumerate() {
            let most = if first { &mut early[n] } else { &mut late[n] };
            *most = held(&lab, daemon).max(*most);
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    for (n, daemon) in daemons.iter().enumerate() {
        println!("{} held {} KiB at first, {} KiB later", daemon.node, early[n], late[n]);
        assert!(late[n] <= early[n] + GROWTH && late[n] <= MOST, "{}", daemon.tail());
    }
    // A failover while it goes on: cloud has two voters of three left. Which of two nodes is sick must be plain, so the
    // leader's tunnels go.
    lab.fault(&leader, "wireguard-down");
    let moved = || lab.leader("home-0", "cloud").is_some_and(|(l, e)| l != leader && e > epoch);
    wait_for("another one leads", || story(&daemons), moved);
    let sent: u64 = worst.end().trim().parse().expect("a number");
    assert!(sent > 1000, "only {sent} frames");
    for daemon in &mut daemons {
        assert!(daemon.alive(), "{}", daemon.tail());
        assert!(daemon.count("ignored") < 100, "{}", daemon.tail());
    }
}
