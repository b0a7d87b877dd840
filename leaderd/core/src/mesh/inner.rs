//! Which range the inner addresses are from (`docs/decisions/0010`).

use ipnet::Ipv4Net;

use super::diagnostic::Sink;
use super::draft::{Draft, Head};
use crate::ids::Slot;

/// The range of a mesh file that does not say. A mesh that runs with it must not move to another one by an upgrade, so this never
/// changes; new meshes say theirs.
pub const UNSAID_INNER: &str = "100.127.0.0/16";

/// What a new mesh takes: nobody routes link-local addresses, and no discovery of endpoints takes them for anybody's.
pub const NEW_INNER: &str = "169.254.0.0/16";

/// What else a new mesh may take where the one before is in use, the best first.
pub const OTHER_INNER: [&str; 3] = ["172.29.0.0/16", "10.213.0.0/16", "100.127.0.0/16"];

/// In link-local addresses this slot holds 169.254.169.254 and its neighbours, where clouds serve metadata, names and time.
pub const METADATA_SLOT: Slot = Slot(10);

/// True for a slot whose inner addresses somebody else needs.
pub fn is_taken(range: Ipv4Net, slot: Slot) -> bool {
    slot == METADATA_SLOT && range.addr().is_link_local()
}

pub(super) fn check(draft: &Draft, head: &Head, sink: &mut Sink<'_>) {
    for node in draft.nodes.values() {
        let Some(slot) = &node.value.slot else { continue };
        if is_taken(head.inner4.value, slot.value) {
            let message = format!(
                "slot {} of the inner range {} holds 169.254.169.254, where clouds serve metadata",
                slot.value, head.inner4.value
            );
            sink.push(slot.at, message, "give the node another slot");
        }
    }
}
