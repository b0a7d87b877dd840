//! What arrives on the sockets of probes: replies, and errors from the error queue (ip(7), `IP_RECVERR`).

use std::io::IoSliceMut;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use leaderd_core::io::{Input, ProbeError, ProbeId};
use leaderd_core::probe::stamp::{ReflectorPacket, SenderPacket};
use nix::errno::Errno;
use nix::libc;
use nix::sys::epoll::EpollFlags;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, getsockopt, recv, recvmsg, sockopt};

use super::{Kind, MAX_PER_SOCKET, Open, Probes, Token};

impl Probes {
    pub(super) fn receive(&mut self, token: Token, flags: EpollFlags, inputs: &mut Vec<Input>) {
        let Some(open) = self.open.get(&token) else { return };
        let fd = std::os::fd::AsFd::as_fd(&open.fd);
        if let Kind::Service(probe) = open.kind {
            let errno = getsockopt(&fd, sockopt::SocketError).unwrap_or(libc::EIO);
            inputs.push(match errno {
                0 => Input::ServiceReply { probe, body: None },
                errno => Input::ProbeError { probe, error: connect_error(errno) },
            });
            // Decided either way; also, a socket that stays writable would wake us for ever.
            self.close(token);
            return;
        }
        if flags.contains(EpollFlags::EPOLLERR) {
            for _ in 0..MAX_PER_SOCKET {
                let Some((error, payload)) = read_error(fd, &mut self.buffer) else { break };
                self.counters.count("probe_icmp_errors");
                let sent = [SenderPacket::claimed_seq(payload)];
                if let (Some(probe), Some(error)) = (probe_of(open, &sent), error) {
                    inputs.push(Input::ProbeError { probe, error });
                }
            }
        }
        for _ in 0..MAX_PER_SOCKET {
            match recv(fd.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => {
                    let bytes = &self.buffer[..length];
                    let answered = ReflectorPacket::claimed_sender_seqs(bytes);
                    if let Some(probe) = probe_of(open, &answered) {
                        inputs.push(Input::ProbeReply { probe, bytes: bytes.to_owned() });
                    }
                }
                // A pending soft error is reported once in place of data; its details came from the error queue.
                Err(
                    Errno::ECONNREFUSED
                    | Errno::EHOSTUNREACH
                    | Errno::ENETUNREACH
                    | Errno::EMSGSIZE
                    | Errno::EPROTO,
                ) => {}
                Err(_) => break,
            }
        }
    }
}

/// Who refused a TCP connect: something on the way or at its end, or this kernel.
pub(super) fn connect_error(errno: i32) -> ProbeError {
    match errno {
        libc::ECONNREFUSED | libc::ECONNRESET | libc::EHOSTUNREACH | libc::ENETUNREACH => {
            ProbeError::Unreachable { from: None }
        }
        errno => ProbeError::Local { errno },
    }
}

/// Which probe of a socket this belongs to: on a pinned flow the one with the sequence number, else the latest.
fn probe_of(open: &Open, sequences: &[Option<u32>]) -> Option<ProbeId> {
    match &open.kind {
        Kind::Fresh(probe) | Kind::Service(probe) => Some(*probe),
        Kind::Pinned { outstanding, .. } => sequences
            .iter()
            .flatten()
            .find_map(|wanted| outstanding.iter().find(|(seq, _)| seq == wanted))
            .or(outstanding.back())
            .map(|(_, probe)| *probe),
    }
}

/// One entry of the error queue: what it means, and the start of the packet that caused it.
fn read_error<'a>(
    fd: BorrowedFd<'_>,
    buffer: &'a mut [u8],
) -> Option<(Option<ProbeError>, &'a [u8])> {
    let mut control = nix::cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6);
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let (error, length) = {
        let mut slices = [IoSliceMut::new(buffer)];
        let message = recvmsg::<()>(fd.as_raw_fd(), &mut slices, Some(&mut control), flags).ok()?;
        let error = message.cmsgs().ok()?.find_map(|c| match c {
            ControlMessageOwned::Ipv4RecvErr(e, from) => meaning(
                &e,
                from.map(|a| IpAddr::from(u32::from_be(a.sin_addr.s_addr).to_be_bytes())),
            ),
            ControlMessageOwned::Ipv6RecvErr(e, from) => {
                meaning(&e, from.map(|a| IpAddr::from(a.sin6_addr.s6_addr)))
            }
            _ => None,
        });
        (error, message.bytes)
    };
    Some((error, &buffer[..length.min(buffer.len())]))
}

