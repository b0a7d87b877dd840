//! What the fuzzer does with any bytes, one function for each place where bytes come in. The targets of `tests/fuzz` and
//! the replay of the corpus in every `make test` (`tests/corpus.rs`) run the same functions: what fuzzing found once stays
//! found.

mod frame;
mod mesh_file;
mod recording;
mod store;
mod wireguard;

pub use frame::frame;
pub use mesh_file::mesh_file;
pub use recording::recording;
pub use store::{store_file, store_record};
pub use wireguard::wireguard_request;

use leaderd_core::admin::AdminRequest;
use leaderd_core::probe::keys::HmacKey;
use leaderd_core::probe::stamp::{ERROR_ESTIMATE, ReflectorPacket, SenderPacket};

/// A target: its name, which is its corpus' directory too, and what it does.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 8] = [
    ("admin", admin),
    ("frame", frame),
    ("mesh_file", mesh_file),
    ("recording", recording),
    ("stamp", stamp),
    ("store_file", store_file),
    ("store_record", store_record),
    ("wireguard_request", wireguard_request),
];

/// The body of a request to the admin socket: what is understood is said again in the same words.
pub fn admin(bytes: &[u8]) {
    if let Ok(request) = serde_json::from_slice::<AdminRequest>(bytes) {
        let said = serde_json::to_vec(&request).expect("a request is plain data");
        let again: AdminRequest =
            serde_json::from_slice(&said).expect("what was said is understood");
        assert_eq!(again, request);
    }
}

/// A probe or a reply: no panic, and no reply longer than its request.
pub fn stamp(bytes: &[u8]) {
    let key = HmacKey::new([0; 32]);
    for key in [None, Some(&key)] {
        let _ = ReflectorPacket::decode(bytes, key);
        let Ok(p) = SenderPacket::decode(bytes, key) else { continue };
        let reply = ReflectorPacket {
            seq: 0,
            timestamp: p.timestamp,
            ssid: p.ssid,
            received: p.timestamp,
            sender_seq: p.seq,
            sender_timestamp: p.timestamp,
            sender_error: ERROR_ESTIMATE,
            sender_ttl: 64,
            location: None,
        };
        let back = reply.encode(key, bytes);
        assert!(back.len() <= bytes.len());
        assert_eq!(ReflectorPacket::decode(&back, key), Ok(reply));
    }
}
