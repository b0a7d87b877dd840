//! Transit that is not tracked: the table itself, and what it does to packets.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use wgctl::net::Scope;
use wgctl_plan::*;

use super::{assert_same, isolated, programmed, sh};

pub fn prefixes(of: &[&str]) -> Prefixes {
    of.iter().map(|p| p.parse::<IpNet>().unwrap()).collect()
}

fn relaying(transit: Transit) -> Network {
    Network { untracked: Shared::new(Some(transit)), ..Network::default() }
}

/// This namespace is the relay. `far` is behind the tunnel, `member` another node of the location, `pod` a workload of the relay's.
/// The relay's CNI is flannel with `--ip-masq`, cluster CIDR 10.42.0.0/16; and another one rewrites all sources in IPv6.
fn world() {
    // An address that is not yet sure to be unique asks for no neighbour.
    let now = "sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0";
    sh(now);
    for (name, n, v4, v6) in [
        ("far", 1, "10.64.0.1/24", "fd64::1/64"),
        ("member", 2, "10.42.2.1/24", "fd42:0:0:2::1/64"),
        ("pod", 3, "10.42.1.9/24", "fd42:0:0:1::9/64"),
    ] {
        let (v4_net, v6_net) = (net(v4), net(v6));
        sh(&format!("ip netns add {name}"));
        within(name, || sh(now));
        sh(&format!(
            "ip link add to-{name} type veth peer name eth0 netns {name}
             ip addr add 198.18.{n}.1/30 dev to-{name} && ip -6 addr add fdff:{n}::1/64 dev to-{name} nodad && ip link set to-{name} up
             ip -n {name} link set lo up && ip -n {name} link set eth0 up
             ip -n {name} addr add 198.18.{n}.2/30 dev eth0 && ip -n {name} -6 addr add fdff:{n}::2/64 dev eth0 nodad
             ip -n {name} addr add {v4} dev lo && ip -n {name} -6 addr add {v6} dev lo nodad
             ip -n {name} route add default via 198.18.{n}.1 && ip -n {name} -6 route add default via fdff:{n}::1
             ip route add {v4_net} via 198.18.{n}.2 && ip -6 route add {v6_net} via fdff:{n}::2"
        ));
    }
    sh("ip -n far addr add 100.127.0.9/32 dev lo && ip route add 100.127.0.0/20 via 198.18.1.2");
    sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
    sh("nft -f - <<'.'
        table ip nat {
          chain postrouting {
            type nat hook postrouting priority srcnat;
            ip saddr 10.42.1.0/24 ip daddr 10.42.0.0/16 return
            ip saddr 10.42.0.0/16 ip daddr 10.42.1.0/24 return
            ip saddr != 10.42.0.0/16 ip daddr 10.42.1.0/24 return
            ip saddr 10.42.0.0/16 ip daddr != 224.0.0.0/4 masquerade
            ip saddr != 10.42.0.0/16 ip daddr 10.42.0.0/16 masquerade
          }
        }
        table ip6 nat {
          chain postrouting {
            type nat hook postrouting priority srcnat;
            masquerade
          }
        }
.");
}

fn net(address: &str) -> IpNet {
    address.parse::<IpNet>().unwrap().trunc()
}

fn transit() -> Transit {
    Transit {
        own: prefixes(&["10.42.1.0/24", "fd42:0:0:1::/64"]),
        near: prefixes(&["10.42.1.0/24", "10.42.2.0/24", "fd42::/62", "100.127.0.0/16"]),
        far: prefixes(&["10.64.0.0/24", "fd64::/64", "100.127.0.0/16"]),
    }
}

/// Runs `what` in a namespace. A socket that it opens stays there.
fn within<T: Send + 'static>(namespace: &str, what: impl FnOnce() -> T + Send + 'static) -> T {
    let file = std::fs::File::open(format!("/run/netns/{namespace}")).unwrap();
    let thread = std::thread::spawn(move || {
        nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        what()
    });
    thread.join().unwrap()
}

fn socket(at: (&str, &str)) -> UdpSocket {
    let address: IpAddr = at.1.parse().unwrap();
    let socket = within(at.0, move || UdpSocket::bind((address, 0)).unwrap());
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    socket
}

/// The source that a packet has on arrival; its answer must come back.
#[track_caller]
fn seen(from: (&str, &str), to: (&str, &str)) -> String {
    let (client, server) = (socket(from), socket(to));
    client.send_to(b"question", server.local_addr().unwrap()).unwrap();
    let mut bytes = [0; 16];
    let (_, source) = server.recv_from(&mut bytes).unwrap();
    server.send_to(b"answer", source).unwrap();
    client.recv_from(&mut bytes).unwrap();
    source.ip().to_string()
}

