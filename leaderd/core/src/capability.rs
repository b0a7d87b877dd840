//! What a daemon understands, so that two versions of leaderd can share a mesh.
//!
//! Every hello says what its sender understands, and every entry of a replicated log says what its readers must
//! understand. A bit that a daemon does not know belongs to a newer version: it is kept, and decides nothing.
//! The rules for growing a format are in `docs/compatibility.md`.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One thing that newer daemons understand and older ones do not.
///
/// Written by position, on the wire and on disk: new ones go at the end, none is moved or removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Capability {
    /// All that the first version with a promise of compatibility understands.
    Base,
    /// Signs decisions as a voter. Not of a version alone: the node's key must be at hand.
    Proofs,
}

/// A set of capabilities, one bit each.
#[derive(Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Capabilities(u64);

impl Capabilities {
    pub const NONE: Self = Self(0);

    /// What this daemon understands.
    pub const OURS: Self = Self::NONE.with(Capability::Base);

    #[must_use]
    pub const fn with(self, one: Capability) -> Self {
        Self(self.0 | 1 << one as u8)
    }

    pub const fn has(self, one: Capability) -> bool {
        self.0 >> one as u8 & 1 == 1
    }

    /// What `self` asks for and `other` lacks.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// As a newer version may send it: bits that this one has no name for.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }
}

impl fmt::Debug for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#b}", self.0)
    }
}

/// Why bytes of a replicated log or of its snapshot are not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    #[error("a newer version of leaderd wrote it")]
    Newer,
    #[error("malformed")]
    Malformed,
}

/// Writes `value` behind what its reader must understand.
pub(crate) fn encode<T: Serialize>(needs: Capabilities, value: &T) -> Vec<u8> {
    postcard::to_stdvec(&(needs, value)).expect("plain data")
}

/// Reads what [`encode`] wrote. Bytes behind the value are refused: whoever wrote them meant something.
pub(crate) fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Unreadable> {
    let (needs, rest) =
        postcard::take_from_bytes::<Capabilities>(bytes).map_err(|_| Unreadable::Malformed)?;
    if !needs.without(Capabilities::OURS).is_empty() {
        return Err(Unreadable::Newer);
    }
    match postcard::take_from_bytes(rest) {
        Ok((value, [])) => Ok(value),
        _ => Err(Unreadable::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_needs_a_capability_that_this_version_lacks_is_not_read() {
        let newer = Capabilities::from_bits(1 << 40);
        assert_eq!(decode::<u32>(&encode(newer, &7u32)), Err(Unreadable::Newer));
        assert_eq!(decode::<u32>(&encode(Capabilities::OURS, &7u32)), Ok(7));
        assert_eq!(decode::<u32>(&encode(Capabilities::NONE, &7u32)), Ok(7));
    }

    #[test]
    fn what_is_too_long_or_too_short_is_not_read() {
        let mut bytes = encode(Capabilities::NONE, &7u32);
        bytes.push(0);
        assert_eq!(decode::<u32>(&bytes), Err(Unreadable::Malformed));
        assert_eq!(decode::<u32>(&bytes[..1]), Err(Unreadable::Malformed));
        assert_eq!(decode::<u32>(&[]), Err(Unreadable::Malformed));
    }
}
