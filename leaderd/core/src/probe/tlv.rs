//! TLVs after the base packet of a STAMP test packet (RFC 8972 §4): who sends, what source arrived, and their HMAC.
//!
//! A request of ours has, after the 112 octets of the authenticated base packet:
//!
//! ```text
//! type 252 (private use, §5.1)   the sender's node index, two octets, and two that are zero
//! type 2   (Location, §4.2)      room for the ports and, in a sub-TLV, for the source address that the reflector saw
//! type 8   (HMAC, §4.8)          over the sequence number of the base packet and all TLVs before it
//! type 1   (Extra Padding, §4.1) to the size that is wanted
//! ```
//!
//! The index says whose key is right, and the key proves the index. It does not matter from which address a packet comes: a
//! source NAT on the way is something to tell, and no reason to give no answer.

use std::net::{IpAddr, SocketAddr};

use crate::ids::NodeIndex;

use super::keys::{HmacKey, TAG_LEN};

/// Octets of a TLV's flags, type and length (§4).
const HEADER: usize = 4;
/// Types (§5.1).
const PADDING: u8 = 1;
const LOCATION: u8 = 2;
const HMAC: u8 = 8;
/// The first of three for private use: ours is the sender's node index.
const SENDER: u8 = 252;
/// Sub-TLVs of a Location TLV (§4.2.1): the source address is asked for, and answered by one of its family. All have 16 octets.
const SOURCE_IP: u8 = 7;
const SOURCE_IPV4: u8 = 8;
const SOURCE_IPV6: u8 = 9;
const ADDRESS_LEN: usize = 16;
/// Destination and source port, before the sub-TLVs (§4.2).
const PORTS: usize = 4;
/// Flags (§4): not understood, not well formed, HMAC wrong.
///
/// > A Session-Sender MUST set the U flag to 1 before transmitting an extended STAMP test packet. A Session-Reflector MUST
/// > set the U flag to 1 if the Session-Reflector has not understood the TLV.
///
/// So what only sends octets back, or knows less than we do, says so by leaving the flag as it is.
const UNRECOGNIZED: u8 = 0x80;
const MALFORMED: u8 = 0x40;

const SENDER_LEN: usize = 4;
const LOCATION_LEN: usize = PORTS + HEADER + ADDRESS_LEN;
/// Octets of the TLVs of a request of ours, without padding.
pub(super) const REQUEST_LEN: usize = 3 * HEADER + SENDER_LEN + LOCATION_LEN + TAG_LEN;

/// What the reflector saw of a request's addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Location {
    /// Where the request came from.
    pub source: SocketAddr,
    /// The port on which it arrived.
    pub port: u16,
}

/// One TLV: where it begins, and its octets of value, or none if it does not fit in the packet.
struct Tlv {
    at: usize,
    kind: u8,
    value: Option<std::ops::Range<usize>>,
}

/// The TLVs from `base` on. A malformed one is the last (§4: a reflector stops there). Fewer than four octets are none.
fn walk(packet: &[u8], base: usize) -> impl Iterator<Item = Tlv> + '_ {
    let mut at = base;
    std::iter::from_fn(move || {
        let &[_, kind, high, low] = packet.get(at..at + HEADER)? else { return None };
        let value = at + HEADER..at + HEADER + usize::from(u16::from_be_bytes([high, low]));
        let tlv = Tlv { at, kind, value: (value.end <= packet.len()).then(|| value.clone()) };
        at = value.end;
        Some(tlv)
    })
}

/// Appends a TLV as a sender does. Padding may be longer than a length can say: the rest is left out.
fn append(packet: &mut Vec<u8>, kind: u8, value: usize) -> std::ops::Range<usize> {
    let length = u16::try_from(value).unwrap_or(u16::MAX);
    packet.extend([UNRECOGNIZED, kind]);
    packet.extend(length.to_be_bytes());
    let at = packet.len();
    packet.resize(at + usize::from(length), 0);
    at..packet.len()
}

