//! Netlink messages as bytes, and a blocking socket to the kernel's route or netfilter family.
//!
//! The kernel processes a request before `send` returns, and its answer is then in the receive buffer. So a blocking socket
//! never waits, and a batch of messages costs one system call. `docs/decisions/0002` says why this is not `rtnetlink`.

use std::io;

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};

pub const NLM_F_REQUEST: u16 = 1;
pub const NLM_F_ACK: u16 = 4;
pub const NLM_F_DUMP: u16 = 0x300;
pub const NLM_F_REPLACE: u16 = 0x100;
pub const NLM_F_EXCL: u16 = 0x200;
pub const NLM_F_CREATE: u16 = 0x400;
pub const NLM_F_APPEND: u16 = 0x800;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;
const NLA_TYPE_MASK: u16 = 0x3fff;
const NLA_F_NESTED: u16 = 0x8000;

/// Messages in one `send`: their acknowledgements (about 100 bytes each, accounted at some 800) must fit the receive
/// buffer of 212,992 bytes.
pub const MAX_BATCH: usize = 128;

/// Bytes of a batch that fit the default send buffer of every system.
const SEND_BUFFER: usize = 128 << 10;

/// A netlink message under construction.
#[derive(Debug, Clone)]
pub struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// `header` is the fixed part (`ifinfomsg`, `rtmsg`, …).
    pub fn new(kind: u16, flags: u16, header: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        bytes.extend_from_slice(header);
        pad(&mut bytes);
        Self { bytes }
    }

    pub fn attr(mut self, kind: u16, value: &[u8]) -> Self {
        self.bytes.extend_from_slice(&(value.len() as u16 + 4).to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        pad(&mut self.bytes);
        self
    }

    pub fn attr_u32(self, kind: u16, value: u32) -> Self {
        self.attr(kind, &value.to_ne_bytes())
    }

    /// A NUL-terminated string.
    pub fn attr_str(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attr(kind, &bytes)
    }

    pub fn nested(mut self, kind: u16, build: impl FnOnce(Self) -> Self) -> Self {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self = build(self);
        let length = (self.bytes.len() - at) as u16;
        self.bytes[at..at + 2].copy_from_slice(&length.to_ne_bytes());
        self.bytes[at + 2..at + 4].copy_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
        self
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    fn finish(&self, sequence: u32) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        let length = bytes.len() as u32;
        bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        bytes
    }
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// A message that the kernel sent.
#[derive(Debug, Clone)]
pub struct Received {
    pub kind: u16,
    /// Fixed part and attributes.
    pub payload: Vec<u8>,
}

impl Received {
    /// The attributes after a fixed part of this many bytes.
    pub fn attrs(&self, header: usize) -> Attrs<'_> {
        Attrs { bytes: self.payload.get(header.next_multiple_of(4)..).unwrap_or_default() }
    }
}

/// Iterates over attributes; ends at the first malformed one.
#[derive(Debug, Clone, Copy)]
pub struct Attrs<'a> {
    bytes: &'a [u8],
}

impl<'a> Iterator for Attrs<'a> {
    type Item = (u16, &'a [u8]);
    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16_at(self.bytes, 0)?);
        let kind = u16_at(self.bytes, 2)? & NLA_TYPE_MASK;
        let value = self.bytes.get(4..length)?;
        self.bytes = self.bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

impl<'a> Attrs<'a> {
    pub fn of(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }
    pub fn get(self, kind: u16) -> Option<&'a [u8]> {
        let mut all = self;
        all.find(|(k, _)| *k == kind).map(|(_, v)| v)
    }
    pub fn u32(self, kind: u16) -> Option<u32> {
        u32_at(self.get(kind)?, 0)
    }
    pub fn str(self, kind: u16) -> Option<&'a str> {
        std::str::from_utf8(self.get(kind)?).ok().map(|s| s.trim_end_matches('\0'))
    }
}

pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Splits what one `recv` gave into messages.
pub fn split(mut bytes: &[u8]) -> impl Iterator<Item = (u32, Received)> + '_ {
    std::iter::from_fn(move || {
        let length = u32_at(bytes, 0)? as usize;
        let kind = u16_at(bytes, 4)?;
        let sequence = u32_at(bytes, 8)?;
        let payload = bytes.get(HEADER..length)?.to_vec();
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((sequence, Received { kind, payload }))
    })
}

/// A blocking netlink socket.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket for links, addresses, routes and the like.
    ///
    /// # Errors
    /// If the kernel gives no socket.
    pub fn open() -> io::Result<Self> {
        Self::to(NETLINK_ROUTE)
    }

    /// Opens a socket for nf_tables.
    ///
    /// # Errors
    /// If the kernel gives no socket.
    pub fn open_netfilter() -> io::Result<Self> {
        Self::to(NETLINK_NETFILTER)
    }

    fn to(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Errors with an explanation, and filters that the kernel honours in dumps.
        let _ = socket.set_ext_ack(true);
        let _ = socket.set_netlink_get_strict_chk(true);
        Ok(Self { socket, sequence: 1 })
    }

    /// Sends the messages, at most [`MAX_BATCH`], in one call. Returns one result for each, in order; a failed message does not
    /// stop those after it.
    ///
    /// # Errors
    /// If the socket fails.
    pub fn request(&mut self, messages: &[Message]) -> io::Result<Vec<Result<(), NetlinkError>>> {
        debug_assert!(messages.len() <= MAX_BATCH);
        let first = self.sequence;
        let mut bytes = Vec::new();
        for message in messages {
            let mut message = message.clone();
            let flags = u16_at(&message.bytes, 6).unwrap_or(0) | NLM_F_ACK;
            message.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
            bytes.extend(message.finish(self.sequence));
            self.sequence = self.sequence.wrapping_add(1);
        }
        self.socket.send(&bytes, 0)?;
        let mut results = Vec::with_capacity(messages.len());
        while results.len() < messages.len() {
            let (bytes, _) = self.socket.recv_from_full()?;
            for (sequence, message) in split(&bytes) {
                // Acknowledgements come in order; anything else is left over from a request that was given up.
                if sequence == first.wrapping_add(results.len() as u32)
                    && message.kind == NLMSG_ERROR
                {
                    results.push(acknowledgement(&message));
                }
            }
        }
        Ok(results)
    }

    /// Sends the messages as one transaction of nf_tables: all take effect, or none does. One of them must ask for an
    /// acknowledgement (`NLM_F_ACK`), which comes last; the kernel's first refusal comes before it.
    ///
    /// # Errors
    /// The kernel's first refusal, or an error of the socket.
    pub fn transaction(&mut self, messages: &[Message]) -> Result<(), NetlinkError> {
        let mut bytes = Vec::new();
        let mut last = self.sequence;
        for message in messages {
            if u16_at(&message.bytes, 6).is_some_and(|flags| flags & NLM_F_ACK != 0) {
                last = self.sequence;
            }
            bytes.extend(message.finish(self.sequence));
            self.sequence = self.sequence.wrapping_add(1);
        }
        // A transaction is one packet and must fit the send buffer. `SndBufForce` may exceed the system's limit but needs
        // CAP_NET_ADMIN. A packet that still does not fit is refused with EMSGSIZE.
        if bytes.len() > SEND_BUFFER
            && setsockopt(&self.socket, sockopt::SndBufForce, &bytes.len()).is_err()
        {
            let _ = setsockopt(&self.socket, sockopt::SndBuf, &bytes.len());
        }
        self.socket.send(&bytes, 0)?;
        // All answers are there when `send` returns.
        self.socket.set_non_blocking(true)?;
        let answer = self.answer(last);
        self.socket.set_non_blocking(false)?;
        answer
    }

    fn answer(&mut self, last: u32) -> Result<(), NetlinkError> {
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            for (sequence, message) in split(&bytes).filter(|(_, m)| m.kind == NLMSG_ERROR) {
                acknowledgement(&message)?;
                if sequence == last {
                    return Ok(());
                }
            }
        }
    }

    /// Discards answers that are left over from an earlier request.
    ///
    /// # Errors
    /// If the socket fails.
    pub fn clear(&mut self) -> io::Result<()> {
        self.socket.set_non_blocking(true)?;
        while self.socket.recv_from_full().is_ok() {}
        self.socket.set_non_blocking(false)
    }

    /// Requests one object.
    ///
    /// # Errors
    /// The kernel's refusal, or an error of the socket.
    pub fn get(&mut self, message: Message) -> Result<Received, NetlinkError> {
        let sequence = self.sequence;
        self.sequence = self.sequence.wrapping_add(1);
        self.socket.send(&message.finish(sequence), 0)?;
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            for (_, message) in split(&bytes).filter(|(got, _)| *got == sequence) {
                if message.kind != NLMSG_ERROR {
                    return Ok(message);
                }
                acknowledgement(&message)?;
            }
        }
    }

    /// Requests all objects of a kind.
    ///
    /// # Errors
    /// The kernel's refusal, or an error of the socket.
    pub fn dump(&mut self, message: Message) -> io::Result<Vec<Received>> {
        let sequence = self.sequence;
        self.sequence = self.sequence.wrapping_add(1);
        let mut bytes = message.finish(sequence);
        let flags = u16_at(&bytes, 6).unwrap_or(0) | NLM_F_DUMP;
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        self.socket.send(&bytes, 0)?;
        let mut all = Vec::new();
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            for (got, message) in split(&bytes) {
                match message.kind {
                    _ if got != sequence => {}
                    NLMSG_DONE => return Ok(all),
                    NLMSG_ERROR => acknowledgement(&message).map_err(io::Error::from)?,
                    _ => all.push(message),
                }
            }
        }
    }
}

