use std::sync::Arc;
use std::time::Duration;

use leaderd_core::group::{Group, GroupError, GroupOutput};
use leaderd_core::ids::Slot;
use leaderd_core::io::StoredGroup;
use leaderd_core::mesh::{Location, Mesh, MeshSpec, Node, Overlay};
use leaderd_core::time::{Instant, Now, WallTime};
use leaderd_core::wire::Frame;

/// A frame of the control channel: one that decodes encodes to the same again, and whatever an authenticated peer sends
/// as Raft bytes, a group does not panic, then or in the five seconds that follow.
pub fn frame(bytes: &[u8]) {
    if let Ok(frame) = Frame::decode(bytes) {
        let again = Frame::decode(&frame.encode()).expect("what was encoded decodes");
        assert_eq!(again.encode(), frame.encode());
        if let Frame::Raft { message, .. } = frame {
            deliver(&message);
        }
    }
    deliver(bytes);
}

/// `cloud-1` of a location with the candidates `cloud-0` to `cloud-2`, started from a store.
pub(super) fn group(stored: &StoredGroup) -> Result<Group, GroupError> {
    let me = "cloud-1".parse().expect("a name");
    Group::new(mesh(), "cloud".parse().expect("a name"), me, stored, 1, at(0))
}

/// Lets a group live for five seconds, with some bytes from a peer in the first and the third.
pub(super) fn live(group: &mut Group, bytes: Option<&[u8]>) {
    let peer = "cloud-0".parse().expect("a name");
    let mut persisted = 0;
    for step in 0..50 {
        let now = at(step * 100);
        if let Some(bytes) = bytes.filter(|_| step == 0 || step == 20) {
            group.handle_raft(now, &peer, bytes);
        }
        while let Some(output) = group.poll_output() {
            if let GroupOutput::Persist { ticket, .. } = output {
                persisted = persisted.max(ticket);
            }
        }
        group.handle_persisted(now, persisted);
        if group.poll_timeout().is_some_and(|t| t <= now.mono + Duration::from_millis(100)) {
            group.handle_timeout(now);
        }
    }
}

fn deliver(bytes: &[u8]) {
    live(&mut group(&StoredGroup::default()).expect("a voter"), Some(bytes));
}

fn at(ms: u64) -> Now {
    Now { mono: Instant(ms * 1000), wall: WallTime(1_700_000_000_000_000 + ms * 1000) }
}

fn mesh() -> Arc<Mesh> {
    let node = |i: u8| {
        let (name, location) = (format!("cloud-{i}"), "cloud".parse().expect("a name"));
        let name = name.parse().expect("a name");
        let index = u16::from(i) + 1;
        Node { slot: Some(Slot(i)), ..Node::member(name, index, location, [10, 0, 0, 1].into()) }
    };
    let name: leaderd_core::ids::LocationName = "cloud".parse().expect("a name");
    let cloud = Location::new(name.clone(), Overlay::External);
    let locations = [(name, cloud)].into();
    let nodes = (0..3).map(node).map(|n| (n.name.clone(), n)).collect();
    Arc::new(Mesh::unchecked(MeshSpec { locations, nodes, ..MeshSpec::named("fuzz") }))
}
