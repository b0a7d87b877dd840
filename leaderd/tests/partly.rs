//! What the kernel refuses of a network keeps nothing else of it from being in force: on the real kernel, in namespaces of its own.

mod isolated;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use isolated::isolated;
use leaderd::counters::Counters;
use leaderd::network::{self, KernelReconciler, Outputs};
use leaderd::secrets::{Keys, Secret};
use leaderd_core::io::Input;
use tokio::sync::{mpsc, watch};
use wgctl_plan::{
    Family, InterfaceName, NEXTHOP_ID_BASE, Network, Nexthop, NexthopId, RouteKey, RouteVia,
    Shared, Transit, WgInterface,
};

/// Longest that anything may take here.
const LONG: Duration = Duration::from_secs(60);

#[track_caller]
fn sh(command: &str) -> String {
    let out = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(out.status.success(), "{command}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// Runs `test` on a runtime, in namespaces of its own.
fn on_runtime<F: Future<Output = ()>>(name: &str, test: impl FnOnce() -> F) {
    isolated(name, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    });
}

fn dev(name: &str) -> InterfaceName {
    name.parse().unwrap()
}

/// Two planes with a route over one of them, in both families, and transit that is not tracked.
fn network_over(keys: &Keys, plane: u8) -> Network {
    let mut network = Network::default();
    for n in 0..2u8 {
        let name = dev(&format!("wgl{n}"));
        let interface = WgInterface {
            public_key: Some(keys.wireguard_public()),
            listen_port: 51900 + u16::from(n),
            mtu: 1420,
            up: true,
            peers: Default::default(),
        };
        network.wireguard.insert(name.clone(), interface);
        for address in [format!("100.127.0.{}/32", n + 1), format!("fd00:7f::{}/128", n + 1)] {
            network.addresses.insert((name.clone(), address.parse().unwrap()));
        }
        for (family, id) in [(Family::V4, 1), (Family::V6, 3)] {
            let id = NexthopId(NEXTHOP_ID_BASE + id + u32::from(n));
            network.nexthops.insert(id, Nexthop::Device { dev: name.clone(), family });
        }
    }
    for (prefix, group, single) in [("10.42.0.0/16", 9, 1), ("fd42::/48", 10, 3)] {
        let single = NexthopId(NEXTHOP_ID_BASE + single + u32::from(plane));
        let id = NexthopId(NEXTHOP_ID_BASE + group);
        network.nexthops.insert(id, Nexthop::Group { members: [single].into() });
        let key = RouteKey { table: 254, prefix: prefix.parse().unwrap(), metric: 50 };
        network.routes.insert(key, RouteVia::Nexthop { id, source: None });
    }
    let prefixes = |text: &str| [text.parse::<ipnet::IpNet>().unwrap()].into_iter().collect();
    network.untracked = Shared::new(Some(Transit {
        far: prefixes("10.42.0.0/16"),
        near: prefixes("10.43.0.0/16"),
        ..Transit::default()
    }));
    network
}

#[test]
fn a_node_without_ipv6_and_without_our_nftables_table_has_all_else_in_force() {
    on_runtime(
        "a_node_without_ipv6_and_without_our_nftables_table_has_all_else_in_force",
        || async {
            sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1");
            // A table that another program owns: the kernel refuses every change of it.
            let mut owner = Command::new("nft")
                .arg("-i")
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .spawn()
                .expect("nft is needed");
            let words = owner.stdin.as_mut().unwrap();
            words.write_all(b"add table inet leaderd { flags owner ; }\n").unwrap();
            while !sh("nft list tables").contains("inet leaderd") {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }

            let keys = Keys { wireguard: Secret::new([7; 32]), control: Secret::new([8; 32]) };
            let (programs, newest) = watch::channel(None);
            let (_checks, checks) = watch::channel(Vec::new());
            let orders = network::Orders { programs: newest, checks };
            let (inputs, mut told) = mpsc::channel(64);
            let counters = Counters::default();
            let silent = watch::channel(BTreeSet::new()).0;
            let theirs = keys.clone();
            let make = move || async move { KernelReconciler::open(&theirs).await };
            network::start(make, orders, Outputs { inputs, silent, counters: counters.clone() })
                .await
                .unwrap();
            let mut notes = Vec::new();
            // Two decisions, one after the other.
            for (revision, plane) in [(1, 0), (2, 1)] {
                programs.send_replace(Some((revision, Box::new(network_over(&keys, plane)))));
                loop {
                    let next = tokio::time::timeout(LONG, told.recv()).await;
                    match next.expect("it is programmed").expect("the thread lives") {
                        Input::Programmed { revision: r, error: None } if r == revision => break,
                        Input::Programmed { error: Some(error), .. } => {
                            assert!(error.contains("fd"), "{error}");
                            assert_eq!(revision, 1, "the second one does not wait for it");
                        }
                        Input::HostNotes { notes: new, .. } => notes = new,
                        _ => {}
                    }
                }
                assert!(sh("ip route show 10.42.0.0/16").contains(&format!("wgl{plane}")));
                assert!(sh("ip addr show wgl0").contains("100.127.0.1/32"));
            }
            assert!(notes.iter().any(|n| n.contains("transit is tracked")), "{notes:?}");
            let failing = notes.iter().find(|n| n.contains("cannot be programmed")).unwrap();
            assert!(failing.contains("fd00:7f::"), "{failing}");
            assert!(!failing.contains("10.42.") && !failing.contains("100.127."), "{failing}");
            assert_eq!(counters.get("transit_tracked"), 1);
            assert!(counters.get("network_parts_failing") > 0);

            // IPv6 comes back: all of it is programmed, and nothing more is said of it.
            sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=0");
            let mended = async {
                while notes.iter().any(|n| n.contains("cannot be programmed")) {
                    if let Some(Input::HostNotes { notes: new, .. }) = told.recv().await {
                        notes = new;
                    }
                }
            };
            tokio::time::timeout(LONG, mended).await.expect("it is tried again");
            assert!(sh("ip -6 route show fd42::/48").contains("wgl1"));
            assert_eq!(counters.get("network_parts_failing"), 0);
            drop(programs);
            owner.kill().unwrap();
            owner.wait().unwrap();
            network::cleanup().await.unwrap();
        },
    );
}
