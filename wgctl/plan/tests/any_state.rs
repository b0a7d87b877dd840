//! From any state a kernel can be in, a plan leads to any other, each step accepted.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use proptest::prelude::*;
use proptest::sample::select;
use wgctl_plan::*;

const DEVICES: [&str; 4] = ["wgl0", "wgl1", "lvx0", "eth0"];
const ADDRESSES: [&str; 6] = [
    "100.127.0.5/20",
    "100.127.0.7/20",
    "100.127.16.5/20",
    "100.127.0.5/32",
    "fd4c::5/116",
    "fd4c::5/128",
];
const PREFIXES: [&str; 4] = ["10.42.1.0/24", "10.42.2.0/24", "fd42:1::/64", "fd42:2::/64"];
const GATEWAYS: [&str; 3] = ["10.0.0.1", "10.0.0.2", "fd00::1"];

fn dev() -> impl Strategy<Value = InterfaceName> {
    select(&DEVICES[..]).prop_map(|d| d.parse().unwrap())
}
fn net(of: &'static [&'static str]) -> impl Strategy<Value = IpNet> {
    select(of).prop_map(|n| n.parse().unwrap())
}
fn ip() -> impl Strategy<Value = IpAddr> {
    select(&GATEWAYS[..]).prop_map(|n| n.parse().unwrap())
}
fn key() -> impl Strategy<Value = WgPublicKey> {
    (0..4u8).prop_map(|k| WgPublicKey([k; 32]))
}
fn mac() -> impl Strategy<Value = Mac> {
    (0..3u8).prop_map(|m| Mac([2, 0, 0, 0, 0, m]))
}
fn id() -> impl Strategy<Value = NexthopId> {
    (0..5u32).prop_map(|n| NexthopId(NEXTHOP_ID_BASE + n))
}
fn family() -> impl Strategy<Value = Family> {
    select(&[Family::V4, Family::V6][..])
}
fn mtu() -> impl Strategy<Value = u32> {
    select(&[1400u32, 1420][..])
}
fn vxlan() -> impl Strategy<Value = Vxlan> {
    (0..2u32, ip(), mac(), mtu()).prop_map(|(vni, local, mac, mtu)| Vxlan {
        vni,
        local,
        port: 4790,
        mac,
        mtu,
        up: false,
    })
}
fn peer() -> impl Strategy<Value = WgPeer> {
    (proptest::option::of(0..3u16), proptest::collection::btree_set(net(&PREFIXES), 0..3), 0..2u16)
        .prop_map(|(endpoint, allowed_ips, persistent_keepalive)| WgPeer {
            endpoint: endpoint.map(|port| SocketAddr::from(([203, 0, 113, 1], 51900 + port))),
            allowed_ips,
            persistent_keepalive,
        })
}
fn nexthop() -> impl Strategy<Value = Nexthop> {
    prop_oneof![
        3 => (dev(), family()).prop_map(|(dev, family)| Nexthop::Device { dev, family }),
        2 => (dev(), ip()).prop_map(|(dev, gateway)| Nexthop::Gateway { dev, gateway, onlink: true }),
        3 => proptest::collection::btree_set(id(), 1..3).prop_map(|members| Nexthop::Group { members }),
        1 => family().prop_map(|family| Nexthop::Blackhole { family }),
    ]
}
fn route() -> impl Strategy<Value = RouteVia> {
    prop_oneof![
        3 => (id(), proptest::option::weighted(0.2, net(&ADDRESSES)))
            .prop_map(|(id, source)| RouteVia::Nexthop { id, source: source.map(|s| s.addr()) }),
        1 => (dev(), proptest::option::of(net(&ADDRESSES)))
            .prop_map(|(dev, source)| RouteVia::Device { dev, source: source.map(|s| s.addr()) }),
        1 => (dev(), ip()).prop_map(|(dev, gateway)| RouteVia::Gateway { dev, gateway, onlink: true }),
    ]
}
fn route_key() -> impl Strategy<Value = RouteKey> {
    (select(&[254u32, 100][..]), net(&PREFIXES)).prop_map(|(table, prefix)| RouteKey {
        table,
        prefix,
        metric: 50,
    })
}
fn rule() -> impl Strategy<Value = Rule> {
    (family(), 0..3u32).prop_map(|(family, priority)| Rule {
        family,
        priority,
        from: None,
        to: None,
        iif: None,
        table: 100,
    })
}
fn prefixes() -> impl Strategy<Value = Prefixes> {
    proptest::collection::vec(net(&PREFIXES), 0..3).prop_map(|all| all.into_iter().collect())
}
fn transit() -> impl Strategy<Value = Transit> {
    (prefixes(), prefixes(), prefixes()).prop_map(|(own, near, far)| Transit { own, near, far })
}
fn sysctl() -> impl Strategy<Value = String> {
    select(&["net/ipv4/ip_forward", "net/ipv4/conf/wgl0/rp_filter", "net/ipv4/conf/lvx0/rp_filter"][..])
        .prop_map(str::to_owned)
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        1 => (sysctl(), 0..3u8).prop_map(|(path, v)| Change::SetSysctl { path, value: v.to_string() }),
        4 => (dev(), mtu()).prop_map(|(name, mtu)| Change::AddWireguard { name, mtu }),
        3 => (dev(), vxlan()).prop_map(|(name, vxlan)| Change::AddVxlan { name, vxlan }),
        1 => dev().prop_map(|name| Change::DeleteLink { name }),
        1 => (dev(), mac()).prop_map(|(name, mac)| Change::SetMac { name, mac }),
        8 => (dev(), proptest::bool::weighted(0.9)).prop_map(|(name, up)| Change::SetUp { name, up }),
        2 => (dev(), proptest::option::of(key()), proptest::option::of(1..3u16))
            .prop_map(|(name, public_key, listen_port)| Change::SetWireguard { name, public_key, listen_port }),
        4 => (dev(), key(), peer()).prop_map(|(name, key, peer)| Change::SetPeer { name, key, peer }),
        6 => (dev(), net(&ADDRESSES)).prop_map(|(name, address)| Change::AddAddress { name, address }),
        1 => (dev(), net(&ADDRESSES)).prop_map(|(name, address)| Change::RemoveAddress { name, address }),
        3 => (dev(), ip(), mac()).prop_map(|(dev, address, mac)| Change::SetNeighbour { dev, address, mac }),
        3 => (dev(), mac(), ip()).prop_map(|(dev, mac, endpoint)| Change::SetFdb { dev, mac, endpoint }),
        16 => (id(), nexthop()).prop_map(|(id, nexthop)| Change::SetNexthop { id, nexthop }),
        1 => id().prop_map(|id| Change::RemoveNexthop { id }),
        2 => rule().prop_map(|rule| Change::AddRule { rule }),
        16 => (route_key(), route()).prop_map(|(key, via)| Change::AddRoute { key, via }),
        3 => (route_key(), route()).prop_map(|(key, via)| Change::ReplaceRoute { key, via }),
        2 => transit().prop_map(|transit| Change::SetUntracked { transit }),
        1 => Just(Change::RemoveUntracked),
    ]
}

