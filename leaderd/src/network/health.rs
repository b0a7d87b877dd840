//! The node's own check of its ability to relay.

use std::ffi::c_char;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use leaderd_core::fault::Fault;
use nix::libc;
use wgctl_plan::{InterfaceName, Network};

/// Sysctls that relaying needs.
const FORWARDING: [&str; 2] = ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"];

/// Returns why this node, which needs this network, cannot relay.
pub(super) fn check(network: &Network) -> Option<(Fault, String)> {
    for (name, wanted) in network.wireguard.iter().map(|(n, w)| (n, w.up)) {
        match is_up(name) {
            Some(true) => {}
            _ if !wanted => {}
            Some(false) => return Some((Fault::SelfReported, format!("interface {name} is down"))),
            None => return Some((Fault::SelfReported, format!("interface {name} is missing"))),
        }
    }
    for path in FORWARDING {
        let wanted = network.sysctls.get(path);
        let found = wanted.and_then(|_| std::fs::read_to_string(format!("/proc/sys/{path}")).ok());
        if let (Some(wanted), Some(found)) = (wanted, found)
            && found.trim() != wanted
        {
            return Some((
                Fault::SelfReported,
                format!("{} is {}", path.replace('/', "."), found.trim()),
            ));
        }
    }
    None
}

/// Returns whether an interface is up, `None` if there is no such interface. Uses an ioctl (netdevice(7)), as `/sys` may show
/// another network namespace.
fn is_up(name: &InterfaceName) -> Option<bool> {
    let socket = UdpSocket::bind("127.0.0.1:0").or_else(|_| UdpSocket::bind("[::]:0")).ok()?;
    // SAFETY: all zero is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.as_str().bytes()) {
        *to = from as c_char;
    }
    // SAFETY: SIOCGIFFLAGS reads the name and writes the flags of the `ifreq` that it is given.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) };
    if result != 0 {
        return None;
    }
    // SAFETY: the call succeeded, so the flags are what the union holds.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Some(i32::from(flags) & libc::IFF_UP != 0)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use wgctl_plan::WgInterface;

    use super::*;

    fn network(interface: &str) -> Network {
        let wireguard = WgInterface {
            public_key: None,
            listen_port: 1,
            mtu: 1420,
            up: true,
            peers: BTreeMap::new(),
        };
        Network {
            wireguard: [(interface.parse().unwrap(), wireguard)].into(),
            ..Network::default()
        }
    }

    #[test]
    fn a_missing_interface_and_forwarding_switched_off_are_reported() {
        assert_eq!(check(&Network::default()), None);
        assert_eq!(check(&network("lo")), None);
        assert_eq!(check(&network("wgl-none")).unwrap().1, "interface wgl-none is missing");
        let mut wrong = network("lo");
        wrong.sysctls.insert("net/ipv4/ip_forward".into(), "7".into());
        assert!(check(&wrong).unwrap().1.starts_with("net.ipv4.ip_forward is "));
    }
}