fn meaning(e: &libc::sock_extended_err, from: Option<IpAddr>) -> Option<ProbeError> {
    let mtu = u16::try_from(e.ee_info).ok().filter(|m| *m > 0);
    match (e.ee_origin, e.ee_type, e.ee_code) {
        (libc::SO_EE_ORIGIN_LOCAL, ..) if e.ee_errno == libc::EMSGSIZE as u32 => {
            Some(ProbeError::TooBig { mtu, from: None })
        }
        (libc::SO_EE_ORIGIN_LOCAL, ..) => Some(ProbeError::Local { errno: e.ee_errno as i32 }),
        // RFC 792: 11 is time exceeded; 3 is unreachable, with code 4 for 'fragmentation needed'.
        (libc::SO_EE_ORIGIN_ICMP, 11, _) => Some(ProbeError::TimeExceeded { from }),
        (libc::SO_EE_ORIGIN_ICMP, 3, 4) => Some(ProbeError::TooBig { mtu, from }),
        (libc::SO_EE_ORIGIN_ICMP, 3, _) => Some(ProbeError::Unreachable { from }),
        // RFC 4443: 1 unreachable, 2 packet too big, 3 time exceeded.
        (libc::SO_EE_ORIGIN_ICMP6, 1, _) => Some(ProbeError::Unreachable { from }),
        (libc::SO_EE_ORIGIN_ICMP6, 2, _) => Some(ProbeError::TooBig { mtu, from }),
        (libc::SO_EE_ORIGIN_ICMP6, 3, _) => Some(ProbeError::TimeExceeded { from }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, UdpSocket};
    use std::time::Duration;

    use leaderd_core::io::{Flow, ProbeKind, ProbeSend};
    use leaderd_core::verdict::ProbeClass;

    use super::*;
    use crate::counters::Counters;

    fn probe(id: u64, target: SocketAddr, flow: Flow, packet: Vec<u8>) -> ProbeSend {
        let source =
            if target.is_ipv4() { "127.0.0.3".parse().unwrap() } else { "::1".parse().unwrap() };
        ProbeSend {
            probe: ProbeId(id),
            class: ProbeClass::NewFlow,
            via: None,
            source,
            target,
            kind: ProbeKind::Stamp { packet, flow, dont_fragment: true },
        }
    }

    async fn ready(probes: &mut Probes) -> Vec<Input> {
        tokio::time::timeout(Duration::from_secs(5), probes.ready())
            .await
            .expect("something arrives")
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn free_port() -> u16 {
        UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    #[tokio::test]
    async fn a_probe_reaches_the_reflector_and_its_answer_comes_from_the_address_probed() {
        let port = free_port();
        let mut probes = Probes::bind(&[port], Counters::default()).unwrap();
        for (id, address) in [(1, "127.0.0.7"), (2, "::1")] {
            let target = SocketAddr::new(address.parse().unwrap(), port);
            assert_eq!(probes.send(&probe(id, target, Flow::Fresh, vec![id as u8; 200])), None);
            let inputs = ready(&mut probes).await;
            let [Input::ProbeRequest { from, local, ttl, bytes }] = &inputs[..] else {
                panic!("{inputs:?}")
            };
            assert_eq!((*local, *ttl, bytes.len()), (target, 64, 200));
            probes.reflect(None, *local, *from, &[9; 200]);
            // The socket is connected, so an answer from any other address would never arrive.
            assert_eq!(
                ready(&mut probes).await,
                [Input::ProbeReply { probe: ProbeId(id), bytes: vec![9; 200] }]
            );
            probes.forget(ProbeId(id));
            assert_eq!(probes.open_sockets(), 0);
        }
    }

    #[tokio::test]
    async fn port_unreachable_is_reported_with_the_address_it_came_from() {
        let mut probes = Probes::bind(&[], Counters::default()).unwrap();
        let target = SocketAddr::new("127.0.0.9".parse().unwrap(), free_port());
        assert_eq!(probes.send(&probe(5, target, Flow::Fresh, vec![0; 44])), None);
        let from = Some(target.ip());
        assert_eq!(
            ready(&mut probes).await,
            [Input::ProbeError { probe: ProbeId(5), error: ProbeError::Unreachable { from } }]
        );
    }

    #[tokio::test]
    async fn answers_on_a_pinned_flow_find_their_probe_even_when_they_overtake_each_other() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut probes = Probes::bind(&[], Counters::default()).unwrap();
        let mut ports = vec![];
        for id in 1..=2u8 {
            let mut payload = vec![0; 112];
            payload[3] = id;
            assert_eq!(
                probes.send(&probe(
                    id.into(),
                    server.local_addr().unwrap(),
                    Flow::Pinned(1),
                    payload
                )),
                None
            );
            ports.push(server.recv_from(&mut [0; 200]).unwrap().1);
        }
        assert_eq!(ports[0], ports[1], "one flow");
        assert_eq!(probes.open_sockets(), 1);
        for id in [2u8, 1] {
            let mut reply = vec![0; 112];
            reply[51] = id;
            server.send_to(&reply, ports[0]).unwrap();
            let inputs = ready(&mut probes).await;
            assert!(
                matches!(inputs[..], [Input::ProbeReply { probe, .. }] if probe == ProbeId(id.into())),
                "{inputs:?}"
            );
        }
        probes.forget(ProbeId(1));
        assert_eq!(probes.open_sockets(), 1, "the flow outlives its probes");
    }

    #[tokio::test]
    async fn a_service_probe_says_whether_the_port_listens() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut probes = Probes::bind(&[], Counters::default()).unwrap();
        let mut service = probe(1, listener.local_addr().unwrap(), Flow::Fresh, vec![]);
        (service.class, service.kind) = (ProbeClass::Service, ProbeKind::TcpConnect);
        assert_eq!(probes.send(&service), None);
        assert_eq!(
            ready(&mut probes).await,
            [Input::ServiceReply { probe: ProbeId(1), body: None }]
        );
        drop(listener);
        service.probe = ProbeId(2);
        let answer = match probes.send(&service) {
            Some(at_once) => vec![at_once],
            None => ready(&mut probes).await,
        };
        assert!(matches!(answer[..], [Input::ProbeError { probe: ProbeId(2), .. }]), "{answer:?}");
    }

    #[tokio::test]
    async fn fresh_flows_are_bounded_and_a_refusal_of_the_kernel_is_reported_at_once() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut probes = Probes::bind(&[], Counters::default()).unwrap();
        for id in 0..super::super::MAX_FRESH as u64 + 10 {
            let sent =
                probes.send(&probe(id, server.local_addr().unwrap(), Flow::Fresh, vec![0; 44]));
            if let Some(refused) = sent {
                // The test's own limit of descriptors.
                assert!(matches!(
                    refused,
                    Input::ProbeError { error: ProbeError::Local { errno: libc::EMFILE }, .. }
                ));
                break;
            }
        }
        assert!(probes.open_sockets() <= super::super::MAX_FRESH);
        let mut absent = probe(9999, at("127.0.0.1:9"), Flow::Fresh, vec![0; 44]);
        absent.source = "192.0.2.77".parse().unwrap();
        drop(probes);
        let mut probes = Probes::bind(&[], Counters::default()).unwrap();
        assert_eq!(
            probes.send(&absent),
            Some(Input::ProbeError {
                probe: ProbeId(9999),
                error: ProbeError::Local { errno: libc::EADDRNOTAVAIL }
            })
        );
        let mut large = probe(10_000, at("127.0.0.1:9"), Flow::Fresh, vec![0; 70_000]);
        large.via = None;
        assert!(matches!(
            probes.send(&large),
            Some(Input::ProbeError { error: ProbeError::TooBig { .. }, .. })
        ));
    }
}
