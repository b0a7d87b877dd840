//! STAMP test packets (RFC 8762) with the session id and padding of RFC 8972.
//!
//! Authenticated packets are 112 octets, unauthenticated ones 44, in both directions; a longer one carries TLVs, here an
//! Extra Padding TLV. The HMAC covers the first 96 octets. Only Extra Padding follows, which RFC 8972 §4.8 leaves
//! outside of the HMAC TLV, so there is none. Replies are as long as requests, so a size is tested in both directions.

use crate::time::WallTime;

use super::keys::{HmacKey, REDACTED, REDACTED_FORGERY};

/// Octets of an authenticated test packet without TLVs, either direction (RFC 8762 §4.2.2, §4.3.2).
pub const AUTHENTICATED_LEN: usize = 112;
/// Octets of an unauthenticated one (§4.2.1, §4.3.1).
pub const PLAIN_LEN: usize = 44;
/// Octets that the HMAC covers (§4.4), and where it stands.
const HMAC_AT: usize = 96;
/// Octets of a TLV's flags, type and length (RFC 8972 §4).
const TLV_HEADER: usize = 4;
/// Extra Padding (RFC 8972 §4.1).
const TLV_PADDING: u8 = 1;
/// Flags of a reflected TLV: unrecognized, malformed (RFC 8972 §4).
const FLAG_UNRECOGNIZED: u8 = 0x80;
const FLAG_MALFORMED: u8 = 0x40;
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

/// Lengthens a packet to `len` octets with an Extra Padding TLV; a TLV is at least 4 octets, so it may stay shorter.
fn pad(bytes: &mut Vec<u8>, len: usize) {
    let Some(value) = len.checked_sub(bytes.len() + TLV_HEADER) else { return };
    let value = u16::try_from(value).unwrap_or(u16::MAX);
    bytes.extend([0, TLV_PADDING]);
    bytes.extend(value.to_be_bytes());
    bytes.resize(bytes.len() + usize::from(value), 0);
}

impl SenderPacket {
    /// Authenticated when there is a key. `len`: octets of UDP payload wanted, 0 for the shortest.
    pub fn encode(&self, key: Option<&HmacKey>, len: usize) -> Vec<u8> {
        let mut b = vec![0; if key.is_some() { AUTHENTICATED_LEN } else { PLAIN_LEN }];
        b.reserve_exact(len.saturating_sub(b.len()));
        put(&mut b, 0, &self.seq.to_be_bytes());
        let at = if key.is_some() { 16 } else { 4 };
        put(&mut b, at, &self.timestamp.0.to_be_bytes());
        put(&mut b, at + 8, &ERROR_ESTIMATE.to_be_bytes());
        put(&mut b, at + 10, &self.ssid.to_be_bytes());
        sign(&mut b, key);
        pad(&mut b, len);
        b
    }

    /// Verifies the HMAC when there is a key. TLVs are not looked at: see [`ReflectorPacket::encode`].
    pub fn decode(bytes: &[u8], key: Option<&HmacKey>) -> Result<Self, StampError> {
        check(bytes, key)?;
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
    /// The answer to `request`, exactly as long: its TLVs come back, the unknown ones flagged (RFC 8972 §4).
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
            flag_tlvs(&mut b[base..]);
        }
        b
    }

    pub fn decode(bytes: &[u8], key: Option<&HmacKey>) -> Result<Self, StampError> {
        check(bytes, key)?;
        let at = if key.is_some() { AUTHENTICATED_AT } else { PLAIN_AT };
        Ok(Self {
            seq: u32::from_be_bytes(get(bytes, 0)),
            timestamp: Ntp(u64::from_be_bytes(get(bytes, at[0]))),
            ssid: u16::from_be_bytes(get(bytes, at[1])),
            received: Ntp(u64::from_be_bytes(get(bytes, at[2]))),
            sender_seq: u32::from_be_bytes(get(bytes, at[3])),
            sender_timestamp: Ntp(u64::from_be_bytes(get(bytes, at[4]))),
            sender_error: u16::from_be_bytes(get(bytes, at[5])),
            sender_ttl: bytes[at[6]],
        })
    }
}

/// Takes the HMAC out of an authenticated packet of either direction, for a recording, and leaves whether it was right.
/// See [`super::keys::ProbeKeys::redacted`].
pub fn redact(bytes: &mut [u8], authentic: bool) {
    if let Some(tag) = bytes.get_mut(HMAC_AT..AUTHENTICATED_LEN) {
        tag.copy_from_slice(if authentic { &REDACTED } else { &REDACTED_FORGERY });
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

/// Sets the flags that a reflector owes to TLVs that it does not know or that do not add up.
fn flag_tlvs(mut rest: &mut [u8]) {
    while rest.len() >= TLV_HEADER {
        let len = usize::from(u16::from_be_bytes([rest[2], rest[3]]));
        rest[0] = if rest[1] == TLV_PADDING { 0 } else { FLAG_UNRECOGNIZED };
        if rest.len() - TLV_HEADER < len {
            rest[0] |= FLAG_MALFORMED;
            return;
        }
        rest = &mut rest[TLV_HEADER + len..];
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
        assert_eq!(
            back[PLAIN_LEN..],
            [FLAG_UNRECOGNIZED, 200, 0, 1, 9, FLAG_MALFORMED, 1, 0xff, 0xff]
        );
    }
}
