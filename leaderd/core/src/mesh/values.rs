//! The single values of a mesh file: addresses, prefixes, keys, names.

use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ipnet::IpNet;

use super::node::Host;

/// Longest DNS name, in bytes (RFC 1035).
const MAX_DNS_NAME: usize = 253;
/// Longest path of an HTTP request, in bytes.
const MAX_HTTP_PATH: usize = 256;

/// What is wrong with a value, and what to write instead.
pub(super) struct Bad(pub(super) String, pub(super) String);

impl Bad {
    pub(super) fn new(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self(message.into(), help.into())
    }
}

pub(super) fn name<T: FromStr<Err: Display>>(text: &str) -> Result<T, Bad> {
    text.parse().map_err(|e: T::Err| Bad::new(e.to_string(), "choose another name"))
}

pub(super) fn address(text: &str) -> Result<IpAddr, Bad> {
    let ip: IpAddr = text.parse().map_err(|_| {
        Bad::new(format!("{text:?} is no IP address"), "write one such as \"10.0.0.5\"")
    })?;
    if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() {
        return Err(Bad::new(
            format!("{ip} is the address of no one machine"),
            "write the address that others reach",
        ));
    }
    Ok(ip)
}

pub(super) fn prefix(text: &str) -> Result<IpNet, Bad> {
    let net: IpNet = text.parse().map_err(|_| {
        Bad::new(format!("{text:?} is no prefix"), "write one such as \"10.42.1.0/24\"")
    })?;
    if net.trunc() != net {
        return Err(Bad::new(
            format!("{net} has bits set behind its length"),
            format!("write \"{}\"", net.trunc()),
        ));
    }
    Ok(net)
}

/// Reads an address and a port: `10.42.1.10:443`, `[fd00::10]:443`.
pub(super) fn address_and_port(text: &str) -> Result<SocketAddr, Bad> {
    const HELP: &str = "write an address and a port from 1 to 65535, such as \"10.42.1.10:443\" or \"[fd42::10]:443\"";
    let found: SocketAddr =
        text.parse().map_err(|_| Bad::new(format!("{text:?} is no address with a port"), HELP))?;
    if found.port() == 0 {
        return Err(Bad::new(format!("{text:?} has port 0, on which nobody listens"), HELP));
    }
    address(&found.ip().to_string())?;
    Ok(found)
}

/// Reads the path of an HTTP request, as on the request line.
pub(super) fn http_path(text: &str) -> Result<String, Bad> {
    let good = text.starts_with('/') && text.bytes().all(|c| c.is_ascii_graphic() && c != b'#');
    if good && text.len() <= MAX_HTTP_PATH {
        return Ok(text.to_owned());
    }
    Err(Bad::new(
        format!("{text:?} is no path of an HTTP request"),
        format!("write one such as \"/healthz\": visible ASCII, at most {MAX_HTTP_PATH} bytes"),
    ))
}

/// Reads an address or a DNS name. A name has letters, digits, '-' and '.', and a letter in its last label, so that a mistyped address
/// is not taken for a name.
pub(super) fn host(text: &str) -> Result<Host, Bad> {
    if text.parse::<IpAddr>().is_ok() {
        return address(text).map(Host::Ip);
    }
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
    };
    let lettered =
        text.rsplit('.').next().is_some_and(|l| l.bytes().any(|c| c.is_ascii_alphabetic()));
    if text.len() <= MAX_DNS_NAME && lettered && text.split('.').all(label) {
        return Ok(Host::Name(text.to_ascii_lowercase()));
    }
    let help = "write an address or a DNS name, without a port: the ports follow from `base_port`";
    Err(Bad::new(format!("{text:?} is no IP address and no DNS name"), help))
}

/// Reads a public key: standard base64 of 32 bytes.
pub(super) fn key(text: &str) -> Result<[u8; 32], Bad> {
    let help = "write what `wgctl keygen` printed on that node";
    let bytes = STANDARD.decode(text).map_err(|_| Bad::new("this is no base64", help))?;
    let bytes: [u8; 32] = bytes.try_into().map_err(|b: Vec<u8>| {
        Bad::new(format!("a key has 32 bytes, this has {}", b.len()), help)
    })?;
    if bytes == [0; 32] { Err(Bad::new("this key is all zeros", help)) } else { Ok(bytes) }
}

/// Returns the first address of a prefix that a host may have: the network address only where there is no other.
pub(super) fn first_host(prefix: &IpNet) -> IpAddr {
    match prefix {
        IpNet::V4(p) if p.prefix_len() >= 31 => p.network().into(),
        IpNet::V4(p) => std::net::Ipv4Addr::from(u32::from(p.network()) + 1).into(),
        IpNet::V6(p) if p.prefix_len() >= 127 => p.network().into(),
        IpNet::V6(p) => std::net::Ipv6Addr::from(u128::from(p.network()) + 1).into(),
    }
}

/// Returns the known name that is most likely meant, if one is near enough to be a typing error.
pub(super) fn nearest<'n>(name: &str, known: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    // Longer input is no typing error, and comparing it would take long.
    if name.len() > 64 {
        return None;
    }
    let limit = (name.len() / 3).clamp(1, 3);
    known
        .map(|k| (distance(name, k), k))
        .filter(|(d, _)| *d <= limit && *d < name.len())
        .min()
        .map(|(_, k)| k)
}

/// Levenshtein distance in bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let cost = (diagonal + usize::from(x != y)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = std::mem::replace(&mut row[j + 1], cost);
        }
    }
    row[b.len()]
}
