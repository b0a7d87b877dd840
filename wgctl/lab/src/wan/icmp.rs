//! ICMP 'fragmentation needed' (RFC 792, next-hop MTU of RFC 1191), as the router at a narrow link sends it.

/// Bytes of an IPv4 header without options.
const IPV4_HEADER: usize = 20;

/// True if the 'don't fragment' bit is set.
pub fn dont_fragment(packet: &[u8]) -> bool {
    packet.len() >= IPV4_HEADER && packet[6] & 0x40 != 0
}

/// The answer to `packet`, to be delivered to its sender. `None` if it is no whole IPv4 packet.
pub fn fragmentation_needed(packet: &[u8], mtu: u16) -> Option<Vec<u8>> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let quoted = packet.get(..header + 8)?;
    let total = IPV4_HEADER + 8 + quoted.len();
    let mut out = vec![0u8; IPV4_HEADER + 8];
    out[0] = 0x45;
    out[2..4].copy_from_slice(&(total as u16).to_be_bytes());
    out[8] = 64;
    out[9] = 1;
    // The router's address: the destination's, as the emulator has none of its own.
    out[12..16].copy_from_slice(&packet[16..20]);
    out[16..20].copy_from_slice(&packet[12..16]);
    let sum = checksum(&out[..IPV4_HEADER]);
    out[10..12].copy_from_slice(&sum.to_be_bytes());
    out[20] = 3;
    out[21] = 4;
    out[26..28].copy_from_slice(&mtu.to_be_bytes());
    out.extend_from_slice(quoted);
    let sum = checksum(&out[IPV4_HEADER..]);
    out[22..24].copy_from_slice(&sum.to_be_bytes());
    Some(out)
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_carries_the_mtu_and_valid_checksums() {
        let mut packet = vec![0u8; 1500];
        packet[0] = 0x45;
        packet[6] = 0x40;
        packet[12..20].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
        assert!(dont_fragment(&packet));
        let answer = fragmentation_needed(&packet, 1400).unwrap();
        assert_eq!(&answer[16..20], &[1, 2, 3, 4]);
        assert_eq!(&answer[26..28], &1400u16.to_be_bytes());
        assert_eq!(checksum(&answer[..20]), 0);
        assert_eq!(checksum(&answer[20..]), 0);
        assert!(fragmentation_needed(&[0x45, 0], 1400).is_none());
    }
}
