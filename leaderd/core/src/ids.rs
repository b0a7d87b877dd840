//! Names and numbers of the mesh. Each is a type of its own, checked once and trusted afterwards.
//!
//! A *node* has a name and an index, unique in the mesh. A *location* is a group of nodes. A *slot* numbers a candidate within its
//! location, a *generation* the mesh file, and an *epoch* a decision of one location.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A text that is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no name: use 1 to 63 of a-z, 0-9, '-' and '.', starting and ending with a letter or digit"
)]
pub struct InvalidName(pub String);

fn check_name(s: &str) -> Result<(), InvalidName> {
    let edge = |c: Option<&u8>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let bytes = s.as_bytes();
    let ok = (1..=63).contains(&bytes.len())
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes
            .iter()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'-' | b'.'));
    if ok { Ok(()) } else { Err(InvalidName(s.to_owned())) }
}

macro_rules! name {
    ($(#[$doc:meta])* $ty:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $ty(String);

        impl $ty {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl TryFrom<String> for $ty {
            type Error = InvalidName;
            fn try_from(s: String) -> Result<Self, InvalidName> {
                check_name(&s)?;
                Ok(Self(s))
            }
        }
        impl FromStr for $ty {
            type Err = InvalidName;
            fn from_str(s: &str) -> Result<Self, InvalidName> {
                s.to_owned().try_into()
            }
        }
        impl From<$ty> for String {
            fn from(n: $ty) -> String {
                n.0
            }
        }
        impl fmt::Display for $ty {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
        impl fmt::Debug for $ty {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// Name of a node, unique in the mesh.
    NodeName
);
name!(
    /// Name of a location, unique in the mesh.
    LocationName
);

macro_rules! number {
    ($(#[$doc:meta])* $ty:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        pub struct $ty(pub $inner);

        impl fmt::Display for $ty {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
        impl fmt::Debug for $ty {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

number!(
    /// Small number (0 to 14) that names a candidate within its location. Fixed by configuration.
    Slot(u8)
);
number!(
    /// Number of a node in the mesh, 1 to 4094: the low 12 bits of its inner addresses. Fixed by configuration.
    NodeIndex(u16)
);
number!(
    /// Number of a decision, monotonic per location. 0 is 'nothing decided yet'.
    Epoch(u64)
);
number!(
    /// Generation of the mesh file: the operator counts it up with every change.
    Generation(u64)
);

impl Slot {
    /// Slots 0 to 14 name candidates; 15 is [`Slot::OVERLAY`].
    pub const MAX: Slot = Slot(14);
    /// The 'slot' whose inner addresses are the nodes' addresses inside a VXLAN overlay.
    pub const OVERLAY: Slot = Slot(15);
}

impl Epoch {
    /// No honest location counts so far between two words of its decisions. Without this bound one false claim of the highest
    /// number could never be outdone.
    const MAX_JUMP: u64 = 1 << 32;

    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// Returns whether a decision of this epoch may replace one of epoch `known` (0: none is known).
    pub const fn may_follow(self, known: Self) -> bool {
        self.0 > known.0 && self.0 - known.0 < Self::MAX_JUMP
    }
}
