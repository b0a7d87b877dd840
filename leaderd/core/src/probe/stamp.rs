//! STAMP test packets (RFC 8762) with the session id and TLVs of RFC 8972.
//!
//! Authenticated packets are 112 octets, unauthenticated ones 44, in both directions; a longer one carries TLVs (`tlv`).
//! The HMAC covers the first 96 octets, that of the HMAC TLV the TLVs but for Extra Padding. A packet is believed as a whole or
//! not at all: where either is wrong there is no answer (RFC 8972 §4.8 would have a reflector send the TLVs back with a
//! flag; ours answers known nodes only). Replies are as long as requests, so a size is tested in both directions.

use crate::ids::NodeIndex;
use crate::time::WallTime;

use super::keys::{HmacKey, REDACTED, REDACTED_FORGERY};
pub use super::tlv::Location;
use super::tlv::{self, Integrity};

/// Octets of an authenticated test packet without TLVs, either direction (RFC 8762 §4.2.2, §4.3.2).
pub const AUTHENTICATED_LEN: usize = 112;
/// Octets of an unauthenticated one (§4.2.1, §4.3.1).
pub const PLAIN_LEN: usize = 44;
/// Octets that the HMAC covers (§4.4), and where it stands.
const HMAC_AT: usize = 96;
/// Octets of a request that names its sender and asks what source arrived: the smallest of ours.
pub const REQUEST_LEN: usize = AUTHENTICATED_LEN + tlv::REQUEST_LEN;
/// Seconds from 1900 (NTP) to 1970 (Unix).
const NTP_UNIX: u64 = 2_208_988_800;
/// Error Estimate: not synchronized to an external source (S = 0), NTP format (Z = 0), scale 0, multiplier 1. The
/// multiplier must not be 0 (RFC 4656 §4.1.2).
pub const ERROR_ESTIMATE: u16 = 0x0001;

/// 64-bit NTP timestamp: seconds since 1900 and a 32-bit fraction.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Ntp(pub u64);

impl From<WallTime> for Ntp {
    fn from(t: WallTime) -> Self {
        let seconds = (t.0 / 1_000_000).wrapping_add(NTP_UNIX) & 0xffff_ffff;
        let fraction = ((t.0 % 1_000_000) << 32) / 1_000_000;
        Self(seconds << 32 | fraction)
    }
}

/// What a Session-Sender says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SenderPacket {
    pub seq: u32,
    pub timestamp: Ntp,
    /// Session identifier (RFC 8972 §3).
    pub ssid: u16,
}

/// What a Session-Reflector answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReflectorPacket {
    /// Of the reflector's own count of this session (stateful mode, RFC 8762 §4.3).
    pub seq: u32,
    pub timestamp: Ntp,
    pub ssid: u16,
    pub received: Ntp,
    pub sender_seq: u32,
    pub sender_timestamp: Ntp,
    pub sender_error: u16,
    pub sender_ttl: u8,
    /// Where the request came from, if it asks for that.
    pub location: Option<Location>,
}

/// Why bytes are no STAMP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StampError {
    #[error("a STAMP packet of {0} octets is cut off")]
    Truncated(usize),
    #[error("the HMAC of a STAMP packet is wrong")]
    BadHmac,
}

fn get<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}
fn put(bytes: &mut [u8], at: usize, what: &[u8]) {
    bytes[at..at + what.len()].copy_from_slice(what);
}

impl SenderPacket {
    /// Authenticated when there is a key. `len`: octets of UDP payload wanted, 0 for the shortest. It does not say who sends it:
    /// so it goes to reflectors that are not ours, and came from us before [`Self::encode_from`].
    pub fn encode(&self, key: Option<&HmacKey>, len: usize) -> Vec<u8> {
        let mut packet = self.base(key, len);
        tlv::pad(&mut packet, len);
        packet
    }

    /// Authenticated, names its sender, and asks what source arrives.
    pub fn encode_from(&self, me: NodeIndex, key: &HmacKey, len: usize) -> Vec<u8> {
        let mut packet = self.base(Some(key), len.max(REQUEST_LEN));
        tlv::ask(&mut packet, me, key);
        tlv::pad(&mut packet, len);
        packet
    }

    fn base(&self, key: Option<&HmacKey>, len: usize) -> Vec<u8> {
        let mut b = vec![0; if key.is_some() { AUTHENTICATED_LEN } else { PLAIN_LEN }];
        b.reserve_exact(len.saturating_sub(b.len()));
        put(&mut b, 0, &self.seq.to_be_bytes());
        let at = if key.is_some() { 16 } else { 4 };
        put(&mut b, at, &self.timestamp.0.to_be_bytes());
        put(&mut b, at + 8, &ERROR_ESTIMATE.to_be_bytes());
        put(&mut b, at + 10, &self.ssid.to_be_bytes());
        sign(&mut b, key);
        b
    }

