//! TUN devices (`Documentation/networking/tuntap.rst`).

use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context, Result};
use nix::libc;

nix::ioctl_write_int!(tun_set_iff, b'T', 202);

/// Creates a TUN device in the calling thread's network namespace. It lives as long as the descriptor.
pub fn open(name: &str) -> Result<OwnedFd> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")
        .context("cannot open /dev/net/tun (it needs the tun module, and mode 0666 for users who are not root)")?;
    // SAFETY: all zeroes is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the kernel reads an ifreq at this address, and it is one that lives until the call returns.
    unsafe { tun_set_iff(file.as_raw_fd(), std::ptr::from_mut(&mut request) as u64) }
        .with_context(|| format!("cannot create TUN device {name}"))?;
    Ok(file.into())
}