fn kernel(network: Network) -> ModelKernel {
    ModelKernel { network, foreign: ["eth0".parse().unwrap()].into() }
}

/// Whatever a random history leaves behind.
fn state() -> impl Strategy<Value = Network> {
    proptest::collection::vec(change(), 0..120).prop_map(|history| {
        let mut kernel = kernel(Network::default());
        for change in &history {
            let _ = kernel.apply(change);
        }
        kernel.network
    })
}

/// What may be wanted: every WireGuard interface has a key, and not one of its peers'.
fn wanted() -> impl Strategy<Value = Network> {
    state().prop_map(|mut network| {
        for w in network.wireguard.values_mut() {
            w.public_key = Some(WgPublicKey([200; 32]));
        }
        network
    })
}

/// Endpoints roam and sysctls stay, so neither is compared.
fn comparable(mut network: Network, desired: &Network) -> Network {
    network.sysctls.retain(|path, _| desired.sysctls.contains_key(path));
    for (name, w) in &mut network.wireguard {
        let Some(want) = desired.wireguard.get(name) else { continue };
        for (key, peer) in &mut w.peers {
            peer.endpoint = want.peers.get(key).and_then(|p| p.endpoint);
        }
    }
    network
}

fn run(observed: &Network, plan: &[Change]) -> Result<Network, TestCaseError> {
    let mut kernel = kernel(observed.clone());
    for (step, change) in plan.iter().enumerate() {
        kernel.apply(change).map_err(|refused| {
            let all: Vec<_> = plan.iter().map(Change::to_string).collect();
            TestCaseError::fail(format!("step {step}: {refused}\nin {all:#?}"))
        })?;
    }
    Ok(kernel.network)
}

/// The same network, nothing of it shared with anybody.
fn unshared(network: &Network) -> Network {
    Network {
        wireguard: Shared::new((*network.wireguard).clone()),
        vxlan: Shared::new((*network.vxlan).clone()),
        addresses: Shared::new((*network.addresses).clone()),
        fdb: Shared::new((*network.fdb).clone()),
        neighbours: Shared::new((*network.neighbours).clone()),
        nexthops: Shared::new((*network.nexthops).clone()),
        routes: Shared::new((*network.routes).clone()),
        rules: Shared::new((*network.rules).clone()),
        sysctls: Shared::new((*network.sysctls).clone()),
        untracked: Shared::new((*network.untracked).clone()),
    }
}