    /// The sequence number in the first octets of a packet, which may be cut off behind it. Nothing proves it.
    pub fn claimed_seq(bytes: &[u8]) -> Option<u32> {
        bytes.first_chunk().map(|octets| u32::from_be_bytes(*octets))
    }

    /// Returns the sender that an authenticated request names. Only the HMAC by that node's key proves it.
    pub fn sender(bytes: &[u8]) -> Option<NodeIndex> {
        tlv::sender(bytes, AUTHENTICATED_LEN)
    }

    /// Verifies the HMACs when there is a key.
    ///
    /// # Errors
    ///
    /// The bytes are too few for a request, or an HMAC is wrong.
    pub fn decode(bytes: &[u8], key: Option<&HmacKey>) -> Result<Self, StampError> {
        check(bytes, key)?;
        if let Some(key) = key
            && tlv::integrity_of_request(bytes, AUTHENTICATED_LEN, key) == Integrity::Wrong
        {
            return Err(StampError::BadHmac);
        }
        let at = if key.is_some() { 16 } else { 4 };
        Ok(Self {
            seq: u32::from_be_bytes(get(bytes, 0)),
            timestamp: Ntp(u64::from_be_bytes(get(bytes, at))),
            ssid: u16::from_be_bytes(get(bytes, at + 10)),
        })
    }
}

/// (timestamp, ssid, received, sender seq, sender timestamp, sender error, ttl) in a reflected packet, §4.3.
const AUTHENTICATED_AT: [usize; 7] = [16, 26, 32, 48, 64, 72, 80];
const PLAIN_AT: [usize; 7] = [4, 14, 16, 24, 28, 36, 40];

impl ReflectorPacket {
    /// The answer to `request`, exactly as long: its TLVs come back, answered or flagged (RFC 8972 §4).
    pub fn encode(&self, key: Option<&HmacKey>, request: &[u8]) -> Vec<u8> {
        let (base, at) = if key.is_some() {
            (AUTHENTICATED_LEN, AUTHENTICATED_AT)
        } else {
            (PLAIN_LEN, PLAIN_AT)
        };
        let mut b = vec![0; base];
        put(&mut b, 0, &self.seq.to_be_bytes());
        put(&mut b, at[0], &self.timestamp.0.to_be_bytes());
        put(&mut b, at[0] + 8, &ERROR_ESTIMATE.to_be_bytes());
        put(&mut b, at[1], &self.ssid.to_be_bytes());
        put(&mut b, at[2], &self.received.0.to_be_bytes());
        put(&mut b, at[3], &self.sender_seq.to_be_bytes());
        put(&mut b, at[4], &self.sender_timestamp.0.to_be_bytes());
        put(&mut b, at[5], &self.sender_error.to_be_bytes());
        b[at[6]] = self.sender_ttl;
        sign(&mut b, key);
        if let Some(tlvs) = request.get(base..) {
            b.extend_from_slice(tlvs);
            let good =
                |key: &&HmacKey| tlv::integrity_of_request(request, base, key) == Integrity::Good;
            tlv::answer(&mut b, base, self.location.as_ref(), key.filter(good));
        }
        b
    }

    /// The request's sequence number, if this is an authenticated reply, and if it is not. Nothing proves either.
    pub fn claimed_sender_seqs(bytes: &[u8]) -> [Option<u32>; 2] {
        [AUTHENTICATED_AT, PLAIN_AT].map(|at| SenderPacket::claimed_seq(bytes.get(at[3]..)?))
    }

    /// The session that an authenticated reply says to be of. Only the HMAC proves it.
    pub fn claimed_ssid(bytes: &[u8]) -> Option<u16> {
        bytes.get(AUTHENTICATED_AT[1]..)?.first_chunk().map(|octets| u16::from_be_bytes(*octets))
    }

