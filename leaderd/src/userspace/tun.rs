//! The TUN device. Not on the crate `tun`, which gotatun brings: that reads one packet for each wake-up, cuts packets longer than
//! 4,096 bytes, and reads the MTU every three seconds.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Arc;

use gotatun::packet::{Ip, Packet, PacketBufPool};
use gotatun::tun::{IpRecv, IpSend, MtuWatcher};
use nix::errno::Errno;
use nix::libc;
use nix::sys::uio::readv;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use wgctl_plan::InterfaceName;

/// Packets read for one wake-up, at most, so that a full device does not hold back the packets already read.
const BATCH: usize = 64;

/// By how much an IP packet can exceed a buffer of gotatun's pool, in bytes.
const BEYOND: usize = 65_535 - 4096;

nix::ioctl_write_ptr_bad!(tunsetiff, libc::TUNSETIFF, libc::ifreq);

/// Reads from a TUN device: the packets that the kernel routes into it.
pub struct TunReader {
    device: Arc<AsyncFd<File>>,
    mtu: watch::Receiver<u16>,
    batch: Vec<Packet<Ip>>,
    beyond: Vec<u8>,
}

/// Writes to a TUN device: the kernel receives the packets.
#[derive(Debug)]
pub struct TunWriter {
    device: Arc<AsyncFd<File>>,
}

impl std::fmt::Debug for TunReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TunReader").field("device", &self.device).finish_non_exhaustive()
    }
}

/// Creates the device, or opens an existing one (`ip tuntap add`) that has no reader. The device is removed when both ends are
/// dropped. `mtu` has its MTU, in bytes.
///
/// # Errors
/// If there is no TUN, no permission, or the name belongs to a device of another kind or with a reader.
pub fn open(name: &InterfaceName, mtu: watch::Receiver<u16>) -> io::Result<(TunWriter, TunReader)> {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    // SAFETY: all zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The name has at most 15 bytes, so at least one zero is left.
    for (to, from) in request.ifr_name.iter_mut().zip(name.as_str().bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the descriptor is open, and the kernel reads and writes an ifreq.
    unsafe { tunsetiff(device.as_raw_fd(), &request) }?;
    // SAFETY: the file owns its descriptor, gives out the same one always, and closes it when it is dropped.
    let device = Arc::new(unsafe { AsyncFd::register(device)? });
    let reader = TunReader {
        device: Arc::clone(&device),
        mtu,
        batch: Vec::with_capacity(BATCH),
        beyond: vec![0; BEYOND],
    };
    Ok((TunWriter { device }, reader))
}

impl TunReader {
    /// Reads one packet without waiting. `Ok(None)`: what was read is no IP packet.
    fn read(&mut self, pool: &PacketBufPool) -> io::Result<Option<Packet<Ip>>> {
        let mut packet = pool.get();
        let size = packet.len();
        let mut parts = [IoSliceMut::new(&mut packet), IoSliceMut::new(&mut self.beyond)];
        let n = readv(self.device.get_ref(), &mut parts)?;
        if n > size {
            packet = Packet::copy_from([&packet[..], &self.beyond[..n - size]].concat().as_slice());
        } else {
            packet.truncate(n);
        }
        Ok(packet.try_into_ip().ok())
    }
}

impl IpRecv for TunReader {
    async fn recv<'a>(
        &'a mut self,
        pool: &mut PacketBufPool,
    ) -> io::Result<impl Iterator<Item = Packet<Ip>> + Send + 'a> {
        let device = Arc::clone(&self.device);
        self.batch.clear();
        while self.batch.is_empty() {
            let mut ready = device.readable().await?;
            for _ in 0..BATCH {
                match self.read(pool) {
                    Ok(packet) => self.batch.extend(packet),
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                        ready.clear_ready();
                        break;
                    }
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    // Packets read before the device was removed do not matter any more.
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(self.batch.drain(..))
    }

    fn mtu(&self) -> MtuWatcher {
        self.mtu.clone().into()
    }
}

impl IpSend for TunWriter {
    async fn send(&mut self, packet: Packet<Ip>) -> io::Result<()> {
        let bytes = packet.into_bytes();
        loop {
            let mut ready = self.device.writable().await?;
            match ready.try_io(|device| device.get_ref().write(&bytes)) {
                Err(_would_block) => {}
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                // The link is down, or the kernel refuses this packet: dropped, as by any interface.
                Ok(Err(e))
                    if matches!(
                        e.raw_os_error().map(Errno::from_raw),
                        Some(Errno::EIO | Errno::EINVAL | Errno::ENOBUFS | Errno::ENOMEM)
                    ) =>
                {
                    return Ok(());
                }
                Ok(result) => return result.map(drop),
            }
        }
    }
}