/// Lengthens a packet to `len` octets with an Extra Padding TLV; a TLV is at least 4 octets, so it may stay shorter.
pub(super) fn pad(packet: &mut Vec<u8>, len: usize) {
    if let Some(value) = len.checked_sub(packet.len() + HEADER) {
        append(packet, PADDING, value);
    }
}

/// Appends the TLVs of a request.
pub(super) fn ask(packet: &mut Vec<u8>, me: NodeIndex, key: &HmacKey) {
    let base = packet.len();
    let value = append(packet, SENDER, SENDER_LEN);
    packet[value.start..value.start + 2].copy_from_slice(&me.0.to_be_bytes());
    // Only flags, types and lengths are filled in: the rest is the reflector's (§4.2).
    let value = append(packet, LOCATION, LOCATION_LEN);
    let sub = value.start + PORTS;
    packet[sub..sub + HEADER].copy_from_slice(&[UNRECOGNIZED, SOURCE_IP, 0, ADDRESS_LEN as u8]);
    append_hmac(packet, base, key);
}

/// Appends the HMAC TLV over all TLVs so far.
pub(super) fn append_hmac(packet: &mut Vec<u8>, base: usize, key: &HmacKey) {
    append(packet, HMAC, TAG_LEN);
    sign(packet, base, key);
}

/// Returns the sender that a request names. Nothing proves it.
pub(super) fn sender(packet: &[u8], base: usize) -> Option<NodeIndex> {
    let tlv = walk(packet, base).find(|t| t.kind == SENDER)?;
    let value = packet.get(tlv.value?)?;
    match *value {
        [high, low, _, _] => Some(NodeIndex(u16::from_be_bytes([high, low]))),
        _ => None,
    }
}

/// What an HMAC TLV is about, and its tag.
///
/// > The HMAC TLV MUST follow all TLVs included in a STAMP test packet except for the Extra Padding TLV. If the HMAC TLV
/// > appears in any other position in a STAMP extended test packet, then the situation MUST be processed as HMAC
/// > verification failure […] (§4.8)
///
/// It covers the Sequence Number field of the base packet, in a reply the reflector's, and all TLVs before it.
struct Signed {
    flags: u8,
    text: Vec<u8>,
    tag: std::ops::Range<usize>,
    /// It is where it must be.
    in_place: bool,
}

fn signed(packet: &[u8], base: usize) -> Option<Signed> {
    let mut all = walk(packet, base);
    let tlv = all.find(|t| t.kind == HMAC)?;
    let text = [&packet[..4], &packet[base..tlv.at]].concat();
    let tag = tlv.value.clone().filter(|v| v.len() == TAG_LEN);
    let in_place = tag.is_some() && all.all(|t| t.kind == PADDING);
    Some(Signed { flags: packet[tlv.at], text, tag: tag.unwrap_or_default(), in_place })
}

/// Makes the HMAC TLV right, if there is one in its place.
fn sign(packet: &mut [u8], base: usize, key: &HmacKey) {
    if let Some(signed) = signed(packet, base).filter(|s| s.in_place) {
        packet[signed.tag].copy_from_slice(&key.tag(&signed.text));
    }
}

/// Whether there is an HMAC TLV, and a right one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Integrity {
    /// There is no HMAC TLV: nothing that a TLV says is believed.
    Unsigned,
    Good,
    Wrong,
}

pub(super) fn integrity_of_request(packet: &[u8], base: usize, key: &HmacKey) -> Integrity {
    match signed(packet, base) {
        None => Integrity::Unsigned,
        Some(s) if s.in_place && key.verify(&s.text, &packet[s.tag.clone()]) => Integrity::Good,
        Some(_) => Integrity::Wrong,
    }
}

/// A reflector that knows no HMAC TLV sends ours back with the U flag set: then nothing was vouched for.
pub(super) fn integrity_of_reply(packet: &[u8], base: usize, key: &HmacKey) -> Integrity {
    match signed(packet, base) {
        Some(s) if s.flags & UNRECOGNIZED != 0 => Integrity::Unsigned,
        _ => integrity_of_request(packet, base, key),
    }
}