    /// Verifies the HMACs when there is a key.
    ///
    /// # Errors
    ///
    /// The bytes are too few for a reply, or an HMAC is wrong.
    pub fn decode(bytes: &[u8], key: Option<&HmacKey>) -> Result<Self, StampError> {
        check(bytes, key)?;
        let at = if key.is_some() { AUTHENTICATED_AT } else { PLAIN_AT };
        let integrity = key.map_or(Integrity::Unsigned, |key| {
            tlv::integrity_of_reply(bytes, AUTHENTICATED_LEN, key)
        });
        let location = match integrity {
            Integrity::Wrong => return Err(StampError::BadHmac),
            Integrity::Unsigned => None,
            Integrity::Good => tlv::location(bytes, AUTHENTICATED_LEN),
        };
        Ok(Self {
            seq: u32::from_be_bytes(get(bytes, 0)),
            timestamp: Ntp(u64::from_be_bytes(get(bytes, at[0]))),
            ssid: u16::from_be_bytes(get(bytes, at[1])),
            received: Ntp(u64::from_be_bytes(get(bytes, at[2]))),
            sender_seq: u32::from_be_bytes(get(bytes, at[3])),
            sender_timestamp: Ntp(u64::from_be_bytes(get(bytes, at[4]))),
            sender_error: u16::from_be_bytes(get(bytes, at[5])),
            sender_ttl: bytes[at[6]],
            location,
        })
    }
}

/// Takes the HMACs out of an authenticated packet of either direction, for a recording, and leaves whether they were right.
/// See [`super::keys::ProbeKeys::redacted`].
pub fn redact(bytes: &mut [u8], authentic: bool) {
    let with = if authentic { REDACTED } else { REDACTED_FORGERY };
    if let Some(tag) = bytes.get_mut(HMAC_AT..AUTHENTICATED_LEN) {
        tag.copy_from_slice(&with);
        tlv::redact(bytes, AUTHENTICATED_LEN, with);
    }
}

fn sign(b: &mut [u8], key: Option<&HmacKey>) {
    if let Some(key) = key {
        let tag = key.tag(&b[..HMAC_AT]);
        put(b, HMAC_AT, &tag);
    }
}

