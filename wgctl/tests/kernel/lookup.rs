//! Rules, routes and settings of other programs that come before ours, as the kernel tells of them.

use wgctl::net::Lookups;
use wgctl_plan::*;

use super::repair::by_the_lan;
use super::*;

#[test]
fn what_comes_before_our_routes_is_found_and_named() {
    isolated("what_comes_before_our_routes_is_found_and_named", || async {
        let desired = by_the_lan();
        let _reconciler = programmed(&desired).await;
        let mut lookups = Lookups::open().unwrap();
        let mut asked = |source: &str, target: &str, iif: Option<&str>| {
            let iif = iif.map(dev);
            let (source, target) = (source.parse().unwrap(), target.parse().unwrap());
            lookups.overridden(&desired, &Packet { source, target, iif: iif.as_ref() })
        };
        let own = "192.0.2.1";
        assert_eq!(asked(own, "10.42.3.1", None), None);
        assert_eq!(asked(own, "10.99.0.1", None), None, "it is not ours to route");
        // A rule of a VPN client, and a longer prefix by the right device and another gateway.
        sh(
            "ip route add 10.42.3.0/24 via 192.0.2.9 dev eth9 onlink table 52 && ip rule add pref 5270 lookup 52",
        );
        let words = "it leaves by eth9 via 192.0.2.9, by a route in table 52 (rule 5270)";
        assert_eq!(asked(own, "10.42.3.1", None).as_deref(), Some(words));
        assert_eq!(asked(own, "10.42.4.1", None), None);
        sh("ip rule del pref 5270 && ip route add 10.42.4.0/25 dev eth9");
        let words = "it leaves by eth9, by a route in table main";
        assert_eq!(asked(own, "10.42.4.1", None).as_deref(), Some(words));
        assert_eq!(asked(own, "10.42.3.1", None), None);
        sh("ip route add prohibit 10.42.5.0/25");
        assert!(asked(own, "10.42.5.1", None).unwrap().contains("dropped"));
        // In transit.
        sh(
            "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth8.rp_filter=0",
        );
        let transit = ("10.43.0.7", "10.42.7.1", Some("eth8"));
        assert_eq!(asked(transit.0, transit.1, transit.2), None);
        sh("sysctl -qw net.ipv4.conf.eth8.forwarding=0");
        let found = asked(transit.0, transit.1, transit.2).unwrap();
        assert!(found.contains("forwarding is off on eth8"), "{found}");
        sh("sysctl -qw net.ipv4.conf.eth8.forwarding=1 net.ipv4.conf.eth8.rp_filter=1");
        let found = asked(transit.0, transit.1, transit.2).unwrap();
        assert!(found.contains("reverse-path filter on eth8"), "{found}");
        assert_eq!(asked(transit.0, transit.1, Some("gone0")), None, "nothing comes in by it");
    });
}
