//! Making and using one probe socket.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use leaderd_core::io::ProbeSend;
use leaderd_core::mesh::plane;
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

/// A UDP socket for this probe: bound to its source (any port) and plane, connected to its target.
/// Connected, so that only the target's datagrams and the path's errors arrive.
pub(super) fn open(probe: &ProbeSend, dont_fragment: bool) -> io::Result<OwnedFd> {
    let socket = bound(probe, Type::DGRAM, Protocol::UDP)?;
    let v4 = probe.target.is_ipv4();
    if v4 {
        setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?;
    } else {
        setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?;
    }
    let fd = OwnedFd::from(socket);
    if dont_fragment {
        set_dont_fragment(std::os::fd::AsFd::as_fd(&fd), v4, true)?;
    }
    let socket = Socket::from(fd);
    socket.connect(&probe.target.into())?;
    Ok(socket.into())
}

/// A TCP connect under way: writable when it is decided.
pub(super) fn connect_tcp(probe: &ProbeSend) -> io::Result<OwnedFd> {
    let socket = bound(probe, Type::STREAM, Protocol::TCP)?;
    match socket.connect(&probe.target.into()) {
        Err(e) if e.raw_os_error() != Some(libc::EINPROGRESS) => Err(e),
        _ => Ok(socket.into()),
    }
}

fn bound(probe: &ProbeSend, ty: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(probe.target), ty.nonblocking(), Some(protocol))?;
    if let Some(slot) = probe.via {
        socket.bind_device(Some(plane(slot).as_str().as_bytes()))?;
    }
    socket.bind(&SocketAddr::new(probe.source, 0).into())?;
    Ok(socket)
}

/// `PROBE`: DF is set and what the kernel believes of the path's MTU is ignored, so that a black hole is seen again each
/// time (ip(7)). Else the kernel's default.
pub(super) fn set_dont_fragment(fd: BorrowedFd<'_>, v4: bool, on: bool) -> io::Result<()> {
    let (level, name, value) = match (v4, on) {
        (true, true) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE),
        (true, false) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_WANT),
        (false, true) => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE),
        (false, false) => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_WANT),
    };
    // SAFETY: the option takes an int, and `value` lives through the call.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sends on a connected socket. An error of an *earlier* probe that waits on the socket is reported by the first send
/// after it, and is in the error queue as well: it must not cost this probe, so one more try.
pub(super) fn send(fd: BorrowedFd<'_>, payload: &[u8]) -> io::Result<()> {
    let once = || {
        nix::sys::socket::send(fd.as_raw_fd(), payload, nix::sys::socket::MsgFlags::MSG_DONTWAIT)
    };
    match once() {
        Err(
            nix::errno::Errno::ECONNREFUSED
            | nix::errno::Errno::EHOSTUNREACH
            | nix::errno::Errno::EPROTO,
        ) => once()?,
        other => other?,
    };
    Ok(())
}
