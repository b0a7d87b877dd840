//! The private key of a node.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use wgctl_plan::WgPublicKey;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::{Zeroize, Zeroizing};

/// An X25519 secret. Has no `Debug`, and is zeroed when dropped.
#[derive(Clone)]
#[allow(missing_debug_implementations)]
pub struct PrivateKey(Zeroizing<[u8; 32]>);

/// The text is no key: it must be 32 bytes in base64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a private key is 32 bytes in base64")]
pub struct InvalidKey;

impl PrivateKey {
    pub fn from_bytes(mut bytes: [u8; 32]) -> Self {
        let key = Self(Zeroizing::new(bytes));
        bytes.zeroize();
        key
    }

    /// Parses the text of a key file: base64, with or without a newline.
    pub fn from_base64(text: &str) -> Result<Self, InvalidKey> {
        let bytes = Zeroizing::new(STANDARD.decode(text.trim()).map_err(|_| InvalidKey)?);
        Ok(Self(Zeroizing::new(bytes.as_slice().try_into().map_err(|_| InvalidKey)?)))
    }

    pub fn public(&self) -> WgPublicKey {
        WgPublicKey(*PublicKey::from(&StaticSecret::from(*self.0)).as_bytes())
    }

    pub(super) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_public_key_is_that_of_wg_pubkey() {
        // RFC 7748 §6.1, Alice.
        let secret = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=\n";
        let public = PrivateKey::from_base64(secret).ok().map(|k| STANDARD.encode(k.public().0));
        assert_eq!(public.as_deref(), Some("hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="));
    }

    #[test]
    fn a_short_key_is_refused() {
        assert!(PrivateKey::from_base64("AAAA").is_err());
    }
}
