//! What the fuzzer does with any bytes, one function for each place where bytes come in. The targets of `tests/fuzz` and
//! the replay of the corpus in every `make test` (`tests/corpus.rs`) run the same functions: what fuzzing found once stays
//! found.

mod frame;
mod mesh_file;
mod recording;
mod stateful;
mod store;
mod wireguard;

pub use frame::frame;
pub use mesh_file::mesh_file;
pub use recording::recording;
pub use stateful::{Settled, stateful};
pub use store::{store_file, store_record};
pub use wireguard::wireguard_request;

use std::net::SocketAddr;

use leaderd_core::admin::AdminRequest;
use leaderd_core::probe::keys::HmacKey;
use leaderd_core::probe::stamp::{ERROR_ESTIMATE, Location, ReflectorPacket, SenderPacket};

/// A target: its name, which is its corpus' directory too, and what it does.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 9] = [
    ("admin", admin),
    ("frame", frame),
    ("mesh_file", mesh_file),
    ("recording", recording),
    ("stamp", stamp),
    ("stateful", stateful),
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

/// A probe or a reply: no panic, and a reply as long as its request that tells what source arrived, or nothing.
pub fn stamp(bytes: &[u8]) {
    let key = HmacKey::new([0; 32]);
    let source = SocketAddr::new([10, 42, 4, 0].into(), 40_000);
    let _ = SenderPacket::sender(bytes);
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
            location: Some(Location { source, port: 8620 }),
        };
        let back = reply.encode(key, bytes);
        assert_eq!(back.len(), bytes.len());
        let told = ReflectorPacket::decode(&back, key).expect("what is signed is believed");
        let silent = ReflectorPacket { location: None, ..reply };
        assert!(told == reply || told == silent, "{told:?}");
    }
}
