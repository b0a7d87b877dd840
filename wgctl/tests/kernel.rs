//! The real kernel and real userspace WireGuard, each test in network, mount and user namespaces of its own: every test
//! runs itself again under `unshare`.
//!
//! On whichever WireGuard this machine has, or the one that `LEADERD_WIREGUARD` names. `leaderd/tests/userspace.rs` has these
//! tests as a module, and there they run on leaderd's own.

#[path = "kernel/transit.rs"]
mod transit;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use futures_util::StreamExt as _;
use ipnet::IpNet;
use wgctl::net::{Kernel, Reconciler, Scope, watch};
use wgctl::wireguard::{BACKEND_VARIABLE, Backend, PrivateKey, Program};
use wgctl_plan::*;

const INSIDE: &str = "WGCTL_TEST_INSIDE";
/// The program whose `userspace` is to do WireGuard: set where this file is part of leaderd's tests.
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

/// What `ip monitor` tells of nexthops and routes. Nexthops of nobody mark where it begins and ends.
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
            assert!(before < 100, "ip monitor tells nothing");
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

/// Two planes with IPv4 and IPv6, a VXLAN device with a neighbour, groups, rules, sysctls, and transit that is not tracked.
fn two_planes() -> Network {
    let mut net = Network::default();
    for plane in 0..2u8 {
        let name = dev(&format!("wgl{plane}"));
        let peer = WgPeer {
            endpoint: Some(SocketAddr::from(([192, 0, 2, 2], 51900 + u16::from(plane)))),
            allowed_ips: ["10.42.0.0/16", "100.127.0.0/16", "fd42::/48"]
                .map(|p| p.parse().unwrap())
                .into(),
            persistent_keepalive: 10,
        };
        net.wireguard.insert(
            name.clone(),
            WgInterface {
                public_key: Some(key().public()),
                listen_port: 51900 + u16::from(plane),
                mtu: 1420,
                up: true,
                peers: BTreeMap::from([(WgPublicKey([plane + 1; 32]), peer)]),
            },
        );
        for address in
            [format!("100.127.{}.5/20", plane * 16), format!("fd4c:eade:0:1::{plane}:5/116")]
        {
            net.addresses.insert((name.clone(), address.parse().unwrap()));
        }
        let plane = u32::from(plane);
        net.nexthops.insert(id(plane), Nexthop::Device { dev: name.clone(), family: Family::V4 });
        net.nexthops
            .insert(id(10 + plane), Nexthop::Device { dev: name.clone(), family: Family::V6 });
        net.sysctls.insert(format!("net/ipv4/conf/{name}/rp_filter"), "2".into());
    }
    net.vxlan.insert(
        dev("lvx0"),
        Vxlan {
            vni: 7946,
            local: "192.0.2.1".parse().unwrap(),
            port: 4790,
            mac: Mac([2, 0, 0, 0, 0, 1]),
            mtu: 1450,
            up: true,
        },
    );
    let far = Mac([2, 0, 0, 0, 0, 2]);
    net.addresses.insert((dev("lvx0"), "100.127.240.5/32".parse().unwrap()));
    net.fdb.insert((dev("lvx0"), far), "192.0.2.2".parse().unwrap());
    net.neighbours.insert((dev("lvx0"), "100.127.240.6".parse().unwrap()), far);
    net.neighbours.insert((dev("lvx0"), "fd4c:eade:0:1::f006".parse().unwrap()), far);
    let gateway = "100.127.240.6".parse().unwrap();
    net.nexthops.insert(id(20), Nexthop::Gateway { dev: dev("lvx0"), gateway, onlink: true });
    net.nexthops.insert(id(21), Nexthop::Blackhole { family: Family::V4 });
    net.nexthops.insert(id(100), Nexthop::Group { members: BTreeSet::from([id(0)]) });
    net.nexthops.insert(id(101), Nexthop::Group { members: BTreeSet::from([id(10), id(11)]) });
    net.routes.insert(route("10.42.1.0/24"), RouteVia::Nexthop { id: id(100), source: None });
    net.routes.insert(route("10.42.2.0/24"), RouteVia::Nexthop { id: id(100), source: None });
    net.routes.insert(route("fd42:0:0:1::/64"), RouteVia::Nexthop { id: id(101), source: None });
    net.routes.insert(route("10.43.1.0/24"), RouteVia::Nexthop { id: id(20), source: None });
    net.routes.insert(route("10.44.0.0/16"), RouteVia::Nexthop { id: id(21), source: None });
    net.routes.insert(
        RouteKey { table: 7946, ..route("10.45.0.0/16") },
        RouteVia::Device { dev: dev("wgl1"), source: Some("100.127.16.5".parse().unwrap()) },
    );
    net.routes.insert(
        route("10.46.0.0/16"),
        RouteVia::Gateway { dev: dev("lvx0"), gateway, onlink: true },
    );
    let any =
        Rule { family: Family::V4, priority: 76, from: None, to: None, iif: None, table: 7946 };
    net.rules.insert(Rule { table: 760_001, ..any.clone() });
    net.rules.insert(Rule {
        from: Some("10.42.9.0/24".parse().unwrap()),
        iif: Some(dev("eth9")),
        ..any.clone()
    });
    for family in [Family::V4, Family::V6] {
        let iif = Some(dev("wgl0"));
        net.rules.insert(Rule { family, iif, table: 759_999, ..any.clone() });
    }
    net.rules.insert(Rule { family: Family::V6, to: Some("fd42:9::/64".parse().unwrap()), ..any });
    // What comes in on a plane for another node, and what goes to another location from an address that is not ours.
    net.routes.insert(
        RouteKey { table: 759_999, ..route("192.0.2.2/32") },
        RouteVia::Gateway { dev: dev("lvx0"), gateway, onlink: true },
    );
    let source = Some("192.0.2.1".parse().unwrap());
    net.routes.insert(
        RouteKey { table: 760_007, ..route("10.47.0.0/16") },
        RouteVia::Nexthop { id: id(100), source },
    );
    net.rules.insert(Rule {
        family: Family::V4,
        priority: 76,
        from: None,
        to: None,
        iif: None,
        table: 760_007,
    });
    // A location's IPv6 lies in a table of its own, and the ways for probes in `main`.
    net.routes.insert(
        RouteKey { table: 760_007, ..route("fd42:0:0:7::/64") },
        RouteVia::Nexthop { id: id(102), source: None },
    );
    net.nexthops.insert(id(102), Nexthop::Group { members: BTreeSet::from([id(10)]) });
    net.rules.insert(Rule {
        family: Family::V6,
        priority: 76,
        from: None,
        to: None,
        iif: None,
        table: 760_007,
    });
    for plane in 0..2u8 {
        let metric = 51 + u32::from(plane);
        net.routes.insert(
            RouteKey { metric, ..route("fd42:0:0:7::/64") },
            RouteVia::Device { dev: dev(&format!("wgl{plane}")), source: None },
        );
    }
    for path in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        net.sysctls.insert(path.into(), "1".into());
    }
    net.sysctls.insert("net/ipv4/nexthop_compat_mode".into(), "0".into());
    net.untracked = Shared::new(Some(Transit {
        own: transit::prefixes(&["10.43.9.0/24"]),
        near: transit::prefixes(&["10.43.0.0/16", "100.127.0.0/16", "fd43::/48"]),
        far: transit::prefixes(&["10.42.0.0/16", "100.127.0.0/16", "fd42::/48"]),
    }));
    net
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
fn rules_say_who_is_caught_and_what_is_sent_from() {
    isolated("rules_say_who_is_caught_and_what_is_sent_from", || async {
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
fn drift_is_repaired() {
    isolated("drift_is_repaired", || async {
        let desired = two_planes();
        let mut reconciler = programmed(&desired).await;
        let peer = sh("wg show wgl0 peers");
        for drift in [
            "ip route del 10.42.1.0/24".to_owned(),
            format!("wg set wgl0 peer {} remove", peer.trim()),
            format!("wg set wgl0 peer {} allowed-ips 10.99.0.0/16", peer.trim()),
            format!("wg set wgl0 peer {} endpoint 192.0.2.77:1", peer.trim()),
            "wg set wgl1 listen-port 4242".to_owned(),
            format!("ip nexthop del id {}", id(100).0),
            format!("ip nexthop replace id {} group {},3", id(100).0, id(1).0),
            "ip link set wgl0 down".to_owned(),
            "ip link set wgl1 mtu 1300".to_owned(),
            "ip link del wgl0".to_owned(),
            "ip link del lvx0".to_owned(),
            "bridge fdb replace 02:00:00:00:00:02 dev lvx0 dst 192.0.2.99".to_owned(),
            "bridge fdb append 00:00:00:00:00:00 dev lvx0 dst 192.0.2.99".to_owned(),
            "ip neigh replace 100.127.240.6 lladdr 02:00:00:00:00:99 dev lvx0 nud permanent"
                .to_owned(),
            "ip neigh del 100.127.240.6 dev lvx0".to_owned(),
            "ip addr del 100.127.0.5/20 dev wgl0".to_owned(),
            "ip -6 addr flush dev wgl1 scope global".to_owned(),
            "ip rule del priority 76".to_owned(),
            "ip route add 10.66.0.0/16 dev eth9 proto 76".to_owned(),
            "ip route replace blackhole 10.42.2.0/24 proto 76 metric 50".to_owned(),
            "sysctl -qw net.ipv4.ip_forward=0".to_owned(),
            "sysctl -qw net.ipv4.conf.wgl0.rp_filter=1".to_owned(),
            "nft delete table inet leaderd".to_owned(),
        ] {
            sh(&drift);
            let repaired =
                reconciler.reconcile().await.unwrap_or_else(|e| panic!("after {drift}: {e}"));
            assert!(!repaired.is_empty(), "{drift} was not noticed");
            assert_same(
                &reconciler.kernel().observe(&Scope::of(&desired)).await.unwrap(),
                &desired,
            );
            assert!(
                reconciler.reconcile().await.unwrap().is_empty(),
                "{drift} is repaired again and again"
            );
        }
    });
}

#[test]
fn a_killed_wireguard_process_is_replaced() {
    isolated("a_killed_wireguard_process_is_replaced", || async {
        let desired = two_planes();
        let mut reconciler = programmed(&desired).await;
        if reconciler.kernel().backend() == Backend::Kernel {
            return;
        }
        // It must have left our session, so as to outlive us.
        let ours = sh("ps -o sid= -p $PPID").trim().to_owned();
        let theirs = sh("ps -o sid= -p $(pgrep -f '(wireguard-go|userspace) wg[l]0')");
        assert_ne!(ours, theirs.trim());
        sh("kill -9 $(pgrep -f '(wireguard-go|userspace) wg[l]0')");
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(!reconciler.reconcile().await.unwrap().is_empty());
        assert_same(&reconciler.kernel().observe(&Scope::of(&desired)).await.unwrap(), &desired);
    });
}

#[test]
fn what_is_not_ours_is_not_touched_and_cleanup_leaves_nothing_of_ours() {
    isolated("what_is_not_ours_is_not_touched_and_cleanup_leaves_nothing_of_ours", || async {
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
fn what_was_put_off_is_no_repair_and_drift_in_the_same_turn_is() {
    isolated("what_was_put_off_is_no_repair_and_drift_in_the_same_turn_is", || async {
        let desired = two_planes();
        let mut reconciler =
            Reconciler::new(Kernel::open().unwrap(), key()).yielding_for(Duration::from_millis(50));
        reconciler.program(desired.clone()).await.unwrap();
        assert!(sh("wg show wgl0 endpoints").contains("(none)"));
        while !reconciler.is_due() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        sh("ip route del 10.42.1.0/24");
        let repaired = reconciler.reconcile().await.unwrap();
        assert!(matches!(repaired[..], [Change::AddRoute { .. }]), "{repaired:?}");
        assert_same(&reconciler.kernel().observe(&Scope::of(&desired)).await.unwrap(), &desired);
        assert!(!reconciler.is_due());
    });
}

#[test]
fn a_foreign_route_in_the_way_is_named_and_the_rest_is_made() {
    isolated("a_foreign_route_in_the_way_is_named_and_the_rest_is_made", || async {
        sh("ip route add 10.42.1.0/24 via 192.0.2.2 metric 50");
        let desired = two_planes();
        let mut reconciler =
            Reconciler::new(Kernel::open().unwrap(), key()).yielding_for(Duration::ZERO);
        let error = reconciler.program(desired.clone()).await.unwrap_err().to_string();
        assert!(error.contains("add route 10.42.1.0/24") && error.contains("EEXIST"), "{error}");
        assert!(sh("ip route get 10.42.1.1").contains("via 192.0.2.2"));
        assert!(sh("ip route get 10.42.2.1").contains("dev wgl0"));
        sh("ip route del 10.42.1.0/24 via 192.0.2.2");
        assert_eq!(reconciler.reconcile().await.unwrap().len(), 1);
    });
}

#[test]
fn a_repair_that_fails_in_part_tells_what_it_repaired() {
    isolated("a_repair_that_fails_in_part_tells_what_it_repaired", || async {
        sh("ip route add 10.42.1.0/24 via 192.0.2.2 metric 50");
        let mut reconciler =
            Reconciler::new(Kernel::open().unwrap(), key()).yielding_for(Duration::from_millis(50));
        reconciler.program(two_planes()).await.unwrap_err();
        while !reconciler.is_due() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        sh("ip route del 10.42.2.0/24");
        let error = reconciler.reconcile().await.unwrap_err();
        // Neither the route that is in the way still, nor the peers that had been put off.
        let added = |change: &Change| change.to_string().contains("add route 10.42.2.0/24");
        assert!(matches!(&error.repaired[..], [one] if added(one)), "{error:?}");
        assert!(error.to_string().contains("add route 10.42.1.0/24"), "{error}");
        assert!(sh("ip route get 10.42.2.1").contains("dev wgl0"));
        assert!(reconciler.reconcile().await.unwrap_err().repaired.is_empty());
    });
}

#[test]
fn a_port_that_is_taken_is_an_error_and_tried_again() {
    isolated("a_port_that_is_taken_is_an_error_and_tried_again", || async {
        let socket = std::net::UdpSocket::bind("0.0.0.0:51901").unwrap();
        let mut desired = two_planes();
        let mut reconciler =
            Reconciler::new(Kernel::open().unwrap(), key()).yielding_for(Duration::ZERO);
        let error = reconciler.program(desired.clone()).await.unwrap_err().to_string();
        assert!(error.contains("port 51901") && error.contains("taken"), "{error}");
        let error = reconciler.reconcile().await.unwrap_err();
        assert!(error.repaired.is_empty(), "{error:?}");
        // An endpoint that changes meanwhile is not forgotten, although endpoints roam.
        let peer =
            desired.wireguard.get_mut(&dev("wgl0")).unwrap().peers.values_mut().next().unwrap();
        peer.endpoint = Some("192.0.2.3:51900".parse().unwrap());
        assert!(reconciler.program(desired.clone()).await.is_err());
        drop(socket);
        // How much there is to do depends on whether the link was down in between, and on whether its process tried again first.
        reconciler.reconcile().await.unwrap();
        assert_same(&reconciler.kernel().observe(&Scope::of(&desired)).await.unwrap(), &desired);
    });
}

/// A router advertisement on `eth8`, which `eth9` hears, until it is followed.
async fn advertise() {
    let socket = socket2::Socket::new(
        socket2::Domain::IPV6,
        socket2::Type::from(nix::libc::SOCK_RAW),
        Some(socket2::Protocol::ICMPV6),
    )
    .unwrap();
    let eth8 = nix::net::if_::if_nametoindex("eth8").unwrap();
    socket.set_multicast_if_v6(eth8).unwrap();
    socket.set_multicast_hops_v6(255).unwrap();
    let all_nodes: std::net::SocketAddrV6 = "[ff02::1]:0".parse().unwrap();
    // RFC 4861, section 4.2: a router for 1800 s. The kernel puts in the checksum.
    let message = [134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0];
    for _ in 0..200 {
        // At first its own address is not sure to be its own alone, and nothing is sent.
        let _ = socket.send_to(&message, &all_nodes.into());
        tokio::time::sleep(Duration::from_millis(50)).await;
        if has_uplink() {
            return;
        }
    }
    panic!("no router is found");
}

fn has_uplink() -> bool {
    sh("ip -6 route show default").contains("dev eth9 proto ra")
}

#[test]
fn forwarding_that_ends_an_ipv6_uplink_is_warned_of() {
    isolated("forwarding_that_ends_an_ipv6_uplink_is_warned_of", || async {
        let log = std::fs::File::create("/run/log").unwrap();
        tracing_subscriber::fmt().with_ansi(false).with_writer(log).init();
        let told = || sh("cat /run/log; : > /run/log");
        sh("sysctl -qw net.ipv6.conf.eth9.accept_ra_from_local=1 net.ipv6.conf.eth9.accept_ra=1");
        advertise().await;
        let forwarding = ("net/ipv6/conf/all/forwarding".to_owned(), "1".to_owned());
        let mut reconciler = Reconciler::new(Kernel::open().unwrap(), key());
        let desired = Network { sysctls: [forwarding].into(), ..Network::default() };
        reconciler.program(desired).await.unwrap();
        let said = told();
        let warned = said.contains(" WARN ") && said.contains("interfaces=\"eth9\"");
        assert!(warned && said.contains("net.ipv6.conf.eth9.accept_ra=2"), "{said}");
        assert!(!has_uplink(), "then there is nothing to warn of");

        sh("sysctl -qw net.ipv6.conf.all.forwarding=0 net.ipv6.conf.eth9.accept_ra=2");
        advertise().await;
        assert_eq!(reconciler.reconcile().await.unwrap().len(), 1);
        assert!(has_uplink());
        assert!(!told().contains("accept_ra"), "there is nothing to warn of");
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
fn two_nodes_talk_and_the_counters_tell() {
    isolated("two_nodes_talk_and_the_counters_tell", || async {
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

#[test]
fn drift_is_noticed_and_foreign_changes_are_not() {
    isolated("drift_is_noticed_and_foreign_changes_are_not", || async {
        let _steward = programmed(&two_planes()).await;
        let mut drifts = Box::pin(watch().await.unwrap());
        // What the programming itself sets off (IPv6 looks for doubles of an address for a second or two) is over first.
        for _ in 0..20 {
            if tokio::time::timeout(Duration::from_secs(3), drifts.next()).await.is_err() {
                break;
            }
        }
        sh("ip route add 10.50.0.0/16 via 192.0.2.2 && ip rule add from 10.9.9.9 table 100");
        assert!(tokio::time::timeout(Duration::from_millis(300), drifts.next()).await.is_err());
        sh("ip route del 10.42.1.0/24");
        let drift =
            tokio::time::timeout(Duration::from_secs(2), drifts.next()).await.unwrap().unwrap();
        assert!(drift.routes && !drift.links, "{drift:?}");
        sh("ip link set wgl0 down");
        let drift =
            tokio::time::timeout(Duration::from_secs(2), drifts.next()).await.unwrap().unwrap();
        assert!(drift.links, "{drift:?}");
    });
}
