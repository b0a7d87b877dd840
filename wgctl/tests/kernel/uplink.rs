//! Forwarding IPv6 costs a host the default route that a router advertised.

use std::time::Duration;

use wgctl::net::{Kernel, Reconciler};
use wgctl_plan::Network;

use super::{isolated, key, sh};

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
fn forwarding_that_ends_an_ipv6_uplink_logs_a_warning() {
    isolated("forwarding_that_ends_an_ipv6_uplink_logs_a_warning", || async {
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