/// Turns a request's TLVs, copied behind a reply's base packet, into those of the reply. `key`: the request's HMAC TLV was right,
/// and the reply's is made with it.
pub(super) fn answer(
    packet: &mut [u8],
    base: usize,
    location: Option<&Location>,
    key: Option<&HmacKey>,
) {
    let all: Vec<Tlv> = walk(packet, base).collect();
    for tlv in all {
        let Some(value) = tlv.value else {
            packet[tlv.at] = MALFORMED | if known(tlv.kind, key) { 0 } else { UNRECOGNIZED };
            break;
        };
        let understood = match (tlv.kind, location, key) {
            (LOCATION, Some(location), Some(_)) => {
                let well_formed = fill(&mut packet[value], location);
                packet[tlv.at] = if well_formed { 0 } else { MALFORMED };
                continue;
            }
            (LOCATION, ..) => false,
            (kind, ..) => known(kind, key),
        };
        packet[tlv.at] = if understood { 0 } else { UNRECOGNIZED };
    }
    if let Some(key) = key {
        sign(packet, base, key);
    }
}

const fn known(kind: u8, key: Option<&HmacKey>) -> bool {
    kind == PADDING || key.is_some() && matches!(kind, SENDER | LOCATION | HMAC)
}

/// > The Session-Reflector that received an extended STAMP packet with the Location TLV MUST include in the reflected packet
/// > the Location TLV with a length equal to the Location TLV length in the received packet. (§4.2.2)
///
/// Of the sub-TLVs only the source address is answered. Returns false if it is not well formed.
fn fill(value: &mut [u8], location: &Location) -> bool {
    if value.len() < PORTS {
        return false;
    }
    value[..2].copy_from_slice(&location.port.to_be_bytes());
    value[2..PORTS].copy_from_slice(&location.source.port().to_be_bytes());
    let all: Vec<Tlv> = walk(value, PORTS).collect();
    for sub in all {
        let Some(inside) = sub.value.filter(|v| sub.kind != SOURCE_IP || v.len() == ADDRESS_LEN)
        else {
            value[sub.at] = MALFORMED;
            return false;
        };
        if sub.kind != SOURCE_IP {
            value[sub.at] = UNRECOGNIZED;
            continue;
        }
        value[sub.at] = 0;
        let field = &mut value[inside];
        field.fill(0);
        value[sub.at + 1] = match location.source.ip().to_canonical() {
            IpAddr::V4(ip) => {
                field[..4].copy_from_slice(&ip.octets());
                SOURCE_IPV4
            }
            IpAddr::V6(ip) => {
                field.copy_from_slice(&ip.octets());
                SOURCE_IPV6
            }
        };
    }
    true
}

/// Returns where a request came from, as its reply says. Only for a reply whose HMAC TLV is right.
pub(super) fn location(packet: &[u8], base: usize) -> Option<Location> {
    let tlv = walk(packet, base).find(|t| t.kind == LOCATION)?;
    if packet[tlv.at] != 0 {
        return None;
    }
    let value = packet.get(tlv.value?)?;
    let ports = value.get(..PORTS)?;
    let address = walk(value, PORTS).find_map(|sub| {
        let octets: [u8; ADDRESS_LEN] = value[sub.value?].try_into().ok()?;
        match sub.kind {
            SOURCE_IPV4 => Some(IpAddr::from([octets[0], octets[1], octets[2], octets[3]])),
            SOURCE_IPV6 => Some(IpAddr::from(octets)),
            _ => None,
        }
    })?;
    let port = |at| u16::from_be_bytes([ports[at], ports[at + 1]]);
    Some(Location { source: SocketAddr::new(address, port(2)), port: port(0) })
}

/// Puts another tag into the HMAC TLV, for a recording.
pub(super) fn redact(packet: &mut [u8], base: usize, with: [u8; TAG_LEN]) {
    if let Some(signed) = signed(packet, base).filter(|s| s.in_place) {
        packet[signed.tag].copy_from_slice(&with);
    }
}