#[test]
fn source_nat_of_others_rewrites_nothing_between_locations() {
    isolated("source_nat_of_others_rewrites_nothing_between_locations", || async {
        world();
        let (far, member, pod) =
            (("far", "10.64.0.1"), ("member", "10.42.2.1"), ("pod", "10.42.1.9"));
        let inner = ("far", "100.127.0.9");
        let elsewhere = ("far", "198.18.1.2");
        let (far6, member6, pod6) =
            (("far", "fd64::1"), ("member", "fd42:0:0:2::1"), ("pod", "fd42:0:0:1::9"));
        let rewritten = || {
            assert_eq!(seen(far, member), "198.18.2.1");
            assert_eq!(seen(inner, member), "198.18.2.1");
            assert_eq!(seen(member, far), "198.18.1.1");
            assert_eq!(seen(far6, member6), "fdff:2::1");
            assert_eq!(seen(member6, far6), "fdff:1::1");
            assert_eq!(seen(pod, far), "198.18.1.1");
            assert_eq!(seen(pod6, far6), "fdff:1::1");
        };
        rewritten();
        let mut reconciler = programmed(&relaying(transit())).await;
        assert_eq!(seen(far, member), far.1);
        assert_eq!(seen(inner, member), inner.1);
        assert_eq!(seen(member, far), member.1);
        assert_eq!(seen(member, inner), member.1);
        assert_eq!(seen(far6, member6), far6.1);
        assert_eq!(seen(member6, far6), member6.1);
        // The relay's own workload keeps its source as well, and is tracked; what it sends elsewhere is the CNI's business.
        assert_eq!(seen(pod, far), pod.1);
        assert_eq!(seen(far, pod), far.1);
        assert_eq!(seen(pod6, far6), pod6.1);
        assert_eq!(seen(pod, elsewhere), "198.18.1.1");
        sh(
            "grep -q 'src=10.42.1.9 dst=10.64.0.1' /proc/net/nf_conntrack || conntrack -L 2>/dev/null | grep -q 'src=10.42.1.9 dst=10.64.0.1'",
        );
        reconciler.program(Network::default()).await.unwrap();
        rewritten();
    });
}

