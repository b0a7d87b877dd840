//! The UDP sockets of an interface.

use std::io;
use std::time::Duration;

use gotatun::udp::socket::{UdpSocket, UdpSocketFactory};
use gotatun::udp::{UdpTransportFactory, UdpTransportFactoryParams};
use nix::sys::socket::{setsockopt, sockopt};

/// As in `wireguard-go`: room for bursts. Without privileges the kernel gives at most `net.core.{r,w}mem_max`.
const BUFFER: usize = 7 << 20;

/// gotatun opens the new socket before the tasks with the old one have ended. On the same port that fails for one turn of the
/// scheduler, so it is tried again.
const TRIES: usize = 20;
const TRY_EVERY: Duration = Duration::from_millis(5);

/// Opens one socket for IPv4 and IPv6 (IPv4 alone where the kernel has no other).
#[derive(Debug)]
pub struct Sockets(UdpSocketFactory);

impl Default for Sockets {
    fn default() -> Self {
        Self(UdpSocketFactory { recv_buffer_size: Some(BUFFER), send_buffer_size: Some(BUFFER) })
    }
}

impl UdpTransportFactory for Sockets {
    type Send = UdpSocket;
    type Recv = UdpSocket;

    async fn bind(
        &mut self,
        params: &UdpTransportFactoryParams,
    ) -> io::Result<(UdpSocket, UdpSocket)> {
        let mut bound = self.0.bind(params).await;
        for _ in 0..TRIES {
            if !bound.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::AddrInUse) {
                break;
            }
            tokio::time::sleep(TRY_EVERY).await;
            bound = self.0.bind(params).await;
        }
        if let Ok((socket, _)) = &bound {
            // Exceeds the limits, with privileges; without, the size stays as given.
            let _ = setsockopt(socket, sockopt::RcvBufForce, &BUFFER);
            let _ = setsockopt(socket, sockopt::SndBufForce, &BUFFER);
        }
        bound
    }
}
