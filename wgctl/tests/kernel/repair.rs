//! Drift and failures: what is noticed, repaired and reported.

use std::time::Duration;

use futures_util::StreamExt as _;
use wgctl::net::{Kernel, Reconciler, Scope, watch};
use wgctl::wireguard::Backend;
use wgctl_plan::*;

use super::network::two_planes;
use super::{Monitor, assert_same, dev, id, isolated, key, programmed, route, run, sh};

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
fn a_withheld_endpoint_is_no_repair_but_drift_at_the_same_time_is() {
    isolated("a_withheld_endpoint_is_no_repair_but_drift_at_the_same_time_is", || async {
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
fn a_conflicting_foreign_route_is_named_and_the_rest_is_programmed() {
    isolated("a_conflicting_foreign_route_is_named_and_the_rest_is_programmed", || async {
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
fn a_partly_failed_repair_reports_what_it_repaired() {
    isolated("a_partly_failed_repair_reports_what_it_repaired", || async {
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

#[test]
fn drift_is_noticed_and_foreign_changes_are_told_apart() {
    isolated("drift_is_noticed_and_foreign_changes_are_told_apart", || async {
        let _reconciler = programmed(&two_planes()).await;
        let mut drifts = Box::pin(watch().await.unwrap());
        // What the programming itself sets off (IPv6 looks for doubles of an address for a second or two) is over first.
        for _ in 0..20 {
            if tokio::time::timeout(Duration::from_secs(3), drifts.next()).await.is_err() {
                break;
            }
        }
        sh("ip route add 10.50.0.0/16 via 192.0.2.2 && ip rule add from 10.9.9.9 table 100");
        let drift =
            tokio::time::timeout(Duration::from_secs(2), drifts.next()).await.unwrap().unwrap();
        assert!(drift.foreign && !drift.concerns_ours(), "{drift:?}");
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

/// A member's network with overlay `direct`: all that is remote goes to a leader on the LAN.
pub fn by_the_lan() -> Network {
    let mut net = Network::default();
    let gateway = "192.0.2.2".parse().unwrap();
    net.nexthops.insert(id(1), Nexthop::Gateway { dev: dev("eth9"), gateway, onlink: true });
    net.nexthops.insert(id(100), Nexthop::Group { members: [id(1)].into() });
    for i in 0..100 {
        let key = route(&format!("10.42.{i}.0/24"));
        net.routes.insert(key, RouteVia::Nexthop { id: id(100), source: None });
    }
    net.sysctls.insert("net/ipv4/nexthop_compat_mode".into(), "0".into());
    net
}

#[test]
fn what_the_kernel_deletes_with_a_carrier_is_back_at_once_when_the_carrier_is() {
    /// A watch that waits until nothing changes any more takes longer than this.
    const QUIET: Duration = Duration::from_millis(50);
    isolated(
        "what_the_kernel_deletes_with_a_carrier_is_back_at_once_when_the_carrier_is",
        || async {
            let desired = by_the_lan();
            let mut reconciler = programmed(&desired).await;
            let scope = Scope::of(&desired);
            sh("ip route add 10.99.0.0/16 via 192.0.2.2");
            let mut took = Vec::new();
            for _ in 0..5 {
                let mut drifts = Box::pin(watch().await.unwrap());
                let monitor = Monitor::start();
                sh("ip link set eth8 down");
                let heard = monitor.stop();
                sh("ip nexthop del id 1 && ip nexthop del id 2");
                assert_eq!(sh("ip nexthop show proto 76; ip route show proto 76"), "");
                assert!(!heard.iter().any(|line| line.contains("Deleted 10.42")), "{heard:?}");
                assert!(sh("ip route show 10.99.0.0/16").contains("192.0.2.2"), "a plain route");
                // It cannot be put back before the carrier is.
                drifts.next().await.unwrap();
                assert!(reconciler.reconcile().await.is_err());
                sh("ip link set eth8 up");
                let began = std::time::Instant::now();
                while reconciler.kernel().observe(&scope).await.unwrap() != desired {
                    drifts.next().await.unwrap();
                    let _ = reconciler.reconcile().await;
                }
                took.push(began.elapsed());
            }
            eprintln!("carrier to 100 routes: {took:?}");
            assert_same(&reconciler.kernel().observe(&scope).await.unwrap(), &desired);
            // The fastest, as a busy machine may be late with some.
            assert!(took.iter().min().unwrap() < &QUIET, "{took:?}");
        },
    );
}

/// Whether the host takes a packet for itself that comes in by this device, as its reverse-path filter sees it.
fn takes(from: &str, by: &str) -> bool {
    run(&format!("ip route get 192.0.2.1 from {from} iif {by}")).status.success()
}

#[test]
fn a_plane_without_its_address_drops_what_goes_back_another_way_until_it_is_repaired() {
    isolated(
        "a_plane_without_its_address_drops_what_goes_back_another_way_until_it_is_repaired",
        || async {
            let desired = two_planes();
            let mut reconciler = programmed(&desired).await;
            // The way back to it is the VXLAN device.
            let other_way = || takes("10.43.1.7", "wgl1");
            assert!(other_way(), "the filter of a plane is loose");
            let mut drifts = Box::pin(watch().await.unwrap());
            sh("ip -4 addr flush dev wgl1");
            assert!(!other_way(), "loose acts as strict on a device without an IPv4 address");
            while !drifts.next().await.unwrap().addresses {}
            let repaired = reconciler.reconcile().await.unwrap();
            let again =
                |c: &Change| matches!(c, Change::AddAddress { name, .. } if *name == dev("wgl1"));
            assert!(repaired.iter().any(again), "{repaired:?}");
            assert!(other_way());
            let observed = reconciler.kernel().observe(&Scope::of(&desired)).await.unwrap();
            assert_same(&observed, &desired);
        },
    );
}

#[test]
fn relays_may_take_turns_on_a_lan_device_whose_filter_was_strict() {
    isolated("relays_may_take_turns_on_a_lan_device_whose_filter_was_strict", || async {
        // The way back is a tunnel, as a standby has it whose packets come from its leader over the LAN.
        sh(
            "ip link add back type veth peer name far && ip link set back up && ip link set far up && ip route add 10.43.0.0/16 dev back",
        );
        sh("sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth9.rp_filter=1");
        assert!(!takes("10.43.0.7", "eth9"), "strict");
        let mut desired = by_the_lan();
        desired.sysctls.insert("net/ipv4/conf/eth9/rp_filter".into(), "2".into());
        let mut reconciler = programmed(&desired).await;
        assert!(takes("10.43.0.7", "eth9"));
        sh("sysctl -qw net.ipv4.conf.eth9.rp_filter=1");
        assert_eq!(reconciler.reconcile().await.unwrap().len(), 1);
        assert!(takes("10.43.0.7", "eth9"), "set strict by another tool, and repaired");
        // Nobody knows what it was before, and loose harms nothing.
        reconciler.kernel().cleanup().await.unwrap();
        assert_eq!(sh("sysctl -n net.ipv4.conf.eth9.rp_filter").trim(), "2");
    });
}