/// What a few changes make of a copy, which shares with the original what they leave alone.
fn changed(original: &Network, history: &[Change]) -> Network {
    let mut kernel = kernel(original.clone());
    for change in history {
        let _ = kernel.apply(change);
    }
    for w in kernel.network.wireguard.values_mut() {
        w.public_key = Some(WgPublicKey([200; 32]));
    }
    kernel.network
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_plan_leads_from_any_state_to_any_other(observed in state(), desired in wanted()) {
        let plan = diff(&desired, &observed);
        let reached = run(&observed, &plan)?;
        prop_assert_eq!(comparable(reached.clone(), &desired), desired.clone());
        prop_assert_eq!(diff(&desired, &reached), vec![]);
    }

    #[test]
    fn a_new_desired_state_is_reached_with_its_endpoints(old in state(), new in wanted()) {
        let plan = diff_desired(&old, &new);
        let reached = run(&old, &plan)?;
        for (name, w) in &new.wireguard {
            for (key, peer) in &w.peers {
                if peer.endpoint.is_some() {
                    prop_assert_eq!(reached.wireguard[name].peers[key].endpoint, peer.endpoint);
                }
            }
        }
        prop_assert_eq!(comparable(reached, &new), new);
    }

    #[test]
    fn nothing_is_to_be_done_where_all_is_as_desired(state in state()) {
        prop_assert_eq!(diff(&state, &state), vec![]);
        prop_assert_eq!(diff_desired(&state, &state), vec![]);
    }

    #[test]
    fn a_route_in_both_states_is_there_all_the_time(observed in state(), mut desired in wanted()) {
        // What goes down or loses its addresses takes routes along, so links and addresses stay here.
        let mut observed = observed;
        for w in observed.wireguard.values_mut() {
            w.public_key = Some(WgPublicKey([200; 32]));
        }
        desired.wireguard = observed.wireguard.clone();
        desired.vxlan = observed.vxlan.clone();
        desired.addresses = observed.addresses.clone();
        desired.fdb.retain(|(dev, _), _| observed.vxlan.contains_key(dev));
        desired.neighbours.retain(|(dev, _), _| observed.vxlan.contains_key(dev));
        let usable = |dev: &InterfaceName| dev.as_str() == "eth0" || observed.is_up(dev) == Some(true);
        let gone: Vec<NexthopId> =
            desired.nexthops.iter().filter(|(_, n)| n.device().is_some_and(|d| !usable(d))).map(|(id, _)| *id).collect();
        let mut trimmed = kernel(desired);
        for id in gone {
            let _ = trimmed.apply(&Change::RemoveNexthop { id });
        }
        let mut desired = trimmed.network;
        desired.routes.retain(|_, via| via.device().is_none_or(usable));
        desired.sysctls.clear();

        let kept: Vec<&RouteKey> = observed.routes.keys().filter(|k| desired.routes.contains_key(k)).collect();
        let mut kernel = kernel(observed.clone());
        for change in diff(&desired, &observed) {
            kernel.apply(&change).map_err(|refused| TestCaseError::fail(refused.to_string()))?;
            for key in &kept {
                prop_assert!(kernel.network.routes.contains_key(*key), "{} lost {}", change, key);
            }
        }
    }

    #[test]
    fn the_difference_is_the_same_whether_parts_are_shared_or_not(
        old in wanted(),
        history in proptest::collection::vec(change(), 0..6),
    ) {
        let before = unshared(&old);
        let mut new = changed(&old, &history);
        prop_assert_eq!(&old, &before, "a change of the copy reached the original");
        let (old_alone, new_alone) = (unshared(&old), unshared(&new));
        prop_assert_eq!(&new, &new_alone);
        prop_assert_eq!(new == old, new_alone == old_alone);
        let plans = (diff(&new_alone, &old_alone), diff_desired(&old_alone, &new_alone));
        prop_assert_eq!(&(diff(&new, &old), diff_desired(&old, &new)), &plans);
        new.share(&old);
        prop_assert_eq!(&new, &new_alone);
        prop_assert_eq!(&(diff(&new, &old), diff_desired(&old, &new)), &plans);
        let mut rejoined = new_alone;
        rejoined.share(&old);
        prop_assert_eq!(&(diff(&rejoined, &old), diff_desired(&old, &rejoined)), &plans);
    }

    #[test]
    fn no_change_of_a_shared_part_is_skipped(
        old in wanted(),
        history in proptest::collection::vec(change(), 1..4),
    ) {
        let new = changed(&old, &history);
        let reached = run(&old, &diff(&new, &old))?;
        prop_assert_eq!(comparable(reached, &new), new);
    }
}
