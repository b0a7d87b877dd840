use leaderd::store::{Identity, Store};
use leaderd_core::io::StoredGroup;
use leaderd_core::state::Decision;

use super::frame::{group, live};

/// The rows of a store (a [`StoredGroup`] in postcard): a group starts from them and lives, or refuses them.
pub fn store_record(bytes: &[u8]) {
    let Ok(stored) = postcard::from_bytes::<StoredGroup>(bytes) else { return };
    if let Some(decision) = &stored.decision {
        let _ = postcard::from_bytes::<Decision>(decision);
    }
    if let Ok(mut group) = group(&stored) {
        live(&mut group, None);
    }
}

/// The file of a store: it opens, or is refused with an error, but nothing panics out of it.
pub fn store_file(bytes: &[u8]) {
    let dir = tempfile::tempdir().expect("a directory for the store");
    std::fs::write(dir.path().join("leaderd.redb"), bytes).expect("room for the store");
    let identity = Identity {
        mesh: "fuzz".into(),
        location: "cloud".parse().expect("a name"),
        node: "cloud-1".parse().expect("a name"),
    };
    if let Err(error) = Store::open(dir.path(), &identity) {
        assert!(!error.to_string().is_empty());
    }
}
