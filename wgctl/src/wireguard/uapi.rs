//! The cross-platform userspace protocol of WireGuard (<https://www.wireguard.com/xplatform/>): lines of text over a Unix
//! socket, one request and one answer for each connection.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use wgctl_plan::{InterfaceName, WgInterface, WgPeer, WgPublicKey};
use zeroize::Zeroizing;

use super::{Observed, PeerStats, Settings};

pub(super) const DIRECTORY: &str = "/var/run/wireguard";

/// A process that has not answered within this time is stuck.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Enough for more than 4,000 peers with 100 prefixes each. A longer answer is an error.
const MAX_ANSWER: u64 = 16 << 20;

/// Returns the path of the socket of a userspace interface.
pub fn socket(name: &InterfaceName) -> PathBuf {
    PathBuf::from(format!("{DIRECTORY}/{name}.sock"))
}

/// Connects to the interface's process; `None` if there is none.
pub(super) fn connect(name: &InterfaceName) -> io::Result<Option<UnixStream>> {
    match UnixStream::connect(socket(name)) {
        Ok(stream) => {
            stream.set_read_timeout(Some(TIMEOUT))?;
            stream.set_write_timeout(Some(TIMEOUT))?;
            Ok(Some(stream))
        }
        Err(e)
            if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
        {
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the WireGuard process answered with a bad {what}"),
    )
}

pub(super) fn read(name: &InterfaceName) -> io::Result<Option<Observed>> {
    let Some(mut stream) = connect(name)? else { return Ok(None) };
    stream.write_all(b"get=1\n\n")?;
    parse(BufReader::new(stream.take(MAX_ANSWER))).map(Some)
}

fn parse(answer: impl BufRead) -> io::Result<Observed> {
    let mut interface = WgInterface {
        public_key: None,
        listen_port: 0,
        mtu: 0,
        up: false,
        peers: Default::default(),
    };
    let mut peers: Vec<(WgPublicKey, WgPeer, PeerStats)> = Vec::new();
    for line in answer.lines() {
        let line = Zeroizing::new(line?);
        let Some((word, value)) = line.split_once('=') else { return Err(invalid("line")) };
        let number = || value.parse::<u64>().map_err(|_| invalid("number"));
        match (word, peers.last_mut()) {
            ("errno", _) => {
                if value != "0" {
                    return Err(io::Error::from_raw_os_error(
                        value.parse::<i32>().unwrap_or(5).abs(),
                    ));
                }
                let stats = peers.iter().map(|(key, _, stats)| (*key, *stats)).collect();
                interface.peers = peers.into_iter().map(|(key, peer, _)| (key, peer)).collect();
                return Ok(Observed { interface, stats });
            }
            ("private_key", _) => {
                let key = super::PrivateKey::from_bytes(unhex(value)?);
                interface.public_key = (*key.bytes() != [0; 32]).then(|| key.public());
            }
            ("listen_port", _) => {
                interface.listen_port = value.parse().map_err(|_| invalid("port"))?
            }
            ("public_key", _) => {
                let empty = WgPeer {
                    endpoint: None,
                    allowed_ips: BTreeSet::new(),
                    persistent_keepalive: 0,
                };
                peers.push((WgPublicKey(unhex(value)?), empty, PeerStats::default()));
            }
            ("endpoint", Some((_, peer, _))) => peer.endpoint = value.parse().ok(),
            ("allowed_ip", Some((_, peer, _))) => {
                peer.allowed_ips.insert(value.parse().map_err(|_| invalid("prefix"))?);
            }
            ("persistent_keepalive_interval", Some((_, peer, _))) => {
                peer.persistent_keepalive = value.parse().map_err(|_| invalid("keep-alive"))?;
            }
            ("rx_bytes", Some((_, _, stats))) => stats.rx_bytes = number()?,
            ("tx_bytes", Some((_, _, stats))) => stats.tx_bytes = number()?,
            ("last_handshake_time_sec", Some((_, _, stats))) => {
                let seconds = Duration::from_secs(number()?);
                stats.last_handshake =
                    (!seconds.is_zero()).then(|| SystemTime::UNIX_EPOCH + seconds);
            }
            // protocol_version, nanoseconds, preshared keys, and keys of future versions.
            _ => {}
        }
    }
    Err(io::Error::from(io::ErrorKind::UnexpectedEof))
}

fn request(name: &InterfaceName, body: &str) -> io::Result<()> {
    let Some(mut stream) = connect(name)? else {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("no WireGuard process serves {name}"),
        ));
    };
    stream.write_all(Zeroizing::new(format!("set=1\n{body}\n")).as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream.take(64)).read_line(&mut line)?;
    match line.trim_end().strip_prefix("errno=").and_then(|e| e.parse::<i32>().ok()) {
        Some(0) => Ok(()),
        Some(errno) => Err(io::Error::from_raw_os_error(errno.abs())),
        None => Err(invalid("result")),
    }
}

