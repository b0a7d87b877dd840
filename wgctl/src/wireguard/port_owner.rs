//! Who has a UDP port: does a WireGuard process really listen on its own?
//!
//! If its port is taken when its link comes up, `wireguard-go` leaves the link up, listens nowhere, reports no error and
//! shows the port as if it had it. So the port's owner is looked up in `/proc`.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use wgctl_plan::InterfaceName;

use super::uapi;

/// The owner of a UDP port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PortOwner {
    /// The port is free.
    None,
    /// The process of the interface.
    Interface,
    Other,
    /// `/proc` does not show it: it is of another PID namespace, or hides processes.
    Unknown,
}

/// Returns who has this UDP port in this network namespace, as seen from the process that serves the interface.
///
/// # Errors
/// If the kernel's table of UDP sockets cannot be read.
pub(crate) fn port_owner(name: &InterfaceName, port: u16) -> io::Result<PortOwner> {
    let inodes = inodes_of(port)?;
    if inodes.is_empty() {
        return Ok(PortOwner::None);
    }
    let proc_is_ours = fs::read_link("/proc/self")
        .is_ok_and(|me| me.as_os_str() == std::process::id().to_string().as_str());
    let Some(stream) = uapi::connect(name)?.filter(|_| proc_is_ours) else {
        return Ok(PortOwner::Unknown);
    };
    let pid = getsockopt(&stream, PeerCredentials).map_err(io::Error::from)?.pid();
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return Ok(PortOwner::Unknown);
    };
    // A process without core dumps hides its descriptors from a root without CAP_SYS_PTRACE, as in a container.
    let mut hidden = false;
    let own = entries.flatten().any(|entry| match fs::read_link(entry.path()) {
        Ok(target) => {
            let inode = target
                .to_str()
                .and_then(|t| t.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
            inode.is_some_and(|inode: u64| inodes.contains(&inode))
        }
        Err(error) => {
            hidden |= error.kind() == io::ErrorKind::PermissionDenied;
            false
        }
    });
    Ok(match (own, hidden) {
        (true, _) => PortOwner::Interface,
        (false, true) => PortOwner::Unknown,
        (false, false) => PortOwner::Other,
    })
}

fn inodes_of(port: u16) -> io::Result<BTreeSet<u64>> {
    let mut all = BTreeSet::new();
    for file in ["/proc/thread-self/net/udp", "/proc/thread-self/net/udp6"] {
        match fs::read_to_string(Path::new(file)) {
            Ok(text) => all.extend(parse(&text, port)),
            // A kernel without IPv6.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(all)
}

/// Inodes of the sockets with this local port (`net/ipv4/udp.c`, `udp4_format_sock`).
fn parse(text: &str, port: u16) -> impl Iterator<Item = u64> + '_ {
    text.lines().skip(1).filter_map(move |line| {
        let mut fields = line.split_ascii_whitespace();
        let (_, local) = fields.nth(1)?.rsplit_once(':')?;
        let inode = fields.nth(7)?.parse().ok()?;
        (u16::from_str_radix(local, 16) == Ok(port)).then_some(inode)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sockets_of_a_port_are_found_in_the_kernels_table() {
        let text = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n\
            \x20 361: 00000000:CABC 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 26419 2 0000000000000000 0\n\
            \x20 362: 0100007F:CABD 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 26420 2 0000000000000000 0\n";
        assert_eq!(parse(text, 51900).collect::<Vec<_>>(), [26419]);
        assert_eq!(parse(text, 1).count(), 0);
    }

    #[test]
    fn a_port_in_use_is_seen_as_taken() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        assert_eq!(inodes_of(port).unwrap().len(), 1);
        assert_ne!(port_owner(&"wgl-none".parse().unwrap(), port).unwrap(), PortOwner::None);
    }
}
