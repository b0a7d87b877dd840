//! The sockets that probe requests arrive on: per port one for IPv4 and one for IPv6, on all addresses.
//!
//! Each request comes with the local address it was sent to and its TTL, as control messages; the answer leaves from that
//! very address, by the ordinary routes as a workload's answer would, or through a plane that the core names.

use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use leaderd_core::ids::Slot;
use leaderd_core::io::Input;
use leaderd_core::mesh::plane;
use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt,
    sockopt,
};
use socket2::{Domain, Protocol, Socket, Type};

use super::{MAX_PER_SOCKET, REFLECTOR_TOKEN, Token};
use crate::counters::Counters;

#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error(
        "UDP port {port} is taken by another program (see `ss -lunp 'sport = :{port}'`); stop it, or choose other \
         probe_ports in the mesh file of all nodes"
    )]
    Busy { port: u16 },
    #[error("UDP port {port} for probes: {source}")]
    Port { port: u16, source: io::Error },
    #[error("probe sockets: {0}")]
    System(io::Error),
}

#[derive(Debug, Default)]
pub(super) struct Reflectors {
    /// By port and whether it is IPv6.
    sockets: BTreeMap<(u16, bool), OwnedFd>,
}

fn token(port: u16, v6: bool) -> Token {
    REFLECTOR_TOKEN | u64::from(port) << 1 | u64::from(v6)
}

impl Reflectors {
    pub(super) fn set_ports(&mut self, ports: &[u16], epoll: &Epoll) -> Result<(), BindError> {
        let mut new = BTreeMap::new();
        for &port in ports {
            for v6 in [false, true] {
                if self.sockets.contains_key(&(port, v6)) {
                    continue;
                }
                match open(port, v6) {
                    Ok(fd) => {
                        new.insert((port, v6), fd);
                    }
                    Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
                        return Err(BindError::Busy { port });
                    }
                    // A kernel without IPv6 has no IPv6 probes either.
                    Err(e)
                        if v6
                            && matches!(
                                e.raw_os_error(),
                                Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
                            ) => {}
                    Err(source) => return Err(BindError::Port { port, source }),
                }
            }
        }
        for (&(port, v6), fd) in &new {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, token(port, v6));
            epoll.add(fd, event).map_err(|e| BindError::System(e.into()))?;
        }
        self.sockets.retain(|(port, _), _| ports.contains(port));
        self.sockets.append(&mut new);
        Ok(())
    }

    pub(super) fn receive(
        &self,
        token: Token,
        buffer: &mut [u8],
        counters: &Counters,
        inputs: &mut Vec<Input>,
    ) {
        let (port, v6) = ((token >> 1) as u16, token & 1 == 1);
        let Some(fd) = self.sockets.get(&(port, v6)) else { return };
        for _ in 0..MAX_PER_SOCKET {
            let mut control = nix::cmsg_space!(libc::in6_pktinfo, libc::c_int);
            let mut slices = [IoSliceMut::new(buffer)];
            let Ok(message) = recvmsg::<SockaddrStorage>(
                fd.as_raw_fd(),
                &mut slices,
                Some(&mut control),
                MsgFlags::MSG_DONTWAIT,
            ) else {
                break;
            };
            let (mut local, mut ttl) = (None, 0);
            for c in message.cmsgs().into_iter().flatten() {
                match c {
                    ControlMessageOwned::Ipv4PacketInfo(info) => {
                        local =
                            Some(IpAddr::V4(Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr))));
                    }
                    ControlMessageOwned::Ipv6PacketInfo(info) => {
                        local = Some(IpAddr::V6(Ipv6Addr::from(info.ipi6_addr.s6_addr)));
                    }
                    ControlMessageOwned::Ipv4Ttl(n) | ControlMessageOwned::Ipv6HopLimit(n) => {
                        ttl = n.clamp(0, 255) as u8
                    }
                    _ => {}
                }
            }
            let truncated = message.flags.contains(MsgFlags::MSG_TRUNC);
            let (from, length) = (message.address.as_ref().and_then(address), message.bytes);
            let (Some(local), Some(from), false) = (local, from, truncated) else {
                counters.count("probe_requests_dropped");
                continue;
            };
            counters.count("probe_requests");
            let local = SocketAddr::new(local, port);
            inputs.push(Input::ProbeRequest {
                from,
                local,
                ttl,
                bytes: buffer[..length].to_owned(),
            });
        }
    }

    pub(super) fn send(
        &self,
        via: Option<Slot>,
        from: SocketAddr,
        to: SocketAddr,
        bytes: &[u8],
    ) -> io::Result<()> {
        // 0 leaves the interface open.
        let interface = via.map_or(Ok(0), |slot| if_nametoindex(plane(slot).as_str()))?;
        let fd = self
            .sockets
            .get(&(from.port(), from.is_ipv6()))
            .ok_or(io::ErrorKind::AddrNotAvailable)?;
        let slices = [IoSlice::new(bytes)];
        let to = SockaddrStorage::from(to);
        let (v4, v6);
        let control = match from.ip() {
            IpAddr::V4(ip) => {
                let ipi_spec_dst = libc::in_addr { s_addr: u32::from(ip).to_be() };
                v4 = libc::in_pktinfo {
                    ipi_ifindex: interface as i32,
                    ipi_spec_dst,
                    ipi_addr: libc::in_addr { s_addr: 0 },
                };
                ControlMessage::Ipv4PacketInfo(&v4)
            }
            IpAddr::V6(ip) => {
                v6 = libc::in6_pktinfo {
                    ipi6_addr: libc::in6_addr { s6_addr: ip.octets() },
                    ipi6_ifindex: interface,
                };
                ControlMessage::Ipv6PacketInfo(&v6)
            }
        };
        sendmsg(fd.as_raw_fd(), &slices, &[control], MsgFlags::MSG_DONTWAIT, Some(&to))?;
        Ok(())
    }
}

fn open(port: u16, v6: bool) -> io::Result<OwnedFd> {
    let (domain, any): (_, IpAddr) = match v6 {
        true => (Domain::IPV6, Ipv6Addr::UNSPECIFIED.into()),
        false => (Domain::IPV4, Ipv4Addr::UNSPECIFIED.into()),
    };
    let socket = Socket::new(domain, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    if v6 {
        socket.set_only_v6(true)?;
        setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
        setsockopt(&socket, sockopt::Ipv6RecvHopLimit, &true)?;
    } else {
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
        setsockopt(&socket, sockopt::Ipv4RecvTtl, &true)?;
    }
    // An answer is as long as its request, and must come back whole or not at all as well.
    super::socket::set_dont_fragment(socket.as_fd(), !v6, true)?;
    socket.bind(&SocketAddr::new(any, port).into())?;
    Ok(socket.into())
}

fn address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v4) = storage.as_sockaddr_in() {
        return Some(SocketAddr::new(v4.ip().into(), v4.port()));
    }
    storage.as_sockaddr_in6().map(|v6| SocketAddr::new(v6.ip().into(), v6.port()))
}

#[cfg(test)]
mod tests {
    use super::super::Probes;
    use super::*;

    #[tokio::test]
    async fn a_busy_port_is_named_with_what_to_do() {
        let other = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        let port = other.local_addr().unwrap().port();
        let error = Probes::bind(&[port], Counters::default()).unwrap_err().to_string();
        assert!(
            error.contains(&format!("UDP port {port} is taken")) && error.contains("probe_ports"),
            "{error}"
        );
    }
}
