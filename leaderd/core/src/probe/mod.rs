//! Probes: the classes of them, the STAMP packets on the wire, the keys that authenticate these, and the reflector that
//! answers.

pub mod class;
pub mod keys;
pub mod reflect;
pub mod stamp;
mod tlv;

pub use class::ProbeClass;
pub use keys::{HmacKey, ProbeKeys};
pub use reflect::{Reflector, Reject};