#[test]
fn a_relay_that_sees_only_one_direction_forwards_packets_that_tracking_would_call_invalid() {
    isolated(
        "a_relay_that_sees_only_one_direction_forwards_packets_that_tracking_would_call_invalid",
        || async {
            world();
            // What is far reaches the member by another relay; its answers come here.
            sh("ip link add direct netns far type veth peer name direct netns member
            ip -n far addr add 198.18.9.1/30 dev direct && ip -n far link set direct up
            ip -n member addr add 198.18.9.2/30 dev direct && ip -n member link set direct up
            ip -n far route add 10.42.2.0/24 via 198.18.9.2
            nft add table inet firewall
            nft add chain inet firewall forward '{ type filter hook forward priority filter; }'
            nft add rule inet firewall forward ct state invalid drop");
            for namespace in ["far", "member"] {
                within(namespace, || {
                    sh("sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.direct.rp_filter=0")
                });
            }
            let server = within("member", || TcpListener::bind("10.42.2.1:80").unwrap());
            let connect = || {
                within("far", || {
                    let socket =
                        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)
                            .unwrap();
                    socket.bind(&"10.64.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
                    let to: SocketAddr = "10.42.2.1:80".parse().unwrap();
                    socket
                        .connect_timeout(&to.into(), Duration::from_secs(1))
                        .map(|()| TcpStream::from(socket))
                })
            };
            assert!(connect().is_err(), "the firewall drops nothing");
            let _reconciler = programmed(&relaying(transit())).await;
            let stream = connect().unwrap();
            assert_eq!(server.accept().unwrap().1, stream.local_addr().unwrap());
        },
    );
}

#[test]
fn the_table_is_as_programmed_whatever_is_done_to_it_and_to_other_tables() {
    isolated("the_table_is_as_programmed_whatever_is_done_to_it_and_to_other_tables", || async {
        sh("nft add table inet other && nft add table ip leaderd");
        let desired = relaying(transit());
        let mut reconciler = programmed(&desired).await;
        // nft understands it, comments and all, and would make the same of its own words.
        let text = sh("nft list table inet leaderd");
        assert_eq!(text.matches("notrack").count(), 4, "{text}");
        assert!(
            text.contains("priority raw; policy accept;") && text.contains("comment \"leaderd "),
            "{text}"
        );
        for rule in [
            "ip saddr @near4 ip saddr != @own4 ip daddr @far4 fib daddr type != local notrack",
            "ip6 daddr @near6 ip6 daddr != @own6 ip6 saddr @far6 fib daddr type != local notrack",
        ] {
            assert!(text.contains(rule), "{text}");
        }
        let handle = sh(
            "nft -a list chain inet leaderd prerouting | sed -n 's/.*near4.*# handle //p' | head -n 1",
        );
        let handle = handle.trim();
        let before = sh("nft list ruleset");
        for drift in [
            "nft delete table inet leaderd".to_owned(),
            "nft flush ruleset && nft add table inet other && nft add table ip leaderd".to_owned(),
            "nft flush set inet leaderd far6".to_owned(),
            "nft add element inet leaderd own4 '{ 10.64.0.7 }'".to_owned(),
            "nft delete element inet leaderd near4 '{ 10.42.1.0-10.42.2.255 }'".to_owned(),
            "nft add set inet leaderd more '{ type ipv4_addr; }'".to_owned(),
            "nft add chain inet leaderd more".to_owned(),
            "nft insert rule inet leaderd prerouting accept".to_owned(),
            "nft add rule inet leaderd prerouting notrack".to_owned(),
            "nft flush chain inet leaderd prerouting".to_owned(),
            "nft add chain inet leaderd prerouting '{ policy drop; }'".to_owned(),
            "nft add table inet leaderd '{ flags dormant; }'".to_owned(),
            format!("nft replace rule inet leaderd prerouting handle {handle} accept"),
        ] {
            if drift.contains("handle") {
                let now = sh(
                    "nft -a list chain inet leaderd prerouting | sed -n 's/.*near4.*# handle //p' | head -n 1",
                );
                sh(&drift
                    .replace(&format!("handle {handle} "), &format!("handle {} ", now.trim())));
            } else {
                sh(&drift);
            }
            let repaired = reconciler.reconcile().await.unwrap();
            assert!(matches!(repaired[..], [Change::SetUntracked { .. }]), "{drift}: {repaired:?}");
            assert_eq!(
                sh("nft list ruleset | sed '/^table inet other/,/^}/d'"),
                before_without(&before),
                "{drift}"
            );
            assert!(
                reconciler.reconcile().await.unwrap().is_empty(),
                "{drift} is repaired again and again"
            );
        }
        sh("nft add chain inet other more && nft add set ip leaderd own4 '{ type ipv4_addr; }'");
        assert!(reconciler.reconcile().await.unwrap().is_empty(), "other tables are not ours");

        let mut other = desired.clone();
        other.untracked.as_mut().unwrap().far = prefixes(&["10.65.0.0/16"]);
        assert_eq!(reconciler.program(other.clone()).await.unwrap().len(), 1);
        assert_same(&reconciler.kernel().observe(&Scope::default()).await.unwrap(), &other);
        assert_eq!(reconciler.kernel().cleanup().await.unwrap(), [Change::RemoveUntracked]);
        assert_eq!(sh("nft list tables | sort"), "table inet other\ntable ip leaderd\n");
        assert!(reconciler.kernel().cleanup().await.unwrap().is_empty());
    });
}

fn before_without(ruleset: &str) -> String {
    let mut inside = false;
    let keep = |line: &&str| {
        inside |= line.starts_with("table inet other");
        let keep = !inside;
        inside &= *line != "}";
        keep
    };
    ruleset.lines().filter(keep).map(|line| format!("{line}\n")).collect()
}

/// This many networks, no two of which touch.
fn scattered(many: u32) -> Prefixes {
    (0..many)
        .map(|i| format!("10.{}.{}.0/24", i / 128, i % 128 * 2).parse::<IpNet>().unwrap())
        .collect()
}

#[test]
fn ten_thousand_far_prefixes_are_one_transaction_and_are_read_again_only_if_something_changed() {
    isolated(
        "ten_thousand_far_prefixes_are_one_transaction_and_are_read_again_only_if_something_changed",
        || async {
            let desired = relaying(Transit { far: scattered(10_000), ..transit() });
            let start = Instant::now();
            let mut reconciler = programmed(&desired).await;
            eprintln!("programmed in {:?}", start.elapsed());
            let mut timed = async || {
                let start = Instant::now();
                assert!(reconciler.reconcile().await.unwrap().is_empty());
                start.elapsed()
            };
            let first = timed().await;
            let again = timed().await;
            sh("nft add table inet other");
            let after = timed().await;
            eprintln!(
                "read in {first:?}, then in {again:?}, after a change of others in {after:?}"
            );
            assert!(again < first && again < after, "{first:?} {again:?} {after:?}");
        },
    );
}
