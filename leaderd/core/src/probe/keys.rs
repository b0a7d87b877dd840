//! Keys of the probes: one for every pair of nodes, from the same X25519 keys that WireGuard uses.
//!
//! `key(a, b) = HMAC-SHA256(DH(a, b), "leaderd stamp v1")`: only the two ends can compute it, and nothing is exchanged.
//!
//! A recording of a node holds no key. The core runs it again with [`ProbeKeys::redacted`], which takes and gives the tags
//! that [`super::stamp::redact`] left in the place of the true ones.

use std::collections::BTreeMap;
use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use wgctl_plan::WgPublicKey;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Separates these keys from anything else ever derived from the same secret.
const LABEL: &[u8] = b"leaderd stamp v1";

/// Octets of a tag: HMAC-SHA-256 truncated to 128 bits (RFC 8762 §4.4).
pub(super) const TAG_LEN: usize = 16;
/// Stands for a tag that was right, in a recording.
pub(super) const REDACTED: [u8; TAG_LEN] = [0; TAG_LEN];
/// Stands for one that was wrong.
pub(super) const REDACTED_FORGERY: [u8; TAG_LEN] = [0xff; TAG_LEN];

/// Key that authenticates probes between two nodes; without one only redacted tags are right.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct HmacKey(Option<[u8; 32]>);

impl fmt::Debug for HmacKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HmacKey(…)")
    }
}

impl HmacKey {
    pub const fn new(key: [u8; 32]) -> Self {
        Self(Some(key))
    }

    pub(super) fn tag(&self, text: &[u8]) -> [u8; TAG_LEN] {
        let Some(key) = &self.0 else { return REDACTED };
        let full = mac(key, text).finalize().into_bytes();
        let mut tag = [0; TAG_LEN];
        tag.copy_from_slice(&full[..TAG_LEN]);
        tag
    }

    /// Compares in constant time.
    pub(super) fn verify(&self, text: &[u8], tag: &[u8]) -> bool {
        match &self.0 {
            Some(key) => tag.len() == TAG_LEN && mac(key, text).verify_truncated_left(tag).is_ok(),
            None => tag == REDACTED,
        }
    }
}

fn mac(key: &[u8; 32], text: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(text);
    mac
}

/// The secret of this node, and the keys made from it.
#[derive(Clone)]
pub struct ProbeKeys {
    /// `None`: packets are redacted, as a recording has them.
    secret: Option<StaticSecret>,
    /// At most one per node of the mesh (callers only ask for nodes that are in it).
    cache: BTreeMap<WgPublicKey, HmacKey>,
}

impl fmt::Debug for ProbeKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProbeKeys").field("public", &self.public()).finish_non_exhaustive()
    }
}

impl ProbeKeys {
    /// From the X25519 secret of this node (the file `wireguard.key`).
    pub fn new(mut secret: [u8; 32]) -> Self {
        let keys = Self { secret: Some(StaticSecret::from(secret)), cache: BTreeMap::new() };
        secret.zeroize();
        keys
    }

    /// No keys, to run a recording again: only packets that [`super::stamp::redact`] found authentic are so here, and
    /// what is sent carries the redacted tag. Never for a node that has sockets.
    pub const fn redacted() -> Self {
        Self { secret: None, cache: BTreeMap::new() }
    }

    /// All zeros if redacted.
    pub fn public(&self) -> WgPublicKey {
        WgPublicKey(self.secret.as_ref().map(|s| PublicKey::from(s).to_bytes()).unwrap_or_default())
    }

    /// The key shared with a peer; computed once.
    pub fn with(&mut self, peer: &WgPublicKey) -> HmacKey {
        if let Some(key) = self.cache.get(peer) {
            return key.clone();
        }
        let Some(secret) = &self.secret else { return HmacKey(None) };
        let shared = secret.diffie_hellman(&PublicKey::from(peer.0));
        let mut mac = Hmac::<Sha256>::new_from_slice(shared.as_bytes())
            .expect("HMAC takes a key of any length");
        mac.update(LABEL);
        let key = HmacKey(Some(mac.finalize().into_bytes().into()));
        self.cache.insert(*peer, key.clone());
        key
    }

    /// Forgets the keys of peers that are no longer wanted.
    pub fn retain(&mut self, mut wanted: impl FnMut(&WgPublicKey) -> bool) {
        self.cache.retain(|peer, _| wanted(peer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_make_the_same_key_and_a_third_another() {
        let (mut a, mut b, mut c) =
            (ProbeKeys::new([1; 32]), ProbeKeys::new([2; 32]), ProbeKeys::new([3; 32]));
        assert_eq!(a.with(&b.public()).0, b.with(&a.public()).0);
        assert_ne!(a.with(&b.public()).0, c.with(&b.public()).0);
    }

    #[test]
    fn debug_shows_no_secret() {
        let mut keys = ProbeKeys::new([7; 32]);
        let key = keys.with(&WgPublicKey([9; 32]));
        assert_eq!(format!("{key:?}"), "HmacKey(…)");
        assert!(!format!("{keys:?}").contains("7, 7"));
    }
}