pub(super) fn set(name: &InterfaceName, settings: &Settings<'_>) -> io::Result<()> {
    let mut body = Zeroizing::new(String::with_capacity(128));
    if let Some(key) = settings.key {
        let _ = writeln!(body, "private_key={}", Zeroizing::new(hex(key.bytes())).as_str());
    }
    if let Some(port) = settings.listen_port {
        let _ = writeln!(body, "listen_port={port}");
    }
    let result = request(name, &body);
    // wireguard-go remembers a port that it could not bind: set another, so that the difference is seen and the port tried again.
    if result.is_err() && settings.listen_port.is_some() {
        let _ = request(name, "listen_port=0\n");
    }
    result
}

pub(super) fn set_peer(name: &InterfaceName, key: &WgPublicKey, peer: &WgPeer) -> io::Result<()> {
    let mut body = format!("public_key={}\nreplace_allowed_ips=true\n", hex(&key.0));
    if let Some(endpoint) = peer.endpoint {
        let _ = writeln!(body, "endpoint={endpoint}");
    }
    let _ = writeln!(body, "persistent_keepalive_interval={}", peer.persistent_keepalive);
    for prefix in &peer.allowed_ips {
        let _ = writeln!(body, "allowed_ip={prefix}");
    }
    request(name, &body)
}

pub(super) fn remove_peer(name: &InterfaceName, key: &WgPublicKey) -> io::Result<()> {
    request(name, &format!("public_key={}\nremove=true\n", hex(&key.0)))
}

fn hex(bytes: &[u8; 32]) -> String {
    let mut text = String::with_capacity(64);
    for b in bytes {
        let _ = write!(text, "{b:02x}");
    }
    text
}

fn unhex(text: &str) -> io::Result<[u8; 32]> {
    let digits = text.as_bytes();
    let mut bytes = [0; 32];
    if digits.len() != 64 {
        return Err(invalid("key"));
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |d: u8| char::from(d).to_digit(16).ok_or_else(|| invalid("key"));
        *byte = (digit(pair[0])? * 16 + digit(pair[1])?) as u8;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33";

    #[test]
    fn an_answer_is_read_with_peers_prefixes_and_counters() {
        let text = format!(
            "listen_port=51900\npublic_key={KEY}\nendpoint=[2001:db8::1]:51900\nallowed_ip=10.1.0.0/16\n\
             allowed_ip=fd00::/64\nrx_bytes=7\ntx_bytes=9\nlast_handshake_time_sec=0\nnews=1\nerrno=0\n\n"
        );
        let seen = parse(text.as_bytes()).unwrap();
        let peer = &seen.interface.peers[&WgPublicKey(unhex(KEY).unwrap())];
        assert_eq!(peer.endpoint, Some("[2001:db8::1]:51900".parse().unwrap()));
        assert_eq!(peer.allowed_ips.len(), 2);
        assert_eq!((seen.stats[0].1.rx_bytes, seen.stats[0].1.last_handshake), (7, None));
    }

    #[test]
    fn an_answer_that_ends_early_is_an_error() {
        assert!(parse(&b"listen_port=1\n"[..]).is_err());
        assert!(parse(&b"public_key=00\nerrno=0\n"[..]).is_err());
        assert_eq!(parse(&b"errno=-98\n"[..]).unwrap_err().raw_os_error(), Some(98));
    }
}