/// The kernel's refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetlinkError {
    /// Positive errno.
    pub errno: i32,
    /// The kernel's explanation, if it sent one.
    pub message: Option<String>,
}

impl From<io::Error> for NetlinkError {
    fn from(error: io::Error) -> Self {
        Self { errno: error.raw_os_error().unwrap_or(Errno::EIO as i32), message: None }
    }
}
impl From<NetlinkError> for io::Error {
    fn from(failed: NetlinkError) -> Self {
        Self::from_raw_os_error(failed.errno)
    }
}

impl std::fmt::Display for NetlinkError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let errno = nix::errno::Errno::from_raw(self.errno);
        write!(f, "{errno}")?;
        match &self.message {
            Some(message) => write!(f, " ({message})"),
            None => Ok(()),
        }
    }
}
impl std::error::Error for NetlinkError {}

const NLMSGERR_ATTR_MSG: u16 = 1;

fn acknowledgement(message: &Received) -> Result<(), NetlinkError> {
    let errno = u32_at(&message.payload, 0).unwrap_or(0) as i32;
    if errno == 0 {
        return Ok(());
    }
    // With extended acknowledgements the failed request follows, whole, and then attributes.
    let request = u32_at(&message.payload, 4).unwrap_or(0) as usize;
    let text = message.attrs(4 + request).str(NLMSGERR_ATTR_MSG).map(str::to_owned);
    Err(NetlinkError { errno: -errno, message: text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_written() {
        let message = Message::new(16, 0, &[0; 16])
            .attr_str(3, "wgl0")
            .nested(18, |m| m.attr_u32(1, 7).attr(2, &[1, 2, 3]));
        let bytes = message.finish(9);
        let (sequence, got) = split(&bytes).next().unwrap();
        assert_eq!((sequence, got.kind), (9, 16));
        assert_eq!(got.attrs(16).str(3), Some("wgl0"));
        let inner = Attrs::of(got.attrs(16).get(18).unwrap());
        assert_eq!(inner.u32(1), Some(7));
        assert_eq!(inner.get(2), Some(&[1, 2, 3][..]));
    }

    #[test]
    fn a_malformed_message_ends_the_iteration() {
        assert_eq!(split(&[255; 20]).count(), 0);
        assert_eq!(Attrs::of(&[3, 0, 1, 0]).count(), 0);
        assert_eq!(Attrs::of(&[200, 0, 1, 0, 9]).count(), 0);
        assert_eq!(Attrs::of(&[0, 0, 0, 0]).count(), 0);
    }
}