fn check(bytes: &[u8], key: Option<&HmacKey>) -> Result<(), StampError> {
    let least = if key.is_some() { AUTHENTICATED_LEN } else { PLAIN_LEN };
    if bytes.len() < least {
        return Err(StampError::Truncated(bytes.len()));
    }
    match key {
        Some(key) if !key.verify(&bytes[..HMAC_AT], &bytes[HMAC_AT..AUTHENTICATED_LEN]) => {
            Err(StampError::BadHmac)
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use wgctl_plan::WgPublicKey;

    use super::super::keys::ProbeKeys;
    use super::*;

    fn packet() -> SenderPacket {
        SenderPacket { seq: 7, timestamp: WallTime(1_700_000_000_500_000).into(), ssid: 0xabcd }
    }
    fn reply(p: &SenderPacket) -> ReflectorPacket {
        ReflectorPacket {
            seq: 5,
            timestamp: Ntp(2),
            ssid: p.ssid,
            received: Ntp(1),
            sender_seq: p.seq,
            sender_timestamp: p.timestamp,
            sender_error: ERROR_ESTIMATE,
            sender_ttl: 63,
            location: None,
        }
    }

    #[test]
    fn packets_come_back_as_they_went_in_both_modes_and_at_any_size() {
        let key = HmacKey::new([1; 32]);
        for key in [None, Some(&key)] {
            for len in [0, 112, 116, 117, 1392] {
                let bytes = packet().encode(key, len);
                assert!(bytes.len() >= len || len < 116, "{len}");
                assert_eq!(SenderPacket::decode(&bytes, key), Ok(packet()));
                let back = reply(&packet()).encode(key, &bytes);
                assert_eq!(back.len(), bytes.len(), "a reply is never longer than its request");
                assert_eq!(ReflectorPacket::decode(&back, key), Ok(reply(&packet())));
            }
        }
    }

    #[test]
    fn a_changed_or_cut_packet_is_refused() {
        let key = HmacKey::new([1; 32]);
        let bytes = packet().encode(Some(&key), 0);
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert_eq!(
                SenderPacket::decode(&bad, Some(&key)),
                Err(StampError::BadHmac),
                "octet {at}"
            );
            assert!(matches!(
                SenderPacket::decode(&bytes[..at], Some(&key)),
                Err(StampError::Truncated(_))
            ));
        }
        assert_eq!(
            SenderPacket::decode(&bytes, Some(&HmacKey::new([2; 32]))),
            Err(StampError::BadHmac)
        );
    }

    #[test]
    fn a_redacted_packet_needs_no_key_and_stays_right_or_wrong() {
        let (key, none) =
            (HmacKey::new([1; 32]), ProbeKeys::redacted().with(&WgPublicKey([9; 32])));
        let signed = packet().encode(Some(&key), 300);
        assert!(SenderPacket::decode(&signed, Some(&none)).is_err());
        let redacted = |authentic| {
            let mut bytes = signed.clone();
            redact(&mut bytes, authentic);
            bytes
        };
        assert_eq!(SenderPacket::decode(&redacted(true), Some(&none)), Ok(packet()));
        assert_eq!(SenderPacket::decode(&redacted(false), Some(&none)), Err(StampError::BadHmac));
        assert_eq!(packet().encode(Some(&none), 300), redacted(true));
        assert!(SenderPacket::decode(&redacted(true), Some(&key)).is_err(), "no true key takes it");
        redact(&mut [0; AUTHENTICATED_LEN - 1], true);
    }

    #[test]
    fn timestamps_are_ntp() {
        assert_eq!(Ntp::from(WallTime(500_000)), Ntp(NTP_UNIX << 32 | 1 << 31));
    }

    #[test]
    fn unknown_and_malformed_tlvs_are_flagged_and_never_read_past_the_end() {
        let mut request = packet().encode(None, 0);
        request.extend([0, 200, 0, 1, 9, 0, 1, 0xff, 0xff]);
        let back = reply(&packet()).encode(None, &request);
        assert_eq!(back[PLAIN_LEN..], [0x80, 200, 0, 1, 9, 0x40, 1, 0xff, 0xff]);
    }

    const ME: NodeIndex = NodeIndex(0x0102);

    fn seen() -> Location {
        Location { source: "10.42.4.0:40000".parse().unwrap(), port: 8621 }
    }

    /// What a reflector before [`SenderPacket::encode_from`] made of a request: it knew no TLV but padding.
    fn older_reply(key: &HmacKey, request: &[u8]) -> Vec<u8> {
        let mut back = reply(&packet()).encode(Some(key), &request[..AUTHENTICATED_LEN]);
        let mut rest = &request[AUTHENTICATED_LEN..];
        while let [_, kind, high, low, ..] = *rest {
            let (tlv, others) = rest.split_at(4 + usize::from(u16::from_be_bytes([high, low])));
            back.push(if kind == 1 { 0 } else { 0x80 });
            back.extend(&tlv[1..]);
            rest = others;
        }
        back
    }

    #[test]
    fn a_request_names_its_sender_and_its_reply_says_what_source_arrived() {
        let key = HmacKey::new([1; 32]);
        let v6 = Location { source: "[fd00:42::9]:7".parse().unwrap(), port: 1 };
        for len in [0, REQUEST_LEN, REQUEST_LEN + 4, REQUEST_LEN + 5, 1392] {
            let request = packet().encode_from(ME, &key, len);
            assert_eq!(request.len(), len.max(REQUEST_LEN));
            assert_eq!(SenderPacket::sender(&request), Some(ME));
            assert_eq!(SenderPacket::decode(&request, Some(&key)), Ok(packet()));
            for location in [None, Some(seen()), Some(v6)] {
                let told = ReflectorPacket { location, ..reply(&packet()) };
                let back = told.encode(Some(&key), &request);
                assert_eq!(back.len(), request.len(), "a reply is never longer than its request");
                assert_eq!(ReflectorPacket::decode(&back, Some(&key)), Ok(told));
            }
        }
        let mapped = Location { source: "[::ffff:10.42.4.0]:40000".parse().unwrap(), port: 8621 };
        let told = ReflectorPacket { location: Some(mapped), ..reply(&packet()) };
        let back = told.encode(Some(&key), &packet().encode_from(ME, &key, 0));
        assert_eq!(ReflectorPacket::decode(&back, Some(&key)).unwrap().location, Some(seen()));
    }

    #[test]
    fn tlvs_that_were_changed_cut_off_or_moved_are_not_believed() {
        let key = HmacKey::new([1; 32]);
        let request = packet().encode_from(ME, &key, 400);
        let told = ReflectorPacket { location: Some(seen()), ..reply(&packet()) };
        let back = told.encode(Some(&key), &request);
        for at in AUTHENTICATED_LEN..REQUEST_LEN {
            let changed = |whole: &[u8]| {
                let mut bad = whole.to_vec();
                bad[at] ^= 1;
                bad
            };
            let request = SenderPacket::decode(&changed(&request), Some(&key));
            let told = ReflectorPacket::decode(&changed(&back), Some(&key));
            // A changed header may leave no HMAC TLV to be found, and then the reply says no source.
            let headers = [AUTHENTICATED_LEN, AUTHENTICATED_LEN + 8, REQUEST_LEN - 20];
            if headers.iter().any(|h| (*h..h + 4).contains(&at)) {
                let told = told.map_or(None, |t| t.location);
                assert!(told.is_none_or(|l| l == seen()), "octet {at}");
            } else {
                assert_eq!(request, Err(StampError::BadHmac), "octet {at}");
                assert_eq!(told, Err(StampError::BadHmac), "octet {at}");
            }
        }
        for cut in AUTHENTICATED_LEN..REQUEST_LEN {
            let told = ReflectorPacket::decode(&back[..cut], Some(&key));
            assert!(told.is_err() || told.unwrap().location.is_none(), "cut at {cut}");
            let _ = SenderPacket::decode(&request[..cut], Some(&key));
        }
        // > If the HMAC TLV appears in any other position […] the situation MUST be processed as HMAC verification failure
        let mut after = packet().encode_from(ME, &key, 0);
        after.extend([0x80, 200, 0, 0]);
        assert_eq!(SenderPacket::decode(&after, Some(&key)), Err(StampError::BadHmac));
        let mut other = packet().encode_from(ME, &HmacKey::new([2; 32]), 0);
        other.splice(..AUTHENTICATED_LEN, request[..AUTHENTICATED_LEN].iter().copied());
        assert_eq!(SenderPacket::decode(&other, Some(&key)), Err(StampError::BadHmac));
    }

    #[test]
    fn tlvs_without_a_right_hmac_are_flagged_and_say_nothing() {
        let key = HmacKey::new([1; 32]);
        let told = ReflectorPacket { location: Some(seen()), ..reply(&packet()) };
        // Without its HMAC TLV; and to a reflector that was given no key.
        let unsigned = packet().encode_from(ME, &key, 0)[..REQUEST_LEN - 20].to_vec();
        let back = told.encode(Some(&key), &unsigned);
        assert_eq!((back[AUTHENTICATED_LEN], back[AUTHENTICATED_LEN + 8]), (0x80, 0x80));
        assert_eq!(back[AUTHENTICATED_LEN + 1..][..7], unsigned[AUTHENTICATED_LEN + 1..][..7]);
        assert_eq!(ReflectorPacket::decode(&back, Some(&key)), Ok(reply(&packet())));
        // Sub-TLVs: one that is not known is flagged, one that is too short is malformed.
        let location = |sub: &[u8]| {
            let mut packet = packet().encode(Some(&key), 0);
            packet.extend([0x80, 2, 0, 4 + sub.len() as u8, 0, 0, 0, 0]);
            packet.extend(sub);
            tlv::append_hmac(&mut packet, AUTHENTICATED_LEN, &key);
            told.encode(Some(&key), &packet)[AUTHENTICATED_LEN..].to_vec()
        };
        let unknown = location(&[0x80, 99, 0, 1, 5]);
        assert_eq!(
            (unknown[0], &unknown[4..13]),
            (0, &[0x21, 0xad, 0x9c, 0x40, 0x80, 99, 0, 1, 5][..])
        );
        let short = location(&[0x80, 7, 0, 2, 0, 0]);
        assert_eq!((short[0], short[8]), (0x40, 0x40));
    }

    #[test]
    fn the_answer_of_an_older_release_is_believed_and_says_no_source() {
        let key = HmacKey::new([1; 32]);
        for len in [0, 600] {
            let request = packet().encode_from(ME, &key, len);
            let back = older_reply(&key, &request);
            assert_eq!(back.len(), request.len());
            assert_eq!(ReflectorPacket::decode(&back, Some(&key)), Ok(reply(&packet())));
        }
    }

    #[test]
    fn a_recording_of_tlvs_needs_no_key_and_stays_right_or_wrong() {
        let (key, none) =
            (HmacKey::new([1; 32]), ProbeKeys::redacted().with(&WgPublicKey([9; 32])));
        let told = ReflectorPacket { location: Some(seen()), ..reply(&packet()) };
        let request = packet().encode_from(ME, &key, 300);
        let redacted = |authentic, bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            redact(&mut bytes, authentic);
            bytes
        };
        let right = redacted(true, &request);
        assert_eq!(packet().encode_from(ME, &none, 300), right);
        assert_eq!(SenderPacket::decode(&right, Some(&none)), Ok(packet()));
        assert!(SenderPacket::decode(&redacted(false, &request), Some(&none)).is_err());
        let back = redacted(true, &told.encode(Some(&key), &request));
        assert_eq!(told.encode(Some(&none), &right), back);
        assert_eq!(ReflectorPacket::decode(&back, Some(&none)), Ok(told));
        let tag = &request[REQUEST_LEN - 16..REQUEST_LEN];
        assert!(!right.windows(16).any(|w| w == tag), "the HMAC is not in it");
    }
}
