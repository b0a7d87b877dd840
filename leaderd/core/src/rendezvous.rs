//! Rendezvous hashing: nodes that know the same names agree on an order of them, one for each key, without a message.
//!
//! All nodes of a mesh must order alike, whatever their machine and version. So this is FNV-1a with a mixing finish (that of MurmurHash3),
//! and not the standard library's hasher.

/// Returns the weight of `name` for `key`: the heaviest name comes first.
pub fn weight(key: &str, name: &str) -> u64 {
    let bytes = key.bytes().chain([0]).chain(name.bytes());
    let mut h = bytes
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    h ^= h >> 33;
    h = h.wrapping_mul(0xff51_afd7_ed55_8ccd);
    h ^ (h >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_the_same_in_every_version() {
        assert_eq!(weight("", ""), 0x9091d60726574ae6);
        assert_eq!(weight("home", "cloud"), 0xe84cd05d77398d54);
        assert_eq!(weight("cloud", "home"), 0x66d5d3149660cb80);
    }
}
