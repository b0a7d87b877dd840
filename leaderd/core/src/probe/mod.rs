//! Probes on the wire: STAMP packets, the keys that authenticate them, and the reflector that answers.

pub mod keys;
pub mod reflect;
pub mod stamp;
mod tlv;

pub use keys::{HmacKey, ProbeKeys};
pub use reflect::{Reflector, Reject};
