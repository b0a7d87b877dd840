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

/// How long a daemon's memory must not grow, and how many frames it must have taken meanwhile. `WORST_PEER_SECONDS`, for the nightly
/// tests, makes it longer.
const CALM: Duration = Duration::from_secs(15);
const CALM_FRAMES: f64 = 1000.0;
/// It may take this long to get there: its queues fill up first, on a slow machine slowly. A leak never ends.
const WITHIN: Duration = Duration::from_secs(180);
/// What a daemon may hold, in KiB: what floods of strangers leave it with, and its inbox.
const MOST: u64 = 96 * 1024;
/// It is calm if it grows by no more than this, in KiB: an allocator's whims.
const GROWTH: u64 = 1024;

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
    let seconds = std::env::var("WORST_PEER_SECONDS").ok();
    let seconds = seconds.map(|s| Duration::from_secs(s.parse().expect("WORST_PEER_SECONDS")));
    let calm = seconds.unwrap_or(CALM);
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
    let frames = |daemon: &Daemon| {
        let kinds = ["report", "relayed", "addresses"];
        let received = |k| {
            lab.metric(&daemon.node, &format!(r#"leaderd_frames_received_total{{kind="{k}"}}"#))
        };
        kinds.into_iter().map(received).sum::<f64>()
    };
    // Of each daemon: since when it has held about as much, and with how many frames taken.
    let mut still: Vec<(Instant, f64, u64)> = daemons.iter().map(|_| (began, 0.0, 0)).collect();
    loop {
        for (daemon, (since, taken, most)) in daemons.iter().zip(&mut still) {
            let now = held(&lab, daemon);
            assert!(now <= MOST, "{} holds {now} KiB\n{}", daemon.node, daemon.tail());
            if now > *most + GROWTH {
                (*since, *taken, *most) = (Instant::now(), frames(daemon), now);
            }
        }
        let is_calm = |(daemon, (since, taken, _)): (&Daemon, &(Instant, f64, u64))| {
            // The daemon elsewhere hears nothing of the worst peer.
            let heard = daemon.node == "home-0" || frames(daemon) >= *taken + CALM_FRAMES;
            since.elapsed() >= calm && heard
        };
        if daemons.iter().zip(&still).all(is_calm) {
            break;
        }
        assert!(
            began.elapsed() < WITHIN + calm,
            "memory grows without an end: {still:?}\n{}",
            story(&daemons)
        );
        std::thread::sleep(Duration::from_millis(500));
    }
    for (daemon, (since, _, most)) in daemons.iter().zip(&still) {
        let after = since.duration_since(began);
        println!("{} holds {most} KiB since {after:?}", daemon.node);
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
