//! The real kernel and real userspace WireGuard. Every test runs itself again under `unshare`, in network, mount and user namespaces
//! of its own.
//!
//! The tests use the WireGuard of this machine, or the one that `LEADERD_WIREGUARD` names. `leaderd/tests/userspace.rs` includes them
//! as a module, where they use leaderd's own.

#[path = "kernel/lookup.rs"]
mod lookup;
#[path = "kernel/network.rs"]
mod network;
#[path = "kernel/repair.rs"]
mod repair;
#[path = "kernel/transit.rs"]
mod transit;
#[path = "kernel/uplink.rs"]
mod uplink;

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use futures_util::StreamExt as _;
use ipnet::IpNet;
use wgctl::net::{Kernel, Reconciler, Scope, watch};
use wgctl::wireguard::{BACKEND_VARIABLE, Backend, PrivateKey, Program};
use wgctl_plan::*;

use network::two_planes;

const INSIDE: &str = "WGCTL_TEST_INSIDE";
/// leaderd, whose `userspace` does WireGuard: set where this file is part of leaderd's tests.
const LEADERD: Option<&str> = option_env!("CARGO_BIN_EXE_leaderd");

/// Runs `test` inside namespaces; missing tools are a failure. No test's name may contain another's.
pub fn isolated<F: Future<Output = ()>>(name: &str, test: impl FnOnce() -> F) {
    if std::env::var_os(INSIDE).is_some() {
        sh("mount -t tmpfs none /run && mkdir -p /run/wireguard /var/run && ip link set lo up");
        sh("mountpoint -q /var/run || [ -L /var/run ] || mount --bind /run /var/run");
        sh(
            "ip link add eth9 type veth peer name eth8 && ip addr add 192.0.2.1/24 dev eth9 && ip link set eth9 up && ip link set eth8 up",
        );
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
        return;
    }
    let mut command = Command::new("unshare");
    command
        .args(["-Urnm", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .arg(std::env::current_exe().unwrap())
        .args([name, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1");
    if let Some(leaderd) = LEADERD {
        let directory = Path::new(leaderd).parent().unwrap().display();
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{directory}:{path}")).env(BACKEND_VARIABLE, "leaderd");
    }
    let status = command.status().expect("unshare (util-linux) is needed");
    assert!(status.success(), "{name} failed inside its namespaces");
}

pub fn run(command: &str) -> Output {
    Command::new("sh").args(["-c", command]).output().unwrap()
}

#[track_caller]
pub fn sh(command: &str) -> String {
    let out = run(command);
    assert!(out.status.success(), "{command}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// The output of `ip monitor` about nexthops and routes. Foreign nexthops 1 and 2 mark its begin and end.
struct Monitor {
    process: std::process::Child,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Monitor {
    fn start() -> Self {
        let mut process = Command::new("ip")
            .args(["monitor", "nexthop", "route"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let (tell, lines) = std::sync::mpsc::channel();
        let output = BufReader::new(process.stdout.take().unwrap());
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).try_for_each(|l| tell.send(l))
        });
        let mut before = 0;
        while !lines.try_iter().any(|line| line.starts_with("id 1 ")) {
            before += 1;
            assert!(before < 100, "ip monitor prints nothing");
            sh("ip nexthop replace id 1 blackhole");
            std::thread::sleep(Duration::from_millis(50));
        }
        Self { process, lines }
    }

    fn stop(mut self) -> Vec<String> {
        sh("ip nexthop add id 2 blackhole");
        let seen = self.lines.iter().take_while(|line| !line.starts_with("id 2 ")).collect();
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        seen
    }
}

fn key() -> PrivateKey {
    PrivateKey::from_bytes([7; 32])
}

fn id(n: u32) -> NexthopId {
    NexthopId(NEXTHOP_ID_BASE + n)
}

fn route(prefix: &str) -> RouteKey {
    RouteKey { table: 254, prefix: prefix.parse().unwrap(), metric: 50 }
}

fn dev(name: &str) -> InterfaceName {
    name.parse().unwrap()
}

async fn programmed(desired: &Network) -> Reconciler {
    let kernel = Kernel::open().unwrap();
    eprintln!("WireGuard backend: {}", kernel.backend());
    if let Ok(wanted) = std::env::var(BACKEND_VARIABLE) {
        assert_eq!(kernel.backend().to_string(), wanted, "${BACKEND_VARIABLE} asks for another");
    }
    let mut reconciler = Reconciler::new(kernel, key()).yielding_for(Duration::ZERO);
    reconciler.program(desired.clone()).await.unwrap();
    reconciler
}

#[track_caller]
fn assert_same(observed: &Network, desired: &Network) {
    assert_eq!(observed, desired, "differs by {:#?}", diff(desired, observed));
}

#[test]
fn a_network_is_observed_as_it_was_programmed() {
    isolated("a_network_is_observed_as_it_was_programmed", || async {
        let desired = two_planes();
        let mut reconciler = programmed(&desired).await;
        assert_same(&reconciler.kernel().observe(&Scope::of(&desired)).await.unwrap(), &desired);
        assert!(reconciler.reconcile().await.unwrap().is_empty());
        let text = serde_json::to_string(&desired).unwrap();
        assert_eq!(serde_json::from_str::<Network>(&text).unwrap(), desired);
        // Another process that starts anew finds it in place, too, and interrupts nothing.
        let mut other =
            Reconciler::new(Kernel::open().unwrap(), key()).yielding_for(Duration::ZERO);
        assert!(other.program(desired).await.unwrap().is_empty());
    });
}

#[test]
fn rules_select_the_packets_and_routes_set_the_source() {
    isolated("rules_select_the_packets_and_routes_set_the_source", || async {
        let mut desired = two_planes();
        let mut reconciler = programmed(&desired).await;
        // The outer packets of our VXLAN go to the same address as what comes in on a plane for it.
        assert!(sh("ip route get 192.0.2.2").contains("dev eth9"));
        let in_a_plane = |to: &str| sh(&format!("ip route get {to} from 10.42.1.9 iif wgl0"));
        assert!(in_a_plane("192.0.2.2").contains("via 100.127.240.6 dev lvx0"));
        assert!(sh("ip route get 192.0.2.2 from 10.42.1.9 iif wgl1").contains("dev eth9"));
        let to = || sh("ip route get 10.47.1.1");
        assert!(to().contains("dev wgl0") && to().contains("src 192.0.2.1"), "{}", to());
        // A probe that is bound to a plane takes that one, also where the group has another.
        for (bound, plane) in [("", "wgl0"), ("oif wgl0", "wgl0"), ("oif wgl1", "wgl1")] {
            let way = sh(&format!("ip -6 route get fd42:0:0:7::1 {bound}"));
            assert!(way.contains(&format!("dev {plane} ")), "{bound}: {way}");
        }
        // Of what names an address that is gone the kernel drops the routes in `main` alone. It is noticed, and mended once the
        // address is back.
        let source = Some("192.0.2.1".parse().unwrap());
        desired.routes.insert(route("10.48.0.0/16"), RouteVia::Nexthop { id: id(100), source });
        reconciler.program(desired.clone()).await.unwrap();
        let mut drifts = Box::pin(watch().await.unwrap());
        sh("ip addr del 192.0.2.1/24 dev eth9");
        assert!(sh("ip route get 10.47.1.1").contains("dev wgl0"));
        assert_eq!(sh("ip route show 10.48.0.0/16"), "");
        assert!(reconciler.reconcile().await.is_err());
        sh("ip addr add 192.0.2.1/24 dev eth9");
        assert!(drifts.next().await.unwrap().addresses);
        let mended: Vec<String> =
            reconciler.reconcile().await.unwrap().iter().map(ToString::to_string).collect();
        assert!(
            matches!(&mended[..], [one] if one.contains("add route 10.48.0.0/16")),
            "{mended:?}"
        );
        // Without a source it is another route, replaced in place.
        let key = RouteKey { table: 760_007, ..route("10.47.0.0/16") };
        desired.routes.insert(key, RouteVia::Nexthop { id: id(100), source: None });
        assert_eq!(reconciler.program(desired.clone()).await.unwrap().len(), 1);
        assert!(!to().contains("src 192.0.2.1"), "{}", to());
        assert_same(&reconciler.kernel().observe(&Scope::of(&desired)).await.unwrap(), &desired);
    });
}

#[test]
fn a_failover_is_one_message_and_routes_follow() {
    isolated("a_failover_is_one_message_and_routes_follow", || async {
        let mut desired = two_planes();
        let mut reconciler = programmed(&desired).await;
        assert!(sh("ip route get 10.42.1.1").contains("dev wgl0"));
        desired.nexthops.insert(id(100), Nexthop::Group { members: BTreeSet::from([id(1)]) });
        let monitor = Monitor::start();
        assert_eq!(reconciler.program(desired.clone()).await.unwrap().len(), 1);
        assert!(sh("ip route get 10.42.1.1").contains("dev wgl1"));
        let ours: Vec<String> =
            monitor.stop().into_iter().filter(|line| line.contains("proto 76")).collect();
        assert_eq!(ours.len(), 1, "{ours:?}");
        assert!(!ours[0].contains("Deleted"), "{ours:?}");
        assert_same(&reconciler.kernel().observe(&Scope::of(&desired)).await.unwrap(), &desired);
    });
}

#[test]
fn foreign_objects_are_not_touched_and_cleanup_leaves_nothing_of_ours() {
    isolated("foreign_objects_are_not_touched_and_cleanup_leaves_nothing_of_ours", || async {
        // With the old mode routes show their nexthop's content too, and a sysctl is not put back.
        sh("sysctl -qw net.ipv4.nexthop_compat_mode=0");
        sh("ip nexthop add id 1 via 192.0.2.2 dev eth9 && ip route add 10.50.0.0/16 nhid 1");
        sh(
            "ip route add 10.42.7.0/24 via 192.0.2.2 && ip rule add from 10.9.9.9 table 100 priority 5",
        );
        sh(
            "ip link add vxother type vxlan id 9 dstport 4789 local 192.0.2.1 && ip link set vxother up",
        );
        sh("bridge fdb append 02:00:00:00:00:77 dev vxother dst 192.0.2.7");
        let look = "ip nexthop; ip route; ip -6 route | grep -v fe80; ip rule; ip -br link | sed 's/@.*//;s/ .*//' | sort; \
                    bridge fdb show dev vxother; nft list tables; ip addr show dev eth9 | grep inet";
        let before = sh(look);
        let reconciler = programmed(&two_planes()).await;
        assert_ne!(sh(look), before);
        let removed = reconciler.kernel().cleanup().await.unwrap();
        assert!(!removed.is_empty());
        assert_eq!(sh(look), before);
        assert!(reconciler.kernel().cleanup().await.unwrap().is_empty());
        // Made by userspace WireGuard, and whoever cleans up would use the kernel's; or its process is gone.
        sh("ip tuntap add wgl7 mode tun && ip link set wgl7 alias leaderd");
        let removed = reconciler.kernel().cleanup().await.unwrap();
        assert_eq!(removed, [Change::DeleteLink { name: dev("wgl7") }]);
        assert!(!sh("ip -o link show").contains("wgl7"));
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(sh("pgrep -f '(wireguard-go|userspace) wg[l]' || true"), "");
        assert_eq!(sh("ls /var/run/wireguard"), "");
    });
}

#[test]
fn ten_thousand_prefixes_fit_one_peer_and_ten_thousand_routes_one_group() {
    isolated("ten_thousand_prefixes_fit_one_peer_and_ten_thousand_routes_one_group", || async {
        let mut desired = two_planes();
        for i in 0..10_000u32 {
            let prefix: IpNet = format!("10.{}.{}.0/24", 64 + i / 256, i % 256).parse().unwrap();
            for w in desired.wireguard.values_mut() {
                w.peers.values_mut().for_each(|p| p.allowed_ips.extend([prefix]));
            }
            desired.routes.insert(
                RouteKey { table: 254, prefix, metric: 50 },
                RouteVia::Nexthop { id: id(100), source: None },
            );
        }
        let mut reconciler = programmed(&desired).await;
        assert_same(&reconciler.kernel().observe(&Scope::of(&desired)).await.unwrap(), &desired);
        // One prefix more, and one less: either way all others are there in the end.
        let more: IpNet = "10.200.0.0/16".parse().unwrap();
        for with in [true, false] {
            let interface = desired.wireguard.get_mut(&dev("wgl0")).unwrap();
            let peer = interface.peers.values_mut().next().unwrap();
            let _ =
                if with { peer.allowed_ips.insert(more) } else { peer.allowed_ips.remove(&more) };
            assert_eq!(reconciler.program(desired.clone()).await.unwrap().len(), 1);
            assert_same(
                &reconciler.kernel().observe(&Scope::of(&desired)).await.unwrap(),
                &desired,
            );
        }
        desired.nexthops.insert(id(100), Nexthop::Group { members: BTreeSet::from([id(1)]) });
        let start = std::time::Instant::now();
        assert_eq!(reconciler.program(desired).await.unwrap().len(), 1);
        eprintln!("failover of 10,000 routes programmed in {:?}", start.elapsed());
        assert!(sh("ip route get 10.65.3.1").contains("dev wgl1"));
    });
}

#[test]
fn two_nodes_talk_and_the_counters_show_it() {
    isolated("two_nodes_talk_and_the_counters_show_it", || async {
        // Both ends of a tunnel on one node: two planes whose peers are each other over the loopback.
        let mut desired = two_planes();
        let secret = PrivateKey::from_bytes([9; 32]);
        sh(match Kernel::open().unwrap().backend() {
            Backend::Kernel => "ip link add wgx type wireguard",
            Backend::Userspace(Program::WireguardGo) => "wireguard-go wgx 2>/dev/null",
            Backend::Userspace(Program::Leaderd) => {
                "leaderd userspace wgx >/dev/null 2>&1 &
                 until [ -S /run/wireguard/wgx.sock ]; do sleep 0.01; done"
            }
        });
        sh("ip addr add 100.127.99.1/32 dev wgx && ip link set wgx up");
        std::fs::write("/run/x.key", "CQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk=").unwrap();
        let text =
            sh("wg set wgx private-key /run/x.key listen-port 51999 && wg show wgx public-key");
        assert!(!text.is_empty());
        let w = desired.wireguard.get_mut(&dev("wgl0")).unwrap();
        w.peers.insert(
            secret.public(),
            WgPeer {
                endpoint: Some("127.0.0.1:51999".parse().unwrap()),
                allowed_ips: ["100.127.99.0/24".parse().unwrap()].into(),
                persistent_keepalive: 1,
            },
        );
        let reconciler = programmed(&desired).await;
        sh(
            "wg set wgx peer $(wg show wgl0 public-key) allowed-ips 100.127.0.5/32 endpoint 127.0.0.1:51900",
        );
        let peer = (dev("wgl0"), secret.public());
        for _ in 0..100 {
            if reconciler.wireguard_stats().await[&peer].last_handshake.is_some() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let stats = reconciler.wireguard_stats().await[&peer];
        assert!(
            stats.last_handshake.is_some() && stats.tx_bytes > 0 && stats.rx_bytes > 0,
            "{stats:?}"
        );
        // An unrelated change must not cost the session: the peer is not sent again.
        let mut reconciler = reconciler;
        desired.routes.remove(&route("10.42.2.0/24"));
        reconciler.program(desired).await.unwrap();
        assert_eq!(reconciler.wireguard_stats().await[&peer].last_handshake, stats.last_handshake);
    });
}
